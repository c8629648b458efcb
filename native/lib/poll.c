/* Readiness: of ours from their rings, of others from the kernel, in one wait. */
#include "internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* What can be read: bytes, where an urgent one at which reading stands is none (Linux's tcp_poll()), and POLLPRI. With `arm`
 * more bytes are asked for: the next one, or the next but those that do not count. */
static short incoming(struct xs_sock *s, short events, bool arm)
{
	struct xs_half *rx = &s->ring.rx;
	uint32_t there = 0;
	short ready;

	for (;;) {
		uint32_t readable = xs_readable(rx), ahead = xs_mark(s, &readable);

		ready = ahead < readable && !s->urgent_read ? POLLPRI : 0;
		if (readable > (ahead == 0 && !s->oobinline))
			ready |= POLLIN | POLLRDNORM;
		if (!arm || ready & events || (there && there == readable + 1))
			return ready;
		there = readable + 1;
		if (rx->events) {
			xs_store_relaxed(rx->my_event, rx->own + there);
			xs_full_barrier();
		}
	}
}

static short connected(struct xs_sock *s, short events, bool arm)
{
	bool in_end, out_end, broken;
	int32_t in_error, out_error;
	uint32_t room;
	short ready;

	pthread_mutex_lock(&s->in_lock);
	ready = incoming(s, events, arm && events & (POLLIN | POLLRDHUP | POLLRDNORM | POLLPRI));
	in_error = xs_error(&s->ring.rx);
	/* The error is behind the bytes; those may have come before it. */
	ready |= incoming(s, events, false);
	pthread_mutex_unlock(&s->in_lock);
	pthread_mutex_lock(&s->out_lock);
	if (arm && events & (POLLOUT | POLLWRNORM))
		xs_tx_arm(&s->ring.tx, xs_room_wanted(s));
	out_error = xs_error(&s->ring.tx);
	room = xs_room(&s->ring.tx);
	pthread_mutex_unlock(&s->out_lock);
	in_end = in_error || s->in_shut || s->x->dead;
	out_end = out_error || s->out_shut || s->x->dead;
	broken = (in_error && in_error != -ENOTCONN) || (out_error && out_error != -ENOTCONN) || s->x->dead;
	if (in_end)
		ready |= POLLIN | POLLRDNORM;
	if (room >= xs_room_wanted(s) || out_end)
		ready |= POLLOUT | POLLWRNORM;
	if (in_end)
		ready |= POLLRDHUP;
	/* That nobody reads any more shows in TCP only when one writes. */
	if (in_end && (s->out_shut || s->x->dead || (out_error && out_error != -ENOTCONN)))
		ready |= POLLHUP;
	if (broken && !s->told)
		ready |= POLLERR;
	return ready;
}

short xs_ready(struct xs_sock *s, short events, bool arm)
{
	struct xensock *x = s->x;
	short ready = 0;

	if (s->state == XS_LISTENING || s->state == XS_CONNECTING) {
		pthread_mutex_lock(&x->lock);
		xs_responses(x, -1);
		xs_look_connect(s);
		if (s->state == XS_LISTENING && events & (POLLIN | POLLRDNORM)) {
			if (!s->ready && !s->accept_error && !x->dead)
				xs_want_accept(s);
			if (s->ready || s->accept_error || x->dead)
				ready = POLLIN | POLLRDNORM;
		}
		pthread_mutex_unlock(&x->lock);
	}
	switch (s->state) {
	case XS_CONNECTED:
		ready = connected(s, events, arm);
		break;
	case XS_FAILED:
		ready = POLLIN | POLLOUT | POLLRDNORM | POLLWRNORM | POLLRDHUP | POLLHUP;
		if (s->error)
			ready |= POLLERR;
		break;
	case XS_NEW:
	case XS_BOUND:
		ready = POLLOUT | POLLWRNORM | POLLHUP;
		break;
	}
	if (s->closed)
		return POLLNVAL;
	return ready & (short)(events | POLLERR | POLLHUP);
}

int xensock_arm(int fd, short events)
{
	struct xs_sock *s = xs_get(fd);
	short ready;

	if (!s)
		return -1;
	xs_take_event(&s->source, -1);
	ready = xs_ready(s, events, true);
	xs_put(s);
	return ready;
}

/* One call of xensock_poll(). The kernel is asked about: the thread's kick, per attachment its store and
 * its command event, then one descriptor per entry: an ordinary one's own, or the event of one of ours. */
struct polling {
	struct pollfd *fds;
	nfds_t count;
	struct xs_sock **socks; /* NULL for an ordinary descriptor */
	struct xs_waiting *waits;
	struct xensock **attachments;
	struct pollfd *kernel;
	size_t attached, first; /* of the entries in `kernel` */
	bool registered;
	int kick;
};

static bool prepare(struct polling *p)
{
	size_t n = p->count;

	p->kick = xs_kick_fd();
	p->socks = calloc(n + 1, sizeof *p->socks);
	p->waits = malloc((n + 1) * sizeof *p->waits);
	p->attachments = malloc((n + 1) * sizeof *p->attachments);
	p->kernel = malloc((3 * n + 1) * sizeof *p->kernel);
	if (p->kick < 0 || !p->socks || !p->waits || !p->attachments || !p->kernel)
		return false;
	for (nfds_t i = 0; i < n; i++) {
		size_t a = 0;

		p->socks[i] = p->fds[i].fd < 0 ? NULL : xs_get(p->fds[i].fd);
		if (!p->socks[i])
			continue;
		while (a < p->attached && p->attachments[a] != p->socks[i]->x)
			a++;
		if (a == p->attached)
			p->attachments[p->attached++] = p->socks[i]->x;
	}
	p->kernel[p->first++] = (struct pollfd){p->kick, POLLIN, 0};
	for (size_t a = 0; a < p->attached; a++) {
		p->kernel[p->first++] = (struct pollfd){p->attachments[a]->fd, POLLIN, 0};
		p->kernel[p->first++] = (struct pollfd){p->attachments[a]->source.fd, POLLIN, 0};
	}
	for (nfds_t i = 0; i < n; i++)
		p->kernel[p->first + i] = p->socks[i] ? (struct pollfd){p->socks[i]->fd, POLLIN, 0} : p->fds[i];
	return true;
}

static void finish(struct polling *p)
{
	for (nfds_t i = 0; p->socks && i < p->count; i++)
		if (p->socks[i]) {
			if (p->registered)
				xs_wait_end(&p->waits[i]);
			xs_put(p->socks[i]);
		}
	free(p->socks);
	free(p->waits);
	free(p->attachments);
	free(p->kernel);
}

/* How many of ours are ready. */
static int look(struct polling *p, bool arm)
{
	int ready = 0;

	if (arm && !p->registered) {
		for (nfds_t i = 0; i < p->count; i++)
			if (p->socks[i]) /* cannot fail: the kick exists */
				xs_wait_begin(&p->waits[i], &p->socks[i]->source);
		p->registered = true;
	}
	for (nfds_t i = 0; i < p->count; i++) {
		p->fds[i].revents = p->socks[i] ? xs_ready(p->socks[i], p->fds[i].events, arm) : 0;
		ready += p->fds[i].revents != 0;
	}
	return ready;
}

/* What the kernel said: events of ours are taken, others are results. How many of these. */
static int heard(struct polling *p)
{
	int ready = 0;

	if (p->kernel[0].revents)
		xs_kicked(p->kick);
	for (size_t a = 0; a < p->attached; a++) {
		bool store = p->kernel[1 + 2 * a].revents, commands = p->kernel[2 + 2 * a].revents;

		if (store || commands)
			xs_woken(p->attachments[a], store, commands, p->kick);
	}
	for (nfds_t i = 0; i < p->count; i++) {
		short revents = p->kernel[p->first + i].revents;

		if (!revents)
			continue;
		if (p->socks[i]) {
			xs_take_event(&p->socks[i]->source, p->kick);
		} else {
			p->fds[i].revents = revents;
			ready++;
		}
	}
	return ready;
}

static int waiting(struct polling *p, uint64_t deadline)
{
	int ready = look(p, false), others = 0;

	while (!ready && !others) {
		if (deadline != XS_NOW && (ready = look(p, true)))
			break;
		if (!xs_poll_until(p->kernel, p->first + p->count, deadline)) {
			if (errno != ETIMEDOUT)
				return -1;
			return look(p, false);
		}
		others = heard(p);
		if (!others)
			ready = look(p, false);
	}
	if (ready && !others && xs_poll_until(p->kernel, p->first + p->count, XS_NOW))
		others = heard(p);
	if (others) { /* results of both kinds */
		ready = 0;
		for (nfds_t i = 0; i < p->count; i++) {
			if (p->socks[i])
				p->fds[i].revents = xs_ready(p->socks[i], p->fds[i].events, false);
			ready += p->fds[i].revents != 0;
		}
	}
	return ready;
}

int xensock_poll(struct pollfd *fds, nfds_t count, int timeout)
{
	struct polling p = {.fds = fds, .count = count};
	int n = -1, error;

	if (prepare(&p))
		n = waiting(&p, timeout < 0 ? XS_NEVER : timeout ? xs_deadline((uint64_t)timeout * 1000000u) : XS_NOW);
	error = errno;
	finish(&p);
	errno = error;
	return n;
}
