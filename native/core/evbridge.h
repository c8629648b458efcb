/* Event channels between Xen domains, carried from and to eventfds. */
#ifndef XS_EVBRIDGE_H
#define XS_EVBRIDGE_H
#include <stdbool.h>
#include <stdint.h>

struct xs_evbridge;
struct xs_mover;

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
	bool hosted; /* a mover's thread carries the events */
};
struct xs_evport xs_evbridge_find(int notify_fd);
/* Has a thread of the mover's carry the events of the bridge that `notify_fd` is a port's of, unless one does already:
 * rings of that thread are then looked at without a switch of threads. With the mover that ends. */
void xs_evbridge_host(int notify_fd, struct xs_mover *m);
void xs_evbridge_send(struct xs_evport to);

/* For evhost.c. The bridge's own thread rests while it is lent. 0 or an errno. */
int xs_evbridge_lend(struct xs_evbridge *b, bool lent);
/* Carries what there is: `ports` are pending, notify_fds `written` to. Whether there is more to do in a millisecond. */
bool xs_evbridge_turn(struct xs_evbridge *b, bool ports, bool written);

/* Stops the thread and frees everything. */
void xs_evbridge_free(struct xs_evbridge *b);

#endif
