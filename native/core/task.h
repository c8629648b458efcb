/* What the mover's threads run: tasks, each of one kind (flow.h, ringflow.h, ringjoin.h).
 *
 * A task belongs to one thread for life. The thread calls its functions with the task's lock held; another
 * thread may act on it through xs_mover_command() alone, which takes the same lock.
 */
#ifndef XS_TASK_H
#define XS_TASK_H
#include <pthread.h>
#include "order.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define XS_TASK_BUFFER ((size_t)512 << 10) /* one read: costs less CPU per byte than 256 KiB, and than splice(2) */
#define XS_TASK_BUDGET ((size_t)2 << 20)   /* bytes of one stream before others get their turn */
#define XS_TASK_DRAIN_MS 5000		   /* how long data may precede a reset */
#define XS_POOL_KEEP 4

/* Free buffers of one thread, XS_TASK_BUFFER bytes each. */
struct xs_pool {
	char *free[XS_POOL_KEEP];
	unsigned count;
};
char *xs_pool_take(struct xs_pool *pool);
void xs_pool_give(struct xs_pool *pool, char *data);
void xs_pool_empty(struct xs_pool *pool);

struct xs_mover;

/* What a task may use of the thread that runs it. */
struct xs_thread {
	struct xs_mover *mover;
	int epfd;
	struct xs_pool pool;
};

/* What run() asks of the thread. */
enum xs_next {
	XS_NEXT_WAIT,  /* nothing to do before the next event */
	XS_NEXT_AGAIN, /* the budget is used up: run again after the others */
	XS_NEXT_TICK,  /* run again in some milliseconds, or when `due` says */
	XS_NEXT_GONE,  /* it has ended and touches nothing any more; only the counters may still be read */
};

struct xs_task;

/* One descriptor that the thread's epoll watches: data.ptr. */
struct xs_source {
	struct xs_task *task;
	int fd; /* -1 once closed */
};

/* What another thread may ask of a task that has rings. */
enum xs_verb { XS_SHUTDOWN, XS_RELEASE, XS_OTHER, XS_LEAVING };
struct xs_command {
	enum xs_verb verb;
	int side;
	int how;    /* XS_SHUTDOWN: as shutdown(2) */
	bool reset; /* XS_RELEASE */
	void *arg;  /* XS_OTHER: the kind's own; XS_LEAVING: an enum xs_leaving; XS_RELEASE: NULL or a struct xs_left */
};

struct xs_kind {
	/* Registers the descriptors. Returns 0 or an errno; then error_side is set and cut() follows. */
	int (*start)(struct xs_task *t, struct xs_thread *w);
	/* Notes what epoll said; run() follows. */
	void (*event)(struct xs_source *s, uint32_t events);
	enum xs_next (*run)(struct xs_task *t, struct xs_thread *w, uint64_t now_ms);
	/* Whether everything that side A sent was passed on, and the end of it. */
	bool (*sent)(const struct xs_task *t);
	/* Ends it now: in order when sent(), else with resets. */
	void (*cut)(struct xs_task *t, struct xs_thread *w);
	/* Obeys, in the thread of whoever asks; run() follows. 0 or an errno. NULL: it has no rings. */
	int (*command)(struct xs_task *t, const struct xs_command *c);
	/* Closes what is still open and frees it. */
	void (*destroy)(struct xs_task *t);
	/* Worth a short busy wait: what it waits for is often microseconds away. */
	bool prompt;
	/* No connection: it is not counted among them. */
	bool service;
};

struct xs_task {
	const struct xs_kind *kind;
	pthread_mutex_t lock;
	xs_count bytes[2]; /* delivered: [0] from side A to B, [1] from B to A */
	int error, error_side;	   /* as in struct xs_ended */
	uint64_t token;
	bool report;
	/* The mover's bookkeeping. */
	bool queued, ticking;			 /* the thread's own, as is due: when to run after XS_NEXT_TICK (ms), */
	uint64_t due;				 /* 0 soon; the kind sets it */
	struct xs_task *prev, *next, *next_queued, *next_tick;
	unsigned worker;			 /* which thread; set once */
	unsigned pins;				 /* under the mover's lock, as is finished */
	bool finished;
	bool poked;				 /* under the thread's lock, as is next_poked */
	struct xs_task *next_poked;
};

void xs_task_init(struct xs_task *t, const struct xs_kind *kind, bool report);
/* Frees a task that was initialised; called by destroy() last. */
void xs_task_free(struct xs_task *t);

/* For the kinds: takes the task whatever comes of it. A token, or 0 and errno; it is destroyed then. */
uint64_t xs_mover_start(struct xs_mover *m, struct xs_task *t);
/* Has the task obey, then its thread run it. ESRCH when it has ended, EOPNOTSUPP when it has no rings. */
int xs_mover_command(struct xs_mover *m, uint64_t token, const struct xs_command *c);
/* Queues a notice (mover.h) about the task. */
void xs_mover_tell(struct xs_mover *m, const struct xs_task *t, int kind, int error, int side);
#endif
