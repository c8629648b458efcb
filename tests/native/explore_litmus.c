/*
 * The explorer against the classical litmus tests: it must see every outcome that C11 allows, or a missing barrier would
 * go unnoticed, and none that C11 forbids, or right code would be blamed.
 */
#include "order.h"

#include "explore.h"

#include <stdio.h>
#include <stdlib.h>

enum { WEAK }; /* the outcome in question */
enum { DONE }; /* event */

static xs_word x, y, result;
static bool fences, ordered;

static void put(xs_word *word, uint32_t value)
{
	if (ordered)
		xs_store_release(word, value);
	else
		xs_store_relaxed(word, value);
}

static uint32_t get(xs_word *word)
{
	return ordered ? xs_load_acquire(word) : xs_load_relaxed(word);
}

/* Store buffering: may both loads miss the other's store? Only full barriers prevent it. */

static void buffer_x(void)
{
	uint32_t seen;

	put(&x, 1);
	if (fences)
		xs_full_barrier();
	seen = get(&y);
	xs_store_relaxed(&result, seen);
	ex_notify(DONE);
}

static void buffer_y(void)
{
	uint32_t seen;

	put(&y, 1);
	if (fences)
		xs_full_barrier();
	seen = get(&x);
	ex_wait(DONE);
	if (!seen && !xs_load_relaxed(&result))
		ex_reach(WEAK);
}

/* Message passing: may the flag be seen without the message? */

static void send(void)
{
	xs_store_relaxed(&x, 1);
	if (fences)
		xs_full_barrier();
	put(&y, 1);
}

static void receive(void)
{
	if (!get(&y))
		return;
	if (fences)
		xs_full_barrier();
	if (!xs_load_relaxed(&x))
		ex_reach(WEAK);
}

/* Coherence: may one location be seen going backwards? Never. */

static void count(void)
{
	for (uint32_t i = 1; i < 4; i++)
		xs_store_relaxed(&x, i);
}

static void watch(void)
{
	uint32_t before = 0, now;

	for (int i = 0; i < 3; i++) {
		now = xs_load_relaxed(&x);
		if (now < before)
			ex_reach(WEAK);
		before = now;
	}
}

static int wrong;

static void litmus(const char *title, void (*one)(void), void (*other)(void), bool allowed)
{
	ex_begin(title);
	ex_word(&x, "x");
	ex_word(&y, "y");
	ex_word(&result, "result");
	ex_thread(one, "one");
	ex_thread(other, "other");
	ex_run();
	if ((ex_reached(WEAK) > 0) != allowed) {
		fprintf(stderr, "FAILED %s: the weak outcome was %s\n", title, allowed ? "not seen" : "seen");
		wrong = 1;
	}
}

int main(void)
{
	litmus("store buffering, relaxed", buffer_x, buffer_y, true);
	litmus("message passing, relaxed", send, receive, true);
	litmus("coherence", count, watch, false);
	ordered = true;
	litmus("store buffering, release and acquire", buffer_x, buffer_y, true);
	litmus("message passing, release and acquire", send, receive, false);
	fences = true;
	litmus("store buffering, full barriers", buffer_x, buffer_y, false);
	ordered = false;
	litmus("store buffering, full barriers alone", buffer_x, buffer_y, false);
	litmus("message passing, full barriers alone", send, receive, false);
	return wrong;
}
