/* Token buckets; see bucket.h. */
#include "bucket.h"

#include <pthread.h>
#include <stdlib.h>

#define LEAST_BURST 2048
#define MOST_RATE 1000000000000u
#define MOST_MS 1000000u /* of a pause that counts: rate and this fit into 64 bits */

struct way {
	uint64_t milli; /* tokens, in thousandths of a byte */
	uint64_t stamp; /* ms: up to when they were counted */
};

struct xs_bucket {
	pthread_mutex_t lock;
	uint64_t rate, burst, quantum; /* bytes per second, bytes, bytes */
	unsigned refs;
	struct way way[2];
};

struct xs_bucket *xs_bucket_new(uint64_t rate)
{
	struct xs_bucket *b;

	if (!rate || rate > MOST_RATE)
		return NULL;
	b = calloc(1, sizeof *b);
	if (!b)
		return NULL;
	pthread_mutex_init(&b->lock, NULL);
	b->rate = rate;
	b->burst = rate / 4 > LEAST_BURST ? rate / 4 : LEAST_BURST;
	/* Bytes worth a move: what 20 ms bring. Less costs more system calls than it carries. */
	b->quantum = rate / 50 < 16384 ? rate / 50 : 16384;
	b->refs = 1;
	for (int i = 0; i < 2; i++)
		b->way[i].milli = b->burst * 1000;
	return b;
}

struct xs_bucket *xs_bucket_ref(struct xs_bucket *b)
{
	if (!b)
		return NULL;
	pthread_mutex_lock(&b->lock);
	b->refs++;
	pthread_mutex_unlock(&b->lock);
	return b;
}

void xs_bucket_unref(struct xs_bucket *b)
{
	unsigned left;

	if (!b)
		return;
	pthread_mutex_lock(&b->lock);
	left = --b->refs;
	pthread_mutex_unlock(&b->lock);
	if (left)
		return;
	pthread_mutex_destroy(&b->lock);
	free(b);
}

static void refill(struct xs_bucket *b, struct way *w, uint64_t now)
{
	uint64_t past = now > w->stamp && w->stamp ? now - w->stamp : 0;

	if (past > MOST_MS)
		past = MOST_MS;
	w->milli += b->rate * past;
	if (w->milli > b->burst * 1000)
		w->milli = b->burst * 1000;
	if (now > w->stamp)
		w->stamp = now;
}

size_t xs_bucket_take(struct xs_bucket *b, int way, size_t want, uint64_t now_ms, uint64_t *due)
{
	struct way *w = &b->way[way];
	uint64_t least = want < b->quantum ? want : b->quantum, there;

	if (!least)
		least = 1;
	pthread_mutex_lock(&b->lock);
	refill(b, w, now_ms);
	there = w->milli / 1000;
	if (there > want)
		there = want;
	if (there < least) {
		*due = now_ms + (least * 1000 - w->milli + b->rate - 1) / b->rate;
		there = 0;
	}
	w->milli -= there * 1000;
	pthread_mutex_unlock(&b->lock);
	return (size_t)there;
}

void xs_bucket_give(struct xs_bucket *b, int way, size_t rest)
{
	struct way *w = &b->way[way];

	pthread_mutex_lock(&b->lock);
	w->milli += (uint64_t)rest * 1000;
	if (w->milli > b->burst * 1000)
		w->milli = b->burst * 1000;
	pthread_mutex_unlock(&b->lock);
}
