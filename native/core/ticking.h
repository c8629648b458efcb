/* The tasks of one thread that wait for a moment: XS_NEXT_TICK. The thread's own. */
#ifndef XS_TICKING_H
#define XS_TICKING_H
#include "task.h"

#define XS_TICK_MS 4

struct xs_ticking {
	struct xs_task *first;
	uint64_t due; /* when the first of them shall run, ms of CLOCK_MONOTONIC */
};

/* Adds a task, or hears that it is due earlier; one that does not say when is due after XS_TICK_MS. */
void xs_ticking_add(struct xs_ticking *k, struct xs_task *t, uint64_t now);
void xs_ticking_remove(struct xs_ticking *k, struct xs_task *t);
/* Takes those out that are due, or all; they are linked by next_tick. */
struct xs_task *xs_ticking_take(struct xs_ticking *k, uint64_t now, bool all);
/* How many ms may pass before one is due: at most a minute, -1 where there is none. */
int xs_ticking_patience(const struct xs_ticking *k, uint64_t now);
#endif
