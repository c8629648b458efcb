/*
 * Theory of operation: a task (task.h) that has no connection, only two descriptors to look at. The mover and the bridge
 * may be freed in any order, so that both hold the task, and the task's lock says which of them are there still: a task
 * whose bridge has left does nothing until the mover ends; a bridge whose mover has ended has its own thread go on.
 */
#include "evhost.h"

#include "evbridge.h"
#include "task.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>

#define NEXT_MS 1 /* as the bridge's ticks */

struct xs_evhost {
	struct xs_task task;
	struct xs_source evtchn, notified;
	struct xs_evbridge *bridge; /* NULL: it has left, or was given back */
	int epfd;		    /* -1 before start() */
	bool ports, written;
	unsigned holders;
};

static void drop(struct xs_evhost *h)
{
	unsigned left;

	pthread_mutex_lock(&h->task.lock);
	left = --h->holders;
	pthread_mutex_unlock(&h->task.lock);
	if (!left)
		xs_task_free(&h->task);
}

/* No event of the bridge's comes here any more; the lock is held. */
static void part(struct xs_evhost *h)
{
	if (h->epfd >= 0) {
		epoll_ctl(h->epfd, EPOLL_CTL_DEL, h->evtchn.fd, NULL);
		epoll_ctl(h->epfd, EPOLL_CTL_DEL, h->notified.fd, NULL);
	}
	h->bridge = NULL;
}

static int start(struct xs_task *t, struct xs_thread *w)
{
	struct xs_evhost *h = (struct xs_evhost *)t;
	struct epoll_event ports = {EPOLLIN, {.ptr = &h->evtchn}}, written = {EPOLLIN, {.ptr = &h->notified}};

	if (!h->bridge)
		return 0;
	h->epfd = w->epfd;
	if (epoll_ctl(w->epfd, EPOLL_CTL_ADD, h->evtchn.fd, &ports) ||
	    epoll_ctl(w->epfd, EPOLL_CTL_ADD, h->notified.fd, &written))
		return errno;
	return 0;
}

static void event(struct xs_source *s, uint32_t events)
{
	struct xs_evhost *h = (struct xs_evhost *)s->task;

	(void)events;
	if (s == &h->evtchn)
		h->ports = true;
	else
		h->written = true;
}

static enum xs_next run(struct xs_task *t, struct xs_thread *w, uint64_t now_ms)
{
	struct xs_evhost *h = (struct xs_evhost *)t;
	bool waits;

	(void)w;
	if (!h->bridge)
		return XS_NEXT_WAIT;
	waits = xs_evbridge_turn(h->bridge, h->ports, h->written);
	h->ports = h->written = false;
	t->due = waits ? now_ms + NEXT_MS : 0;
	return waits ? XS_NEXT_TICK : XS_NEXT_WAIT;
}

static bool sent(const struct xs_task *t)
{
	(void)t;
	return true;
}

static void cut(struct xs_task *t, struct xs_thread *w)
{
	struct xs_evhost *h = (struct xs_evhost *)t;
	struct xs_evbridge *b = h->bridge;

	(void)w;
	if (!b)
		return;
	part(h);
	(void)xs_evbridge_lend(b, false);
}

static void destroy(struct xs_task *t) { drop((struct xs_evhost *)t); }

static const struct xs_kind kind = {start, event, run, sent, cut, NULL, destroy, false, true};

struct xs_evhost *xs_evhost_start(struct xs_mover *m, struct xs_evbridge *b, int evtchn, int notified)
{
	struct xs_evhost *h = calloc(1, sizeof *h);

	if (!h)
		return NULL;
	if (xs_evbridge_lend(b, true)) {
		free(h);
		return NULL;
	}
	xs_task_init(&h->task, &kind, false);
	h->evtchn = (struct xs_source){&h->task, evtchn};
	h->notified = (struct xs_source){&h->task, notified};
	h->bridge = b;
	h->epfd = -1;
	h->holders = 2;
	if (xs_mover_start(m, &h->task))
		return h;
	(void)xs_evbridge_lend(b, false);
	drop(h);
	return NULL;
}

void xs_evhost_leave(struct xs_evhost *h)
{
	pthread_mutex_lock(&h->task.lock);
	if (h->bridge)
		part(h);
	pthread_mutex_unlock(&h->task.lock);
	drop(h);
}
