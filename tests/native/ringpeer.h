/* The other end of a data ring, for tests: what a frontend or a backend does, blocking, with a deadline. */
#ifndef RINGPEER_H
#define RINGPEER_H
#include "check.h"
#include "mover.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

struct peer {
	struct xs_dataring r; /* as the test's side sees it */
	void *page, *data;
	size_t length;
	int notify_fd, event_fd; /* the test's side writes, and waits for */
	bool events, urgent;
};

static inline void peer_open(struct peer *p, unsigned order, enum xs_role role, bool events)
{
	memset(p, 0, sizeof *p);
	p->length = (size_t)XS_PAGE << order;
	p->events = events;
	p->page = mmap(NULL, XS_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	p->data = mmap(NULL, p->length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(p->page != MAP_FAILED && p->data != MAP_FAILED);
	xs_indexes_init(p->page);
	CHECK(xs_dataring_init(&p->r, p->page, p->data, p->length, role, events) == 0);
	p->notify_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	p->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	CHECK(p->notify_fd >= 0 && p->event_fd >= 0);
}

/* The mover's side of it. */
static inline struct xs_ring_end peer_end(const struct peer *p)
{
	return (struct xs_ring_end){p->page, p->data, p->length, p->event_fd, p->notify_fd, p->events, p->urgent, NULL};
}

/* Unmaps: whoever still touches the memory is killed. */
static inline void peer_close(struct peer *p)
{
	CHECK(munmap(p->page, XS_PAGE) == 0 && munmap(p->data, p->length) == 0);
	close(p->notify_fd);
	close(p->event_fd);
}

static inline void peer_notify(struct peer *p)
{
	CHECK(eventfd_write(p->notify_fd, 1) == 0);
}

static inline void peer_wait(struct peer *p)
{
	struct pollfd w = {p->event_fd, POLLIN, 0};
	eventfd_t n;

	CHECK(poll(&w, 1, 5000) == 1);
	CHECK(eventfd_read(p->event_fd, &n) == 0);
}

/* Sends everything; a negated errno when the other side ended the direction. */
static inline int peer_write(struct peer *p, const void *data, size_t n)
{
	struct xs_half *tx = &p->r.tx;

	while (n) {
		uint32_t room = xs_room(tx);

		if (xs_error(tx))
			return xs_error(tx);
		if (!room) {
			if (!xs_tx_arm(tx, 1))
				peer_wait(p);
			continue;
		}
		if (room > n)
			room = (uint32_t)n;
		xs_copy_in(tx, 0, data, room);
		if (xs_advance(tx, room))
			peer_notify(p);
		data = (const char *)data + room;
		n -= room;
	}
	return 0;
}

/* Up to max bytes, at least one; 0 for the end of the stream, else a negated errno. */
static inline ssize_t peer_read(struct peer *p, void *data, size_t max)
{
	struct xs_half *rx = &p->r.rx;
	int32_t error;
	uint32_t n;

	while (!(n = xs_readable_or_error(rx, &error)) && !error)
		if (!xs_rx_arm(rx))
			peer_wait(p);
	if (error)
		return error == -ENOTCONN ? 0 : error;
	if (n > max)
		n = (uint32_t)max;
	xs_copy_out(rx, 0, data, n);
	if (xs_advance(rx, n))
		peer_notify(p);
	return n;
}

/* Reads to the end of the stream: what ended it. */
static inline int peer_read_all(struct peer *p, char *data, size_t size, size_t *got)
{
	ssize_t n;

	*got = 0;
	while ((n = peer_read(p, data + *got, size - *got)) > 0) {
		*got += (size_t)n;
		CHECK(*got < size);
	}
	return (int)n;
}

/* Backend: sets errors as v1's. */
static inline void peer_fail(struct peer *p, int in_error, int out_error)
{
	xs_dataring_fail(&p->r, in_error, out_error);
	peer_notify(p);
}
#endif
