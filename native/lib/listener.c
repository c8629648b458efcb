/* Listeners. A listener has at most one ACCEPT at the backend, whoever and how many wait for it; what it
 * brings stays in line for the next xensock_accept(). At most XS_PARKED_ACCEPT are parked; listeners
 * that find no place stand in line. */
#include "internal.h"

#include <errno.h>
#include <string.h>

int xensock_bind(int fd, const struct sockaddr *address, socklen_t length)
{
	struct xs_sock *s = xs_get(fd);
	struct xs_request q = {.cmd = XS_BIND};
	struct xs_response r;
	int error;

	if (!s)
		return -1;
	error = s->state == XS_NEW ? xs_check_address(s, address, length) : EINVAL;
	if (!error) {
		q.id = s->id;
		xs_set_address(&q.bind.address, address, s->domain);
		error = xs_command(s->x, &q, &r);
	}
	if (!error) {
		int unbound = XS_NEW;

		pthread_mutex_lock(&s->x->lock);
		s->own = q.bind.address;
		if (s->x->features & XS_F_NAMES)
			xs_name(&s->own, &r);
		else if (!s->own.bytes[2] && !s->own.bytes[3])
			s->own.length = 0; /* which port it became is not known */
		atomic_compare_exchange_strong(&s->state, &unbound, XS_BOUND);
		pthread_mutex_unlock(&s->x->lock);
	}
	xs_put(s);
	if (!error)
		return 0;
	errno = error;
	return -1;
}

int xensock_listen(int fd, int backlog)
{
	struct xs_sock *s = xs_get(fd);
	struct xs_request q = {.cmd = XS_LISTEN};
	struct xs_response r;
	int error = 0;

	if (!s)
		return -1;
	if (s->state == XS_NEW) { /* as the kernel: any address, any port */
		struct sockaddr_in6 any = {.sin6_family = (sa_family_t)s->domain};

		if (xensock_bind(fd, (struct sockaddr *)&any, sizeof any))
			error = errno;
	} else if (s->state != XS_BOUND && s->state != XS_LISTENING) {
		error = EINVAL;
	}
	if (!error) {
		q.id = s->id;
		q.listen.backlog = backlog < 0 ? 0 : (uint32_t)backlog;
		error = xs_command(s->x, &q, &r);
	}
	if (!error)
		s->state = XS_LISTENING;
	xs_put(s);
	if (!error)
		return 0;
	errno = error;
	return -1;
}

static void stand_in_line(struct xs_sock *s)
{
	struct xensock *x = s->x;

	if (s->wants)
		return;
	s->wants = true;
	atomic_fetch_add(&s->refs, 1);
	s->next_wanting = NULL;
	*x->wanting_tail = s;
	x->wanting_tail = &s->next_wanting;
}

bool xs_want_accept(struct xs_sock *s)
{
	struct xensock *x = s->x;
	struct xs_request q = {.cmd = XS_ACCEPT, .id = s->id};
	struct xs_sock *c;
	int error = 0;

	if (s->coming || s->wants || s->closed)
		return true;
	c = xs_sock_new(x, s->domain, s->protocol, s->sized ? s->order : xs_default_order(x));
	if (c) {
		c->chunk = xs_chunk_take(x, c->order);
		if (!c->chunk)
			error = errno;
	} else {
		error = errno;
	}
	if (!error) {
		q.accept.id_new = c->id;
		q.accept.ref = c->chunk->ref;
		q.accept.port = c->event->port;
		error = xs_request_send(x, &q, XS_SOCK_ACCEPT, NULL, s);
	}
	if (!error) {
		s->coming = c;
		return true;
	}
	if (c)
		xs_put_locked(c);
	if (error == EAGAIN)
		stand_in_line(s);
	else
		s->accept_error = error;
	return error == EAGAIN;
}

void xs_next_accept(struct xensock *x)
{
	while (x->wanting && !x->dead && !x->doomed && x->parked < XS_PARKED_ACCEPT && xs_cmdfront_free(&x->ring)) {
		struct xs_sock *s = x->wanting;

		x->wanting = s->next_wanting;
		if (!x->wanting)
			x->wanting_tail = &x->wanting;
		s->wants = false;
		if (!s->closed && !xs_want_accept(s))
			xs_sock_news(s);
		xs_put_locked(s);
	}
}

void xs_accepted(struct xs_sock *listener, const struct xs_response *r, int error)
{
	struct xs_sock *c = listener->coming;

	listener->coming = NULL;
	if (error) {
		listener->accept_error = error;
		xs_put_locked(c);
		xs_sock_news(listener);
		return;
	}
	c->known = true;
	if (listener->closed) { /* nobody can take it any more */
		xs_doom(c, true);
		xs_put_locked(c);
		return;
	}
	if (listener->x->features & XS_F_NAMES)
		xs_name(&c->peer, r);
	xs_start_ring(c);
	c->state = XS_CONNECTED;
	c->next_ready = NULL;
	*listener->ready_tail = c;
	listener->ready_tail = &c->next_ready;
	xs_sock_news(listener);
}

/* Takes a connection that came, or asks for one. 0, EAGAIN, or what went wrong. */
static int take(struct xs_sock *s, struct xs_sock **out, int kick)
{
	struct xensock *x = s->x;
	struct xs_sock *c;
	int error = EAGAIN;

	pthread_mutex_lock(&x->lock);
	xs_responses(x, kick);
	c = s->ready;
	if (!c && !s->accept_error && !x->dead)
		xs_want_accept(s);
	if (c) {
		s->ready = c->next_ready;
		if (!s->ready)
			s->ready_tail = &s->ready;
		*out = c;
		error = 0;
	} else if (s->accept_error) {
		error = s->accept_error;
		s->accept_error = 0;
	} else if (x->dead) {
		error = ENETDOWN;
	}
	if (s->closed && error)
		error = EBADF;
	pthread_mutex_unlock(&x->lock);
	return error;
}

static int wait_and_take(struct xs_sock *s, struct xs_sock **c)
{
	uint64_t deadline = xs_deadline(s->receive_ns);
	struct xs_waiting w;
	int error;

	if (!xs_wait_begin(&w, &s->source))
		return errno;
	while ((error = take(s, c, w.kick)) == EAGAIN && !s->nonblocking)
		if (!xs_sleep(s->x, &w, true, deadline)) {
			error = errno == ETIMEDOUT ? EAGAIN : errno;
			break;
		}
	xs_wait_end(&w);
	return error;
}

int xensock_accept(int fd, struct sockaddr *address, socklen_t *length, int flags)
{
	struct xs_sock *s = xs_get(fd), *c = NULL;
	int error, got = -1;

	if (!s)
		return -1;
	if (flags & ~(SOCK_NONBLOCK | SOCK_CLOEXEC) || s->state != XS_LISTENING)
		error = EINVAL;
	else
		error = wait_and_take(s, &c);
	if (!error) {
		got = c->fd;
		c->nonblocking = flags & SOCK_NONBLOCK;
		c->oobinline = s->oobinline;
		if (address && length)
			xs_give_address(&c->peer, address, length);
		if (!xs_sock_publish(c)) {
			error = errno;
			pthread_mutex_lock(&s->x->lock);
			xs_doom(c, true);
			xs_put_locked(c);
			pthread_mutex_unlock(&s->x->lock);
		}
	}
	xs_put(s);
	if (!error)
		return got;
	errno = error;
	return -1;
}
