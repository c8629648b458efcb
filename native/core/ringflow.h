/* One connection between a data ring and a socket: a kind of task; xs_mover_add_ring() starts it.
 *
 * role BACK: the socket is the host's; the frontend writes `out`, which goes to the socket.
 * role FRONT: the socket is the guest's, or one end of its pair; the backend writes `in`, which goes to the socket.
 *
 * Rules
 * - Bytes go from the ring's pages to the socket and back without a copy in between.
 * - `down` is from ring to socket, `up` from socket to ring.
 * - A socket that failed is closed at once; what it received before is in the ring by then, the error word follows.
 * - Released: the ring is never touched again. What was left for the socket is in private memory (`rest`) and is
 *   delivered in the background; then the socket is closed, or reset.
 */
#ifndef XS_RINGFLOW_H
#define XS_RINGFLOW_H
#include "ringwire.h"

#define XS_RING_SEND ((uint32_t)256 << 10) /* one send(2): the producer gets room while the next one runs */
#define XS_STALL_MS 250			   /* how long a peer may take none of what precedes a reset */
#define XS_REST_MS 120000		   /* how long a peer may take none of what precedes an orderly end */

enum xs_ringflow_state {
	RING_LIVE,    /* both directions, or what is left of them */
	RING_LEAVING, /* role FRONT: the socket is closed, the backend still has `out` to read */
	RING_LAST,    /* the socket gets the rest, then it is closed */
	RING_RESET,   /* the socket gets the rest, then it is reset */
	RING_ENDED,
};

struct xs_ringflow;
/* Streams and frames move differently. Each returns whether only the budget stopped it. */
struct xs_ringflow_ops {
	bool (*down)(struct xs_ringflow *f);
	bool (*up)(struct xs_ringflow *f);
};

struct xs_ringflow {
	struct xs_task task;
	struct xs_wire wire;
	struct xs_source sock;
	struct xs_thread *thread;	   /* NULL before start() */
	const struct xs_ringflow_ops *ops;
	enum xs_role role;
	enum xs_ringflow_state state;
	int family;
	bool readable, writable;
	bool hup, gone, look;		   /* it will say more than it did; nobody is left; ask for its error */
	bool eof, shut;			   /* its end was read; the ring's end was sent to it */
	bool deaf;			   /* it takes nothing any more: what comes from the ring is thrown away */
	bool asks_out;			   /* EPOLLOUT is asked for (AF_UNIX reports it too often) */
	int error;			   /* a send found it dead; reading tells what it received before */
	bool stopping;			   /* SHUTDOWN WR: the ring's end is at index stop */
	uint32_t stop;
	char *rest;
	size_t rest_mapped;		   /* bytes of it that are mapped, where it is shared memory; else 0 */
	size_t rest_at, rest_end;
	size_t rest_mark;		   /* where in it the urgent byte is; SIZE_MAX: there is none */
	size_t waiting;			   /* RING_RESET: bytes that the peer does not have yet */
	uint64_t deadline;		   /* of RING_LEAVING and RING_RESET, ms of CLOCK_MONOTONIC; 0: to be set */
};

/* For ops: the socket said n < 0. True: try again at once; false: it is full, or dead and that was dealt with. */
bool xs_ringflow_unsent(struct xs_ringflow *f, int error);
/* The socket's stream has ended. */
void xs_ringflow_ended(struct xs_ringflow *f);
/* AF_UNIX: the backend takes no more, so that a writer shall see EPIPE. */
void xs_ringflow_refuse(struct xs_ringflow *f);
/* The socket is dead. */
void xs_ringflow_dead(struct xs_ringflow *f, int error);
/* The ring ended at the other side, with a positive errno. */
void xs_ringflow_over(struct xs_ringflow *f, int error);
void xs_ringflow_full(struct xs_ringflow *f);
#endif
