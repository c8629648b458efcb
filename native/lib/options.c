/* Names, options and half-close. */
#include "internal.h"

#include <errno.h>
#include <string.h>
#include <sys/time.h>

void xs_give_address(const struct xs_address *a, struct sockaddr *address, socklen_t *length)
{
	memcpy(address, a->bytes, *length < a->length ? *length : a->length);
	*length = a->length;
}

static int ask_name(struct xs_sock *s, bool peer, struct xs_address *a)
{
	struct xs_request q = {.cmd = XS_GETNAME, .id = s->id};
	struct xs_response r;
	int error;

	q.name.which = peer;
	error = xs_command(s->x, &q, &r);
	if (error)
		return error;
	pthread_mutex_lock(&s->x->lock);
	xs_name(peer ? &s->peer : &s->own, &r);
	*a = peer ? s->peer : s->own;
	pthread_mutex_unlock(&s->x->lock);
	return a->length ? 0 : EPROTO;
}

static int name(int fd, bool peer, struct sockaddr *address, socklen_t *length)
{
	struct xs_sock *s = xs_get(fd);
	struct xs_address a;
	int error = 0, state;

	if (!s)
		return -1;
	pthread_mutex_lock(&s->x->lock);
	xs_responses(s->x, -1);
	xs_look_connect(s);
	state = s->state;
	a = peer ? s->peer : s->own;
	pthread_mutex_unlock(&s->x->lock);
	if (peer && (state != XS_CONNECTED || (s->told && xs_error(&s->ring.tx)))) {
		error = ENOTCONN;
	} else if (!peer && state == XS_NEW) {
		struct sockaddr_in6 none = {.sin6_family = (sa_family_t)s->domain};

		xs_set_address(&a, (struct sockaddr *)&none, s->domain);
	} else if (!a.length) {
		error = s->x->features & XS_F_NAMES ? ask_name(s, peer, &a) : EOPNOTSUPP;
	}
	if (!error)
		xs_give_address(&a, address, length);
	xs_put(s);
	if (!error)
		return 0;
	errno = error;
	return -1;
}

int xensock_getsockname(int s, struct sockaddr *address, socklen_t *length)
{
	return name(s, false, address, length);
}

int xensock_getpeername(int s, struct sockaddr *address, socklen_t *length)
{
	return name(s, true, address, length);
}

int xensock_set_nonblocking(int fd, int on)
{
	struct xs_sock *s = xs_get(fd);
	bool was;

	if (!s)
		return -1;
	was = atomic_exchange(&s->nonblocking, on != 0);
	xs_put(s);
	return was;
}

/* ---- our own options ---- */

static int set_time(uint64_t *ns, const void *value, socklen_t length)
{
	struct timeval t;

	if (length < sizeof t)
		return EINVAL;
	memcpy(&t, value, sizeof t);
	if (t.tv_sec < 0 || t.tv_usec < 0 || t.tv_usec >= 1000000)
		return EDOM;
	*ns = (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_usec * 1000u;
	return 0;
}

/* The smallest ring that has `bytes` each way. */
static int set_size(struct xs_sock *s, const void *value, socklen_t length)
{
	uint32_t most = s->x->max_order < XS_ORDER_V1 ? s->x->max_order : XS_ORDER_V1, order = 1;
	int bytes;

	if (length < sizeof bytes)
		return EINVAL;
	memcpy(&bytes, value, sizeof bytes);
	while (order < most && (int)(XS_PAGE << order >> 1) < bytes)
		order++;
	if (!s->chunk) { /* else it is what it is, as the kernel's may be */
		s->order = order;
		s->sized = true;
	}
	return 0;
}

static int set_inline(struct xs_sock *s, const void *value, socklen_t length)
{
	int on;

	if (length < sizeof on)
		return EINVAL;
	memcpy(&on, value, sizeof on);
	s->oobinline = on != 0;
	return 0;
}

static int local_set(struct xs_sock *s, int level, int option, const void *value, socklen_t length, bool *ours)
{
	*ours = level == SOL_SOCKET;
	if (*ours)
		switch (option) {
		case SO_RCVTIMEO:
			return set_time(&s->receive_ns, value, length);
		case SO_SNDTIMEO:
			return set_time(&s->send_ns, value, length);
		case SO_SNDBUF:
		case SO_RCVBUF:
			return set_size(s, value, length);
		case SO_OOBINLINE:
			if (!(s->x->features & XS_F_URGENT))
				break;
			return set_inline(s, value, length);
		case SO_TYPE:
		case SO_DOMAIN:
		case SO_PROTOCOL:
		case SO_ACCEPTCONN:
		case SO_ERROR:
			return ENOPROTOOPT;
		}
	*ours = false;
	return 0;
}

int xensock_setsockopt(int fd, int level, int option, const void *value, socklen_t length)
{
	struct xs_sock *s = xs_get(fd);
	struct xs_request q = {.cmd = XS_SETOPT};
	struct xs_response r;
	bool ours;
	int error;

	if (!s)
		return -1;
	error = local_set(s, level, option, value, length, &ours);
	if (!ours && !(s->x->features & XS_F_OPTIONS)) {
		error = ENOPROTOOPT;
	} else if (!ours && length > XS_OPTION) {
		error = EINVAL;
	} else if (!ours) {
		uint8_t *at = (uint8_t *)&q + offsetof(struct xs_request, option.ref);

		q.id = s->id;
		q.option.level = (uint32_t)level;
		q.option.name = (uint32_t)option;
		q.option.length = length;
		memcpy(at, value, length);
		error = xs_command(s->x, &q, &r);
		if (!error && level == SOL_SOCKET && option == SO_LINGER && length >= sizeof(struct linger)) {
			struct linger l;

			memcpy(&l, value, sizeof l);
			s->reset_on_close = l.l_onoff && !l.l_linger;
		}
	}
	xs_put(s);
	if (!error)
		return 0;
	errno = error;
	return -1;
}

static int pending_error(struct xs_sock *s)
{
	int error;

	pthread_mutex_lock(&s->x->lock);
	xs_responses(s->x, -1);
	xs_look_connect(s);
	error = xs_take_error(s);
	pthread_mutex_unlock(&s->x->lock);
	if (!error && s->state == XS_CONNECTED) {
		int32_t broken = xs_error(&s->ring.tx);

		if (!broken || broken == -ENOTCONN)
			broken = xs_error(&s->ring.rx);
		if (broken && broken != -ENOTCONN && !atomic_exchange(&s->told, true))
			error = xs_errno(broken);
	}
	return error;
}

static bool local_get(struct xs_sock *s, int level, int option, int *value)
{
	if (level != SOL_SOCKET)
		return false;
	switch (option) {
	case SO_TYPE:
		*value = SOCK_STREAM;
		return true;
	case SO_DOMAIN:
		*value = s->domain;
		return true;
	case SO_PROTOCOL:
		*value = s->protocol;
		return true;
	case SO_ACCEPTCONN:
		*value = s->state == XS_LISTENING;
		return true;
	case SO_OOBINLINE:
		*value = s->oobinline;
		return s->x->features & XS_F_URGENT;
	case SO_ERROR:
		*value = pending_error(s);
		return true;
	case SO_SNDBUF:
	case SO_RCVBUF:
		*value = (int)(XS_PAGE << (s->chunk ? s->chunk->order : s->order) >> 1);
		return true;
	}
	return false;
}

static int get(struct xs_sock *s, int level, int option, void *value, socklen_t *length)
{
	struct xs_request q = {.cmd = XS_GETOPT, .id = s->id};
	struct xs_response r;
	struct timeval t;
	const void *from = &t;
	socklen_t size = sizeof t;
	int number, error;

	if (level == SOL_SOCKET && (option == SO_RCVTIMEO || option == SO_SNDTIMEO)) {
		uint64_t ns = option == SO_RCVTIMEO ? s->receive_ns : s->send_ns;

		t = (struct timeval){(time_t)(ns / 1000000000u), (suseconds_t)(ns % 1000000000u / 1000u)};
	} else if (local_get(s, level, option, &number)) {
		from = &number;
		size = sizeof number;
	} else {
		if (!(s->x->features & XS_F_OPTIONS))
			return ENOPROTOOPT;
		q.option.level = (uint32_t)level;
		q.option.name = (uint32_t)option;
		q.option.length = *length < XS_OPTION ? *length : XS_OPTION;
		error = xs_command(s->x, &q, &r);
		if (error)
			return error;
		from = r.value;
		size = r.length <= XS_OPTION ? r.length : 0;
	}
	if (*length < size)
		size = *length;
	memcpy(value, from, size);
	*length = size;
	return 0;
}

int xensock_getsockopt(int fd, int level, int option, void *value, socklen_t *length)
{
	struct xs_sock *s = xs_get(fd);
	int error;

	if (!s)
		return -1;
	error = get(s, level, option, value, length);
	xs_put(s);
	if (!error)
		return 0;
	errno = error;
	return -1;
}

int xensock_shutdown(int fd, int how)
{
	struct xs_sock *s = xs_get(fd);
	struct xs_request q = {.cmd = XS_SHUTDOWN};
	struct xs_response r;
	int error = 0;

	if (!s)
		return -1;
	if (how != SHUT_RD && how != SHUT_WR && how != SHUT_RDWR)
		error = EINVAL;
	else if (s->state != XS_CONNECTED)
		error = ENOTCONN;
	else if (how != SHUT_RD && !(s->x->features & XS_F_SHUTDOWN))
		error = EOPNOTSUPP;
	if (!error) {
		if (how != SHUT_WR)
			s->in_shut = true;
		if (how != SHUT_RD) {
			/* Whoever is sending finishes the piece it has in hand. */
			pthread_mutex_lock(&s->out_lock);
			s->out_shut = true;
			pthread_mutex_unlock(&s->out_lock);
		}
		if (s->x->features & XS_F_SHUTDOWN) {
			q.id = s->id;
			q.shutdown.how = (uint32_t)how;
			error = xs_command(s->x, &q, &r);
		}
		xs_sock_news(s);
	}
	xs_put(s);
	if (!error)
		return 0;
	errno = error;
	return -1;
}
