/* See ringwire.h. */
#include "ringwire.h"

#include "notify.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/epoll.h>
#include <unistd.h>

int xs_wire_open(struct xs_wire *l, struct xs_task *t, const struct xs_ring_end *e, enum xs_role role)
{
	int error = xs_dataring_init(&l->ring, e->indexes, e->data, e->length, role, e->events);

	l->event = (struct xs_source){t, -1};
	l->notify_fd = -1;
	l->evport = xs_evbridge_find(e->notify_fd);
	if (error)
		return error;
	if (e->urgent) {
		xs_urgent_init(&l->in, e->indexes, role, false);
		xs_urgent_init(&l->out, e->indexes, role, true);
	}
	l->event.fd = fcntl(e->event_fd, F_DUPFD_CLOEXEC, 0);
	l->notify_fd = fcntl(e->notify_fd, F_DUPFD_CLOEXEC, 0);
	if (l->event.fd < 0 || l->notify_fd < 0) {
		error = errno;
		xs_wire_close(l, -1);
		return error;
	}
	l->attached = true;
	return 0;
}

int xs_wire_watch(struct xs_wire *l, int epfd)
{
	/* Edge-triggered: every write is an event, so that the counter need never be read. */
	struct epoll_event ev = {EPOLLIN | EPOLLET, {.ptr = &l->event}};

	return epoll_ctl(epfd, EPOLL_CTL_ADD, l->event.fd, &ev) ? errno : 0;
}

void xs_wire_notify(struct xs_wire *l)
{
	if (l->evport.evtchn >= 0)
		xs_evbridge_send(l->evport);
	else
		xs_notify(l->notify_fd);
}

void xs_wire_advance(struct xs_wire *l, struct xs_half *h, uint32_t n)
{
	if (xs_advance(h, n))
		xs_wire_notify(l);
}

void xs_wire_fail(struct xs_wire *l, int in_error, int out_error)
{
	if (l->ring.in_error)
		in_error = 0;
	if (l->ring.out_error)
		out_error = 0;
	if (!in_error && !out_error)
		return;
	xs_dataring_fail(&l->ring, in_error, out_error);
	xs_wire_notify(l);
}

void xs_wire_close(struct xs_wire *l, int epfd)
{
	l->attached = false;
	if (l->event.fd >= 0) {
		/* Others hold the same file: its events must not reach a freed task. */
		if (epfd >= 0)
			epoll_ctl(epfd, EPOLL_CTL_DEL, l->event.fd, NULL);
		close(l->event.fd);
	}
	if (l->notify_fd >= 0)
		close(l->notify_fd);
	l->event.fd = l->notify_fd = -1;
}

int xs_mover_shutdown(struct xs_mover *m, uint64_t token, int how, int side)
{
	return xs_mover_command(m, token, &(struct xs_command){.verb = XS_SHUTDOWN, .side = side, .how = how});
}

enum xs_leaving xs_mover_leaving(struct xs_mover *m, uint64_t token)
{
	enum xs_leaving found = XS_STAYS;
	int error = xs_mover_command(m, token, &(struct xs_command){.verb = XS_LEAVING, .arg = &found});

	return error == ESRCH ? XS_LEFT : found;
}

int xs_mover_release(struct xs_mover *m, uint64_t token, bool reset, int side)
{
	return xs_mover_command(m, token, &(struct xs_command){.verb = XS_RELEASE, .side = side, .reset = reset});
}

int xs_mover_release_left(struct xs_mover *m, uint64_t token, bool reset, int side, struct xs_left *left)
{
	*left = (struct xs_left){.memory = -1, .fd = -1};
	return xs_mover_command(m, token,
				&(struct xs_command){.verb = XS_RELEASE, .side = side, .reset = reset, .arg = left});
}
