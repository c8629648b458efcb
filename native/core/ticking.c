/* See ticking.h. */
#include "ticking.h"

#define LONGEST_MS 60000

void xs_ticking_add(struct xs_ticking *k, struct xs_task *t, uint64_t now)
{
	if (!t->due)
		t->due = now + XS_TICK_MS;
	if (!k->first || t->due < k->due)
		k->due = t->due;
	if (t->ticking)
		return;
	t->ticking = true;
	t->next_tick = k->first;
	k->first = t;
}

void xs_ticking_remove(struct xs_ticking *k, struct xs_task *t)
{
	if (!t->ticking)
		return;
	for (struct xs_task **p = &k->first; *p; p = &(*p)->next_tick)
		if (*p == t) {
			*p = t->next_tick;
			break;
		}
	t->ticking = false;
}

struct xs_task *xs_ticking_take(struct xs_ticking *k, uint64_t now, bool all)
{
	struct xs_task *t = k->first, *next, *due = NULL;

	k->first = NULL;
	for (; t; t = next) {
		next = t->next_tick;
		if (all || t->due <= now) {
			t->ticking = false;
			t->due = 0;
			t->next_tick = due;
			due = t;
			continue;
		}
		if (!k->first || t->due < k->due)
			k->due = t->due;
		t->next_tick = k->first;
		k->first = t;
	}
	return due;
}

int xs_ticking_patience(const struct xs_ticking *k, uint64_t now)
{
	if (!k->first)
		return -1;
	if (k->due <= now)
		return 0;
	return k->due - now < LONGEST_MS ? (int)(k->due - now) : LONGEST_MS;
}
