/*
 * Theory of operation: /dev/xen/evtchn reports pending ports by read(2), 32 bits each, and leaves each masked until it is
 * written back (xen/include/uapi/xen/evtchn.h of Linux). One thread takes them off, adds to the port's eventfd, and
 * writes them back at once; a port that had its burst, or whose domain had its own, is written back by the next tick, so
 * that a domain which sends events without end, by however many ports, costs a bounded part of one thread. The other way, a notify_fd that somebody wrote to makes the
 * thread send the event. Both kinds of descriptors carry no count: many events may become one.
 *
 * The thread is the bridge's own, or a mover's that has rings whose events these are (evhost.c): that saves those rings a
 * switch of threads. Every mover reading and unmasking ports itself would need a file of /dev/xen/evtchn per connection,
 * whose ring of pending ports alone takes a page. The clock is looked at when a burst is over, not at each event: in a
 * domain whose time stamp counter is emulated that is an exit to the hypervisor.
 */
#include "evbridge.h"

#include "evhost.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

/* IOCTL_EVTCHN_NOTIFY; not every libc brings xen/evtchn.h. */
struct notify {
	uint32_t port;
};
#define EVTCHN_NOTIFY _IOC(_IOC_NONE, 'E', 4, sizeof(struct notify))

#define BATCH 256
#define TICK_MS 1
#define EVTCHN UINT64_MAX
#define POKE (UINT64_MAX - 1)

/* All ports of a domain here. */
struct domain {
	struct domain *next;
	uint32_t number, events;
	size_t ports;
};

struct port {
	struct domain *domain;
	struct port *next;  /* of its bucket */
	struct port *later; /* among those to be unmasked by the next tick */
	uint32_t number, events;
	int notify_fd, wait_fd;
	int given_fd; /* what notify_fd is a duplicate of */
	bool waits;
};

#define BUCKETS 1024
struct xs_evbridge {
	struct xs_evbridge *next; /* of all bridges */
	pthread_mutex_t lock;	  /* of everything below */
	pthread_t thread;
	struct port *bucket[BUCKETS];
	struct port *later;
	struct domain *domains;
	int evtchn, epfd, poke; /* poke: its own thread shall look at these: */
	bool lent, stopping;
	pthread_cond_t returned; /* lent no more, or stopping */
	uint64_t last;		 /* tick, ms */
	struct xs_evhost *host;	 /* under all_lock; there may be one that has returned the bridge */
};

static pthread_mutex_t all_lock = PTHREAD_MUTEX_INITIALIZER;
static struct xs_evbridge *all;

static struct port **find(struct xs_evbridge *b, uint32_t number)
{
	struct port **p = &b->bucket[number % BUCKETS];

	while (*p && (*p)->number != number)
		p = &(*p)->next;
	return p;
}

void xs_evbridge_send(struct xs_evport to)
{
	struct notify n = {to.port};

	(void)ioctl(to.evtchn, EVTCHN_NOTIFY, &n); /* a domain that is gone needs no event */
}

static void send_event(struct xs_evbridge *b, uint32_t number)
{
	xs_evbridge_send((struct xs_evport){b->evtchn, number, b->lent});
}

/* The bridge of a port by its descriptor; all_lock is held. NULL, and evtchn -1, where there is none. */
static struct xs_evbridge *bridge_of(int notify_fd, struct xs_evport *found)
{
	*found = (struct xs_evport){-1, 0, false};
	for (struct xs_evbridge *b = all; b; b = b->next) {
		pthread_mutex_lock(&b->lock);
		for (size_t i = 0; i < BUCKETS && found->evtchn < 0; i++)
			for (struct port *p = b->bucket[i]; p; p = p->next)
				if (p->given_fd == notify_fd)
					*found = (struct xs_evport){b->evtchn, p->number, b->lent};
		pthread_mutex_unlock(&b->lock);
		if (found->evtchn >= 0)
			return b;
	}
	return NULL;
}

struct xs_evport xs_evbridge_find(int notify_fd)
{
	struct xs_evport found;

	pthread_mutex_lock(&all_lock);
	(void)bridge_of(notify_fd, &found);
	pthread_mutex_unlock(&all_lock);
	return found;
}

void xs_evbridge_host(int notify_fd, struct xs_mover *m)
{
	struct xs_evport found;
	struct xs_evbridge *b;

	pthread_mutex_lock(&all_lock);
	b = bridge_of(notify_fd, &found);
	if (b && !found.hosted) {
		if (b->host)
			xs_evhost_leave(b->host);
		b->host = xs_evhost_start(m, b, b->evtchn, b->epfd);
	}
	pthread_mutex_unlock(&all_lock);
}

static void unmask(struct xs_evbridge *b, const uint32_t *numbers, size_t count)
{
	while (count && write(b->evtchn, numbers, count * sizeof *numbers) < 0 && errno == EINTR)
		;
}

static uint64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* A tick: everybody has a new burst. */
static void tick(struct xs_evbridge *b)
{
	uint32_t numbers[BATCH];
	size_t count = 0;
	struct port *p;

	b->last = now_ms();
	while ((p = b->later)) {
		b->later = p->later;
		p->waits = false;
		numbers[count++] = p->number;
		if (count == BATCH || !b->later) {
			unmask(b, numbers, count);
			count = 0;
		}
	}
	for (size_t i = 0; i < BUCKETS; i++)
		for (p = b->bucket[i]; p; p = p->next)
			p->events = 0;
	for (struct domain *d = b->domains; d; d = d->next)
		d->events = 0;
}

/* Counts an event of a port: whether it, or its domain, has had its burst since the last tick. */
static bool spent(struct xs_evbridge *b, struct port *p)
{
	p->domain->events++;
	if (++p->events < XS_EVBRIDGE_BURST && p->domain->events < XS_EVBRIDGE_DOMAIN_BURST)
		return false;
	if (now_ms() - b->last < TICK_MS)
		return true;
	tick(b);
	p->events = p->domain->events = 1;
	return false;
}

/* Pending ports: their eventfds first, so that an event that comes after the unmasking finds its reader awake. */
static void pending(struct xs_evbridge *b)
{
	uint32_t numbers[BATCH], again[BATCH];
	ssize_t size = read(b->evtchn, numbers, sizeof numbers);
	size_t count = size > 0 ? (size_t)size / sizeof *numbers : 0, ready = 0;

	for (size_t i = 0; i < count; i++) {
		struct port *p = *find(b, numbers[i]);
		const uint64_t one = 1;

		if (p)
			(void)!write(p->wait_fd, &one, sizeof one); /* full: then there is an event to see */
		/* Xen makes a port pending as it binds it, before it is added here: whoever binds looks at the ring anyway. */
		if (!p || !spent(b, p)) {
			again[ready++] = numbers[i];
		} else if (!p->waits) {
			p->waits = true;
			p->later = b->later;
			b->later = p;
		}
	}
	unmask(b, again, ready);
}

/* Carries what epoll_wait(2) said of epfd; the lock is held. */
static void carry(struct xs_evbridge *b, const struct epoll_event *ev, int n)
{
	for (int i = 0; i < n; i++) {
		if (ev[i].data.u64 == EVTCHN)
			pending(b);
		else if (ev[i].data.u64 != POKE && *find(b, (uint32_t)ev[i].data.u64))
			send_event(b, (uint32_t)ev[i].data.u64);
	}
	if (b->later && now_ms() - b->last >= TICK_MS)
		tick(b);
}

bool xs_evbridge_turn(struct xs_evbridge *b, bool ports, bool written)
{
	struct epoll_event ev[BATCH];
	int n = written ? epoll_wait(b->epfd, ev, BATCH, 0) : 0;
	bool waits;

	pthread_mutex_lock(&b->lock);
	if (ports)
		pending(b);
	carry(b, ev, n);
	waits = b->later;
	pthread_mutex_unlock(&b->lock);
	return waits;
}

/* The bridge's own thread. */
static void *run(void *arg)
{
	struct xs_evbridge *b = arg;
	struct epoll_event ev[BATCH];

	for (;;) {
		uint64_t poked;
		int n, held;

		pthread_mutex_lock(&b->lock);
		(void)!read(b->poke, &poked, sizeof poked);
		while (b->lent && !b->stopping)
			pthread_cond_wait(&b->returned, &b->lock);
		if (b->stopping) {
			pthread_mutex_unlock(&b->lock);
			return NULL;
		}
		held = b->later ? TICK_MS : -1;
		pthread_mutex_unlock(&b->lock);
		n = epoll_wait(b->epfd, ev, BATCH, held);
		pthread_mutex_lock(&b->lock);
		carry(b, ev, n);
		pthread_mutex_unlock(&b->lock);
	}
}

static int watch(struct xs_evbridge *b, int fd, uint32_t events, uint64_t what)
{
	struct epoll_event ev = {events, {.u64 = what}};

	return epoll_ctl(b->epfd, EPOLL_CTL_ADD, fd, &ev) ? errno : 0;
}

/* Has the bridge's own thread look at what it shall do; the lock is held. */
static void look(struct xs_evbridge *b)
{
	const uint64_t one = 1;

	pthread_cond_signal(&b->returned);
	(void)!write(b->poke, &one, sizeof one);
}

int xs_evbridge_lend(struct xs_evbridge *b, bool lent)
{
	int error = 0;

	pthread_mutex_lock(&b->lock);
	if (!lent)
		error = watch(b, b->evtchn, EPOLLIN, EVTCHN);
	else if (epoll_ctl(b->epfd, EPOLL_CTL_DEL, b->evtchn, NULL))
		error = errno;
	if (!error) {
		b->lent = lent;
		look(b);
	}
	pthread_mutex_unlock(&b->lock);
	return error;
}

struct xs_evbridge *xs_evbridge_new(int evtchn)
{
	struct xs_evbridge *b = calloc(1, sizeof *b);
	int flags = fcntl(evtchn, F_GETFL), error;

	if (!b)
		return NULL;
	b->evtchn = evtchn;
	b->epfd = epoll_create1(EPOLL_CLOEXEC);
	b->poke = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	b->last = now_ms();
	error = b->epfd < 0 || b->poke < 0 || flags < 0 || fcntl(evtchn, F_SETFL, flags | O_NONBLOCK) ? errno : 0;
	if (!error)
		error = watch(b, evtchn, EPOLLIN, EVTCHN);
	if (!error)
		error = watch(b, b->poke, EPOLLIN, POKE);
	pthread_mutex_init(&b->lock, NULL);
	pthread_cond_init(&b->returned, NULL);
	if (!error)
		error = pthread_create(&b->thread, NULL, run, b);
	if (error) {
		if (b->epfd >= 0)
			close(b->epfd);
		if (b->poke >= 0)
			close(b->poke);
		pthread_cond_destroy(&b->returned);
		pthread_mutex_destroy(&b->lock);
		free(b);
		errno = error;
		return NULL;
	}
	pthread_mutex_lock(&all_lock);
	b->next = all;
	all = b;
	pthread_mutex_unlock(&all_lock);
	return b;
}

/* One more port of a domain; NULL without memory. */
static struct domain *join_domain(struct xs_evbridge *b, uint32_t number)
{
	struct domain *d = b->domains;

	while (d && d->number != number)
		d = d->next;
	if (!d) {
		d = calloc(1, sizeof *d);
		if (!d)
			return NULL;
		d->number = number;
		d->next = b->domains;
		b->domains = d;
	}
	d->ports++;
	return d;
}

static void leave_domain(struct xs_evbridge *b, struct domain *d)
{
	struct domain **at = &b->domains;

	if (--d->ports)
		return;
	while (*at != d)
		at = &(*at)->next;
	*at = d->next;
	free(d);
}

static void drop(struct port *p)
{
	if (p->notify_fd >= 0)
		close(p->notify_fd);
	if (p->wait_fd >= 0)
		close(p->wait_fd);
	free(p);
}

int xs_evbridge_add(struct xs_evbridge *b, uint32_t port, uint32_t domain, int notify_fd, int wait_fd)
{
	struct port *p = calloc(1, sizeof *p), **at;
	int error = 0;

	if (!p)
		return ENOMEM;
	p->number = port;
	p->given_fd = notify_fd;
	p->notify_fd = fcntl(notify_fd, F_DUPFD_CLOEXEC, 0);
	p->wait_fd = fcntl(wait_fd, F_DUPFD_CLOEXEC, 0);
	if (p->notify_fd < 0 || p->wait_fd < 0) {
		error = errno;
		drop(p);
		return error;
	}
	pthread_mutex_lock(&b->lock);
	at = find(b, port);
	if (*at)
		error = EEXIST;
	else if (!(p->domain = join_domain(b, domain)))
		error = ENOMEM;
	else if ((error = watch(b, p->notify_fd, EPOLLIN | EPOLLET, port)))
		leave_domain(b, p->domain);
	else
		*at = p;
	pthread_mutex_unlock(&b->lock);
	if (error)
		drop(p);
	return error;
}

int xs_evbridge_remove(struct xs_evbridge *b, uint32_t port)
{
	struct port **at, *p, **l;
	uint64_t written;

	pthread_mutex_lock(&b->lock);
	at = find(b, port);
	p = *at;
	if (p) {
		*at = p->next;
		for (l = &b->later; *l; l = &(*l)->later)
			if (*l == p) {
				*l = p->later;
				break;
			}
		/* Others may hold the same file: its events must not reach the next owner of the number. */
		epoll_ctl(b->epfd, EPOLL_CTL_DEL, p->notify_fd, NULL);
		/* The last word of a connection is often written just before its end. */
		if (read(p->notify_fd, &written, sizeof written) == (ssize_t)sizeof written)
			send_event(b, port);
		leave_domain(b, p->domain);
	}
	pthread_mutex_unlock(&b->lock);
	if (!p)
		return ENOENT;
	drop(p);
	return 0;
}

void xs_evbridge_free(struct xs_evbridge *b)
{
	pthread_mutex_lock(&all_lock);
	for (struct xs_evbridge **at = &all; *at; at = &(*at)->next)
		if (*at == b) {
			*at = b->next;
			break;
		}
	if (b->host)
		xs_evhost_leave(b->host);
	pthread_mutex_unlock(&all_lock);
	pthread_mutex_lock(&b->lock);
	b->stopping = true;
	look(b);
	pthread_mutex_unlock(&b->lock);
	pthread_join(b->thread, NULL);
	for (size_t i = 0; i < BUCKETS; i++)
		while (b->bucket[i]) {
			struct port *p = b->bucket[i];

			b->bucket[i] = p->next;
			leave_domain(b, p->domain);
			drop(p);
		}
	pthread_cond_destroy(&b->returned);
	pthread_mutex_destroy(&b->lock);
	close(b->epfd);
	close(b->poke);
	free(b);
}
