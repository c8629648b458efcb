#include "super.h"

#include "behalf.h"
#include "connect.h"
#include "guestfd.h"
#include "super_parts.h"
#include "sys.h"
#include "verdicts.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define NAP_MS 15
#define SPARES 1024u

uint64_t xs_now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

uint64_t xs_cookie_of(int fd)
{
	uint64_t c = 0;
	socklen_t l = sizeof c;

	return getsockopt(fd, SOL_SOCKET, SO_COOKIE, &c, &l) ? 0 : c;
}

void xs_only_wake_signal(void)
{
	sigset_t set;

	sigfillset(&set);
	sigdelset(&set, xs_wake_signal());
	pthread_sigmask(SIG_SETMASK, &set, NULL);
}

static void copy_event(struct xs_event *to, const struct xs_event *from)
{
	memcpy(to, from, offsetof(struct xs_event, addr) + from->addrlen);
}

void xs_post(struct xs_super *s, const struct xs_event *ev)
{
	struct node *n;
	uint64_t one = 1;
	bool wake;

	pthread_mutex_lock(&s->lock);
	n = s->spare;
	if (n) {
		s->spare = n->next;
		s->spares--;
	} else {
		n = malloc(sizeof *n);
	}
	if (!n) {
		pthread_mutex_unlock(&s->lock);
		/* Out of memory: a question must not be lost silently, so it is refused. */
		if (ev->kind == XS_QUESTION)
			xs_super_answer(s, ev->id, 0, ENOMEM, false);
		if (ev->fd >= 0)
			close(ev->fd);
		return;
	}
	copy_event(&n->ev, ev);
	n->next = NULL;
	s->questions += ev->kind == XS_QUESTION;
	wake = s->napping ? ev->kind == XS_QUESTION : !s->head;
	if (s->tail)
		s->tail->next = n;
	else
		s->head = n;
	s->tail = n;
	pthread_mutex_unlock(&s->lock);
	if (wake && write(s->wake, &one, sizeof one) < 0)
		return; /* the counter is full: the reader is awake anyway */
}

int xs_super_answer(struct xs_super *s, uint64_t id, int64_t val, int error, bool go_on)
{
	struct seccomp_notif_resp r;

	memset(&r, 0, sizeof r);
	r.id = id;
	/* The kernel refuses CONTINUE with a value or an error beside it. */
	r.val = error || go_on ? 0 : val;
	r.error = go_on ? 0 : -error;
	r.flags = go_on ? SECCOMP_USER_NOTIF_FLAG_CONTINUE : 0;
	error = ioctl(s->nfd, SECCOMP_IOCTL_NOTIF_SEND, &r) ? errno : 0;
	if (s->journal)
		xs_journal_done(s->journal, id);
	return error;
}

bool xs_super_valid(struct xs_super *s, uint64_t id) { return ioctl(s->nfd, SECCOMP_IOCTL_NOTIF_ID_VALID, &id) == 0; }

/*
 * Installing and answering in one go (SECCOMP_ADDFD_FLAG_SEND) has a gap: if we are killed while the caller is to install it,
 * the kernel takes the descriptor back and the answer stands, which is 0. So with a journal they are two steps, the first of
 * which can be found out about (replay.c).
 */
int xs_super_addfd(struct xs_super *s, uint64_t id, int srcfd, int newfd, uint32_t newfd_flags)
{
	struct seccomp_notif_addfd a;
	bool both = newfd == -1 && s->journal;
	int r;

	if (both) {
		xs_journal_note(s->journal, id, xs_inode_of(srcfd));
		newfd = -2;
	}
	memset(&a, 0, sizeof a);
	a.id = id;
	a.srcfd = (uint32_t)srcfd;
	a.newfd_flags = newfd_flags;
	if (newfd >= 0) {
		a.flags = SECCOMP_ADDFD_FLAG_SETFD;
		a.newfd = (uint32_t)newfd;
	} else if (newfd == -1) {
		a.flags = SECCOMP_ADDFD_FLAG_SEND;
	}
	r = ioctl(s->nfd, SECCOMP_IOCTL_NOTIF_ADDFD, &a);
	if (r < 0)
		return -errno;
	if (both)
		xs_super_answer(s, id, r, 0, false);
	return r;
}

int xs_super_getfd(struct xs_super *s, uint32_t tid, int fd) { return xs_guestfd_get(s->fds, tid, fd); }

void xs_super_connect(struct xs_super *s, uint64_t id, uint32_t tid, int fd, const uint8_t *addr, uint32_t addrlen, uint32_t verdict,
		      uint64_t start_ns, bool cache, bool begun)
{
	if (cache)
		xs_verdicts_put(s->verdicts, addr, addrlen, verdict, 0);
	xs_run_connect(s, id, tid, fd, 0, addr, addrlen, verdict, start_ns, begun);
}

void xs_super_refuse(struct xs_super *s, const uint8_t *addr, uint32_t addrlen, uint32_t verdict, int error)
{
	xs_verdicts_put(s->verdicts, addr, addrlen, verdict, error);
}

void xs_super_flush(struct xs_super *s) { xs_verdicts_flush(s->verdicts); }

void xs_super_record(struct xs_super *s, bool on)
{
	if (on)
		xs_flag_set(&s->record);
	else
		xs_flag_clear(&s->record);
	xs_super_flush(s);
}

/* A socket of the own family is one of AF_INET6, in the network that the data path uses: that is known elsewhere. So is
 * how many sockets a guest has that was given as many as it may have. */
static void ask_for_socket(struct xs_super *s, const struct seccomp_notif *n, uint64_t start)
{
	struct xs_event ev;

	memset(&ev, 0, offsetof(struct xs_event, addr));
	ev.addrlen = ev.verdict = 0;
	ev.error = 0;
	ev.took_ns = 0;
	ev.kind = XS_QUESTION;
	ev.id = n->id;
	ev.tid = n->pid;
	ev.nr = n->data.nr;
	ev.start_ns = start;
	memcpy(ev.args, n->data.args, sizeof ev.args);
	ev.program[0] = 0;
	ev.fd = -1;
	ev.domain = AF_INET6; /* no matter for others: their arguments say it */
	ev.type = (int)n->data.args[1] & 0xf;
	xs_post(s, &ev);
}

static void on_socket(struct xs_super *s, const struct seccomp_notif *n, uint64_t start)
{
	int domain = (int)n->data.args[0], type = (int)n->data.args[1], proto = (int)n->data.args[2], fd, r;

	if (s->entry && s->entry->seen && (r = xs_installed(n->pid, s->entry->before)) >= 0) {
		xs_super_answer(s, n->id, r, 0, false);
		return;
	}
	if (domain == XS_AF_XENSOCK) {
		ask_for_socket(s, n, start);
		return;
	}
	if (proto != 0 && proto != IPPROTO_TCP) {
		xs_super_answer(s, n->id, 0, EPROTONOSUPPORT, false);
		return;
	}
	if (!xs_take_room(s)) {
		ask_for_socket(s, n, start);
		return;
	}
	fd = socket(domain, type | SOCK_CLOEXEC, proto);
	if (fd < 0) {
		xs_super_answer(s, n->id, 0, errno, false);
		return;
	}
	xs_note_birth(s, xs_cookie_of(fd), n->pid, domain);
	r = xs_super_addfd(s, n->id, fd, -1, (uint32_t)(type & SOCK_CLOEXEC));
	if (r < 0 && r != -ENOENT)
		xs_super_answer(s, n->id, 0, -r, false);
	close(fd);
}

/* As move_addr_to_kernel: EINVAL for a length outside 0..128, EFAULT. 0 bytes are no address. */
static int copy_addr(const struct seccomp_notif *n, struct xs_event *ev)
{
	struct iovec here, there;
	int len = (int)n->data.args[2];

	if (len < 0 || len > 128)
		return EINVAL;
	ev->addrlen = (uint32_t)len;
	if (!len)
		return 0;
	here.iov_base = ev->addr;
	here.iov_len = (size_t)len;
	there.iov_base = (void *)(uintptr_t)n->data.args[1];
	there.iov_len = (size_t)len;
	if (process_vm_readv((pid_t)n->pid, &here, 1, &there, 1, 0) != len)
		return EFAULT;
	if (len >= 2) {
		uint16_t family;

		memcpy(&family, ev->addr, sizeof family);
		if (family == XS_AF_XENSOCK) {
			family = AF_INET6;
			memcpy(ev->addr, &family, sizeof family);
		}
	}
	return 0;
}

static void on_call(struct xs_super *s, const struct seccomp_notif *n, uint64_t start)
{
	struct xs_event ev;
	socklen_t l = sizeof(int);
	uint64_t cookie;
	uint32_t verdict;
	int error;
	bool known, paths, addr = n->data.nr == SYS_connect || n->data.nr == SYS_bind;

	memset(&ev, 0, offsetof(struct xs_event, addr));
	ev.addrlen = ev.verdict = 0;
	ev.error = 0;
	ev.took_ns = 0;
	ev.kind = XS_QUESTION;
	ev.id = n->id;
	ev.tid = n->pid;
	ev.nr = n->data.nr;
	ev.start_ns = start;
	memcpy(ev.args, n->data.args, sizeof ev.args);
	ev.program[0] = 0;
	ev.fd = xs_guestfd_get(s->fds, n->pid, (int)n->data.args[0]);
	if (ev.fd < 0) {
		xs_super_answer(s, n->id, 0, -ev.fd, false);
		return;
	}
	cookie = xs_cookie_of(ev.fd);
	known = xs_handed_out(s, cookie, &ev);
	if (!known && (getsockopt(ev.fd, SOL_SOCKET, SO_DOMAIN, &ev.domain, &l) || getsockopt(ev.fd, SOL_SOCKET, SO_TYPE, &ev.type, &l))) {
		error = errno;
		/* As the kernel words it for any other file; the descriptor may name a socket by now. */
		xs_super_answer(s, n->id, 0, error == ENOTSOCK && n->data.nr == SYS_ioctl ? ENOTTY : error, false);
		close(ev.fd);
		return;
	}
	error = addr ? copy_addr(n, &ev) : 0;
	/* The memory and the descriptor are the caller's only if the caller still waits. */
	if (!xs_super_valid(s, n->id)) {
		close(ev.fd);
		return;
	}
	if (error) {
		xs_super_answer(s, n->id, 0, error, false);
		close(ev.fd);
		return;
	}
	if (xs_behalf_does(ev.nr, ev.domain, ev.type)) {
		error = xs_behalf_do(n, ev.fd, ev.domain, ev.type);
		close(ev.fd);
		xs_super_answer(s, n->id, 0, error, false);
		return;
	}
	if (s->journal && xs_again(s, &ev))
		return;
	/* A path leads out of the guest's networks, so whose socket is there is judged. And whatever the descriptor is of now: a
	 * connect that went on after that could be one to a path. */
	paths = ev.domain == AF_UNIX && (ev.nr == SYS_connect || ev.nr == SYS_listen || ev.nr == SYS_getsockopt);
	if (ev.nr == SYS_connect && ev.domain != AF_UNIX && ev.domain != AF_INET && ev.domain != AF_INET6) {
		error = connect(ev.fd, (const struct sockaddr *)ev.addr, ev.addrlen) ? errno : 0; /* netlink(7): at once */
		close(ev.fd);
		xs_super_answer(s, n->id, 0, error, false);
		return;
	}
	if (!paths && ev.nr != SYS_ioctl &&
	    (ev.nr == SYS_getsockopt || (ev.domain != AF_INET && ev.domain != AF_INET6) ||
	     (ev.type != SOCK_STREAM && !(ev.type == SOCK_DGRAM && (addr || ev.nr == SYS_setsockopt))))) {
		/*
		 * bind of other families is local to the guest, whatever happens to its arguments meanwhile. And whatever the
		 * descriptor names by then: the guest's own connect and bind of a host's TCP socket are what Landlock
		 * refuses (native/init/program.c; without it there are no such sockets), but for AF_UNSPEC, which only ends what is.
		 */
		xs_super_answer(s, n->id, 0, 0, true);
		close(ev.fd);
		return;
	}
	/* Perhaps the re-issue of a call whose end is just being handled. */
	pthread_mutex_lock(&s->settling);
	pthread_mutex_unlock(&s->settling);
	if (xs_super_kept(s, cookie, ev.nr, &error)) {
		xs_super_answer(s, n->id, 0, error, false);
		close(ev.fd);
		return;
	}
	if (!known)
		ev.host = xs_guestfd_is_host(s->fds, ev.fd);
	if (ev.nr == SYS_connect && ev.host && xs_verdicts_get(s->verdicts, ev.addr, ev.addrlen, &verdict, &error)) {
		if (error) {
			xs_done(s, ev.id, ev.tid, 0, ev.addr, ev.addrlen, verdict, start, error);
			close(ev.fd);
		} else {
			xs_run_connect(s, ev.id, ev.tid, ev.fd, cookie, ev.addr, ev.addrlen, verdict, start, false);
		}
		return;
	}
	if (xs_flag_get(&s->record))
		xs_guestfd_program(s->fds, ev.tid, start, ev.program);
	xs_post(s, &ev);
}

/*
 * A guest's thread that has put a handed-out socket into place wakes the receiver, which has nothing to do then but to wait
 * for the next call. A batch thread (sched(7)) does not push it off its processor for that; most often the next call comes
 * first. Nothing else changes where a caller's own sleep lets the receiver run, so only with XS_SYNC_WAKE_UP.
 */
static void let_callers_go_on(void)
{
	struct sched_param p;
	int policy;

	if (!pthread_getschedparam(pthread_self(), &policy, &p) && policy == SCHED_OTHER)
		pthread_setschedparam(pthread_self(), SCHED_BATCH, &p);
}

void xs_look_at(struct xs_super *s, const struct seccomp_notif *n)
{
	if (n->data.nr == SYS_socket)
		on_socket(s, n, xs_now_ns());
	else
		on_call(s, n, xs_now_ns());
}

/* Receives straight into the journal, if there is one (journal.c). Returns errno. */
static int next_call(struct xs_super *s, struct seccomp_notif *n)
{
	s->entry = s->journal ? xs_journal_room(s->journal, s->nfd) : NULL;
	memset(n, 0, sizeof *n);
	if (ioctl(s->nfd, SECCOMP_IOCTL_NOTIF_RECV, s->entry ? &s->entry->call : n))
		return errno;
	if (s->entry) {
		*n = s->entry->call;
		xs_journal_received(s->journal, s->entry);
	}
	return 0;
}

static void *receive(void *arg)
{
	struct xs_super *s = arg;
	struct seccomp_notif n;
	int error;
	struct pollfd p = {s->nfd, POLLIN, 0};
	uint64_t one = 1;
	bool missed = false;

	xs_only_wake_signal();
	if (s->in_step)
		let_callers_go_on();
	if (s->journal)
		xs_replay(s);
	while (!xs_flag_get(&s->stop)) {
		error = next_call(s, &n);
		if (error) {
			if (error == EINTR)
				continue;
			/* ENOENT: the caller went away first, which is no time to lose, or the last guest process did. */
			if (error == ENOENT && (!missed || !(poll(&p, 1, 0) > 0 && (p.revents & POLLHUP)))) {
				missed = true;
				continue;
			}
			break;
		}
		missed = false;
		xs_pace(s);
		if (s->journal && !s->entry)
			xs_super_answer(s, n.id, 0, ENOMEM, false); /* it would be lost with us */
		else
			xs_look_at(s, &n);
	}
	xs_flag_set(&s->gone);
	if (write(s->wake, &one, sizeof one) < 0)
		return NULL;
	return NULL;
}

struct xs_super *xs_super_new(int notify_fd, bool record, bool killable, int *error)
{
	return xs_super_resume(notify_fd, record, killable, -1, error);
}

struct xs_super *xs_super_resume(int notify_fd, bool record, bool killable, int journal_fd, int *error)
{
	struct xs_super *s = calloc(1, sizeof *s);
	sigset_t all, old;

	*error = ENOMEM;
	if (!s)
		return NULL;
	s->nfd = notify_fd;
	if (record)
		xs_flag_set(&s->record);
	s->killable = killable;
	s->room = s->connects = UINT32_MAX;
	pthread_mutex_init(&s->lock, NULL);
	pthread_mutex_init(&s->settling, NULL);
	s->wake = eventfd(0, EFD_CLOEXEC);
	s->poke = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	s->ep = epoll_create1(EPOLL_CLOEXEC);
	s->fds = xs_guestfd_new();
	s->verdicts = xs_verdicts_new();
	*error = xs_wake_install();
	if (!*error && journal_fd >= 0)
		s->journal = xs_journal_open(journal_fd, error);
	if (*error || s->wake < 0 || s->poke < 0 || s->ep < 0 || !s->fds || !s->verdicts) {
		if (!*error)
			*error = errno ? errno : ENOMEM;
		xs_super_free(s);
		return NULL;
	}
	/* One wake-up less a call where the kernel can (6.6); a plain failure elsewhere costs only speed. */
	s->in_step = !ioctl(s->nfd, SECCOMP_IOCTL_NOTIF_SET_FLAGS, XS_SYNC_WAKE_UP);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	*error = pthread_create(&s->receiver, NULL, receive, s);
	if (!*error) {
		*error = pthread_create(&s->waiter, NULL, xs_waiter, s);
		if (*error) {
			xs_flag_set(&s->stop);
			while (!xs_flag_get(&s->gone))
				pthread_kill(s->receiver, xs_wake_signal());
			pthread_join(s->receiver, NULL);
		}
	}
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (*error) {
		xs_super_free(s);
		return NULL;
	}
	return s;
}

/* Records come by the thousand, and nobody waits for them: to be woken for each would cost more than they do. */
static void nap(struct xs_super *s)
{
	struct pollfd p = {s->wake, POLLIN, 0};
	uint64_t count;
	bool quiet;

	if (poll(&p, 1, 0) > 0 && read(s->wake, &count, sizeof count) < 0)
		return;
	pthread_mutex_lock(&s->lock);
	s->napping = quiet = s->patient && !s->questions;
	s->patient = false;
	pthread_mutex_unlock(&s->lock);
	if (!quiet)
		return;
	if (!xs_flag_get(&s->gone) && !xs_flag_get(&s->stop))
		poll(&p, 1, NAP_MS);
	pthread_mutex_lock(&s->lock);
	s->napping = false;
	pthread_mutex_unlock(&s->lock);
}

int xs_super_next(struct xs_super *s, struct xs_event *out, int max, int timeout_ms)
{
	struct pollfd p = {s->wake, POLLIN, 0};
	uint64_t count;
	int n = 0;
	bool told;

	if (timeout_ms < 0)
		nap(s);
	for (;;) {
		told = true;
		pthread_mutex_lock(&s->lock);
		while (n < max && s->head) {
			struct node *d = s->head;

			copy_event(&out[n++], &d->ev);
			told &= d->ev.kind == XS_DONE;
			s->questions -= d->ev.kind == XS_QUESTION;
			s->head = d->next;
			if (!s->head)
				s->tail = NULL;
			if (s->spares == SPARES) {
				free(d);
				continue;
			}
			d->next = s->spare;
			s->spare = d;
			s->spares++;
		}
		s->patient = n && told && !s->head;
		pthread_mutex_unlock(&s->lock);
		if (n)
			return n;
		if (xs_flag_get(&s->gone) || xs_flag_get(&s->stop))
			return -1;
		if (poll(&p, 1, timeout_ms) <= 0)
			return 0;
		if (read(s->wake, &count, sizeof count) < 0)
			return 0;
	}
}

void xs_super_stop(struct xs_super *s)
{
	const struct timespec tick = {0, 1000000};
	uint64_t one = 1;

	xs_flag_set(&s->stop);
	if (write(s->wake, &one, sizeof one) < 0)
		xs_flag_set(&s->gone);
	/* Again and again: a signal that arrives just before the ioctl is lost. */
	while (!xs_flag_get(&s->gone)) {
		pthread_kill(s->receiver, xs_wake_signal());
		nanosleep(&tick, NULL);
	}
	pthread_join(s->receiver, NULL);
	pthread_kill(s->waiter, xs_wake_signal());
	pthread_join(s->waiter, NULL);
}

void xs_super_free(struct xs_super *s)
{
	struct node *n, *next;

	while (s->pend)
		xs_forget_pending(s, s->pend);
	for (n = s->head; n; n = next) {
		next = n->next;
		if (n->ev.fd >= 0)
			close(n->ev.fd);
		free(n);
	}
	for (n = s->spare; n; n = next) {
		next = n->next;
		free(n);
	}
	if (s->wake >= 0)
		close(s->wake);
	if (s->poke >= 0)
		close(s->poke);
	if (s->ep >= 0)
		close(s->ep);
	if (s->fds)
		xs_guestfd_free(s->fds);
	if (s->verdicts)
		xs_verdicts_free(s->verdicts);
	if (s->journal)
		xs_journal_free(s->journal);
	close(s->nfd);
	pthread_mutex_destroy(&s->lock);
	pthread_mutex_destroy(&s->settling);
	free(s);
}
