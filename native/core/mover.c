/* Threads that run tasks (task.h), and the table by which others may reach them.
 *
 * Each connection belongs to one thread for life. Other threads reach it only through the thread's inbox, through
 * the table (counters) and with the task locked (xs_mover_command). Nothing here blocks but epoll_wait().
 * Locks are taken in the order task, mover, thread.
 */
#include "mover.h"

#include "fetch.h"
#include "spin.h"
#include "task.h"
#include "ticking.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#define BATCH 64

struct worker {
	struct xs_thread thread; /* what its tasks may use */
	pthread_t id;
	int wake;
	pthread_mutex_t lock; /* of inbox, poked and stopping */
	struct xs_task *inbox, *poked;
	bool stopping;
	uint64_t stop_at; /* ms of CLOCK_MONOTONIC */
	xs_count live;
	/* The thread's own. */
	struct xs_task *tasks, *queue, **queue_tail;
	struct xs_ticking ticking;
	unsigned prompt; /* tasks whose kind says so */
	uint32_t spin_ns;
};

struct slot {
	struct xs_task *task;
	uint32_t generation, next_free;
};

struct xs_mover {
	unsigned count;
	int endfd;
	pthread_mutex_t lock; /* of everything below */
	bool closed;
	struct slot *slots; /* [0] is never used, so that no token is 0 */
	uint32_t slot_count, slot_size, free_slot;
	struct xs_fetch ended, notices;
	struct worker workers[];
};

static uint64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static void wake(int fd)
{
	uint64_t one = 1;

	while (write(fd, &one, sizeof one) < 0 && errno == EINTR)
		;
}

/* ---- the table; m->lock is held ---- */

static size_t fetch_take(struct xs_mover *m, struct xs_fetch *q, void *out, size_t max)
{
	uint64_t drained;
	size_t n;

	pthread_mutex_lock(&m->lock);
	n = xs_fetch_take(q, out, max);
	/* Under the lock, so that what comes now makes the eventfd readable again. */
	if (!m->ended.count && !m->notices.count && read(m->endfd, &drained, sizeof drained) < 0)
		drained = 0;
	pthread_mutex_unlock(&m->lock);
	return n;
}

static uint64_t slot_take(struct xs_mover *m, struct xs_task *t)
{
	uint32_t i = m->free_slot;

	if (i) {
		m->free_slot = m->slots[i].next_free;
	} else {
		if (m->slot_count == m->slot_size) {
			uint32_t size = m->slot_size ? m->slot_size * 2 : 64;
			struct slot *bigger = realloc(m->slots, size * sizeof *bigger);

			if (!bigger)
				return 0;
			m->slots = bigger;
			m->slot_size = size;
		}
		if (!m->slot_count)
			m->slots[m->slot_count++] = (struct slot){0};
		i = m->slot_count++;
		m->slots[i] = (struct slot){0};
	}
	m->slots[i].task = t;
	return (uint64_t)m->slots[i].generation << 32 | i;
}

static struct slot *slot_of(struct xs_mover *m, uint64_t token)
{
	uint32_t i = (uint32_t)token;

	if (!i || i >= m->slot_count || !m->slots[i].task || m->slots[i].generation != token >> 32)
		return NULL;
	return &m->slots[i];
}

static void slot_free(struct xs_mover *m, uint64_t token)
{
	struct slot *s = slot_of(m, token);

	if (!s)
		return;
	s->task = NULL;
	s->generation++;
	s->next_free = m->free_slot;
	m->free_slot = (uint32_t)token;
}

/* ---- one thread ---- */

static void enqueue(struct worker *w, struct xs_task *t)
{
	if (t->queued)
		return;
	t->queued = true;
	t->next_queued = NULL;
	*w->queue_tail = t;
	w->queue_tail = &t->next_queued;
}

/* Tells of the end of a task that is in no list of the thread any more, and frees it unless somebody looks at it. */
static void finish(struct worker *w, struct xs_task *t)
{
	struct xs_mover *m = w->thread.mover;
	struct xs_ended e = {t->token, {xs_count_get(&t->bytes[0]), xs_count_get(&t->bytes[1])}, t->error, t->error_side};
	bool told, pinned, service = t->kind->service; /* whoever has pinned the task may free it, once the lock is open */

	pthread_mutex_lock(&m->lock);
	slot_free(m, t->token);
	t->finished = true; /* nobody pokes it from now on */
	pinned = t->pins > 0;
	told = t->report && xs_fetch_put(&m->ended, &e);
	pthread_mutex_lock(&w->lock);
	if (t->poked)
		for (struct xs_task **p = &w->poked; *p; p = &(*p)->next_poked)
			if (*p == t) {
				*p = t->next_poked;
				break;
			}
	pthread_mutex_unlock(&w->lock);
	pthread_mutex_unlock(&m->lock);
	xs_count_sub(&w->live, !service);
	if (!pinned)
		t->kind->destroy(t);
	if (told)
		wake(m->endfd);
}

static void unlink_task(struct worker *w, struct xs_task *t)
{
	xs_ticking_remove(&w->ticking, t);
	w->prompt -= t->kind->prompt;
	if (t->prev)
		t->prev->next = t->next;
	else
		w->tasks = t->next;
	if (t->next)
		t->next->prev = t->prev;
}

static void adopt(struct worker *w, struct xs_task *t)
{
	int error;

	t->prev = NULL;
	t->next = w->tasks;
	if (t->next)
		t->next->prev = t;
	w->tasks = t;
	w->prompt += t->kind->prompt;
	pthread_mutex_lock(&t->lock);
	error = t->kind->start(t, &w->thread);
	if (error) {
		t->error = error;
		t->kind->cut(t, &w->thread);
	}
	pthread_mutex_unlock(&t->lock);
	enqueue(w, t);
}

/* Takes what others left; returns whether the thread shall stop, and by when. */
static bool check_inbox(struct worker *w, uint64_t *stop_at)
{
	struct xs_task *t, *next, *first = NULL;
	uint64_t drained;
	bool stopping;

	if (read(w->wake, &drained, sizeof drained) < 0 && errno != EAGAIN && errno != EINTR)
		abort(); /* an eventfd has no other error: our own descriptor was closed */
	pthread_mutex_lock(&w->lock);
	t = w->inbox;
	w->inbox = NULL;
	for (; w->poked; w->poked = w->poked->next_poked) {
		w->poked->poked = false;
		enqueue(w, w->poked);
	}
	stopping = w->stopping;
	*stop_at = w->stop_at;
	pthread_mutex_unlock(&w->lock);
	for (; t; t = next) { /* the inbox is a stack */
		next = t->next;
		t->next = first;
		first = t;
	}
	for (t = first; t; t = next) {
		next = t->next;
		adopt(w, t);
	}
	return stopping;
}

static void run_queue(struct worker *w)
{
	struct xs_task *t = w->queue;
	uint64_t now = t ? now_ms() : 0;

	w->queue = NULL;
	w->queue_tail = &w->queue;
	while (t) {
		struct xs_task *next = t->next_queued;
		enum xs_next then;

		t->queued = false;
		pthread_mutex_lock(&t->lock);
		then = t->kind->run(t, &w->thread, now);
		pthread_mutex_unlock(&t->lock);
		switch (then) {
		case XS_NEXT_WAIT:
			break;
		case XS_NEXT_AGAIN:
			enqueue(w, t);
			break;
		case XS_NEXT_TICK:
			xs_ticking_add(&w->ticking, t, now);
			break;
		case XS_NEXT_GONE:
			unlink_task(w, t);
			finish(w, t);
			break;
		}
		t = next;
	}
}

/* How long the thread may wait for events (ms); -1 without end. */
static int patience(const struct worker *w, bool stopping)
{
	if (w->queue)
		return 0;
	if (stopping)
		return XS_TICK_MS;
	return w->ticking.first ? xs_ticking_patience(&w->ticking, now_ms()) : -1;
}

static bool all_sent(const struct worker *w)
{
	for (struct xs_task *t = w->tasks; t; t = t->next) {
		bool sent;

		pthread_mutex_lock(&t->lock);
		sent = t->kind->sent(t);
		pthread_mutex_unlock(&t->lock);
		if (!sent)
			return false;
	}
	return true;
}

static int wait_for_events(struct worker *w, struct epoll_event *ev, int timeout)
{
	if (timeout < 0 && w->prompt && w->thread.mover->count > 1) /* one thread: one processor */
		return xs_spin_epoll(w->thread.epfd, ev, BATCH, &w->spin_ns);
	return epoll_wait(w->thread.epfd, ev, BATCH, timeout);
}

static void *work(void *arg)
{
	struct worker *w = arg;
	struct epoll_event ev[BATCH];
	uint64_t stop_at = 0;
	bool stopping = false;

	while (!stopping || (now_ms() < stop_at && !all_sent(w))) {
		int n = wait_for_events(w, ev, patience(w, stopping));

		for (int i = 0; i < n; i++) {
			struct xs_source *s = ev[i].data.ptr;

			if (!s) {
				stopping = check_inbox(w, &stop_at);
				continue;
			}
			pthread_mutex_lock(&s->task->lock);
			s->task->kind->event(s, ev[i].events);
			pthread_mutex_unlock(&s->task->lock);
			enqueue(w, s->task);
		}
		if (w->ticking.first)
			for (struct xs_task *t = xs_ticking_take(&w->ticking, now_ms(), stopping), *next; t; t = next) {
				next = t->next_tick;
				enqueue(w, t);
			}
		run_queue(w);
	}
	while (w->tasks) {
		struct xs_task *t = w->tasks;

		pthread_mutex_lock(&t->lock);
		t->kind->cut(t, &w->thread);
		pthread_mutex_unlock(&t->lock);
		unlink_task(w, t);
		finish(w, t);
	}
	xs_pool_empty(&w->thread.pool);
	return NULL;
}

/* ---- for other threads ---- */

static int worker_start(struct worker *w, struct xs_mover *m)
{
	struct epoll_event ev = {EPOLLIN, {.ptr = NULL}};
	int error;

	w->thread.mover = m;
	w->queue_tail = &w->queue;
	pthread_mutex_init(&w->lock, NULL);
	w->thread.epfd = epoll_create1(EPOLL_CLOEXEC);
	w->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (w->thread.epfd >= 0 && w->wake >= 0 && epoll_ctl(w->thread.epfd, EPOLL_CTL_ADD, w->wake, &ev) == 0) {
		error = pthread_create(&w->id, NULL, work, w);
		if (!error) {
			pthread_setname_np(w->id, "xs-mover");
			return 0;
		}
	} else {
		error = errno;
	}
	if (w->thread.epfd >= 0)
		close(w->thread.epfd);
	if (w->wake >= 0)
		close(w->wake);
	pthread_mutex_destroy(&w->lock);
	return error;
}

struct xs_mover *xs_mover_new(unsigned threads)
{
	struct xs_mover *m;
	sigset_t all, before;
	int error = 0;

	if (!threads)
		threads = 1;
	m = calloc(1, sizeof *m + threads * sizeof m->workers[0]);
	if (!m)
		return NULL;
	pthread_mutex_init(&m->lock, NULL);
	m->ended = (struct xs_fetch){.item = sizeof(struct xs_ended)};
	m->notices = (struct xs_fetch){.item = sizeof(struct xs_notice)};
	m->endfd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (m->endfd < 0)
		error = errno;
	/* Signals are for the program's own threads. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	while (!error && m->count < threads) {
		error = worker_start(&m->workers[m->count], m);
		if (!error)
			m->count++;
	}
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (error) {
		xs_mover_free(m, 0);
		errno = error;
		return NULL;
	}
	return m;
}

uint64_t xs_mover_start(struct xs_mover *m, struct xs_task *t)
{
	unsigned least = 0;
	struct worker *w;
	uint64_t token = 0;
	int error = 0;

	for (unsigned i = 1; i < m->count; i++)
		if (xs_count_get(&m->workers[i].live) < xs_count_get(&m->workers[least].live))
			least = i;
	w = &m->workers[least];
	t->worker = least;
	/* The inbox is filled under m->lock too, so that nothing arrives after closing. */
	pthread_mutex_lock(&m->lock);
	if (m->closed)
		error = ESHUTDOWN;
	else
		t->token = token = slot_take(m, t);
	if (token) {
		xs_count_add(&w->live, !t->kind->service);
		pthread_mutex_lock(&w->lock);
		t->next = w->inbox;
		w->inbox = t;
		pthread_mutex_unlock(&w->lock);
	} else if (!error) {
		error = ENOMEM;
	}
	pthread_mutex_unlock(&m->lock);
	if (!error) {
		wake(w->wake);
		return token;
	}
	t->kind->destroy(t);
	errno = error;
	return 0;
}

int xs_mover_command(struct xs_mover *m, uint64_t token, const struct xs_command *c)
{
	bool poke = false, destroy;
	struct xs_task *t = NULL;
	struct worker *w;
	struct slot *s;
	int result;

	pthread_mutex_lock(&m->lock);
	s = slot_of(m, token);
	if (s) {
		t = s->task;
		t->pins++;
	}
	pthread_mutex_unlock(&m->lock);
	if (!t)
		return ESRCH;
	w = &m->workers[t->worker];
	pthread_mutex_lock(&t->lock);
	result = t->kind->command ? t->kind->command(t, c) : EOPNOTSUPP;
	pthread_mutex_unlock(&t->lock);
	pthread_mutex_lock(&m->lock);
	t->pins--;
	destroy = t->finished && !t->pins;
	if (!t->finished) {
		pthread_mutex_lock(&w->lock);
		poke = !t->poked;
		if (poke) {
			t->poked = true;
			t->next_poked = w->poked;
			w->poked = t;
		}
		pthread_mutex_unlock(&w->lock);
	}
	pthread_mutex_unlock(&m->lock);
	if (destroy)
		t->kind->destroy(t);
	if (poke)
		wake(w->wake);
	return result;
}

void xs_mover_tell(struct xs_mover *m, const struct xs_task *t, int kind, int error, int side)
{
	struct xs_notice n = {t->token, kind, error, side};
	bool told;

	pthread_mutex_lock(&m->lock);
	told = xs_fetch_put(&m->notices, &n);
	pthread_mutex_unlock(&m->lock);
	if (told)
		wake(m->endfd);
}

int xs_mover_fd(const struct xs_mover *m)
{
	return m->endfd;
}

size_t xs_mover_ended(struct xs_mover *m, struct xs_ended *out, size_t max)
{
	return fetch_take(m, &m->ended, out, max);
}

size_t xs_mover_notices(struct xs_mover *m, struct xs_notice *out, size_t max)
{
	return fetch_take(m, &m->notices, out, max);
}

bool xs_mover_bytes(struct xs_mover *m, uint64_t token, uint64_t bytes[2])
{
	struct slot *s;

	pthread_mutex_lock(&m->lock);
	s = slot_of(m, token);
	if (s) {
		bytes[0] = xs_count_get(&s->task->bytes[0]);
		bytes[1] = xs_count_get(&s->task->bytes[1]);
	}
	pthread_mutex_unlock(&m->lock);
	return s != NULL;
}

size_t xs_mover_slots(struct xs_mover *m)
{
	size_t n;

	pthread_mutex_lock(&m->lock);
	n = m->slot_count;
	pthread_mutex_unlock(&m->lock);
	return n;
}

size_t xs_mover_live(struct xs_mover *m)
{
	size_t n = 0;

	for (unsigned i = 0; i < m->count; i++)
		n += xs_count_get(&m->workers[i].live);
	return n;
}

void xs_mover_free(struct xs_mover *m, unsigned linger_ms)
{
	uint64_t stop_at = now_ms() + linger_ms;

	pthread_mutex_lock(&m->lock);
	m->closed = true;
	pthread_mutex_unlock(&m->lock);
	for (unsigned i = 0; i < m->count; i++) {
		struct worker *w = &m->workers[i];

		pthread_mutex_lock(&w->lock);
		w->stopping = true;
		w->stop_at = stop_at;
		pthread_mutex_unlock(&w->lock);
		wake(w->wake);
	}
	for (unsigned i = 0; i < m->count; i++) {
		struct worker *w = &m->workers[i];

		pthread_join(w->id, NULL);
		close(w->thread.epfd);
		close(w->wake);
		pthread_mutex_destroy(&w->lock);
	}
	pthread_mutex_destroy(&m->lock);
	if (m->endfd >= 0)
		close(m->endfd);
	free(m->slots);
	xs_fetch_free(&m->ended);
	xs_fetch_free(&m->notices);
	free(m);
}
