/* Two rings joined by the mover: to each frontend the other looks as over TCP. */
#include "ringpeer.h"
#include "sockets.h"

#include <pthread.h>

#define BIG ((size_t)6 << 20)

static struct xs_mover *mover;
static bool events;
static char *sent_bytes, *buf;

static uint64_t join(struct peer *a, struct peer *b, unsigned order, unsigned other)
{
	struct xs_ring_end x, y;
	uint64_t token;

	peer_open(a, order, XS_FRONT, events);
	peer_open(b, other, XS_FRONT, !events && order != other);
	x = peer_end(a);
	y = peer_end(b);
	token = xs_mover_join(mover, &x, &y, true);
	CHECK(token);
	return token;
}

static void release(uint64_t token, struct peer *p, int side, bool reset)
{
	CHECK(xs_mover_release(mover, token, reset, side) == 0);
	peer_close(p);
}

struct writer {
	struct peer *p;
	size_t n;
};

static void *write_all(void *arg)
{
	struct writer *w = arg;

	CHECK(peer_write(w->p, sent_bytes, w->n) == 0);
	return NULL;
}

static void read_n(struct peer *p, size_t n)
{
	size_t got = 0;

	while (got < n) {
		ssize_t k = peer_read(p, buf + got, n - got);

		CHECK(k > 0);
		got += (size_t)k;
	}
	expect(buf, n, 1);
}

static void one_way_each(unsigned order, unsigned other)
{
	struct peer a, b;
	uint64_t token = join(&a, &b, order, other), bytes[2];
	struct writer w = {&a, BIG}, v = {&b, BIG / 3};
	struct xs_ended e;
	pthread_t t;
	size_t got;

	CHECK(pthread_create(&t, NULL, write_all, &w) == 0);
	read_n(&b, w.n);
	pthread_join(t, NULL);
	CHECK(xs_mover_shutdown(mover, token, SHUT_WR, 0) == 0);
	CHECK(peer_read_all(&b, buf, BIG, &got) == 0 && got == 0);
	CHECK(pthread_create(&t, NULL, write_all, &v) == 0);
	read_n(&a, v.n);
	pthread_join(t, NULL);
	CHECK(xs_mover_bytes(mover, token, bytes) && bytes[0] == w.n && bytes[1] == v.n);
	release(token, &b, 1, false);
	CHECK(peer_read_all(&a, buf, BIG, &got) == 0 && got == 0);
	release(token, &a, 0, false);
	e = wait_ended(mover, token);
	CHECK(e.error == 0 && e.side == -1 && e.bytes[0] == w.n && e.bytes[1] == v.n);
}

/* What was written before CLOSE is heard though the memory is gone, then the end; sending fails. */
static void close_with_data(void)
{
	struct peer a, b;
	uint64_t token = join(&a, &b, 6, 1);
	size_t got, n = 100000;
	int error;

	CHECK(peer_write(&a, sent_bytes, n) == 0);
	release(token, &a, 0, false);
	while ((error = peer_write(&b, "x", 1)) == 0)
		usleep(1000);
	CHECK(error == -EPIPE);
	CHECK(peer_read_all(&b, buf, BIG, &got) == -ECONNRESET && got == n);
	expect(buf, got, 1);
	release(token, &b, 1, false);
	wait_ended(mover, token);
}

static void resets(void)
{
	struct peer a, b;
	uint64_t token = join(&a, &b, 1, 1);
	size_t got;
	struct xs_ended e;

	CHECK(peer_write(&a, "last words", 10) == 0);
	release(token, &a, 0, true);
	CHECK(peer_read_all(&b, buf, BIG, &got) == -ECONNRESET && got == 10);
	CHECK(peer_write(&b, "x", 1) == -ECONNRESET);
	release(token, &b, 1, false);
	e = wait_ended(mover, token);
	CHECK(e.error == ECONNRESET && e.side == 0);
}

/* Who closes without having read everything resets, behind its own data. */
static void unread(void)
{
	struct peer a, b;
	uint64_t token = join(&a, &b, 5, 1);
	size_t got;

	CHECK(peer_write(&b, "unread", 6) == 0);
	CHECK(peer_write(&a, sent_bytes, 30000) == 0);
	release(token, &a, 0, false);
	CHECK(peer_read_all(&b, buf, BIG, &got) == -ECONNRESET && got == 30000);
	expect(buf, got, 1);
	release(token, &b, 1, false);
	CHECK(wait_ended(mover, token).error == ECONNRESET);
}

static void shutdown_read(void)
{
	struct peer a, b;
	uint64_t token = join(&a, &b, 1, 1);
	size_t got;

	CHECK(xs_mover_shutdown(mover, token, SHUT_RD, 1) == 0);
	CHECK(peer_read_all(&b, buf, BIG, &got) == 0 && got == 0);
	CHECK(peer_write(&a, sent_bytes, 100000) == 0);
	CHECK(peer_write(&b, "still", 5) == 0 && peer_read(&a, buf, 5) == 5);
	CHECK(xs_mover_shutdown(mover, token, 3, 1) == EINVAL && xs_mover_shutdown(mover, token, 1, 2) == EINVAL);
	release(token, &a, 0, false);
	release(token, &b, 1, false);
	wait_ended(mover, token);
}

/* Connected but not accepted: the first may write and even go before the second comes. */
static void accepted_later(bool gone, bool reset)
{
	struct peer a, b;
	struct xs_ring_end x, y;
	uint64_t token;
	size_t got;

	peer_open(&a, 3, XS_FRONT, events);
	x = peer_end(&a);
	token = xs_mover_join(mover, &x, NULL, true);
	CHECK(token);
	CHECK(peer_write(&a, sent_bytes, 10000) == 0);
	if (gone)
		release(token, &a, 0, reset);
	peer_open(&b, 1, XS_FRONT, events);
	y = peer_end(&b);
	CHECK(xs_mover_join_other(mover, token, &y) == 0);
	CHECK(xs_mover_join_other(mover, token, &y) == EISCONN);
	if (!gone) {
		read_n(&b, 10000);
		CHECK(peer_write(&b, "yes", 3) == 0 && peer_read(&a, buf, 3) == 3);
		release(token, &a, 0, false);
	}
	CHECK(peer_read_all(&b, buf, BIG, &got) == (reset ? -ECONNRESET : 0));
	CHECK(got == (gone && !reset ? 10000 : 0));
	release(token, &b, 1, false);
	wait_ended(mover, token);
}

static void never_accepted(void)
{
	struct peer a;
	struct xs_ring_end x;
	uint64_t token;

	peer_open(&a, 1, XS_FRONT, events);
	x = peer_end(&a);
	token = xs_mover_join(mover, &x, NULL, true);
	CHECK(token && xs_mover_release(mover, token, true, 1) == 0);
	CHECK(peer_read(&a, buf, 1) == -ECONNRESET);
	release(token, &a, 0, false);
	wait_ended(mover, token);
	CHECK(xs_mover_join_other(mover, token, &x) == ESRCH);
}

/* A reader that does not read stops the writer: nothing is held but the two rings. */
static void back_pressure(void)
{
	struct peer a, b;
	uint64_t token = join(&a, &b, 2, 2), bytes[2];
	size_t put = 0;

	while (true) {
		uint32_t room = xs_room(&a.r.tx);

		if (!room)
			usleep(20000);
		room = xs_room(&a.r.tx);
		if (!room)
			break;
		xs_copy_in(&a.r.tx, 0, sent_bytes + put, room);
		put += room;
		if (xs_advance(&a.r.tx, room))
			peer_notify(&a);
	}
	CHECK(put == a.r.tx.size + b.r.rx.size);
	CHECK(xs_mover_bytes(mover, token, bytes) && bytes[0] == b.r.rx.size);
	read_n(&b, put);
	release(token, &b, 1, false);
	release(token, &a, 0, false);
	wait_ended(mover, token);
}

/* One side lies about all its indices, the other lives. */
static void hostile(void)
{
	struct peer a, b;
	uint64_t token = join(&a, &b, 1, 1);
	struct xs_indexes *x = a.page;

	for (uint32_t i = 0; i < 3000; i++) {
		xs_store_relaxed(&x->out_prod, i * 2654435761u);
		xs_store_relaxed(&x->in_cons, ~i * 40503u);
		xs_store_relaxed(&x->out_cons, 77 * i);
		xs_store_relaxed(&x->in_prod_event, i * 3);
		peer_notify(&a);
		if (xs_readable(&b.r.rx))
			CHECK(peer_read(&b, buf, BIG) > 0);
	}
	release(token, &a, 0, true);
	release(token, &b, 1, true);
	wait_ended(mover, token);
}

int main(void)
{
	sent_bytes = malloc(BIG);
	buf = malloc(BIG + 1);
	mover = xs_mover_new(2);
	CHECK(mover && sent_bytes && buf);
	fill(sent_bytes, BIG, 1);
	for (int i = 0; i < 2; i++) {
		events = i;
		one_way_each(1, 1);
		one_way_each(7, 2);
		close_with_data();
		resets();
		unread();
		shutdown_read();
		accepted_later(false, false);
		accepted_later(true, false);
		accepted_later(true, true);
		never_accepted();
		back_pressure();
		hostile();
	}
	CHECK(xs_mover_live(mover) == 0);
	xs_mover_free(mover, 0);
	free(sent_bytes);
	free(buf);
	return 0;
}
