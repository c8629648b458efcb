/*
 * Data rings, explored: one producer, one consumer, a ring of 2 or 4 bytes, indices that pass 2^32 on the way.
 * Byte k of the stream is k, so a lost, doubled, reordered, early or late byte is seen where it is read; a lost wake-up
 * ends with somebody waiting for ever.
 */
#include "dataring.h"

#include "explore.h"

#include <string.h>

enum { TO_CONSUMER, TO_PRODUCER }; /* events */
enum { SLEPT, STALLED, SPARED, LAST };

static struct xs_indexes page;
static uint8_t bytes[8];

/* The program, constant while it runs. */
static uint32_t size, total, start, wanted;
static bool events, batched, front_produces, ends_with_error, clears_first;

static void half(struct xs_half *h, bool producer)
{
	/* One half of the ring, `in`; who the frontend is decides who looks at the error word. */
	xs_half_init(h, producer ? &page.in_prod : &page.in_cons, producer ? &page.in_cons : &page.in_prod,
		     producer ? &page.in_cons_event : &page.in_prod_event,
		     producer ? &page.in_prod_event : &page.in_cons_event, producer == front_produces ? &page.in_error : NULL,
		     bytes, size, events);
}

static void tell(bool notify, int event)
{
	if (notify)
		ex_notify(event);
	else
		ex_reach(SPARED);
}

/* The two ways to sleep: wait() clears the event that it waited for, or clear, arm and poll. */
static void sleep_unless(struct xs_half *h, bool producer)
{
	int event = producer ? TO_PRODUCER : TO_CONSUMER;

	if (clears_first)
		ex_clear(event);
	if (producer ? xs_tx_arm(h, wanted) : xs_rx_arm(h))
		return;
	ex_reach(producer ? STALLED : SLEPT);
	if (clears_first)
		ex_poll(event);
	else
		ex_wait(event);
}

/* Writes `total` bytes in pieces of every possible length. */
static void produce(void)
{
	struct xs_half h;
	uint32_t sent = 0, room, n;
	uint8_t *to, piece[8];

	half(&h, true);
	while (sent < total && !xs_error(&h)) {
		to = xs_reserve(&h, &room);
		if (!room) {
			if (batched)
				tell(xs_tell(&h), TO_CONSUMER);
			sleep_unless(&h, true);
			continue;
		}
		room = room < total - sent ? room : total - sent;
		n = 1 + ex_choose(room);
		for (uint32_t i = 0; i < n; i++)
			piece[i] = (uint8_t)(sent + i);
		xs_copy_to_shared(to, piece, n);
		sent += n;
		if (batched)
			xs_publish(&h, n);
		else
			tell(xs_advance(&h, n), TO_CONSUMER);
	}
	if (batched)
		tell(xs_tell(&h), TO_CONSUMER);
	if (ends_with_error && !front_produces) {
		xs_store_release(&page.in_error, (uint32_t)-107);
		ex_notify(TO_CONSUMER);
	}
}

static void consume(void)
{
	struct xs_half h;
	uint32_t got = 0, there, n;
	int32_t error = 0;
	const uint8_t *from;
	uint8_t piece[8];

	half(&h, false);
	while (got < total || (ends_with_error && !error)) {
		there = xs_readable_or_error(&h, &error);
		ex_check(there <= size, "more bytes than the ring has");
		if (error)
			break;
		if (!there) {
			sleep_unless(&h, false);
			continue;
		}
		from = xs_peek(&h, &there);
		n = 1 + ex_choose(there);
		xs_copy_from_shared(piece, from, n);
		for (uint32_t i = 0; i < n; i++)
			ex_check(piece[i] == (uint8_t)(got + i), "a wrong byte");
		got += n;
		tell(xs_advance(&h, n), TO_PRODUCER);
	}
	ex_check(got == total, "bytes are missing");
}

/* The backend stops taking after its first bytes: a producer that waits for room must hear of it. */
static void refuse(void)
{
	struct xs_half h;
	uint32_t there;
	uint8_t piece[8];

	half(&h, false);
	while (!(there = xs_readable(&h)))
		sleep_unless(&h, false);
	xs_copy_out(&h, 0, piece, there);
	tell(xs_advance(&h, there), TO_PRODUCER);
	xs_store_release(&page.in_error, (uint32_t)-104);
	ex_notify(TO_PRODUCER);
}

static void lay_out(const char *title)
{
	memset(&page, 0, sizeof page);
	memset(bytes, 0xff, sizeof bytes);
	page.in_prod = page.in_cons = start;
	page.in_prod_event = page.in_cons_event = start + 1;
	ex_begin(title);
	ex_word(&page.in_prod, "prod");
	ex_word(&page.in_cons, "cons");
	ex_word(&page.in_prod_event, "prod_event");
	ex_word(&page.in_cons_event, "cons_event");
	ex_word(&page.in_error, "error");
	ex_bytes(bytes, size, "byte");
}

static void stream(const char *title)
{
	lay_out(title);
	ex_thread(produce, "producer");
	ex_thread(consume, "consumer");
	ex_expect(SLEPT, "the consumer never slept: nothing was shown");
	ex_expect(STALLED, "the ring was never full: nothing was shown");
	if (events)
		ex_expect(SPARED, "no notification was ever spared: nothing was shown");
	ex_run();
}

/* Both halves and one event for each side, as a connection has them: the back returns what the front sends. */

static uint8_t out[8];

static void both(struct xs_half *rx, struct xs_half *tx, bool front)
{
	xs_half_init(front ? tx : rx, front ? &page.out_prod : &page.out_cons, front ? &page.out_cons : &page.out_prod,
		     front ? &page.out_cons_event : &page.out_prod_event, front ? &page.out_prod_event : &page.out_cons_event,
		     NULL, out, size, events);
	xs_half_init(front ? rx : tx, front ? &page.in_cons : &page.in_prod, front ? &page.in_prod : &page.in_cons,
		     front ? &page.in_prod_event : &page.in_cons_event, front ? &page.in_cons_event : &page.in_prod_event,
		     NULL, bytes, size, events);
}

static void ask(void)
{
	struct xs_half rx, tx;
	uint32_t sent = 0, got = 0, n;
	uint8_t byte;

	both(&rx, &tx, true);
	while (got < total) {
		bool busy = false;

		if (sent < total && xs_room(&tx)) {
			byte = (uint8_t)sent++;
			xs_copy_in(&tx, 0, &byte, 1);
			tell(xs_advance(&tx, 1), TO_CONSUMER);
			busy = true;
		}
		n = xs_readable(&rx);
		if (n) {
			xs_copy_out(&rx, 0, &byte, 1);
			ex_check(byte == (uint8_t)got++, "a wrong byte");
			tell(xs_advance(&rx, 1), TO_CONSUMER);
			busy = true;
		}
		if (busy || xs_rx_arm(&rx) || (sent < total && xs_tx_arm(&tx, 1)))
			continue;
		ex_reach(STALLED);
		ex_wait(TO_PRODUCER);
	}
}

static void echo(void)
{
	struct xs_half rx, tx;
	uint32_t done = 0;
	uint8_t byte;

	both(&rx, &tx, false);
	while (done < total) {
		if (!xs_readable(&rx)) {
			if (!xs_rx_arm(&rx)) {
				ex_reach(SLEPT);
				ex_wait(TO_CONSUMER);
			}
			continue;
		}
		if (!xs_room(&tx)) {
			if (!xs_tx_arm(&tx, wanted))
				ex_wait(TO_CONSUMER);
			continue;
		}
		xs_copy_out(&rx, 0, &byte, 1);
		xs_copy_in(&tx, 0, &byte, 1);
		done++;
		tell(xs_advance(&rx, 1), TO_PRODUCER);
		tell(xs_advance(&tx, 1), TO_PRODUCER);
	}
}

static void round_trip(const char *title)
{
	lay_out(title);
	page.out_prod = page.out_cons = start;
	page.out_prod_event = page.out_cons_event = start + 1;
	ex_word(&page.out_prod, "out_prod");
	ex_word(&page.out_cons, "out_cons");
	ex_word(&page.out_prod_event, "out_prod_event");
	ex_word(&page.out_cons_event, "out_cons_event");
	ex_bytes(out, size, "out_byte");
	ex_thread(ask, "front");
	ex_thread(echo, "back");
	ex_expect(SLEPT, "the back never slept: nothing was shown");
	ex_expect(STALLED, "the front never slept: nothing was shown");
	ex_run();
}

/* The other side writes what it likes, wherever it likes. Copies beyond the ring are found by the explorer. */

static void lie(void)
{
	static const uint32_t lies[] = {0, 1, 2, 3, 5, 0x7fffffff, 0x80000000, 0xffffffff};
	xs_word *const words[] = {&page.in_prod, &page.in_cons, &page.in_prod_event, &page.in_cons_event};

	for (uint32_t round = 0; round < total; round++)
		xs_store_relaxed(words[ex_choose(4)], lies[ex_choose(8)]);
}

static void endure(void)
{
	struct xs_half rx, tx;
	uint32_t n, moved = 0;
	const uint8_t *from;
	uint8_t piece[8];

	half(&rx, false);
	half(&tx, true);
	for (int round = 0; round < 2; round++) {
		n = xs_readable(&rx);
		ex_check(n <= size, "more bytes than the ring has");
		xs_copy_out(&rx, 0, piece, n);
		from = xs_peek(&rx, &n);
		xs_copy_from_shared(piece, from, n);
		xs_advance(&rx, n);
		moved += n;
		xs_rx_arm(&rx);
		n = xs_room(&tx);
		ex_check(n <= size, "more room than the ring has");
		xs_copy_in(&tx, 0, piece, n);
		xs_advance(&tx, n);
		xs_tx_arm(&tx, 1);
	}
	if (moved)
		ex_reach(LAST);
}

static void hostile(const char *title)
{
	lay_out(title);
	ex_thread(endure, "honest");
	ex_thread(lie, "liar");
	ex_expect(LAST, "no lie was believed: nothing was shown");
	ex_run();
}

static void cut_off(const char *title)
{
	lay_out(title);
	ex_thread(produce, "producer");
	ex_thread(refuse, "consumer");
	ex_expect(STALLED, "the producer never slept: nothing was shown");
	ex_run();
}

/* The small ones first. */
int main(void)
{
	start = 0xfffffffd; /* passes 2^32 after 3 bytes */
	size = 2;
	wanted = 1;
	total = 5;
	stream("v1: every move is told");
	total = 4;
	ends_with_error = true;
	stream("v1: the stream ends with an error word");
	events = true;
	stream("events: the stream ends with an error word");
	clears_first = true;
	stream("events: the same, clearing before looking");
	ends_with_error = false;
	front_produces = true;
	cut_off("events: the backend stops taking");
	clears_first = false;
	cut_off("events: the same, a wait that clears");
	front_produces = false;
	total = 3;
	round_trip("events: both halves, one event for each side");
	total = 5;
	stream("events: 2 bytes, room for 1 asked");
	wanted = 2;
	stream("events: 2 bytes, room for 2 asked");
	batched = true;
	stream("events: 2 bytes, told once for several pieces");
	batched = false;
	size = 4;
	stream("events: 4 bytes, room for half asked");
	size = 2;
	total = 2;
	wanted = 1;
	hostile("a peer that lies");
	return 0;
}
