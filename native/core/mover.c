/* Threads that run flows (flow.h), and the table by which others may ask about them.
 *
 * Each connection belongs to one thread for life. Other threads reach it only through the thread's
 * inbox and, for the counters, through the table under its lock. Nothing here blocks but epoll_wait().
 */
#include "mover.h"

#include "flow.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define TICK_MS 4
#define BATCH 64

struct worker {
	struct xs_mover *mover;
	pthread_t thread;
	int epfd, wake;
	pthread_mutex_t lock; /* of inbox and stopping */
	struct xs_flow *inbox;
	bool stopping;
	uint64_t stop_at; /* ms of CLOCK_MONOTONIC */
	_Atomic size_t live;
	/* The thread's own. */
	struct xs_pool pool;
	struct xs_flow *flows, *queue, **queue_tail, *ticking;
};

struct slot {
	struct xs_flow *flow;
	uint32_t generation, next_free;
};

struct xs_mover {
	unsigned count;
	int endfd;
	pthread_mutex_t lock; /* of everything below */
	bool closed;
	struct slot *slots; /* [0] is never used, so that no token is 0 */
	uint32_t slot_count, slot_size, free_slot;
	struct xs_ended *ended;
	size_t ended_first, ended_count, ended_size;
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

static bool reserve_ended(struct xs_mover *m)
{
	struct xs_ended *bigger;
	size_t size = m->ended_size ? m->ended_size * 2 : 64;

	if (m->ended_first) {
		memmove(m->ended, m->ended + m->ended_first, m->ended_count * sizeof *m->ended);
		m->ended_first = 0;
	}
	if (m->ended_count < m->ended_size)
		return true;
	bigger = realloc(m->ended, size * sizeof *bigger);
	if (!bigger)
		return false;
	m->ended = bigger;
	m->ended_size = size;
	return true;
}

static uint64_t slot_take(struct xs_mover *m, struct xs_flow *f)
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
	m->slots[i].flow = f;
	return (uint64_t)m->slots[i].generation << 32 | i;
}

static struct slot *slot_of(struct xs_mover *m, uint64_t token)
{
	uint32_t i = (uint32_t)token;

	if (!i || i >= m->slot_count || !m->slots[i].flow || m->slots[i].generation != token >> 32)
		return NULL;
	return &m->slots[i];
}

static void slot_free(struct xs_mover *m, uint64_t token)
{
	struct slot *s = slot_of(m, token);

	if (!s)
		return;
	s->flow = NULL;
	s->generation++;
	s->next_free = m->free_slot;
	m->free_slot = (uint32_t)token;
}

/* ---- one thread ---- */

static void enqueue(struct worker *w, struct xs_flow *f)
{
	if (f->queued)
		return;
	f->queued = true;
	f->next_queued = NULL;
	*w->queue_tail = f;
	w->queue_tail = &f->next_queued;
}

/* Tells of the end of a flow that is in no list any more, and frees it. */
static void finish(struct worker *w, struct xs_flow *f)
{
	struct xs_mover *m = w->mover;
	bool told = false;

	pthread_mutex_lock(&m->lock);
	slot_free(m, f->token);
	if (f->report && reserve_ended(m)) {
		m->ended[m->ended_first + m->ended_count++] = (struct xs_ended){
			.token = f->token, .bytes = {f->bytes[0], f->bytes[1]}, .error = f->error, .side = f->error_side};
		told = true;
	}
	pthread_mutex_unlock(&m->lock);
	atomic_fetch_sub(&w->live, 1);
	free(f);
	if (told)
		wake(m->endfd);
}

static void unlink_flow(struct worker *w, struct xs_flow *f)
{
	if (f->ticking)
		for (struct xs_flow **p = &w->ticking; *p; p = &(*p)->next_tick)
			if (*p == f) {
				*p = f->next_tick;
				break;
			}
	if (f->prev)
		f->prev->next = f->next;
	else
		w->flows = f->next;
	if (f->next)
		f->next->prev = f->prev;
}

static void adopt(struct worker *w, struct xs_flow *f)
{
	f->prev = NULL;
	f->next = w->flows;
	if (f->next)
		f->next->prev = f;
	w->flows = f;
	for (int i = 0; i < 2; i++) {
		struct epoll_event ev = {EPOLLIN | EPOLLOUT | EPOLLPRI | EPOLLRDHUP | EPOLLET, {.ptr = &f->side[i]}};

		if (epoll_ctl(w->epfd, EPOLL_CTL_ADD, f->side[i].fd, &ev)) {
			f->error = errno;
			f->error_side = i;
			xs_flow_cut(f, &w->pool);
			enqueue(w, f);
			return;
		}
	}
}

/* Takes what others left; returns whether the thread shall stop, and by when. */
static bool check_inbox(struct worker *w, uint64_t *stop_at)
{
	struct xs_flow *f, *next, *first = NULL;
	uint64_t drained;
	bool stopping;

	if (read(w->wake, &drained, sizeof drained) < 0 && errno != EAGAIN && errno != EINTR)
		abort(); /* an eventfd has no other error: our own descriptor was closed */
	pthread_mutex_lock(&w->lock);
	f = w->inbox;
	w->inbox = NULL;
	stopping = w->stopping;
	*stop_at = w->stop_at;
	pthread_mutex_unlock(&w->lock);
	for (; f; f = next) { /* the inbox is a stack */
		next = f->next;
		f->next = first;
		first = f;
	}
	for (f = first; f; f = next) {
		next = f->next;
		adopt(w, f);
	}
	return stopping;
}

static void run_queue(struct worker *w)
{
	struct xs_flow *f = w->queue;
	uint64_t now = f ? now_ms() : 0;

	w->queue = NULL;
	w->queue_tail = &w->queue;
	while (f) {
		struct xs_flow *next = f->next_queued;

		f->queued = false;
		switch (xs_flow_run(f, &w->pool, now)) {
		case FLOW_WAIT:
			break;
		case FLOW_AGAIN:
			enqueue(w, f);
			break;
		case FLOW_TICK:
			if (!f->ticking) {
				f->ticking = true;
				f->next_tick = w->ticking;
				w->ticking = f;
			}
			break;
		case FLOW_GONE:
			unlink_flow(w, f);
			finish(w, f);
			break;
		}
		f = next;
	}
}

static void queue_ticking(struct worker *w)
{
	struct xs_flow *f = w->ticking;

	w->ticking = NULL;
	for (; f; f = f->next_tick) {
		f->ticking = false;
		enqueue(w, f);
	}
}

static bool all_sent(const struct worker *w)
{
	for (const struct xs_flow *f = w->flows; f; f = f->next)
		if (!xs_flow_sent(f))
			return false;
	return true;
}

static void *work(void *arg)
{
	struct worker *w = arg;
	struct epoll_event ev[BATCH];
	uint64_t stop_at = 0, ticked = 0;
	bool stopping = false;

	while (!stopping || (now_ms() < stop_at && !all_sent(w))) {
		int timeout = w->queue ? 0 : w->ticking || stopping ? TICK_MS : -1;
		int n = epoll_wait(w->epfd, ev, BATCH, timeout);

		for (int i = 0; i < n; i++) {
			struct xs_side *s = ev[i].data.ptr;

			if (!s) {
				stopping = check_inbox(w, &stop_at);
				continue;
			}
			xs_flow_event(s, ev[i].events);
			enqueue(w, s->flow);
		}
		if (w->ticking && (n <= 0 || now_ms() >= ticked + TICK_MS)) {
			ticked = now_ms();
			queue_ticking(w);
		}
		run_queue(w);
	}
	while (w->flows) {
		struct xs_flow *f = w->flows;

		xs_flow_cut(f, &w->pool);
		unlink_flow(w, f);
		finish(w, f);
	}
	xs_pool_empty(&w->pool);
	return NULL;
}

/* ---- for other threads ---- */

static int worker_start(struct worker *w, struct xs_mover *m)
{
	struct epoll_event ev = {EPOLLIN, {.ptr = NULL}};
	int error;

	w->mover = m;
	w->queue_tail = &w->queue;
	pthread_mutex_init(&w->lock, NULL);
	w->epfd = epoll_create1(EPOLL_CLOEXEC);
	w->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (w->epfd >= 0 && w->wake >= 0 && epoll_ctl(w->epfd, EPOLL_CTL_ADD, w->wake, &ev) == 0) {
		error = pthread_create(&w->thread, NULL, work, w);
		if (!error) {
			pthread_setname_np(w->thread, "xs-mover");
			return 0;
		}
	} else {
		error = errno;
	}
	if (w->epfd >= 0)
		close(w->epfd);
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

uint64_t xs_mover_add(struct xs_mover *m, int a, int b, bool report)
{
	struct worker *w = &m->workers[0];
	struct xs_flow *f = NULL;
	uint64_t token = 0;
	int one = 1, error = a < 0 || b < 0 ? EINVAL : 0;

	if (!error) {
		f = malloc(sizeof *f);
		error = f ? 0 : ENOMEM;
	}
	if (!error) {
		for (unsigned i = 1; i < m->count; i++)
			if (m->workers[i].live < w->live)
				w = &m->workers[i];
		xs_flow_init(f, a, b, w->epfd);
		f->report = report;
		/* What comes in small pieces goes out in small pieces at once; other kinds of socket refuse. */
		setsockopt(a, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
		setsockopt(b, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
		/* The inbox is filled under m->lock too, so that nothing arrives after closing. */
		pthread_mutex_lock(&m->lock);
		if (m->closed)
			error = ESHUTDOWN;
		else
			f->token = token = slot_take(m, f);
		if (token) {
			atomic_fetch_add(&w->live, 1);
			pthread_mutex_lock(&w->lock);
			f->next = w->inbox;
			w->inbox = f;
			pthread_mutex_unlock(&w->lock);
		} else if (!error) {
			error = ENOMEM;
		}
		pthread_mutex_unlock(&m->lock);
	}
	if (!error) {
		wake(w->wake);
		return token;
	}
	free(f);
	if (a >= 0)
		close(a);
	if (b >= 0)
		close(b);
	errno = error;
	return 0;
}

int xs_mover_fd(const struct xs_mover *m)
{
	return m->endfd;
}

size_t xs_mover_ended(struct xs_mover *m, struct xs_ended *out, size_t max)
{
	uint64_t drained;
	size_t n;

	pthread_mutex_lock(&m->lock);
	n = m->ended_count < max ? m->ended_count : max;
	if (n)
		memcpy(out, m->ended + m->ended_first, n * sizeof *out);
	m->ended_first += n;
	m->ended_count -= n;
	/* Under the lock, so that an end that comes now makes the eventfd readable again. */
	if (!m->ended_count && read(m->endfd, &drained, sizeof drained) < 0)
		drained = 0;
	pthread_mutex_unlock(&m->lock);
	return n;
}

bool xs_mover_bytes(struct xs_mover *m, uint64_t token, uint64_t bytes[2])
{
	struct slot *s;

	pthread_mutex_lock(&m->lock);
	s = slot_of(m, token);
	if (s) {
		bytes[0] = s->flow->bytes[0];
		bytes[1] = s->flow->bytes[1];
	}
	pthread_mutex_unlock(&m->lock);
	return s != NULL;
}

size_t xs_mover_live(struct xs_mover *m)
{
	size_t n = 0;

	for (unsigned i = 0; i < m->count; i++)
		n += m->workers[i].live;
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

		pthread_join(w->thread, NULL);
		close(w->epfd);
		close(w->wake);
		pthread_mutex_destroy(&w->lock);
	}
	pthread_mutex_destroy(&m->lock);
	if (m->endfd >= 0)
		close(m->endfd);
	free(m->slots);
	free(m->ended);
	free(m);
}
