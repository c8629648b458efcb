/* One connection of the mover: two sockets, a stream each way. A kind of task; xs_mover_add() starts it.
 *
 * Rules
 * - A stream has bytes in hand (a buffer) only while its destination is full; otherwise none.
 * - A connection with a bucket reads only what that grants, so that a full socket slows its peer down.
 * - The event function only notes what epoll said; run does the work. Readiness is edge-triggered:
 *   `readable` and `writable` stay set until the kernel says EAGAIN or moved less than was asked.
 * - A side that failed is closed at once. What it sent before is still delivered to the other side,
 *   which is then reset (state FLOW_DRAINING), as a reset travels behind the data natively. With a bucket, what side 0
 *   sent and the bucket did not grant yet is dropped: it would be delivered long after the reset, by nobody's wish.
 */
#ifndef XS_FLOW_H
#define XS_FLOW_H
#include "task.h"

enum xs_flow_state {
	FLOW_OPEN,     /* both sockets are open; either stream may have ended */
	FLOW_DRAINING, /* one side failed and is closed; the other gets what is left, then a reset */
	FLOW_ENDED,    /* both sockets are closed; only the counters may still be read */
};

struct xs_side {
	struct xs_source source;
	int error; /* a send found it dead; reading tells what it sent before */
	bool readable, writable, urgent;
	bool hup;  /* its stream has ended: a short read does not mean that there is no more */
	bool eof;  /* its end of stream was read */
	bool shut; /* the end of the other's stream was sent to it */
};

/* The stream from side i to side 1 - i. */
struct xs_stream {
	char *data;
	size_t start, end, size; /* in hand: data[start..end) of size allocated bytes */
	int urgent;		 /* an urgent byte to send after them, or -1 */
};

struct xs_flow {
	struct xs_task task;
	struct xs_side side[2];
	struct xs_stream stream[2];
	enum xs_flow_state state;
	uint64_t deadline; /* of FLOW_DRAINING, in ms of CLOCK_MONOTONIC */
	int epfd;
	struct xs_bucket *bucket; /* NULL: as fast as it goes */
	uint64_t due;		  /* the bucket is empty until then (ms); 0: it is not what is waited for */
};
#endif
