/* Bytes: between the caller's buffers and the ring, in the caller's thread. */
#include "internal.h"

#include "spin.h"

#include <errno.h>
#include <string.h>

/* A larger write is shown in pieces, so that the backend sends the first while the next is copied. */
#define PIECE (64u << 10)
#define SPIN_LOOKS 32

/* A position in an array of buffers. */
struct cursor {
	const struct iovec *part;
	size_t at;
};

static size_t total(const struct iovec *parts, int count)
{
	size_t n = 0;

	for (int i = 0; i < count; i++)
		n += parts[i].iov_len;
	return n;
}

static void copy(struct xs_half *h, struct cursor *c, uint32_t n, bool in)
{
	uint32_t done = 0;

	while (done < n) {
		size_t rest = c->part->iov_len - c->at;
		uint32_t now = rest < n - done ? (uint32_t)rest : n - done;
		uint8_t *bytes = (uint8_t *)c->part->iov_base + c->at;

		if (!now)
			; /* an empty buffer may be NULL */
		else if (in)
			xs_copy_in(h, done, bytes, now);
		else
			xs_copy_out(h, done, bytes, now);
		done += now;
		c->at += now;
		if (c->at == c->part->iov_len) {
			c->part++;
			c->at = 0;
		}
	}
}

/* What a socket that is not connected says; 0 once it is. */
static int not_connected(struct xs_sock *s, bool wait, uint64_t deadline, int otherwise)
{
	if (s->state == XS_CONNECTING) {
		int error;

		if (wait)
			return xs_connect_wait(s, deadline);
		pthread_mutex_lock(&s->x->lock);
		xs_responses(s->x, -1);
		xs_look_connect(s);
		error = s->state == XS_CONNECTING ? EAGAIN : s->state == XS_CONNECTED ? 0 : xs_take_error(s);
		pthread_mutex_unlock(&s->x->lock);
		return error;
	}
	if (s->state == XS_FAILED) {
		int error = xs_take_error(s);

		return error ? error : otherwise;
	}
	return s->state == XS_CONNECTED ? 0 : otherwise;
}

uint32_t xs_room_wanted(const struct xs_sock *s)
{
	return s->ring.tx.size / 4;
}

/* Looks for a moment whether something comes (spin.h). */
static bool spin(struct xs_sock *s, uint64_t start)
{
	uint64_t until = start + s->spin_ns;
	const struct xs_half *rx = &s->ring.rx;
	uint32_t seen = xs_load_relaxed(rx->mine);

	if (!s->x->spins || !s->spin_ns)
		return false;
	do {
		for (int i = 0; i < SPIN_LOOKS; i++) {
			if (xs_load_relaxed(rx->theirs) != seen || xs_error(rx))
				return true;
			xs_spin_pause();
		}
		sched_yield();
	} while (xs_clock() < until && !s->closed);
	return false;
}

/* Sleeps until the half has moved. 0 or an errno. */
static int await(struct xs_sock *s, struct xs_waiting *w, bool *waiting, bool in, uint64_t deadline)
{
	uint64_t start = in ? xs_clock() : 0;
	bool ready, slept;

	if (in && spin(s, start)) {
		s->spin_ns = xs_spin_next(xs_clock() - start);
		return 0;
	}
	if (!*waiting) {
		if (!xs_wait_begin(w, &s->source))
			return errno;
		*waiting = true;
	}
	if (in) {
		pthread_mutex_lock(&s->in_lock);
		ready = xs_rx_arm(&s->ring.rx);
		pthread_mutex_unlock(&s->in_lock);
	} else {
		pthread_mutex_lock(&s->out_lock);
		ready = xs_tx_arm(&s->ring.tx, s->ring.tx.size / 2); /* few sleeps */
		pthread_mutex_unlock(&s->out_lock);
	}
	if (ready || s->closed || s->x->dead || (in ? s->in_shut : s->out_shut))
		return 0;
	slept = xs_sleep(s->x, w, false, deadline);
	if (in)
		s->spin_ns = xs_spin_next(xs_clock() - start);
	return slept ? 0 : errno == ETIMEDOUT ? EAGAIN : errno;
}

/* What an error of the ring is to the caller, once; afterwards the stream has just ended. */
static int ring_error(struct xs_sock *s, int32_t error, int afterwards)
{
	return error == -ENOTCONN || atomic_exchange(&s->told, true) ? afterwards : xs_errno(error);
}

static ssize_t send_parts(struct xs_sock *s, const struct iovec *parts, int count, int flags)
{
	bool wait = !(s->nonblocking || flags & MSG_DONTWAIT), waiting = false;
	uint64_t deadline = wait ? xs_deadline(s->send_ns) : XS_NOW;
	struct cursor c = {parts, 0};
	size_t left = total(parts, count), sent = 0;
	struct xs_waiting w;
	int error = 0;

	while (left) {
		int32_t broken;
		uint32_t n;

		if (s->closed)
			error = EBADF;
		else if (s->x->dead)
			error = ECONNRESET;
		else if (s->state != XS_CONNECTED)
			error = not_connected(s, wait, deadline, EPIPE);
		if (error)
			break;
		pthread_mutex_lock(&s->out_lock);
		broken = xs_error(&s->ring.tx);
		if (s->out_shut)
			broken = -ENOTCONN;
		n = broken ? 0 : xs_room(&s->ring.tx);
		n = n < left ? n : (uint32_t)left;
		n = n < PIECE ? n : PIECE;
		if (n) {
			copy(&s->ring.tx, &c, n, true);
			if (flags & MSG_OOB && n == left)
				xs_urgent_announce(&s->out_urgent, &s->ring.tx, n - 1);
			if (xs_advance(&s->ring.tx, n))
				xs_notify_other(s);
		}
		pthread_mutex_unlock(&s->out_lock);
		sent += n;
		left -= n;
		if (broken)
			error = ring_error(s, broken, EPIPE);
		else if (!n && !wait)
			error = EAGAIN;
		else if (!n)
			error = await(s, &w, &waiting, false, deadline);
		if (error)
			break;
	}
	if (waiting)
		xs_wait_end(&w);
	if (sent || !error)
		return (ssize_t)sent;
	errno = error;
	return -1;
}

void xs_consume(struct xs_sock *s, uint32_t n)
{
	struct xs_half *rx = &s->ring.rx;
	bool tell = xs_advance(rx, n);

	if (s->shared && rx->own < n) { /* it wrapped: who reads counts */
		xs_word *high = s->ring.role == XS_FRONT ? &s->ring.page->in_cons_high : &s->ring.page->out_cons_high;

		xs_store_relaxed(high, xs_load_relaxed(high) + 1);
	}
	if (tell)
		xs_notify_other(s);
}

static ssize_t receive_parts(struct xs_sock *s, const struct iovec *parts, int count, int flags)
{
	bool wait = !(s->nonblocking || flags & MSG_DONTWAIT), waiting = false, ended = false;
	uint64_t deadline = wait ? xs_deadline(s->receive_ns) : XS_NOW;
	struct cursor c = {parts, 0};
	size_t left = total(parts, count), got = 0;
	struct xs_waiting w;
	int error = 0;

	while (left && !ended) {
		struct xs_half from;
		int32_t broken;
		uint32_t n;
		bool stop = false;

		if (s->closed)
			error = EBADF;
		else if (s->state != XS_CONNECTED)
			error = not_connected(s, wait, deadline, ENOTCONN);
		if (error)
			break;
		pthread_mutex_lock(&s->in_lock);
		n = xs_readable_or_error(&s->ring.rx, &broken);
		if (n)
			n = xs_up_to_mark(s, n, got, flags & MSG_PEEK, &stop);
		n = n < left ? n : (uint32_t)left;
		if (n && !(flags & MSG_TRUNC)) { /* else it is thrown away */
			from = s->ring.rx;
			from.own += flags & MSG_PEEK && xs_peeks_behind_mark(s);
			copy(&from, &c, n, false);
		}
		if (n && !(flags & MSG_PEEK))
			xs_consume(s, n);
		pthread_mutex_unlock(&s->in_lock);
		got += n;
		left -= n;
		if (stop || (n && (!(flags & MSG_WAITALL) || flags & MSG_PEEK)))
			break;
		if (n)
			continue;
		if (broken) {
			error = ring_error(s, broken, 0);
			ended = true;
		} else if (s->in_shut) {
			ended = true;
		} else if (s->x->dead) {
			error = ECONNRESET;
		} else if (!wait) {
			error = EAGAIN;
		} else {
			error = await(s, &w, &waiting, true, deadline);
		}
		if (error)
			break;
	}
	if (waiting)
		xs_wait_end(&w);
	if (got || !error)
		return (ssize_t)got;
	errno = error;
	return -1;
}

static ssize_t transfer(int fd, const struct iovec *parts, int count, int flags, bool out)
{
	int known = MSG_DONTWAIT | MSG_OOB | (out ? MSG_NOSIGNAL | MSG_MORE : MSG_PEEK | MSG_WAITALL | MSG_TRUNC);
	struct xs_sock *s;
	ssize_t n;

	if (flags & ~known || count < 0) {
		errno = count < 0 ? EINVAL : EOPNOTSUPP;
		return -1;
	}
	s = xs_get(fd);
	if (!s)
		return -1;
	if (flags & MSG_OOB && !(s->x->features & XS_F_URGENT)) {
		errno = EOPNOTSUPP;
		n = -1;
	} else if (out) {
		n = send_parts(s, parts, count, flags);
	} else if (flags & MSG_OOB) {
		while (count > 1 && !parts->iov_len)
			parts++, count--;
		n = xs_receive_urgent(s, count ? parts->iov_base : NULL, count ? parts->iov_len : 0, flags & MSG_PEEK);
	} else {
		n = receive_parts(s, parts, count, flags);
	}
	xs_put(s);
	return n;
}

ssize_t xensock_send(int s, const void *data, size_t size, int flags)
{
	return transfer(s, &(struct iovec){(void *)(uintptr_t)data, size}, 1, flags, true);
}

ssize_t xensock_recv(int s, void *data, size_t size, int flags)
{
	return transfer(s, &(struct iovec){data, size}, 1, flags, false);
}

ssize_t xensock_sendv(int s, const struct iovec *parts, int count, int flags)
{
	return transfer(s, parts, count, flags, true);
}

ssize_t xensock_recvv(int s, const struct iovec *parts, int count, int flags)
{
	return transfer(s, parts, count, flags, false);
}
