/* One connection of the mover; the rules are in flow.h. */
#include "flow.h"

#include <errno.h>
#include <linux/sockios.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

static char *pool_take(struct xs_pool *pool)
{
	return pool->count ? pool->free[--pool->count] : malloc(XS_FLOW_BUFFER);
}

static void pool_give(struct xs_pool *pool, char *data)
{
	if (pool->count < XS_POOL_KEEP)
		pool->free[pool->count++] = data;
	else
		free(data);
}

void xs_pool_empty(struct xs_pool *pool)
{
	while (pool->count)
		free(pool->free[--pool->count]);
}

static void drop(struct xs_stream *st, struct xs_pool *pool)
{
	if (st->size == XS_FLOW_BUFFER)
		pool_give(pool, st->data);
	else
		free(st->data);
	*st = (struct xs_stream){.urgent = -1};
}

static bool in_hand(const struct xs_stream *st)
{
	return st->start < st->end || st->urgent >= 0;
}

/* A stalled connection keeps little: a short rest moves out of the large buffer. */
static void shrink(struct xs_stream *st, struct xs_pool *pool)
{
	size_t rest = st->end - st->start;
	char *copy;

	if (st->size != XS_FLOW_BUFFER || rest > XS_FLOW_BUFFER / 8)
		return;
	copy = malloc(rest ? rest : 1);
	if (!copy)
		return;
	memcpy(copy, st->data + st->start, rest);
	pool_give(pool, st->data);
	st->data = copy;
	st->start = 0;
	st->end = st->size = rest;
}

void xs_flow_init(struct xs_flow *f, int a, int b, int epfd)
{
	memset(f, 0, sizeof *f);
	f->epfd = epfd;
	f->error_side = -1;
	for (int i = 0; i < 2; i++) {
		f->side[i].flow = f;
		f->side[i].fd = i ? b : a;
		f->side[i].writable = true;
		f->stream[i].urgent = -1;
	}
}

void xs_flow_event(struct xs_side *s, uint32_t events)
{
	if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
		s->hup = true;
	if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR | EPOLLPRI))
		s->readable = true;
	if (events & (EPOLLOUT | EPOLLHUP | EPOLLERR))
		s->writable = true;
	if (events & EPOLLPRI)
		s->urgent = true;
}

static void close_side(struct xs_flow *f, int i, bool reset)
{
	struct xs_side *s = &f->side[i];
	struct linger hard = {1, 0};

	if (s->fd < 0)
		return;
	if (reset)
		setsockopt(s->fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
	/* Should anybody hold a copy of the file, its events must not reach a freed flow. */
	epoll_ctl(f->epfd, EPOLL_CTL_DEL, s->fd, NULL);
	close(s->fd);
	s->fd = -1;
}

static void end(struct xs_flow *f, struct xs_pool *pool, bool reset)
{
	for (int i = 0; i < 2; i++) {
		close_side(f, i, reset);
		drop(&f->stream[i], pool);
	}
	f->state = FLOW_ENDED;
}

/* Side i is dead: what it sent goes to the other side, then that is reset. */
static void fail(struct xs_flow *f, int i, int error, struct xs_pool *pool, uint64_t now_ms)
{
	if (f->state != FLOW_OPEN) {
		end(f, pool, true);
		return;
	}
	f->error = error;
	f->error_side = i;
	f->state = FLOW_DRAINING;
	f->deadline = now_ms + XS_FLOW_DRAIN_MS;
	close_side(f, i, true);
	drop(&f->stream[!i], pool);
}

/* Sends what stream i has in hand. False when the destination is full or dead. */
static bool flush(struct xs_flow *f, int i, struct xs_pool *pool)
{
	struct xs_stream *st = &f->stream[i];
	struct xs_side *dst = &f->side[!i];

	while (in_hand(st)) {
		size_t rest = st->end - st->start;
		char oob = (char)st->urgent;
		ssize_t n;

		if (!dst->writable || dst->error)
			return false;
		if (rest)
			n = send(dst->fd, st->data + st->start, rest, MSG_DONTWAIT | MSG_NOSIGNAL);
		else
			n = send(dst->fd, &oob, 1, MSG_OOB | MSG_DONTWAIT | MSG_NOSIGNAL);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno != EAGAIN) {
			dst->error = errno;
			drop(st, pool);
			return false;
		}
		if (n < 0 || (rest && (size_t)n < rest))
			dst->writable = false;
		if (n <= 0)
			continue;
		atomic_fetch_add_explicit(&f->bytes[i], (uint64_t)n, memory_order_relaxed);
		if (rest)
			st->start += (size_t)n;
		else
			st->urgent = -1;
	}
	if (st->data)
		drop(st, pool);
	return true;
}

/* Reads side i into its stream: 1 when something came, 0 when not now, -1 when the side failed. */
static int fill(struct xs_flow *f, int i, struct xs_pool *pool, uint64_t now_ms)
{
	struct xs_side *src = &f->side[i];
	struct xs_stream *st = &f->stream[i];
	int mark = 0;
	char oob;
	ssize_t n;

	if (src->urgent && ioctl(src->fd, SIOCATMARK, &mark) == 0 && mark) {
		/* A normal read stops at the mark and would then skip the urgent byte. */
		src->urgent = false;
		if (recv(src->fd, &oob, 1, MSG_OOB | MSG_DONTWAIT) == 1) {
			st->urgent = (unsigned char)oob;
			return 1;
		}
	}
	st->data = pool_take(pool);
	if (!st->data) {
		fail(f, i, ENOMEM, pool, now_ms);
		return -1;
	}
	st->size = XS_FLOW_BUFFER;
	do
		n = recv(src->fd, st->data, st->size, MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	if (n > 0) {
		st->end = (size_t)n;
		if (st->end < st->size && !src->hup && !src->urgent)
			src->readable = false;
		return 1;
	}
	if (n < 0 && errno == EAGAIN) {
		drop(st, pool);
		src->readable = false;
		return 0;
	}
	mark = n < 0 ? errno : src->error;
	drop(st, pool);
	src->eof = true;
	if (!mark)
		return 1;
	fail(f, i, mark, pool, now_ms);
	return -1;
}

/* Moves stream i as far as it goes. True when only the budget stopped it. */
static bool pump(struct xs_flow *f, int i, struct xs_pool *pool, uint64_t now_ms)
{
	struct xs_side *src = &f->side[i], *dst = &f->side[!i];
	uint64_t before = f->bytes[i];

	while (f->state == FLOW_OPEN) {
		if (!flush(f, i, pool)) {
			shrink(&f->stream[i], pool);
			return false;
		}
		if (src->eof) {
			if (!dst->shut)
				shutdown(dst->fd, SHUT_WR);
			dst->shut = true;
			return false;
		}
		if (!src->readable || dst->error)
			return false;
		if (f->bytes[i] - before >= XS_FLOW_BUDGET)
			return true;
		if (fill(f, i, pool, now_ms) <= 0)
			return false;
	}
	return false;
}

static enum xs_flow_next drain(struct xs_flow *f, struct xs_pool *pool, uint64_t now_ms)
{
	int from = f->error_side, left = 0;
	struct xs_side *dst = &f->side[!from];

	if (!flush(f, from, pool) && !dst->error && now_ms < f->deadline)
		return FLOW_TICK;
	/* A reset overtakes what is still in the send queue, so that is waited for. */
	if (!dst->error && now_ms < f->deadline && ioctl(dst->fd, SIOCOUTQ, &left) == 0 && left > 0)
		return FLOW_TICK;
	end(f, pool, true);
	return FLOW_GONE;
}

enum xs_flow_next xs_flow_run(struct xs_flow *f, struct xs_pool *pool, uint64_t now_ms)
{
	bool more = false;

	for (int i = 0; i < 2 && f->state == FLOW_OPEN; i++)
		more |= pump(f, i, pool, now_ms);
	/* A side whose stream ended can still fail: its peer closed and answers our data with a reset. */
	for (int i = 0; i < 2 && f->state == FLOW_OPEN; i++) {
		struct xs_side *s = &f->side[i];
		socklen_t len = sizeof s->error;

		if (s->eof && s->hup && !s->error)
			getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &s->error, &len);
		if (s->eof && s->error)
			fail(f, i, s->error, pool, now_ms);
	}
	if (f->state == FLOW_OPEN && f->side[0].shut && f->side[1].shut)
		end(f, pool, false);
	if (f->state == FLOW_DRAINING)
		return drain(f, pool, now_ms);
	return f->state == FLOW_ENDED ? FLOW_GONE : more ? FLOW_AGAIN : FLOW_WAIT;
}

bool xs_flow_sent(const struct xs_flow *f)
{
	return f->state == FLOW_ENDED || (f->state == FLOW_OPEN && f->side[1].shut);
}

void xs_flow_cut(struct xs_flow *f, struct xs_pool *pool)
{
	if (f->state != FLOW_ENDED)
		end(f, pool, !xs_flow_sent(f));
}
