/* A token bucket for bytes: what several connections may move together, in each direction.
 *
 * Full after a quarter of a second without use, so that short transfers are not delayed. Any thread may use it.
 */
#ifndef XS_BUCKET_H
#define XS_BUCKET_H
#include <stddef.h>
#include <stdint.h>

struct xs_bucket;

/* `rate` in bytes per second, 1 to 10^12. One reference is the caller's. NULL: no memory, or another rate. */
struct xs_bucket *xs_bucket_new(uint64_t rate);
struct xs_bucket *xs_bucket_ref(struct xs_bucket *b);
void xs_bucket_unref(struct xs_bucket *b);

/* Takes up to `want` bytes of direction `way` (0 or 1): how many, or 0 where that is not worth a move yet; then `*due`
 * is when it will be. Times in ms of CLOCK_MONOTONIC. */
size_t xs_bucket_take(struct xs_bucket *b, int way, size_t want, uint64_t now_ms, uint64_t *due);
/* Gives back what was taken and not moved. */
void xs_bucket_give(struct xs_bucket *b, int way, size_t rest);
#endif
