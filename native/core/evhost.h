/* A bridge of event channels on a mover's thread. */
#ifndef XS_EVHOST_H
#define XS_EVHOST_H
struct xs_evbridge;
struct xs_evhost;
struct xs_mover;

/* Lends the bridge to a thread of the mover's: evtchn is readable while ports are pending, notified while some notify_fd
 * was written to. NULL: it stays where it is. To be left, whatever becomes of the mover, before the bridge is freed. */
struct xs_evhost *xs_evhost_start(struct xs_mover *m, struct xs_evbridge *b, int evtchn, int notified);
/* When it returns the mover touches the bridge no more. */
void xs_evhost_leave(struct xs_evhost *h);
#endif
