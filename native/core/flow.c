/* One connection of the mover; the rules are in flow.h. */
#include "flow.h"

#include "bucket.h"
#include "keeper.h"
#include "mover.h"

#include <errno.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

static void drop(struct xs_stream *st, struct xs_pool *pool)
{
	if (st->size == XS_TASK_BUFFER)
		xs_pool_give(pool, st->data);
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

	if (st->size != XS_TASK_BUFFER || rest > XS_TASK_BUFFER / 8)
		return;
	copy = malloc(rest ? rest : 1);
	if (!copy)
		return;
	memcpy(copy, st->data + st->start, rest);
	xs_pool_give(pool, st->data);
	st->data = copy;
	st->start = 0;
	st->end = st->size = rest;
}

static void event(struct xs_source *source, uint32_t events)
{
	struct xs_side *s = (struct xs_side *)source;

	if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
		s->hup = true;
	if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR | EPOLLPRI))
		s->readable = true;
	if (events & (EPOLLOUT | EPOLLHUP | EPOLLERR))
		s->writable = true;
	if (events & EPOLLPRI)
		s->urgent = true;
}

/* Whether closing resets, by us or by the kernel when this process is killed (socket(7), SO_LINGER of 0 seconds). */
static void resets(int fd, bool whether)
{
	struct linger hard = {whether, 0};

	setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
}

/* Nobody else can go on with it: a process that keeps our descriptors closes it at our end. */
static void ends_with_us(int fd)
{
	struct timeval mark = {XS_ENDS_WITH_S, 0};

	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &mark, sizeof mark);
}

static void close_side(struct xs_flow *f, int i, bool reset)
{
	struct xs_side *s = &f->side[i];

	if (s->source.fd < 0)
		return;
	resets(s->source.fd, reset);
	/* Should anybody hold a copy of the file, its events must not reach a freed flow. */
	epoll_ctl(f->epfd, EPOLL_CTL_DEL, s->source.fd, NULL);
	close(s->source.fd);
	s->source.fd = -1;
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
	f->task.error = error;
	f->task.error_side = i;
	f->state = FLOW_DRAINING;
	f->deadline = now_ms + XS_TASK_DRAIN_MS;
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
			n = send(dst->source.fd, st->data + st->start, rest, MSG_DONTWAIT | MSG_NOSIGNAL);
		else
			n = send(dst->source.fd, &oob, 1, MSG_OOB | MSG_DONTWAIT | MSG_NOSIGNAL);
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
		xs_count_add(&f->task.bytes[i], (uint64_t)n);
		if (rest)
			st->start += (size_t)n;
		else
			st->urgent = -1;
	}
	if (st->data)
		drop(st, pool);
	return true;
}

/* Whether a side failed, which it may have without a call of ours that would say so. */
static bool failed(struct xs_side *s)
{
	socklen_t len = sizeof s->error;

	if (s->hup && !s->error)
		getsockopt(s->source.fd, SOL_SOCKET, SO_ERROR, &s->error, &len);
	return s->error;
}

/* Reads side i into its stream: 1 when something came, 0 when not now, -1 when the side failed. */
static int fill(struct xs_flow *f, int i, struct xs_pool *pool, uint64_t now_ms)
{
	struct xs_side *src = &f->side[i];
	struct xs_stream *st = &f->stream[i];
	size_t room = XS_TASK_BUFFER;
	uint64_t due = 0;
	int mark = 0;
	char oob;
	ssize_t n;

	if (src->urgent && ioctl(src->source.fd, SIOCATMARK, &mark) == 0 && mark) {
		/* A normal read stops at the mark and would then skip the urgent byte. */
		src->urgent = false;
		if (recv(src->source.fd, &oob, 1, MSG_OOB | MSG_DONTWAIT) == 1) {
			st->urgent = (unsigned char)oob;
			return 1;
		}
	}
	if (f->bucket) {
		room = xs_bucket_take(f->bucket, i, room, now_ms, &due);
		if (!room) {
			/* A guest that resets gives up what waits for its turn, as natively what is in its send queue. */
			if (i == 0 && failed(src)) {
				fail(f, i, src->error, pool, now_ms);
				return -1;
			}
			if (!f->due || due < f->due)
				f->due = due;
			return 0;
		}
	}
	st->data = xs_pool_take(pool);
	if (!st->data) {
		fail(f, i, ENOMEM, pool, now_ms);
		return -1;
	}
	st->size = XS_TASK_BUFFER;
	do
		n = recv(src->source.fd, st->data, room, MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	if (f->bucket && n < (ssize_t)room)
		xs_bucket_give(f->bucket, i, room - (size_t)(n < 0 ? 0 : n));
	if (n > 0) {
		st->end = (size_t)n;
		if (st->end < room && !src->hup && !src->urgent)
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
	uint64_t before = xs_count_get(&f->task.bytes[i]);

	while (f->state == FLOW_OPEN) {
		if (!flush(f, i, pool)) {
			shrink(&f->stream[i], pool);
			return false;
		}
		if (src->eof) {
			if (!dst->shut) {
				shutdown(dst->source.fd, SHUT_WR);
				resets(dst->source.fd, false); /* it has all, and may keep it whatever becomes of us */
			}
			dst->shut = true;
			return false;
		}
		if (!src->readable || dst->error)
			return false;
		if (xs_count_get(&f->task.bytes[i]) - before >= XS_TASK_BUDGET)
			return true;
		if (fill(f, i, pool, now_ms) <= 0)
			return false;
	}
	return false;
}

static enum xs_next drain(struct xs_flow *f, struct xs_pool *pool, uint64_t now_ms)
{
	int from = f->task.error_side, left = 0;
	struct xs_side *dst = &f->side[!from];

	if (!flush(f, from, pool) && !dst->error && now_ms < f->deadline)
		return XS_NEXT_TICK;
	/* A reset overtakes what is still in the send queue, so that is waited for. */
	if (!dst->error && now_ms < f->deadline && ioctl(dst->source.fd, SIOCOUTQ, &left) == 0 && left > 0)
		return XS_NEXT_TICK;
	end(f, pool, true);
	return XS_NEXT_GONE;
}

static enum xs_next run(struct xs_task *t, struct xs_thread *w, uint64_t now_ms)
{
	struct xs_flow *f = (struct xs_flow *)t;
	struct xs_pool *pool = &w->pool;
	bool more = false;

	f->due = t->due = 0;
	for (int i = 0; i < 2 && f->state == FLOW_OPEN; i++)
		more |= pump(f, i, pool, now_ms);
	/* A side whose stream ended can still fail: its peer closed and answers our data with a reset. */
	for (int i = 0; i < 2 && f->state == FLOW_OPEN; i++) {
		struct xs_side *s = &f->side[i];

		if (s->eof && failed(s))
			fail(f, i, s->error, pool, now_ms);
	}
	if (f->state == FLOW_OPEN && f->side[0].shut && f->side[1].shut)
		end(f, pool, false);
	if (f->state == FLOW_DRAINING)
		return drain(f, pool, now_ms);
	if (f->state == FLOW_ENDED)
		return XS_NEXT_GONE;
	t->due = f->due;
	return more ? XS_NEXT_AGAIN : f->due ? XS_NEXT_TICK : XS_NEXT_WAIT;
}

static bool sent(const struct xs_task *t)
{
	const struct xs_flow *f = (const struct xs_flow *)t;

	return f->state == FLOW_ENDED || (f->state == FLOW_OPEN && f->side[1].shut);
}

static void cut(struct xs_task *t, struct xs_thread *w)
{
	struct xs_flow *f = (struct xs_flow *)t;

	if (f->state != FLOW_ENDED)
		end(f, &w->pool, !sent(t));
}

static int start(struct xs_task *t, struct xs_thread *w)
{
	struct xs_flow *f = (struct xs_flow *)t;

	f->epfd = w->epfd;
	for (int i = 0; i < 2; i++) {
		struct epoll_event ev = {EPOLLIN | EPOLLOUT | EPOLLPRI | EPOLLRDHUP | EPOLLET, {.ptr = &f->side[i]}};

		if (epoll_ctl(w->epfd, EPOLL_CTL_ADD, f->side[i].source.fd, &ev)) {
			t->error_side = i;
			return errno;
		}
		/* What is cut short by our end must not look as if it were whole; nor must anybody wait after it. */
		resets(f->side[i].source.fd, true);
		ends_with_us(f->side[i].source.fd);
	}
	return 0;
}

static void destroy(struct xs_task *t)
{
	struct xs_flow *f = (struct xs_flow *)t;

	for (int i = 0; i < 2; i++)
		if (f->side[i].source.fd >= 0)
			close(f->side[i].source.fd);
	xs_bucket_unref(f->bucket);
	xs_task_free(t);
}

static const struct xs_kind kind = {start, event, run, sent, cut, NULL, destroy, false, false};

static struct xs_task *flow_new(int a, int b, struct xs_bucket *bucket, bool report)
{
	struct xs_flow *f = calloc(1, sizeof *f);
	int one = 1;

	if (!f)
		return NULL;
	xs_task_init(&f->task, &kind, report);
	f->bucket = xs_bucket_ref(bucket);
	for (int i = 0; i < 2; i++) {
		f->side[i].source = (struct xs_source){&f->task, i ? b : a};
		f->side[i].writable = true;
		f->stream[i].urgent = -1;
		/* What comes in small pieces goes out in small pieces at once; other kinds of socket refuse. */
		setsockopt(f->side[i].source.fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	}
	return &f->task;
}

uint64_t xs_mover_add(struct xs_mover *m, int a, int b, bool report)
{
	return xs_mover_add_slowed(m, a, b, NULL, report);
}

uint64_t xs_mover_add_slowed(struct xs_mover *m, int a, int b, struct xs_bucket *bucket, bool report)
{
	struct xs_task *t = a < 0 || b < 0 ? NULL : flow_new(a, b, bucket, report);
	int error = a < 0 || b < 0 ? EINVAL : ENOMEM;

	if (t)
		return xs_mover_start(m, t);
	if (a >= 0)
		close(a);
	if (b >= 0)
		close(b);
	errno = error;
	return 0;
}
