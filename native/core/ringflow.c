/* A ring and a stream socket; the rules are in ringflow.h. */
#include "ringflow.h"

#include "mover.h"
#include "ringframes.h"
#include "ringresume.h"
#include "ringurgent.h"
#include "socklook.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define LOOKS 16 /* how often a peer may move its index without bringing anything before others get their turn */

static void tell(struct xs_ringflow *f, int kind, int error)
{
	if (f->thread)
		xs_mover_tell(f->thread->mover, &f->task, kind, error, 0);
}

static bool has_socket(const struct xs_ringflow *f)
{
	return f->sock.fd >= 0;
}

static void close_socket(struct xs_ringflow *f, bool reset)
{
	struct linger l = {0, 0};
	socklen_t len = sizeof l;
	struct sockaddr none = {.sa_family = AF_UNSPEC};

	if (!has_socket(f))
		return;
	if (f->thread)
		epoll_ctl(f->thread->epfd, EPOLL_CTL_DEL, f->sock.fd, NULL);
	if (f->family != AF_UNIX) {
		getsockopt(f->sock.fd, SOL_SOCKET, SO_LINGER, &l, &len);
		if (reset || (l.l_onoff && !l.l_linger)) {
			l = (struct linger){1, 0};
			setsockopt(f->sock.fd, SOL_SOCKET, SO_LINGER, &l, sizeof l);
			/* Resets too when others hold the same file (tcp_disconnect). */
			connect(f->sock.fd, &none, sizeof none);
		} else if (l.l_onoff) {
			l.l_onoff = 0; /* close() would wait, in a thread that serves others */
			setsockopt(f->sock.fd, SOL_SOCKET, SO_LINGER, &l, sizeof l);
		}
	}
	if (!reset)
		shutdown(f->sock.fd, SHUT_WR); /* others may hold the same file for a while */
	close(f->sock.fd);
	f->sock.fd = -1;
}

static void end(struct xs_ringflow *f, bool reset)
{
	close_socket(f, reset);
	xs_wire_close(&f->wire, f->thread ? f->thread->epfd : -1);
	xs_rest_drop(f);
	f->state = RING_ENDED;
}

void xs_ringflow_dead(struct xs_ringflow *f, int error)
{
	if (f->task.error == 0) {
		f->task.error = error;
		f->task.error_side = 1;
	}
	close_socket(f, true);
	if (!f->wire.attached) {
		end(f, true);
	} else if (f->role == XS_BACK) {
		xs_wire_fail(&f->wire, -error, -error);
	} else {
		tell(f, error == ECONNRESET || error == EPIPE ? XS_NOTICE_RESET : XS_NOTICE_ERROR, error);
		f->state = RING_LEAVING;
		f->deadline = 0;
	}
}

/* AF_UNIX reports EPOLLOUT at every read of its peer: there it is asked for only while it matters. */
static void ask_out(struct xs_ringflow *f, bool on)
{
	struct epoll_event ev = {EPOLLIN | EPOLLRDHUP | EPOLLET | (on ? EPOLLOUT : 0), {.ptr = &f->sock}};

	if (f->family != AF_UNIX || f->asks_out == on || !f->thread)
		return;
	if (epoll_ctl(f->thread->epfd, EPOLL_CTL_MOD, f->sock.fd, &ev) == 0)
		f->asks_out = on;
}

void xs_ringflow_full(struct xs_ringflow *f)
{
	f->writable = false;
	ask_out(f, true);
}

bool xs_ringflow_unsent(struct xs_ringflow *f, int error)
{
	if (error == EINTR)
		return true;
	if (error == EAGAIN) {
		xs_ringflow_full(f);
		return false;
	}
	if (f->role == XS_FRONT && error == EPIPE && f->family == AF_UNIX && !f->gone) {
		f->deaf = true; /* it shut its reading half down: as TCP's, what still comes is swallowed */
		return true;
	}
	f->error = error;
	if (f->eof || !f->wire.attached)
		xs_ringflow_dead(f, error);
	else if (f->role == XS_BACK)
		xs_wire_fail(&f->wire, 0, -error);
	return false;
}

void xs_ringflow_over(struct xs_ringflow *f, int error)
{
	if (error == ENOTCONN) {
		f->shut = true;
		if (has_socket(f) && !f->deaf)
			shutdown(f->sock.fd, SHUT_WR);
		return;
	}
	if (f->task.error == 0) {
		f->task.error = error;
		f->task.error_side = 0;
	}
	if (f->state == RING_LIVE)
		tell(f, error == EPROTO ? XS_NOTICE_ERROR : XS_NOTICE_RESET, error);
	xs_wire_close(&f->wire, f->thread ? f->thread->epfd : -1);
	f->state = RING_RESET;
	f->deadline = 0;
}

/* How much of the ring is the socket's, and in *over how the ring ended, once there is none. */
static uint32_t left(struct xs_ringflow *f, int *over)
{
	struct xs_half *rx = &f->wire.ring.rx;
	int32_t error;
	uint32_t n = xs_readable_or_error(rx, &error);

	*over = n || !error ? 0 : xs_wire_errno(error);
	if (f->stopping && n > f->stop - rx->own)
		n = f->stop - rx->own;
	if (f->stopping && !n)
		*over = ENOTCONN;
	/* A socket of TCP cannot be told that only its writing is over: once it has everything, it is reset. */
	if (!n && !*over && f->role == XS_FRONT && f->family != AF_UNIX)
		*over = xs_wire_errno(xs_error(&f->wire.ring.tx));
	return n;
}

static bool stream_down(struct xs_ringflow *f)
{
	struct xs_half *rx = &f->wire.ring.rx;
	uint64_t before = xs_count_get(&f->task.bytes[0]);
	int over, looks = 0;

	while (f->wire.attached && has_socket(f) && !f->shut && !f->error) {
		uint32_t n = left(f, &over);
		struct iovec chunk[2];
		struct msghdr m = {.msg_iov = chunk};
		int flags;
		ssize_t k;

		if (over) {
			xs_ringflow_over(f, over);
			break;
		}
		if (!n) {
			if (!xs_rx_arm(rx))
				break;
			if (++looks == LOOKS)
				return true;
			continue;
		}
		if (f->gone) {
			xs_ringflow_dead(f, ECONNRESET); /* as TCP answers what comes for a socket that is closed */
			break;
		}
		if (f->deaf) {
			xs_wire_advance(&f->wire, rx, n);
			if (++looks == LOOKS)
				return true;
			continue;
		}
		if (!f->writable)
			break;
		if (xs_count_get(&f->task.bytes[0]) - before >= XS_TASK_BUDGET)
			return true;
		n = xs_urgent_part(xs_urgent_ahead(&f->wire.in, rx), n < XS_RING_SEND ? n : XS_RING_SEND, &flags);
		m.msg_iovlen = (size_t)xs_chunks(rx, n, chunk);
		k = xs_urgent_send(f->sock.fd, &m, flags);
		if (k < 0) {
			if (!xs_ringflow_unsent(f, errno))
				break;
			continue;
		}
		xs_count_add(&f->task.bytes[0], (uint64_t)k);
		xs_wire_advance(&f->wire, rx, (uint32_t)k);
		if ((uint32_t)k < n)
			xs_ringflow_full(f);
	}
	return false;
}

void xs_ringflow_ended(struct xs_ringflow *f)
{
	f->eof = true;
	if (f->error)
		xs_ringflow_dead(f, f->error);
	else if (f->role == XS_BACK)
		xs_wire_fail(&f->wire, -ENOTCONN, 0);
	else
		tell(f, XS_NOTICE_EOF, 0);
}

void xs_ringflow_refuse(struct xs_ringflow *f)
{
	char scrap[4096];

	shutdown(f->sock.fd, SHUT_RD);
	/* What was sent already is thrown away, else closing would look like a reset. */
	while (recv(f->sock.fd, scrap, sizeof scrap, MSG_DONTWAIT) > 0)
		;
	f->eof = true;
}

/* Whether nobody holds the other end of a socket pair any more. */
static bool hung_up(const struct xs_ringflow *f)
{
	struct pollfd p = {f->sock.fd, 0, 0};

	return f->role == XS_FRONT && f->family == AF_UNIX && !f->error && poll(&p, 1, 0) > 0 && p.revents & POLLHUP;
}

static bool stream_up(struct xs_ringflow *f)
{
	struct xs_half *tx = &f->wire.ring.tx;
	uint64_t before = xs_count_get(&f->task.bytes[1]);
	int looks = 0, error;

	while (f->wire.attached && has_socket(f) && !f->eof && f->readable) {
		uint32_t room;
		bool drained;
		ssize_t k;

		if ((error = xs_wire_errno(xs_error(tx)))) {
			/* The backend takes no more: a writer shall see EPIPE. TCP's is reset, see left(). */
			if (f->family == AF_UNIX)
				xs_ringflow_refuse(f);
			else if (f->shut)
				xs_ringflow_over(f, error == ENOTCONN ? EPIPE : error);
			break;
		}
		if (xs_count_get(&f->task.bytes[1]) - before >= XS_TASK_BUDGET)
			return true;
		room = xs_room(tx);
		if (!room) {
			if (!xs_tx_arm(tx, tx->size / 2))
				break;
			if (++looks == LOOKS)
				return true;
			continue;
		}
		k = xs_urgent_receive(&f->wire, f->sock.fd, room, &drained);
		if (k > 0) {
			xs_count_add(&f->task.bytes[1], (uint64_t)k);
			xs_wire_advance(&f->wire, tx, (uint32_t)k);
			if (drained && !f->hup)
				f->readable = false;
		} else if (k == 0 && hung_up(f)) {
			f->eof = f->gone = f->deaf = true; /* the end that is reported tells it, and whether it is a reset */
			return true;
		} else if (k == 0) {
			xs_ringflow_ended(f);
		} else if (errno == EAGAIN) {
			f->readable = false;
		} else if (errno != EINTR) {
			xs_ringflow_dead(f, f->error ? f->error : errno);
		}
	}
	return false;
}

static const struct xs_ringflow_ops stream_ops = {stream_down, stream_up};

/* Sends the rest. True when there is none left, or nobody to take it. */
static bool send_rest(struct xs_ringflow *f)
{
	while (has_socket(f) && f->rest_at < f->rest_end && !f->deaf) {
		struct iovec chunk = {f->rest + f->rest_at, f->rest_end - f->rest_at};
		struct msghdr m = {.msg_iov = &chunk, .msg_iovlen = 1};
		size_t n;
		int flags;
		ssize_t k;

		if (!f->writable)
			return false;
		n = chunk.iov_len = xs_urgent_part(f->rest_mark - f->rest_at, (uint32_t)chunk.iov_len, &flags);
		k = xs_urgent_send(f->sock.fd, &m, flags);
		if (k < 0) {
			if (xs_ringflow_unsent(f, errno))
				continue;
			return !has_socket(f);
		}
		xs_count_add(&f->task.bytes[0], (uint64_t)k);
		f->rest_at += (size_t)k;
		if ((size_t)k < n)
			xs_ringflow_full(f);
	}
	return true;
}

/* Delivers the rest. A reset overtakes what is still in the send queue, so that is waited for while the peer takes any
 * of it. A reader of AF_UNIX has it already. */
static enum xs_next last(struct xs_ringflow *f, uint64_t now_ms)
{
	bool reset = f->state == RING_RESET, delivered = send_rest(f);
	size_t waiting;

	if (!reset && !delivered)
		return XS_NEXT_WAIT;
	if (reset && has_socket(f)) {
		waiting = f->rest_end - f->rest_at + (f->family == AF_UNIX ? 0 : xs_on_the_way(f->sock.fd));
		if (!f->deadline || waiting < f->waiting)
			f->deadline = now_ms + XS_STALL_MS;
		f->waiting = waiting;
		if (waiting && now_ms < f->deadline)
			return XS_NEXT_TICK;
	}
	end(f, reset);
	return XS_NEXT_GONE;
}

static bool out_is_empty(struct xs_half *tx)
{
	return xs_error(tx) || xs_room(tx) == tx->size || xs_tx_arm(tx, tx->size);
}

/* Role FRONT: what is over when. */
static enum xs_next front_next(struct xs_ringflow *f, uint64_t now_ms)
{
	if (f->state == RING_LEAVING && !f->deadline)
		f->deadline = now_ms + XS_TASK_DRAIN_MS;
	if (f->state == RING_LEAVING && !out_is_empty(&f->wire.ring.tx) && now_ms < f->deadline)
		return XS_NEXT_TICK;
	if (f->state == RING_LIVE && !(f->eof && (f->shut || f->gone) && out_is_empty(&f->wire.ring.tx)))
		return XS_NEXT_WAIT;
	end(f, f->state == RING_LEAVING);
	return XS_NEXT_GONE;
}

static enum xs_next run(struct xs_task *t, struct xs_thread *w, uint64_t now_ms)
{
	struct xs_ringflow *f = (struct xs_ringflow *)t;
	socklen_t len = sizeof f->error;
	bool more = false;

	(void)w;
	/* Who closed without reading everything resets: that is told before what still comes is swallowed. */
	if (f->state == RING_LIVE && f->gone)
		more = f->ops->up(f);
	if (f->state == RING_LIVE)
		more |= f->ops->down(f);
	if (f->state == RING_LIVE && !f->gone)
		more |= f->ops->up(f);
	/* A socket that is not read now can fail all the same: its stream has ended, or there is no room in the ring. */
	if (f->look && f->state == RING_LIVE && has_socket(f)) {
		if (!f->error)
			getsockopt(f->sock.fd, SOL_SOCKET, SO_ERROR, &f->error, &len);
		if (f->error && f->eof)
			xs_ringflow_dead(f, f->error);
		else if (f->error && f->role == XS_BACK)
			xs_wire_fail(&f->wire, 0, -f->error);
	}
	f->look = false;
	if (f->state == RING_LAST || f->state == RING_RESET)
		return last(f, now_ms);
	if (f->state == RING_ENDED)
		return XS_NEXT_GONE;
	if (more)
		return XS_NEXT_AGAIN;
	return f->role == XS_FRONT ? front_next(f, now_ms) : XS_NEXT_WAIT;
}

static void event(struct xs_source *source, uint32_t events)
{
	struct xs_ringflow *f = (struct xs_ringflow *)source->task;

	if (source == &f->wire.event)
		return; /* run() looks at the ring anyway */
	if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
		f->hup = true;
	if (events & (EPOLLHUP | EPOLLERR))
		f->look = true;
	if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
		f->readable = true;
	if (events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) {
		f->writable = true;
		ask_out(f, false);
	}
	if (events & EPOLLHUP && f->family == AF_UNIX)
		f->gone = f->deaf = true;
}

static int start(struct xs_task *t, struct xs_thread *w)
{
	struct xs_ringflow *f = (struct xs_ringflow *)t;
	struct epoll_event ev = {EPOLLIN | EPOLLRDHUP | EPOLLET, {.ptr = &f->sock}};

	f->thread = w;
	if (f->family != AF_UNIX)
		ev.events |= EPOLLOUT;
	if (has_socket(f) && epoll_ctl(w->epfd, EPOLL_CTL_ADD, f->sock.fd, &ev)) {
		t->error_side = 1;
		return errno;
	}
	if (f->wire.attached && xs_wire_watch(&f->wire, w->epfd)) {
		t->error_side = 0;
		return errno;
	}
	return 0;
}

static bool sent(const struct xs_task *t)
{
	const struct xs_ringflow *f = (const struct xs_ringflow *)t;

	return f->state == RING_ENDED || f->shut || !has_socket(f);
}

static void cut(struct xs_task *t, struct xs_thread *w)
{
	struct xs_ringflow *f = (struct xs_ringflow *)t;

	(void)w;
	if (f->role == XS_BACK && f->wire.attached)
		xs_wire_fail(&f->wire, -ECONNRESET, -ECONNRESET);
	end(f, !sent(t));
}

/* CLOSE and RELEASE: nothing touches the ring afterwards. */
static void release(struct xs_ringflow *f, bool reset, struct xs_left *left_over)
{
	unsigned patience = XS_REST_MS;
	int over;
	uint32_t n;

	if (!f->wire.attached) {
		if (reset && f->state == RING_LAST)
			f->state = RING_RESET;
		return;
	}
	/* Most of the time the socket takes everything at once. */
	if (f->state == RING_LIVE)
		f->ops->down(f);
	if (!f->wire.attached)
		return;
	n = f->ops == &stream_ops && has_socket(f) && !f->shut && !f->error && !f->deaf ? left(f, &over) : 0;
	f->rest = n ? xs_rest_take(f, n, left_over) : NULL;
	if (f->rest) {
		uint32_t ahead = xs_urgent_ahead(&f->wire.in, &f->wire.ring.rx);

		f->rest_mark = ahead < n ? ahead : SIZE_MAX;
		xs_copy_out(&f->wire.ring.rx, 0, f->rest, n);
	} else if (n) {
		f->task.error = ENOMEM;
		f->task.error_side = 0;
	}
	f->rest_end = f->rest ? n : 0;
	xs_wire_close(&f->wire, f->thread ? f->thread->epfd : -1);
	f->state = reset || (n && !f->rest) ? RING_RESET : RING_LAST;
	f->deadline = 0;
	if (!has_socket(f) || (!f->rest && f->state == RING_LAST))
		end(f, false);
	else
		setsockopt(f->sock.fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &patience, sizeof patience);
}

static enum xs_leaving leaving(const struct xs_ringflow *f)
{
	if (f->role != XS_FRONT)
		return XS_STAYS;
	return f->state == RING_LIVE && has_socket(f) ? xs_look_leaving(f->sock.fd, f->family != AF_UNIX) : XS_LEFT;
}

static int command(struct xs_task *t, const struct xs_command *c)
{
	struct xs_ringflow *f = (struct xs_ringflow *)t;
	struct xs_half *rx = &f->wire.ring.rx;

	if (c->side != 0)
		return EINVAL;
	if (c->verb == XS_RELEASE) {
		release(f, c->reset, c->arg);
		return 0;
	}
	if (c->verb == XS_LEAVING) {
		*(enum xs_leaving *)c->arg = leaving(f);
		return 0;
	}
	if (c->verb != XS_SHUTDOWN || f->role != XS_BACK || c->how < SHUT_RD || c->how > SHUT_RDWR)
		return EINVAL;
	if (f->state != RING_LIVE || !f->wire.attached)
		return ESRCH;
	if (c->how != SHUT_WR && has_socket(f))
		shutdown(f->sock.fd, SHUT_RD);
	if (c->how != SHUT_RD && !f->stopping) {
		f->stopping = true;
		f->stop = rx->own + xs_readable(rx);
		f->ops->down(f);
	}
	return 0;
}

static void destroy(struct xs_task *t)
{
	struct xs_ringflow *f = (struct xs_ringflow *)t;

	if (f->state != RING_ENDED)
		end(f, false);
	xs_task_free(t);
}

static const struct xs_kind kind = {start, event, run, sent, cut, command, destroy, true, false};

static struct xs_task *ringflow_new(int fd, const struct xs_ring_end *e, enum xs_role role, bool report)
{
	struct xs_ringflow *f = fd < 0 ? NULL : calloc(1, sizeof *f);
	int error = fd < 0 ? EINVAL : ENOMEM, type = 0, one = 1;
	socklen_t len = sizeof type;

	if (f) {
		xs_task_init(&f->task, &kind, report);
		f->sock = (struct xs_source){&f->task, fd};
		f->role = role;
		f->writable = true;
		error = getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) ||
					getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &f->family, &len)
				? errno
				: 0;
		if (!error)
			error = xs_wire_open(&f->wire, &f->task, e, role);
		else
			f->wire.event.fd = f->wire.notify_fd = -1;
	}
	if (!error && type == SOCK_STREAM)
		f->ops = &stream_ops;
	else if (!error && type == SOCK_SEQPACKET && f->family == AF_UNIX && role == XS_FRONT)
		f->ops = &xs_frames_ops;
	else if (!error)
		error = EPROTOTYPE;
	if (error) {
		if (f)
			destroy(&f->task);
		else if (fd >= 0)
			close(fd);
		errno = error;
		return NULL;
	}
	if (e->start)
		xs_ringflow_resume(f, e->start);
	if (e->urgent) /* see ringurgent.h */
		setsockopt(fd, SOL_SOCKET, SO_OOBINLINE, &one, sizeof one);
	/* What comes in small pieces goes out in small pieces at once; AF_UNIX refuses and needs it not. */
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	return &f->task;
}

uint64_t xs_mover_add_ring(struct xs_mover *m, int fd, const struct xs_ring_end *e, enum xs_role role, bool report)
{
	struct xs_task *t = ringflow_new(fd, e, role, report);

	if (t)
		xs_wire_hosted(&((struct xs_ringflow *)t)->wire, e, m);
	return t ? xs_mover_start(m, t) : 0;
}
