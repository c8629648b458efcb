/* Event channels between Xen domains, carried from and to eventfds. */
#ifndef XS_EVBRIDGE_H
#define XS_EVBRIDGE_H
#include <stdbool.h>
#include <stdint.h>

struct xs_evbridge;

/* Events of one port in a millisecond; what comes above that waits for the next one. */
#define XS_EVBRIDGE_BURST 256
/* The same of all ports of a domain together. */
#define XS_EVBRIDGE_DOMAIN_BURST 1024

/* Starts the thread that carries events. `evtchn` is /dev/xen/evtchn, open for reading and writing; it stays the
 * caller's, who binds and unbinds ports there. NULL and errno where the kernel refuses. */
struct xs_evbridge *xs_evbridge_new(int evtchn);

/* Lets events of a port, of a channel to `domain`, add to the eventfd `wait_fd`, and writes to `notify_fd` notify the
 * port. Both are duplicated. 0 or an errno (EEXIST, ENOMEM, EMFILE). */
int xs_evbridge_add(struct xs_evbridge *b, uint32_t port, uint32_t domain, int notify_fd, int wait_fd);

/* When it returns nothing of the port is touched any more. 0, or ENOENT. What was written to `notify_fd` before is
 * notified first. */
int xs_evbridge_remove(struct xs_evbridge *b, uint32_t port);

/* Whether `notify_fd` is one of a port's here, and which: whoever sends many events saves a switch of threads each by
 * xs_evbridge_send(). Valid until the port is removed. */
struct xs_evport {
	int evtchn; /* -1: none */
	uint32_t port;
};
struct xs_evport xs_evbridge_find(int notify_fd);
void xs_evbridge_send(struct xs_evport to);

/* Stops the thread and frees everything. */
void xs_evbridge_free(struct xs_evbridge *b);

#endif
