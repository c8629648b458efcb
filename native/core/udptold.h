/* What the relay of datagrams tells its owner: a bounded queue, and a descriptor that is readable while it has something.
 * One lock is the caller's. */
#ifndef XS_UDPTOLD_H
#define XS_UDPTOLD_H

#include "udp.h"

struct xs_told {
	int fd; /* an eventfd */
	struct xs_udp_event *event;
	size_t first, count;
};

/* False and errno; xs_told_free() all the same. */
bool xs_told_init(struct xs_told *t);
/* False: it is full. */
bool xs_told_put(struct xs_told *t, enum xs_udp_kind kind, const struct xs_datagram *d);
size_t xs_told_take(struct xs_told *t, struct xs_udp_event *out, size_t max);
void xs_told_free(struct xs_told *t);

#endif
