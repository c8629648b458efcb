/* Urgent data: MSG_OOB, the mark at which reading stops, SO_OOBINLINE; as TCP has it (tcp(7), Linux's net/ipv4/tcp.c). */
#include "internal.h"

#include <errno.h>

void xs_start_urgent(struct xs_sock *s)
{
	if (!(s->x->features & XS_F_URGENT))
		return;
	xs_urgent_init(&s->in_urgent, s->ring.page, s->ring.role, false);
	xs_urgent_init(&s->out_urgent, s->ring.page, s->ring.role, true);
}

uint32_t xs_mark(struct xs_sock *s, uint32_t *readable)
{
	struct xs_urgent *u = &s->in_urgent;
	const struct xs_half *rx = &s->ring.rx;
	uint32_t before = u->count, ahead;
	bool at = u->marked && u->mark == rx->own;

	ahead = xs_urgent_ahead(u, rx);
	if (u->count == before)
		return ahead;
	s->urgent_read = false;
	if (at && ahead && ahead != XS_NO_MARK && !s->oobinline && *readable) {
		/* Of two in a row the first is dropped where reading stands at it; elsewhere it is one of the others now. */
		xs_consume(s, 1);
		--*readable;
		--ahead;
	}
	return ahead;
}

uint32_t xs_up_to_mark(struct xs_sock *s, uint32_t readable, size_t got, bool peek, bool *stop)
{
	uint32_t ahead = xs_mark(s, &readable);

	*stop = false;
	if (ahead >= readable)
		return readable;
	if (ahead || got) {
		*stop = true;
		return got && !ahead ? 0 : ahead;
	}
	if (s->oobinline)
		return readable;
	if (!peek)
		xs_consume(s, 1);
	return readable - 1;
}

bool xs_peeks_behind_mark(const struct xs_sock *s)
{
	return s->in_urgent.marked && s->in_urgent.mark == s->ring.rx.own && !s->oobinline;
}

ssize_t xs_receive_urgent(struct xs_sock *s, void *byte, size_t size, bool peek)
{
	uint32_t readable, ahead;
	int32_t broken;
	int error = 0;
	ssize_t got = 0;

	if (s->state != XS_CONNECTED) {
		errno = s->state == XS_LISTENING ? ENOTCONN : EINVAL;
		return -1;
	}
	pthread_mutex_lock(&s->in_lock);
	readable = xs_readable_or_error(&s->ring.rx, &broken);
	ahead = xs_mark(s, &readable);
	if (s->oobinline || ahead == XS_NO_MARK || s->urgent_read) {
		error = EINVAL;
	} else if (ahead < readable) {
		got = size > 0;
		xs_copy_out(&s->ring.rx, ahead, byte, (uint32_t)got);
		s->urgent_read = !peek;
	} else if (!broken && !s->in_shut) {
		error = EAGAIN;
	}
	pthread_mutex_unlock(&s->in_lock);
	if (!error)
		return got;
	errno = error;
	return -1;
}

int xensock_sockatmark(int fd)
{
	struct xs_sock *s = xs_get(fd);
	uint32_t readable;
	int at = 0;

	if (!s)
		return -1;
	if (s->state == XS_CONNECTED) {
		pthread_mutex_lock(&s->in_lock);
		readable = xs_readable(&s->ring.rx);
		at = xs_mark(s, &readable) == 0;
		pthread_mutex_unlock(&s->in_lock);
	}
	xs_put(s);
	return at;
}
