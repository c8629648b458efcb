/* A data ring with its event channel, as the tasks that have rings hold it (ringflow.h, ringjoin.h). */
#ifndef XS_RINGWIRE_H
#define XS_RINGWIRE_H
#include "dataring.h"
#include "evbridge.h"
#include "mover.h"
#include "task.h"
#include "urgent.h"

#include <errno.h>

/* The ring as a task holds it. */
struct xs_wire {
	struct xs_dataring ring;
	struct xs_urgent in, out; /* of ring.rx and ring.tx */
	struct xs_source event;
	int notify_fd;
	struct xs_evport evport; /* to be used instead, where there is one */
	bool attached; /* the ring may be touched */
};

/* 0 or an errno; then nothing is held. */
int xs_wire_open(struct xs_wire *l, struct xs_task *t, const struct xs_ring_end *e, enum xs_role role);
/* The mover that moves it is to carry its events, too, where these come by a bridge (evbridge.h). */
static inline void xs_wire_hosted(const struct xs_wire *l, const struct xs_ring_end *e, struct xs_mover *m)
{
	if (l->evport.evtchn >= 0 && !l->evport.hosted)
		xs_evbridge_host(e->notify_fd, m);
}
/* Has the thread watch it. 0 or an errno. */
int xs_wire_watch(struct xs_wire *l, int epfd);
void xs_wire_notify(struct xs_wire *l);
/* Moves this side's index and notifies when the other side wants to know. */
void xs_wire_advance(struct xs_wire *l, struct xs_half *h, uint32_t n);
/* Ends `in` and `out` (negated errno; 0: leaves it), unless they ended before; tells the frontend. */
void xs_wire_fail(struct xs_wire *l, int in_error, int out_error);
/* The errno that an error word of the other side says; EPROTO when that is none. */
static inline int xs_wire_errno(int32_t word)
{
	return !word ? 0 : word < 0 && word > -4096 ? -word : EPROTO;
}
/* Lets go of the ring; harmless when that was done. */
void xs_wire_close(struct xs_wire *l, int epfd);

#endif
