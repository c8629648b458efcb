/* A queue of small items, all of one size, that grows. The caller locks. */
#ifndef XS_FETCH_H
#define XS_FETCH_H
#include <stdbool.h>
#include <stddef.h>

struct xs_fetch {
	size_t item; /* bytes of one */
	void *items;
	size_t first, count, size;
};

/* False without memory. */
bool xs_fetch_put(struct xs_fetch *q, const void *item);
/* Up to `max` items, oldest first; returns how many. */
size_t xs_fetch_take(struct xs_fetch *q, void *out, size_t max);
void xs_fetch_free(struct xs_fetch *q);
#endif
