/* See fetch.h. */
#include "fetch.h"

#include <stdlib.h>
#include <string.h>

bool xs_fetch_put(struct xs_fetch *q, const void *item)
{
	if (q->first + q->count == q->size) {
		if (q->first) {
			memmove(q->items, (char *)q->items + q->first * q->item, q->count * q->item);
			q->first = 0;
		} else {
			size_t size = q->size ? q->size * 2 : 64;
			void *bigger = realloc(q->items, size * q->item);

			if (!bigger)
				return false;
			q->items = bigger;
			q->size = size;
		}
	}
	memcpy((char *)q->items + (q->first + q->count++) * q->item, item, q->item);
	return true;
}

size_t xs_fetch_take(struct xs_fetch *q, void *out, size_t max)
{
	size_t n = q->count < max ? q->count : max;

	if (n)
		memcpy(out, (char *)q->items + q->first * q->item, n * q->item);
	q->count -= n;
	q->first = q->count ? q->first + n : 0;
	return n;
}

void xs_fetch_free(struct xs_fetch *q)
{
	free(q->items);
	q->items = NULL;
	q->first = q->count = q->size = 0;
}
