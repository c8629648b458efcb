/* A socket's life but for its bytes: made, connected, closed. Listeners are in listener.c. */
#include "internal.h"

#include "notify.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DRAIN_NS ((uint64_t)5000000000u) /* v1: how long close waits for what was sent */
#define TELL_NS ((uint64_t)1000000000u)	 /* how long close waits for room in the command ring */

struct xs_sock *xs_sock_new(struct xensock *x, int domain, int protocol, uint32_t order)
{
	struct xs_sock *s = calloc(1, sizeof *s);

	if (!s)
		return NULL;
	s->event = xs_event_take(x);
	if (!s->event) {
		free(s);
		return NULL;
	}
	s->x = x;
	s->refs = 1;
	s->fd = s->event->wait;
	s->id = ++x->next_id;
	s->domain = domain;
	s->protocol = protocol;
	s->order = order;
	s->ready_tail = &s->ready;
	xs_source_init(&s->source, s->fd);
	pthread_mutex_init(&s->in_lock, NULL);
	pthread_mutex_init(&s->out_lock, NULL);
	s->next = x->socks;
	if (s->next)
		s->next->prev = s;
	x->socks = s;
	return s;
}

void xs_put_locked(struct xs_sock *s)
{
	struct xensock *x = s->x;

	if (atomic_fetch_sub(&s->refs, 1) != 1)
		return;
	if (s->prev)
		s->prev->next = s->next;
	else
		x->socks = s->next;
	if (s->next)
		s->next->prev = s->prev;
	xs_shared_leave(s);
	if (s->chunk)
		xs_chunk_give(x, s->chunk);
	xs_event_give(x, s->event);
	xs_source_end(&s->source);
	pthread_mutex_destroy(&s->in_lock);
	pthread_mutex_destroy(&s->out_lock);
	free(s);
}

void xs_put(struct xs_sock *s)
{
	struct xensock *x = s->x;
	uint32_t refs = atomic_load_explicit(&s->refs, memory_order_relaxed);

	/* Not the last: no lock. */
	while (refs > 1)
		if (atomic_compare_exchange_weak_explicit(&s->refs, &refs, refs - 1, memory_order_release, memory_order_relaxed))
			return;
	pthread_mutex_lock(&x->lock);
	xs_put_locked(s);
	pthread_mutex_unlock(&x->lock);
}

/* Its own descriptor: whoever sleeps on the socket, or watches it, looks again. */
void xs_sock_news(struct xs_sock *s)
{
	if (s->event->lent)
		xs_notify(s->event->wait);
	else
		xs_kick(s->event->wait);
}

int xs_take_error(struct xs_sock *s)
{
	return atomic_exchange(&s->error, 0);
}

int xensock_socket(struct xensock *x, int domain, int type, int protocol)
{
	struct xs_request q = {.cmd = XS_SOCKET};
	struct xs_response r;
	struct xs_sock *s;
	int error, kind = type & ~(SOCK_NONBLOCK | SOCK_CLOEXEC);

	if (domain != AF_INET && (domain != AF_INET6 || !(x->features & XS_F_IPV6)))
		error = EAFNOSUPPORT;
	else if (kind != SOCK_STREAM)
		error = ESOCKTNOSUPPORT;
	else if (protocol && protocol != IPPROTO_TCP)
		error = EPROTONOSUPPORT;
	else
		error = 0;
	if (error) {
		errno = error;
		return -1;
	}
	pthread_mutex_lock(&x->lock);
	s = x->dead ? NULL : xs_sock_new(x, domain, IPPROTO_TCP, xs_default_order(x));
	error = x->dead ? ENETDOWN : errno;
	pthread_mutex_unlock(&x->lock);
	if (!s) {
		errno = error;
		return -1;
	}
	s->nonblocking = type & SOCK_NONBLOCK;
	q.id = s->id;
	q.socket.domain = (uint32_t)domain;
	q.socket.type = SOCK_STREAM;
	q.socket.protocol = 0;
	error = xs_command(x, &q, &r);
	if (!error && xs_sock_publish(s)) {
		s->known = true;
		return s->fd;
	}
	if (!error) {
		error = errno;
		pthread_mutex_lock(&x->lock);
		xs_doom(s, false);
		pthread_mutex_unlock(&x->lock);
	}
	xs_put(s);
	errno = error;
	return -1;
}

static void own_ring(struct xs_sock *s)
{
	xs_dataring_init(&s->ring, s->chunk->memory, s->chunk->memory + XS_PAGE, (size_t)XS_PAGE << s->chunk->order, XS_FRONT,
			 s->x->features & XS_F_DATA_EVENTS);
}

void xs_start_ring(struct xs_sock *s)
{
	own_ring(s);
	if (!xs_shared_enter(s))
		xs_die(s->x, "the backend broke the protocol: shared pages that are none");
	xs_start_urgent(s);
}

void xs_name(struct xs_address *a, const struct xs_response *r)
{
	a->length = r->length <= XS_ADDRESS ? r->length : 0;
	memcpy(a->bytes, r->value, a->length);
}

static void established(struct xs_sock *s)
{
	s->async = false;
	atomic_store(&s->state, XS_CONNECTED);
}

static void refused(struct xs_sock *s, int error)
{
	s->async = false;
	atomic_store(&s->error, error);
	atomic_store(&s->state, XS_FAILED);
}

void xs_connected(struct xs_sock *s, const struct xs_response *r, int error)
{
	if (error == EINPROGRESS) {
		/* Its own page tells how the attempt went, also where other pages were named there meanwhile. */
		own_ring(s);
		s->async = true;
		xs_look_connect(s);
	} else if (error) {
		refused(s, error);
	} else {
		s->own.length = 0;
		if (s->x->features & XS_F_NAMES)
			xs_name(&s->own, r);
		xs_start_ring(s);
		established(s);
	}
	xs_sock_news(s);
}

void xs_look_connect(struct xs_sock *s)
{
	int32_t error;

	if (!s->async || s->state != XS_CONNECTING)
		return;
	error = xs_error(&s->ring.tx);
	if (error) {
		refused(s, xs_errno(error));
	} else if (xs_load_acquire(&s->ring.page->status) == 1) {
		s->own.length = 0;
		xs_start_ring(s);
		established(s);
	} else if (s->x->dead) {
		refused(s, ENETDOWN);
	}
}

int xs_check_address(const struct xs_sock *s, const struct sockaddr *address, socklen_t length)
{
	if (!address || length < sizeof address->sa_family)
		return EINVAL;
	if (address->sa_family != s->domain)
		return EAFNOSUPPORT;
	if (length < (s->domain == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6)))
		return EINVAL;
	return 0;
}

void xs_set_address(struct xs_address *a, const struct sockaddr *address, int domain)
{
	memset(a, 0, sizeof *a);
	a->length = domain == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
	memcpy(a->bytes, address, a->length);
	if (domain == AF_INET)
		memset(a->bytes + 8, 0, 8);
}

static int connect_start(struct xs_sock *s, const struct sockaddr *address, bool wait)
{
	struct xensock *x = s->x;
	struct xs_request q = {.cmd = XS_CONNECT, .id = s->id};
	int error;

	if (!s->chunk)
		s->chunk = xs_chunk_take(x, s->order);
	else /* of an attempt that failed */
		xs_indexes_init(s->chunk->memory);
	if (!s->chunk)
		return errno;
	xs_set_address(&s->peer, address, s->domain);
	q.connect.address = s->peer;
	/* An asynchronous one is not parked. */
	if (x->features & XS_F_ASYNC_CONNECT && (!wait || x->parked >= XS_PARKED_ACCEPT))
		q.connect.flags = XS_ASYNC;
	q.connect.ref = s->chunk->ref;
	q.connect.port = s->event->port;
	s->error = 0;
	s->state = XS_CONNECTING;
	error = wait ? xs_request_wait(x, &q, XS_SOCK_CONNECT, NULL, s) : xs_request_send(x, &q, XS_SOCK_CONNECT, NULL, s);
	if (error)
		s->state = XS_FAILED;
	return error;
}

int xs_connect_wait(struct xs_sock *s, uint64_t deadline)
{
	struct xensock *x = s->x;
	struct xs_waiting w;
	int error = 0;

	if (!xs_wait_begin(&w, &s->source))
		return errno;
	while (!error) {
		bool busy;

		pthread_mutex_lock(&x->lock);
		xs_responses(x, w.kick);
		xs_look_connect(s);
		busy = s->state == XS_CONNECTING;
		pthread_mutex_unlock(&x->lock);
		if (!busy)
			break;
		if (s->closed)
			error = EBADF;
		else if (!xs_sleep(x, &w, true, deadline))
			error = errno == ETIMEDOUT ? EINPROGRESS : errno;
	}
	xs_wait_end(&w);
	if (!error && s->state != XS_CONNECTED)
		error = xs_take_error(s);
	return error;
}

int xensock_connect(int fd, const struct sockaddr *address, socklen_t length)
{
	struct xs_sock *s = xs_get(fd);
	struct xensock *x;
	bool wait;
	int error;

	if (!s)
		return -1;
	x = s->x;
	wait = !s->nonblocking;
	error = xs_check_address(s, address, length);
	if (!error) {
		pthread_mutex_lock(&x->lock);
		if (!wait)
			xs_responses(x, -1);
		xs_look_connect(s);
		switch (s->state) {
		case XS_CONNECTED:
		case XS_LISTENING:
			error = EISCONN;
			break;
		case XS_CONNECTING:
			error = wait ? 0 : EALREADY;
			break;
		case XS_FAILED:
			error = xs_take_error(s);
			if (error)
				break;
			/* fall through */
		default:
			error = connect_start(s, address, wait);
			if (!error && !wait)
				error = EINPROGRESS;
		}
		pthread_mutex_unlock(&x->lock);
		if (!error)
			error = xs_connect_wait(s, xs_deadline(s->send_ns));
	}
	xs_put(s);
	if (!error)
		return 0;
	errno = error;
	return -1;
}

static struct xs_request closing(const struct xs_sock *s)
{
	struct xs_request q = {.cmd = XS_RELEASE, .id = s->id};

	if (s->x->features & XS_F_CLOSE) {
		q.cmd = XS_CLOSE;
		q.close.flags = s->reset_on_close ? XS_RESET : 0;
	}
	return q;
}

static bool tell_closed(struct xs_sock *s)
{
	struct xs_request q = closing(s);

	return xs_request_send(s->x, &q, XS_SOCK_CLOSE, NULL, s) != EAGAIN;
}

void xs_doom(struct xs_sock *s, bool reset)
{
	s->closed = true;
	s->reset_on_close |= reset;
	if (!s->x->doomed && tell_closed(s))
		return;
	atomic_fetch_add(&s->refs, 1);
	s->next_doomed = NULL;
	*s->x->doomed_tail = s;
	s->x->doomed_tail = &s->next_doomed;
}

void xs_doomed(struct xensock *x)
{
	while (x->doomed && (x->dead || tell_closed(x->doomed))) {
		struct xs_sock *s = x->doomed;

		x->doomed = s->next_doomed;
		if (!x->doomed)
			x->doomed_tail = &x->doomed;
		xs_put_locked(s);
	}
}

/* The lock is held: waits until the backend has been told of all that is closed, as this may be the program's last call for
 * a long time, and there is no thread that would. A backend that answers nothing is waited for once. */
static void tell_all_closed(struct xensock *x)
{
	uint64_t deadline = xs_clock() + TELL_NS;

	if (x->doomed)
		xs_responses(x, -1);
	while (x->doomed && !x->dead && !x->mute) {
		struct xs_waiting w;
		bool late;

		if (!xs_wait_begin(&w, &x->source))
			return;
		pthread_mutex_unlock(&x->lock);
		late = !xs_sleep(x, NULL, true, deadline) && errno == ETIMEDOUT;
		xs_wait_end(&w);
		pthread_mutex_lock(&x->lock);
		x->mute = late;
	}
}

/* v1's RELEASE forgets what the backend has not read: waits until it has. */
static void drain(struct xs_sock *s)
{
	uint64_t deadline = xs_clock() + DRAIN_NS;
	struct xs_waiting w;

	if (s->reset_on_close || !xs_wait_begin(&w, &s->source))
		return;
	while (!s->x->dead) {
		bool done;

		pthread_mutex_lock(&s->out_lock);
		done = xs_tx_arm(&s->ring.tx, s->ring.tx.size);
		pthread_mutex_unlock(&s->out_lock);
		if (done || (!xs_sleep(s->x, &w, false, deadline) && errno == ETIMEDOUT))
			break;
	}
	xs_wait_end(&w);
}

int xensock_close(int fd)
{
	struct xs_sock *s = xs_get(fd);
	struct xensock *x;

	if (!s)
		return -1;
	x = s->x;
	if (!xs_sock_hide(s)) { /* another thread was faster */
		xs_put(s);
		errno = EBADF;
		return -1;
	}
	if (s->state == XS_CONNECTED && !(x->features & XS_F_CLOSE))
		drain(s);
	if (s->state == XS_LISTENING || s->state == XS_BOUND) { /* its address is free when this returns */
		struct xs_request q = closing(s);
		struct xs_response r;

		s->closed = true;
		xs_command(x, &q, &r);
	}
	pthread_mutex_lock(&x->lock);
	if (!s->closed)
		xs_doom(s, false);
	xs_sock_news(s);
	xs_source_kick(&s->source, -1);
	while (s->ready) {
		struct xs_sock *c = s->ready;

		s->ready = c->next_ready;
		xs_doom(c, true);
		xs_put_locked(c);
	}
	xs_put_locked(s);
	tell_all_closed(x);
	pthread_mutex_unlock(&x->lock);
	xs_put(s);
	return 0;
}
