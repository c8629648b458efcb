/*
 * Connects under way. A blocking connect(2) of the guest waits here, not in the receiver: its socket is watched until it
 * is writable, and only then is the kernel asked how it went, so that the socket's state stays what the guest would
 * find natively if a signal ends the wait. Whether one does is looked for (interrupt.h) some milliseconds after the
 * beginning and then again and again, the less often the more connects are under way.
 */
#include "connect.h"
#include "guestfd.h"
#include "super_parts.h"
#include "sys.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#define START_WAIT_US 100
#define GONE_NS 500000000ull /* how late a caller that is gone may be noticed */
#define LOOK_NS 10000000ull  /* between two looks for signals, */
#define LATER_NS 25000000ull /* once a connect has lasted this long: */
#define LONG_NS 200000000ull
#define CROWD 64 /* connects under way from which on each is looked at less often */

void xs_done(struct xs_super *s, uint64_t id, uint32_t tid, uint64_t cookie, const uint8_t *addr, uint32_t addrlen, uint32_t verdict,
		 uint64_t start_ns, int error)
{
	struct xs_event ev;
	bool record = xs_flag_get(&s->record);

	memset(&ev, 0, sizeof ev);
	if (record) /* now, because once it has its answer it may end */
		xs_guestfd_program(s->fds, tid, start_ns, ev.program);
	if (xs_super_answer(s, id, 0, error, false) == ENOENT && cookie && error != EINPROGRESS)
		xs_super_keep(s, cookie, SYS_connect, error);
	if (!record)
		return;
	ev.kind = XS_DONE;
	ev.id = id;
	ev.tid = tid;
	ev.nr = SYS_connect;
	ev.args[0] = cookie;
	ev.fd = -1;
	memcpy(ev.addr, addr, addrlen);
	ev.addrlen = addrlen;
	ev.verdict = verdict;
	ev.error = error == XS_ERESTARTSYS ? EINTR : error;
	ev.start_ns = start_ns;
	ev.took_ns = xs_now_ns() - start_ns;
	xs_post(s, &ev);
}

/* SYN_SENT and the like as the kernel numbers them (tcp_info, tcpi_state); -1 if it does not say. */
static int tcp_state(int fd)
{
	uint8_t info[8];
	socklen_t l = sizeof info;

	return getsockopt(fd, IPPROTO_TCP, TCP_INFO, info, &l) || !l ? -1 : info[0];
}

static uint64_t send_deadline(int fd, uint64_t start)
{
	struct timeval tv = {0, 0};
	socklen_t l = sizeof tv;

	if (getsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &tv, &l) || (!tv.tv_sec && !tv.tv_usec))
		return 0;
	return start + (uint64_t)tv.tv_sec * 1000000000u + (uint64_t)tv.tv_usec * 1000u;
}

static void wait_for(struct xs_super *s, uint64_t id, uint32_t tid, int fd, const uint8_t *addr, uint32_t addrlen, uint32_t verdict,
		     uint64_t start_ns, int late)
{
	struct epoll_event e;
	struct pending *p = calloc(1, sizeof *p);
	bool again = false, poke;
	uint64_t one = 1;

	if (!p) {
		xs_done(s, id, tid, 0, addr, addrlen, verdict, start_ns, ENOMEM);
		close(fd);
		return;
	}
	p->id = id;
	p->tid = tid;
	p->fd = fd;
	p->verdict = verdict;
	p->addrlen = addrlen;
	p->start_ns = start_ns;
	p->deadline_ns = send_deadline(fd, start_ns);
	p->late = late;
	p->look_ns = xs_now_ns() + (s->killable ? LOOK_NS : GONE_NS);
	memcpy(p->addr, addr, addrlen);
	pthread_mutex_lock(&s->lock);
	/* With SO_SNDTIMEO an interrupted connect is not restarted, whatever SA_RESTART says (signal(7)): a re-issue ends. */
	if (p->deadline_ns)
		for (struct pending *o = s->pend; o && !again; o = o->next) {
			again = o->tid == tid && o->deadline_ns && xs_cookie_of(o->fd) == xs_cookie_of(fd) && !xs_super_valid(s, o->id);
			if (again)
				o->deadline_ns = 0; /* once */
		}
	if (again) {
		pthread_mutex_unlock(&s->lock);
		xs_done(s, id, tid, 0, addr, addrlen, verdict, start_ns, EINTR);
		close(fd);
		free(p);
		return;
	}
	p->next = s->pend;
	if (s->pend)
		s->pend->prev = p;
	s->pend = p;
	s->npend++;
	memset(&e, 0, sizeof e);
	e.events = EPOLLOUT | EPOLLONESHOT;
	e.data.ptr = p;
	/* Under the lock: the waiter may not free p before it is in the list. */
	if (epoll_ctl(s->ep, EPOLL_CTL_ADD, fd, &e))
		p->deadline_ns = 1; /* the waiter's next round gives it up */
	poke = p->look_ns < s->wakes_ns || (p->deadline_ns && p->deadline_ns < s->wakes_ns);
	if (poke)
		s->wakes_ns = 0; /* once */
	pthread_mutex_unlock(&s->lock);
	if (poke && write(s->poke, &one, sizeof one) < 0)
		return; /* the counter is full: it wakes anyway */
}

void xs_super_await(struct xs_super *s, uint64_t id, uint32_t tid, int fd, const uint8_t *addr, uint32_t addrlen, uint32_t verdict,
		    uint64_t start_ns)
{
	wait_for(s, id, tid, fd, addr, addrlen, verdict, start_ns, EINPROGRESS);
}

static bool crowded(struct xs_super *s)
{
	bool full;

	pthread_mutex_lock(&s->lock);
	full = s->npend >= s->connects;
	pthread_mutex_unlock(&s->lock);
	return full;
}

void xs_run_connect(struct xs_super *s, uint64_t id, uint32_t tid, int fd, uint64_t cookie, const uint8_t *addr, uint32_t addrlen,
		    uint32_t verdict, uint64_t start_ns, bool begun)
{
	int fl = fcntl(fd, F_GETFL), error, late;

	if (begun && fl & O_NONBLOCK) {
		error = xs_connect_join(fd, START_WAIT_US);
	} else if (fl & O_NONBLOCK) {
		error = connect(fd, (const struct sockaddr *)addr, addrlen) ? errno : 0;
	} else {
		/* connect(2) tells who began an attempt that SO_SNDTIMEO cut short from who only joined it. */
		late = send_deadline(fd, start_ns) && tcp_state(fd) == TCP_SYN_SENT ? EALREADY : EINPROGRESS;
		if (!begun && crowded(s)) {
			xs_done(s, id, tid, 0, addr, addrlen, verdict, start_ns, EAGAIN);
			close(fd);
			return;
		}
		error = begun ? xs_connect_join(fd, START_WAIT_US) : xs_connect_start(fd, (const struct sockaddr *)addr, addrlen, START_WAIT_US);
		if (error == EINPROGRESS) {
			wait_for(s, id, tid, fd, addr, addrlen, verdict, start_ns, late);
			return;
		}
	}
	/* Our duplicate goes first: the guest may close the socket at once and expect it to be gone. */
	if (!cookie && (error != EINPROGRESS || xs_flag_get(&s->record)))
		cookie = xs_cookie_of(fd);
	close(fd);
	xs_done(s, id, tid, cookie, addr, addrlen, verdict, start_ns, error);
}

void xs_forget_pending(struct xs_super *s, struct pending *p)
{
	pthread_mutex_lock(&s->lock);
	if (p->next)
		p->next->prev = p->prev;
	if (p->prev)
		p->prev->next = p->next;
	else
		s->pend = p->next;
	s->npend--;
	pthread_mutex_unlock(&s->lock);
	/* The file lives on in the guest, so closing our number alone would leave the registration. */
	epoll_ctl(s->ep, EPOLL_CTL_DEL, p->fd, NULL);
	close(p->fd);
	free(p);
}

/*
 * What a waiter in connect(2) would return now, EINPROGRESS for "go on waiting". connect() is not asked again where the
 * socket was taken apart meanwhile (shutdown(2), AF_UNSPEC: ECONNRESET pending), because that would begin anew.
 */
static int outcome(const struct pending *p)
{
	int error = 0, state = tcp_state(p->fd);
	socklen_t l = sizeof error;

	if (state == TCP_SYN_SENT || state == TCP_SYN_RECV)
		return EINPROGRESS;
	if (state == TCP_CLOSE) {
		getsockopt(p->fd, SOL_SOCKET, SO_ERROR, &error, &l);
		if (error && error != ECONNRESET) /* leaves "connecting", as the end of connect(2) does */
			xs_connect_join(p->fd, START_WAIT_US);
		return error ? error : ECONNABORTED;
	}
	error = xs_connect_join(p->fd, START_WAIT_US);
	return error == EISCONN ? 0 : error; /* another waiter on this socket was first */
}

static void finish(struct xs_super *s, struct pending *p)
{
	struct epoll_event e;
	int error;

	/* Interrupted meanwhile: the socket keeps its state, error included, for whatever the guest does next. */
	pthread_mutex_lock(&s->settling);
	if (xs_super_valid(s, p->id)) {
		error = outcome(p);
		if (error == EINPROGRESS || error == EALREADY) {
			memset(&e, 0, sizeof e);
			e.events = EPOLLOUT | EPOLLONESHOT;
			e.data.ptr = p;
			if (!epoll_ctl(s->ep, EPOLL_CTL_MOD, p->fd, &e)) {
				pthread_mutex_unlock(&s->settling);
				return;
			}
			error = errno;
		}
		xs_done(s, p->id, p->tid, xs_cookie_of(p->fd), p->addr, p->addrlen, p->verdict, p->start_ns, error);
	}
	pthread_mutex_unlock(&s->settling);
	xs_forget_pending(s, p);
}

/*
 * Ends the wait of a caller that has a signal to handle, as the kernel would: the attempt goes on, the call is begun
 * again or fails with EINTR. With SO_SNDTIMEO it is EINTR always (signal(7)). Returns whether it was ended.
 */
static bool interrupted(struct xs_super *s, struct pending *p, uint64_t now)
{
	int error = p->deadline_ns ? EINTR : XS_ERESTARTSYS;
	bool leader, nudged = false;
	enum xs_signal found = xs_signalled(p->tid, now, &s->going, &leader);

	p->look_ns = now + (now - p->start_ns < LONG_NS ? LOOK_NS : LATER_NS) * (1 + s->npend / CROWD);
	if (found == XS_SHARED) {
		/* Any thread but one that waits here takes it at once; of several such ones the first thread comes first. */
		if (++p->shared < (leader ? 2u : 3u))
			return false;
		nudged = xs_nudge(p->tid);
		if (!nudged)
			error = EINTR;
	} else if (found == XS_NO_SIGNAL) {
		p->shared = 0;
		return false;
	}
	xs_done(s, p->id, p->tid, 0, p->addr, p->addrlen, p->verdict, p->start_ns, error);
	if (nudged)
		xs_nudged(p->tid);
	return true;
}

/* Drops connects whose caller is gone, ends those whose SO_SNDTIMEO has passed or whose caller has a signal. */
static void sweep(struct xs_super *s)
{
	struct pending *p, *next;
	uint64_t now = xs_now_ns();

	pthread_mutex_lock(&s->lock);
	p = s->pend;
	pthread_mutex_unlock(&s->lock);
	for (; p; p = next) { /* only this thread takes entries out */
		bool late = p->deadline_ns && p->deadline_ns <= now;

		next = p->next;
		if (!late && now < p->look_ns)
			continue;
		if (!xs_super_valid(s, p->id)) {
			xs_forget_pending(s, p);
		} else if (late) {
			xs_done(s, p->id, p->tid, xs_cookie_of(p->fd), p->addr, p->addrlen, p->verdict, p->start_ns, p->late);
			xs_forget_pending(s, p);
		} else if (!s->killable) {
			p->look_ns = now + GONE_NS; /* the kernel sees to signals */
		} else if (interrupted(s, p, now)) {
			xs_forget_pending(s, p);
		}
	}
}

/* How long the waiter may sleep; who adds an entry that needs it sooner wakes it. */
static int bedtime(struct xs_super *s)
{
	uint64_t now = xs_now_ns(), soonest = now + GONE_NS;

	pthread_mutex_lock(&s->lock);
	for (const struct pending *p = s->pend; p; p = p->next) {
		if (p->deadline_ns && p->deadline_ns < soonest)
			soonest = p->deadline_ns;
		if (p->look_ns < soonest)
			soonest = p->look_ns;
	}
	s->wakes_ns = soonest;
	pthread_mutex_unlock(&s->lock);
	return soonest <= now ? 0 : (int)((soonest - now) / 1000000) + 1;
}

void *xs_waiter(void *arg)
{
	struct xs_super *s = arg;
	struct epoll_event ev[64], poke = {.events = EPOLLIN};
	uint64_t count;
	int n;

	xs_only_wake_signal();
	if (epoll_ctl(s->ep, EPOLL_CTL_ADD, s->poke, &poke))
		s->wakes_ns = 0; /* unheard, it costs only time: signals and deadlines are seen with the next round */
	while (!xs_flag_get(&s->stop)) {
		sweep(s);
		n = epoll_wait(s->ep, ev, 64, bedtime(s));
		for (int i = 0; i < n && !xs_flag_get(&s->stop); i++)
			if (ev[i].data.ptr)
				finish(s, ev[i].data.ptr);
			else if (read(s->poke, &count, sizeof count) < 0)
				continue;
	}
	return NULL;
}
