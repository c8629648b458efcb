#include "udptold.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#define QUEUED 4096u

bool xs_told_init(struct xs_told *t)
{
	t->event = calloc(QUEUED, sizeof *t->event);
	t->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	return t->event && t->fd >= 0;
}

bool xs_told_put(struct xs_told *t, enum xs_udp_kind kind, const struct xs_datagram *d)
{
	struct xs_udp_event *e;
	struct timespec now;
	uint64_t one = 1;

	if (t->count == QUEUED)
		return false;
	e = t->event + (t->first + t->count++) % QUEUED;
	e->kind = kind;
	e->proto = d->proto;
	memcpy(e->src, d->src, 16);
	memcpy(e->dst, d->dst, 16);
	e->sport = d->sport;
	e->dport = d->dport;
	clock_gettime(CLOCK_MONOTONIC, &now);
	e->start_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
	return write(t->fd, &one, sizeof one) == sizeof one || errno == EAGAIN;
}

size_t xs_told_take(struct xs_told *t, struct xs_udp_event *out, size_t max)
{
	size_t n = 0;

	for (; n < max && t->count; t->count--) {
		out[n++] = t->event[t->first];
		t->first = (t->first + 1) % QUEUED;
	}
	return n;
}

void xs_told_free(struct xs_told *t)
{
	free(t->event);
	if (t->fd >= 0)
		close(t->fd);
}
