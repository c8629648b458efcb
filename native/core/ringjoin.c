/* Two guests of one backend joined in memory: a kind of task; xs_mover_join() starts it.
 *
 * Both rings have role BACK. What one frontend writes to its `out` is copied once, into the other's `in`. To each of
 * the two it looks as TCP: half-close, end behind the data, reset, back-pressure, and data for a socket that is gone.
 *
 * Rules
 * - Stream d goes from side d to side !d.
 * - A side is absent (its connection was not accepted yet), there, or gone (released). What a side had left to say when
 *   it went is in private memory (`rest`), and is said before its end.
 * - A reset says what the other's ring can take at once and no more, as TCP drops what its peer's window did not take.
 */
#include "mover.h"
#include "ringwire.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define STEP ((uint32_t)128 << 10) /* copied at once: the producer gets room, the consumer bytes, while the next one runs */
#define LOOKS 16		   /* see ringflow.c */

enum presence { ABSENT, THERE, GONE };

struct end {
	struct xs_wire wire;
	enum presence presence;
	bool deaf;     /* SHUTDOWN RD: what comes is thrown away */
	bool stopping; /* SHUTDOWN WR: its stream ends at index stop */
	uint32_t stop;
	bool reset; /* it went by a reset */
	char *rest;
	size_t rest_at, rest_end;
	size_t rest_mark; /* where in it the urgent byte is; SIZE_MAX: there is none */
};

struct join {
	struct xs_task task;
	struct xs_thread *thread; /* NULL before start() */
	struct end end[2];
	bool over[2]; /* the end of stream d was told */
	bool ended;
};

static int epfd(const struct join *j)
{
	return j->thread ? j->thread->epfd : -1;
}

static void drop_rest(struct end *e)
{
	free(e->rest);
	e->rest = NULL;
	e->rest_at = e->rest_end = 0;
}

static void finish(struct join *j)
{
	for (int i = 0; i < 2; i++) {
		xs_wire_close(&j->end[i].wire, epfd(j));
		drop_rest(&j->end[i]);
		j->end[i].presence = GONE;
	}
	j->ended = true;
}

/* What side d has to say now. */
static uint32_t left(const struct end *e)
{
	const struct xs_half *rx = &e->wire.ring.rx;
	uint32_t n;

	if (e->presence != THERE)
		return (uint32_t)(e->rest_end - e->rest_at);
	n = xs_readable(rx);
	return e->stopping && n > e->stop - rx->own ? e->stop - rx->own : n;
}

static bool said_all(const struct end *e)
{
	return e->presence == GONE || (e->stopping && e->stop == e->wire.ring.rx.own);
}

static void consumed(struct end *e, uint32_t n)
{
	if (e->presence == THERE)
		xs_wire_advance(&e->wire, &e->wire.ring.rx, n);
	else
		e->rest_at += n;
}

static void copy(struct end *from, struct end *to, uint32_t n)
{
	struct xs_half *rx = &from->wire.ring.rx, *tx = &to->wire.ring.tx;
	struct iovec chunk[2];
	int chunks = 1;
	uint32_t done = 0;

	if (from->presence == THERE)
		chunks = xs_chunks(rx, n, chunk);
	else
		chunk[0] = (struct iovec){from->rest + from->rest_at, n};
	for (int i = 0; i < chunks; i++) {
		xs_copy_in(tx, done, chunk[i].iov_base, (uint32_t)chunk[i].iov_len);
		done += (uint32_t)chunk[i].iov_len;
	}
	/* First the bytes, then the room: who waits for both is woken once. */
	xs_wire_advance(&to->wire, tx, n);
	consumed(from, n);
}

/* How many bytes side d has to say before the urgent one. */
static size_t ahead(struct end *e)
{
	uint32_t n;

	if (e->presence != THERE)
		return e->rest_mark - e->rest_at;
	n = xs_urgent_ahead(&e->wire.in, &e->wire.ring.rx);
	return n == XS_NO_MARK ? SIZE_MAX : n;
}

/* Moves stream d as far as it goes. True when only the budget stopped it. */
static bool move(struct join *j, int d)
{
	struct end *from = &j->end[d], *to = &j->end[!d];
	uint64_t before = xs_count_get(&j->task.bytes[d]);
	int looks = 0;

	while (!j->over[d] && from->presence != ABSENT && to->presence != ABSENT) {
		uint32_t n = left(from), room;
		size_t mark;

		if (!n && said_all(from)) {
			j->over[d] = true;
			if (to->presence == THERE)
				xs_wire_fail(&to->wire, from->reset ? -ECONNRESET : -ENOTCONN, from->reset ? -ECONNRESET : 0);
			break;
		}
		if (!n) {
			if (!xs_rx_arm(&from->wire.ring.rx))
				break;
			if (++looks == LOOKS)
				return true;
			continue;
		}
		if (to->presence == GONE) {
			/* As TCP: its socket is closed, data for it is answered by a reset. What it said is heard first. */
			j->over[d] = true;
			if (from->presence == THERE)
				xs_wire_fail(&from->wire, 0, to->reset ? -ECONNRESET : -EPIPE);
			to->reset = true;
			drop_rest(from);
			break;
		}
		if (xs_count_get(&j->task.bytes[d]) - before >= XS_TASK_BUDGET)
			return true;
		if (n > STEP)
			n = STEP;
		if (to->deaf) {
			consumed(from, n);
			if (++looks == LOOKS)
				return true;
			continue;
		}
		room = xs_room(&to->wire.ring.tx);
		if (!room) {
			if (!xs_tx_arm(&to->wire.ring.tx, to->wire.ring.tx.size / 2))
				break;
			if (++looks == LOOKS)
				return true;
			continue;
		}
		if (n > room)
			n = room;
		mark = ahead(from);
		if (mark < n && to->wire.out.words) {
			xs_urgent_announce(&to->wire.out, &to->wire.ring.tx, (uint32_t)mark);
		} else if (mark < n && mark > 0) {
			n = (uint32_t)mark;
		} else if (mark == 0) {
			consumed(from, 1); /* lost, as TCP's is for who does not ask for it */
			continue;
		}
		/* Counted first: who has read them finds them counted. */
		xs_count_add(&j->task.bytes[d], n);
		copy(from, to, n);
	}
	return false;
}

static enum xs_next run(struct xs_task *t, struct xs_thread *w, uint64_t now_ms)
{
	struct join *j = (struct join *)t;
	bool more = false;

	(void)w;
	(void)now_ms;
	if (!j->ended) {
		more = move(j, 0);
		more |= move(j, 1);
		if (j->end[0].presence == GONE && j->end[1].presence == GONE)
			finish(j);
	}
	return j->ended ? XS_NEXT_GONE : more ? XS_NEXT_AGAIN : XS_NEXT_WAIT;
}

static void event(struct xs_source *s, uint32_t events)
{
	(void)s;
	(void)events; /* run() looks at both rings anyway */
}

static int start(struct xs_task *t, struct xs_thread *w)
{
	struct join *j = (struct join *)t;

	j->thread = w;
	for (int i = 0; i < 2; i++) {
		int error = j->end[i].wire.attached ? xs_wire_watch(&j->end[i].wire, w->epfd) : 0;

		if (error) {
			t->error_side = i;
			return error;
		}
	}
	return 0;
}

static bool sent(const struct xs_task *t)
{
	const struct join *j = (const struct join *)t;

	return j->ended || j->over[0];
}

static void cut(struct xs_task *t, struct xs_thread *w)
{
	struct join *j = (struct join *)t;

	(void)w;
	if (j->ended)
		return;
	for (int i = 0; i < 2; i++)
		if (j->end[i].wire.attached)
			xs_wire_fail(&j->end[i].wire, -ECONNRESET, -ECONNRESET);
	finish(j);
}

/* CLOSE and RELEASE of one side: nothing touches its ring afterwards. */
static void release(struct join *j, int side, bool reset)
{
	struct end *e = &j->end[side], *other = &j->end[!side];
	int error = reset ? ECONNRESET : 0;
	uint32_t n;
	size_t mark;

	if (e->presence == GONE)
		return;
	if (e->presence == THERE) {
		move(j, side);
		/* As TCP: who closes without having read everything resets. */
		if (!e->deaf && (xs_room(&e->wire.ring.tx) != e->wire.ring.tx.size || left(other)))
			error = ECONNRESET;
		n = reset || j->over[side] || other->presence == GONE ? 0 : left(e);
		mark = ahead(e);
		e->rest = n ? malloc(n) : NULL;
		if (e->rest)
			xs_copy_out(&e->wire.ring.rx, 0, e->rest, n);
		else if (n)
			error = ENOMEM;
		e->rest_end = e->rest ? n : 0;
		e->rest_mark = SIZE_MAX;
		if (e->rest && mark < n)
			e->rest_mark = mark;
	}
	xs_wire_close(&e->wire, epfd(j));
	e->presence = GONE;
	e->reset = error != 0;
	if (error && j->task.error == 0) {
		j->task.error = error;
		j->task.error_side = side;
	}
	if (e->reset && other->presence == THERE) {
		xs_wire_fail(&other->wire, e->rest ? 0 : -ECONNRESET, -ECONNRESET);
		j->over[!side] = true;
		j->over[side] = !e->rest;
	}
}

static int command(struct xs_task *t, const struct xs_command *c)
{
	struct join *j = (struct join *)t;
	struct end *e;
	int error;

	if (c->side != 0 && c->side != 1)
		return EINVAL;
	e = &j->end[c->side];
	if (j->ended)
		return ESRCH;
	switch (c->verb) {
	case XS_RELEASE:
		release(j, c->side, c->reset);
		return 0;
	case XS_SHUTDOWN:
		if (c->how < SHUT_RD || c->how > SHUT_RDWR)
			return EINVAL;
		if (e->presence != THERE)
			return ESRCH;
		if (c->how != SHUT_RD && !e->stopping) {
			e->stopping = true;
			e->stop = e->wire.ring.rx.own + xs_readable(&e->wire.ring.rx);
		}
		if (c->how != SHUT_WR) {
			e->deaf = true;
			xs_wire_fail(&e->wire, -ENOTCONN, 0);
		}
		return 0;
	default:
		if (e->presence != ABSENT)
			return e->presence == GONE ? ESRCH : EISCONN;
		error = xs_wire_open(&e->wire, t, c->arg, XS_BACK);
		if (!error && j->thread)
			error = xs_wire_watch(&e->wire, j->thread->epfd);
		if (error) {
			xs_wire_close(&e->wire, -1);
			return error;
		}
		e->presence = THERE;
		return 0;
	}
}

static void destroy(struct xs_task *t)
{
	struct join *j = (struct join *)t;

	if (!j->ended)
		finish(j);
	xs_task_free(t);
}

static const struct xs_kind kind = {start, event, run, sent, cut, command, destroy, true, false};

uint64_t xs_mover_join(struct xs_mover *m, const struct xs_ring_end *a, const struct xs_ring_end *b, bool report)
{
	struct join *j = calloc(1, sizeof *j);
	const struct xs_ring_end *ring[2] = {a, b};
	int error = j ? 0 : ENOMEM;

	if (!j) {
		errno = error;
		return 0;
	}
	xs_task_init(&j->task, &kind, report);
	for (int i = 0; i < 2; i++)
		j->end[i].wire.event.fd = j->end[i].wire.notify_fd = -1;
	for (int i = 0; i < 2 && !error; i++) {
		if (!ring[i])
			continue;
		error = xs_wire_open(&j->end[i].wire, &j->task, ring[i], XS_BACK);
		if (!error) {
			j->end[i].presence = THERE;
			xs_wire_hosted(&j->end[i].wire, ring[i], m);
		}
	}
	if (error) {
		destroy(&j->task);
		errno = error;
		return 0;
	}
	return xs_mover_start(m, &j->task);
}

int xs_mover_join_other(struct xs_mover *m, uint64_t token, const struct xs_ring_end *b)
{
	struct xs_ring_end end = *b;

	return xs_mover_command(m, token, &(struct xs_command){.verb = XS_OTHER, .side = 1, .arg = &end});
}
