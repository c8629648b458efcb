/* Rings between two real threads that sleep on eventfds; and what a peer cannot do to them. Run under TSan too. */
#include "check.h"
#include "cmdring.h"
#include "dataring.h"

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#define BYTES (3u << 20)
#define COMMANDS 20000u

static void *pages(size_t n)
{
	void *p = mmap(NULL, n * XS_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	CHECK(p != MAP_FAILED);
	return p;
}

static void notify(int fd)
{
	uint64_t one = 1;

	CHECK(write(fd, &one, sizeof one) == sizeof one);
}

/* A lost wake-up is a sleep of many seconds. */
static void sleep_on(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};
	uint64_t count;

	CHECK(poll(&p, 1, 30000) == 1);
	CHECK(read(fd, &count, sizeof count) == sizeof count);
}

static uint32_t rest(uint32_t *seed, uint32_t below)
{
	*seed = *seed * 1664525 + 1013904223;
	return (*seed >> 8) % below;
}

/* Data */

struct wire {
	struct xs_indexes *indexes;
	uint8_t *data;
	size_t length;
	int to_front, to_back;
	bool events, echo;
	uint32_t sleeps;
};

static uint8_t byte_at(uint32_t k)
{
	return (uint8_t)(k * 31 + (k >> 8));
}

static void send_all(struct wire *w, struct xs_half *tx, int mine, int theirs, uint32_t seed)
{
	uint8_t piece[9000];
	uint32_t sent = 0, n, room;

	while (sent < BYTES) {
		uint8_t *to = xs_reserve(tx, &room);

		if (!room) {
			if (!xs_tx_arm(tx, 1 + rest(&seed, tx->size))) {
				__atomic_fetch_add(&w->sleeps, 1, __ATOMIC_RELAXED);
				sleep_on(mine);
			}
			continue;
		}
		n = 1 + rest(&seed, sizeof piece);
		n = n < room ? n : room;
		n = n < BYTES - sent ? n : BYTES - sent;
		for (uint32_t i = 0; i < n; i++)
			piece[i] = byte_at(sent + i);
		xs_copy_to_shared(to, piece, n);
		sent += n;
		if (xs_advance(tx, n))
			notify(theirs);
	}
}

static void receive_all(struct wire *w, struct xs_half *rx, int mine, int theirs, uint32_t seed)
{
	uint8_t piece[9000];
	uint32_t got = 0, n;
	int32_t error;

	for (;;) {
		n = xs_readable_or_error(rx, &error);
		if (error || (!rx->error && got == BYTES))
			break;
		if (!n) {
			if (!xs_rx_arm(rx)) {
				__atomic_fetch_add(&w->sleeps, 1, __ATOMIC_RELAXED);
				sleep_on(mine);
			}
			continue;
		}
		if (n > sizeof piece)
			n = sizeof piece;
		n = 1 + rest(&seed, n);
		xs_copy_out(rx, 0, piece, n);
		for (uint32_t i = 0; i < n; i++)
			CHECK(piece[i] == byte_at(got + i));
		got += n;
		if (xs_advance(rx, n))
			notify(theirs);
	}
	CHECK(got == BYTES);
}

static void *front(void *arg)
{
	struct wire *w = arg;
	struct xs_dataring r;

	CHECK(!xs_dataring_init(&r, w->indexes, w->data, w->length, XS_FRONT, w->events));
	send_all(w, &r.tx, w->to_front, w->to_back, 1);
	receive_all(w, &r.rx, w->to_front, w->to_back, 2);
	return NULL;
}

static void *back(void *arg)
{
	struct wire *w = arg;
	struct xs_dataring r;

	CHECK(!xs_dataring_init(&r, w->indexes, w->data, w->length, XS_BACK, w->events));
	receive_all(w, &r.rx, w->to_back, w->to_front, 3);
	send_all(w, &r.tx, w->to_back, w->to_front, 4);
	xs_dataring_fail(&r, -ENOTCONN, 0);
	notify(w->to_front);
	return NULL;
}

static void between_threads(unsigned order, bool events)
{
	struct wire w = {.length = (size_t)XS_PAGE << order, .events = events};
	pthread_t a, b;

	w.indexes = pages(1);
	w.data = pages((size_t)1 << order);
	xs_indexes_init(w.indexes);
	/* Both halves pass 2^32 on the way. */
	for (size_t i = 0; i < 2; i++) {
		xs_word *in = i ? &w.indexes->out_cons : &w.indexes->in_cons;

		in[0] = in[1] = 0u - BYTES / 2;
		in[4] = in[5] = 0u - BYTES / 2 + 1;
	}
	w.to_front = eventfd(0, EFD_CLOEXEC);
	w.to_back = eventfd(0, EFD_CLOEXEC);
	CHECK(w.to_front >= 0 && w.to_back >= 0);
	CHECK(!pthread_create(&a, NULL, front, &w) && !pthread_create(&b, NULL, back, &w));
	CHECK(!pthread_join(a, NULL) && !pthread_join(b, NULL));
	CHECK(w.sleeps > 0);
	close(w.to_front);
	close(w.to_back);
	munmap(w.indexes, XS_PAGE);
	munmap(w.data, w.length);
}

/* Commands */

struct commands {
	void *pages;
	size_t length;
	int to_front, to_back;
};

static void *front_of_commands(void *arg)
{
	struct commands *c = arg;
	struct xs_cmdfront f;
	uint32_t asked = 0, answered = 0, slot[16];
	uint64_t sum = 0;

	CHECK(!xs_cmdfront_init(&f, c->pages, c->length));
	while (answered < COMMANDS) {
		bool push = false;
		int got;

		for (; asked < COMMANDS && xs_cmdfront_free(&f); asked++, push = true) {
			for (int i = 0; i < 16; i++)
				slot[i] = asked;
			xs_cmdfront_put(&f, slot);
		}
		if (push && xs_cmdfront_push(&f))
			notify(c->to_back);
		while ((got = xs_cmdfront_pop(&f, slot)) > 0) {
			CHECK(slot[0] == slot[15]);
			sum += slot[0];
			answered++;
		}
		CHECK(got == 0);
		if (answered == asked || answered == COMMANDS)
			continue;
		if (!xs_cmdfront_arm(&f))
			sleep_on(c->to_front);
	}
	CHECK(sum == (uint64_t)COMMANDS * (COMMANDS - 1) / 2);
	return NULL;
}

static void *back_of_commands(void *arg)
{
	struct commands *c = arg;
	struct xs_cmdback b;
	uint32_t taken = 0, answered = 0, slot[16];

	CHECK(!xs_cmdback_init(&b, c->pages, c->length));
	while (answered < COMMANDS) {
		int got = xs_cmdback_take(&b, slot);

		CHECK(got >= 0);
		if (!got) {
			if (!xs_cmdback_arm(&b))
				sleep_on(c->to_back);
			continue;
		}
		CHECK(slot[0] == taken && slot[15] == taken);
		taken++;
		xs_cmdback_put(&b, slot);
		answered++;
		if (xs_cmdback_push(&b))
			notify(c->to_front);
	}
	return NULL;
}

static void commands_between_threads(size_t n)
{
	struct commands c = {.length = n * XS_PAGE};
	struct xs_cmdpage *page;
	pthread_t a, b;

	page = c.pages = pages(n);
	CHECK(!xs_cmdring_clear(c.pages, c.length));
	page->req_prod = page->rsp_prod = 0u - 1000;
	page->req_event = page->rsp_event = 0u - 999;
	c.to_front = eventfd(0, EFD_CLOEXEC);
	c.to_back = eventfd(0, EFD_CLOEXEC);
	CHECK(c.to_front >= 0 && c.to_back >= 0);
	CHECK(!pthread_create(&a, NULL, front_of_commands, &c) && !pthread_create(&b, NULL, back_of_commands, &c));
	CHECK(!pthread_join(a, NULL) && !pthread_join(b, NULL));
	close(c.to_front);
	close(c.to_back);
	munmap(c.pages, c.length);
}

/* What does not need two threads */

static void test_sizes(void)
{
	static const uint32_t slots[] = {0, 32, 64, 128, 128, 256, 256, 256, 256, 512, 512, 512, 512, 512, 512, 512, 512, 0};
	struct xs_cmdfront f;
	struct xs_dataring r;
	uint8_t *p = pages(18);

	for (size_t n = 0; n < 18; n++)
		CHECK(xs_cmd_slots(n) == slots[n]);
	CHECK(xs_cmdfront_init(&f, p, XS_PAGE - 64) == EINVAL);
	CHECK(xs_cmdfront_init(&f, p + 1, XS_PAGE) == EINVAL);
	CHECK(xs_cmdring_clear(p, 17 * XS_PAGE) == EINVAL);
	((struct xs_cmdpage *)p)->req_prod = 33;
	CHECK(xs_cmdfront_init(&f, p, XS_PAGE) == EINVAL);
	CHECK(xs_cmdfront_init(&f, p, 2 * XS_PAGE) == 0);
	for (unsigned order = 0; order < 15; order++)
		CHECK(xs_dataring_init(&r, p, p, (size_t)XS_PAGE << order, XS_BACK, true) ==
		      (order >= XS_ORDER_MIN && order <= XS_ORDER_MAX ? 0 : EINVAL));
	CHECK(xs_dataring_init(&r, p, p, 3 * XS_PAGE, XS_BACK, true) == EINVAL);
	CHECK(xs_dataring_init(&r, p + 2, p, 2 * XS_PAGE, XS_BACK, true) == EINVAL);
	munmap(p, 18 * XS_PAGE);
}

/* v1's own words, with masked indices and four cases, against what is used. */
static uint32_t queued_as_written(uint32_t prod, uint32_t cons, uint32_t size)
{
	uint32_t p = prod & (size - 1), c = cons & (size - 1);

	if (prod == cons)
		return 0;
	if (p == c)
		return size;
	return p > c ? p - c : size - (c - p);
}

static void test_any_index(void)
{
	uint32_t seed = 7;

	for (unsigned i = 0; i < 200000; i++) {
		uint32_t size = 1u << (1 + rest(&seed, 24)), prod = seed * 2654435761u, cons;

		rest(&seed, 2);
		cons = i % 4 ? seed * 2246822519u : prod - rest(&seed, 3) * size / 2;
		CHECK(xs_queued(prod, cons, size) == queued_as_written(prod, cons, size));
		CHECK(xs_queued(prod, cons, size) <= size);
	}
}

/* What one side sees of the ring cannot leave it, whatever the other writes; ASan has the pages exactly. */
static void test_hostile_indices(void)
{
	size_t length = 2 * XS_PAGE;
	struct xs_indexes *indexes = aligned_alloc(XS_PAGE, XS_PAGE);
	uint8_t *data = aligned_alloc(XS_PAGE, length), copy[XS_PAGE];
	struct xs_dataring r;
	struct iovec chunk[2];
	uint32_t seed = 3;

	CHECK(indexes && data);
	memset(data, 1, length);
	memset(indexes, 0, XS_PAGE);
	xs_indexes_init(indexes);
	CHECK(!xs_dataring_init(&r, indexes, data, length, XS_BACK, true));
	for (unsigned i = 0; i < 20000; i++) {
		uint32_t n, m;
		int32_t error;
		int chunks;

		rest(&seed, 2);
		indexes->in_cons = indexes->in_prod = seed;
		rest(&seed, 2);
		indexes->out_cons = indexes->out_prod = seed;
		indexes->in_error = indexes->in_cons_event = seed >> 3;
		n = xs_readable_or_error(&r.rx, &error);
		CHECK(n <= XS_PAGE && !error);
		xs_copy_out(&r.rx, 0, copy, n);
		chunks = xs_chunks(&r.rx, n, chunk);
		m = 0;
		for (int k = 0; k < chunks; k++) {
			CHECK((uint8_t *)chunk[k].iov_base >= data + XS_PAGE);
			CHECK((uint8_t *)chunk[k].iov_base + chunk[k].iov_len <= data + length);
			m += (uint32_t)chunk[k].iov_len;
		}
		CHECK(m == n);
		xs_advance(&r.rx, n);
		CHECK(r.rx.own == indexes->out_cons);
		n = xs_room(&r.tx);
		CHECK(n <= XS_PAGE);
		xs_copy_in(&r.tx, 0, copy, n);
		xs_advance(&r.tx, n);
		CHECK(r.tx.own == indexes->in_prod);
		xs_rx_arm(&r.rx);
		xs_tx_arm(&r.tx, 1);
	}
	free(data);
	free(indexes);
}

int main(void)
{
	test_sizes();
	test_any_index();
	test_hostile_indices();
	between_threads(1, true);
	between_threads(1, false);
	between_threads(4, true);
	commands_between_threads(1);
	commands_between_threads(4);
	return 0;
}
