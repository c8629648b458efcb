/* What lets another process go on with a connection between a ring and a socket. */
#ifndef XS_RINGRESUME_H
#define XS_RINGRESUME_H
#include "ringflow.h"

/* Before start(): goes on where another process stopped. Ends that the indexes page tells are not told again. */
void xs_ringflow_resume(struct xs_ringflow *f, const struct xs_ring_start *s);

/* Memory for the rest: where `left` is not NULL it is shared, and described there. NULL without memory. */
char *xs_rest_take(struct xs_ringflow *f, size_t n, struct xs_left *left);
/* Frees it; harmless when there is none. */
void xs_rest_drop(struct xs_ringflow *f);
#endif
