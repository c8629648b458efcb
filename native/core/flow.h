/* One connection of the mover: two sockets, a stream each way. Used by mover.c alone.
 *
 * Rules
 * - A stream has bytes in hand (a buffer) only while its destination is full; otherwise none.
 * - flow_event() only notes what epoll said; flow_run() does the work. Readiness is edge-triggered:
 *   `readable` and `writable` stay set until the kernel says EAGAIN or moved less than was asked.
 * - A side that failed is closed at once. What it sent before is still delivered to the other side,
 *   which is then reset (state FLOW_DRAINING), as a reset travels behind the data natively.
 */
#ifndef XS_FLOW_H
#define XS_FLOW_H
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define XS_FLOW_BUFFER ((size_t)512 << 10) /* one read: costs less CPU per byte than 256 KiB, and than splice(2) */
#define XS_FLOW_BUDGET ((size_t)2 << 20)   /* bytes of one stream before others get their turn */
#define XS_FLOW_DRAIN_MS 5000	           /* how long data may precede a reset */
#define XS_POOL_KEEP 4

/* Free buffers of one thread. */
struct xs_pool {
	char *free[XS_POOL_KEEP];
	unsigned count;
};
void xs_pool_empty(struct xs_pool *pool);

enum xs_flow_state {
	FLOW_OPEN,     /* both sockets are open; either stream may have ended */
	FLOW_DRAINING, /* one side failed and is closed; the other gets what is left, then a reset */
	FLOW_ENDED,    /* both sockets are closed; only the counters may still be read */
};

/* What flow_run() asks of its thread. */
enum xs_flow_next {
	FLOW_WAIT,  /* nothing to do before the next event */
	FLOW_AGAIN, /* the budget is used up: run again after the others */
	FLOW_TICK,  /* run again in some milliseconds */
	FLOW_GONE,  /* the state is FLOW_ENDED */
};

struct xs_flow;
struct xs_side {
	struct xs_flow *flow;
	int fd; /* -1 once closed */
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
	struct xs_side side[2];
	struct xs_stream stream[2];
	_Atomic uint64_t bytes[2];
	enum xs_flow_state state;
	int error, error_side;
	uint64_t deadline; /* of FLOW_DRAINING, in ms of CLOCK_MONOTONIC */
	int epfd;
	/* The thread's own bookkeeping. */
	uint64_t token;
	bool report, queued, ticking;
	struct xs_flow *prev, *next, *next_queued, *next_tick;
};

void xs_flow_init(struct xs_flow *f, int a, int b, int epfd);
void xs_flow_event(struct xs_side *s, uint32_t events);
enum xs_flow_next xs_flow_run(struct xs_flow *f, struct xs_pool *pool, uint64_t now_ms);
/* Whether side A's stream was passed on whole. */
bool xs_flow_sent(const struct xs_flow *f);
/* Ends it now: in order when side A has sent everything, else with a reset of both sides. */
void xs_flow_cut(struct xs_flow *f, struct xs_pool *pool);
#endif
