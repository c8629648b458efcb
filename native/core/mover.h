/* Moves bytes both ways between two ends, without Python: two sockets, a data ring and a socket, or two data rings.
 *
 * What an end's peer may notice is carried over: data in order, the end of a stream (half-close), resets,
 * back-pressure and urgent data. Between two sockets side A is the guest's end, side B the far end.
 */
#ifndef XS_MOVER_H
#define XS_MOVER_H
#include "dataring.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct xs_mover;
struct xs_bucket;

/* How one connection ended. */
struct xs_ended {
	uint64_t token;
	uint64_t bytes[2]; /* delivered to the kernel: [0] from A to B, [1] from B to A */
	int error;         /* 0 after an orderly end of both streams, else the errno that ended it */
	int side;          /* which side reported the error: 0 is A, 1 is B; -1 without error */
};

/* What a connection between a ring and a socket has to say while it lives. */
enum xs_notice_kind {
	XS_NOTICE_EOF = 1,   /* the socket's stream has ended; everything before it is in the ring */
	XS_NOTICE_RESET = 2, /* the socket was reset; `error` says how */
	XS_NOTICE_ERROR = 3, /* anything else: the other end of the ring broke the rules (EPROTO), no memory, ... */
};
struct xs_notice {
	uint64_t token;
	int kind, error;
	int side; /* which side it is about: 0 but for the B of two rings */
};

/* Starts `threads` mover threads (at least one). NULL and errno when the kernel refuses. */
struct xs_mover *xs_mover_new(unsigned threads);

/* Takes both descriptors, also when it fails, and moves bytes between them until both streams have
 * ended. With `report`, xs_mover_ended() tells about its end. Returns a token, never 0; 0 and errno
 * (ENOMEM, EINVAL, ESHUTDOWN) when the connection cannot be taken: both descriptors are closed then. */
uint64_t xs_mover_add(struct xs_mover *m, int a, int b, bool report);
/* The same, for connections that may move what the bucket grants, together, each way. It keeps a reference. */
uint64_t xs_mover_add_slowed(struct xs_mover *m, int a, int b, struct xs_bucket *bucket, bool report);

/* Where a connection goes on that somebody else moved until then; role XS_BACK and a stream of TCP only. */
struct xs_ring_start {
	uint32_t rx, tx;   /* this side's indexes, as far as the socket has taken and given bytes */
	bool shut;	   /* the socket was told the end of `out` */
	bool stopping;	   /* SHUTDOWN WR came: `out` ends at index stop */
	uint32_t stop;
	int error;	   /* the errno of which the socket died, where it tells that no more; 0: none */
};

/* One end that is a data ring. Memory and descriptors stay the caller's; the descriptors are duplicated, the memory
 * must stay until the connection has ended or xs_mover_release() returned. */
struct xs_ring_end {
	void *indexes, *data;
	size_t length;		 /* of data: both halves */
	int notify_fd, event_fd; /* written to wake the other domain; waited for */
	bool events;		 /* the extension `data-events` is in use */
	bool urgent;		 /* the extension `urgent` is */
	const struct xs_ring_start *start; /* NULL: it begins where the indexes page says */
};

/* Joins a ring and a socket, which is taken also when it fails. Side A is the ring. The ends of the socket are told by
 * notices where `role` is XS_FRONT. XS_BACK: lives until xs_mover_release(). XS_FRONT: ends when both streams have and
 * `out` is empty, or when the socket failed. The socket is a stream or, for XS_FRONT, an AF_UNIX SOCK_SEQPACKET whose
 * packets are frames (extension `datagrams`). 0 and errno as xs_mover_add(), EINVAL, EPROTOTYPE for other sockets. */
uint64_t xs_mover_add_ring(struct xs_mover *m, int fd, const struct xs_ring_end *e, enum xs_role role, bool report);

/* Joins two rings of role XS_BACK; side A is a. With b NULL the connection waits for xs_mover_join_other(), as in an
 * accept queue; a may write, shut down and be released meanwhile, and releasing side 1 refuses it. 0 and errno as above. */
uint64_t xs_mover_join(struct xs_mover *m, const struct xs_ring_end *a, const struct xs_ring_end *b, bool report);
/* 0; ESRCH: it has ended; EISCONN: it has its second ring; or what xs_mover_join() says. */
int xs_mover_join_other(struct xs_mover *m, uint64_t token, const struct xs_ring_end *b);

/* The command SHUTDOWN, for role XS_BACK: SHUT_WR takes effect after everything that is in `out` now. 0; ESRCH: it has
 * ended; EINVAL. */
int xs_mover_shutdown(struct xs_mover *m, uint64_t token, int how, int side);

/* CLOSE and RELEASE: when it returns the ring's memory is not touched any more. What is left for the far side is
 * delivered in the background, then that is closed, or reset. 0; ESRCH: it has ended; EINVAL. */
int xs_mover_release(struct xs_mover *m, uint64_t token, bool reset, int side);

/* What is left for the socket after a release, so that another process could go on. */
struct xs_left {
	int memory;	 /* a memfd with it, the caller's; -1: nothing is left, or it has no socket */
	int fd;		 /* the number of the socket's descriptor, which is closed when the connection has ended */
	uint32_t length; /* bytes */
	uint32_t index;	 /* that of the first one, in the ring */
};
int xs_mover_release_left(struct xs_mover *m, uint64_t token, bool reset, int side, struct xs_left *left);

/* Whether the program at the socket of role XS_FRONT has gone, whatever the mover's threads know of it. A connection that
 * has ended is XS_LEFT. What has no such socket stays. */
enum xs_leaving {
	XS_STAYS,
	XS_HALF_LEFT, /* TCP: its stream has ended, which a program that closed looks like, too */
	XS_LEFT,
};
enum xs_leaving xs_mover_leaving(struct xs_mover *m, uint64_t token);

/* An eventfd that is readable while ended connections or notices wait to be fetched. It stays the mover's. */
int xs_mover_fd(const struct xs_mover *m);

/* Fetches up to `max` ended connections, oldest first; returns how many. */
size_t xs_mover_ended(struct xs_mover *m, struct xs_ended *out, size_t max);

/* Fetches up to `max` notices, oldest first; returns how many. */
size_t xs_mover_notices(struct xs_mover *m, struct xs_notice *out, size_t max);

/* Bytes moved so far by a live connection. Returns false when it has ended. */
bool xs_mover_bytes(struct xs_mover *m, uint64_t token, uint64_t bytes[2]);

/* The low half of every token so far is below this. */
size_t xs_mover_slots(struct xs_mover *m);

/* Live connections. */
size_t xs_mover_live(struct xs_mover *m);

/* Stops everything and frees the mover. Connections whose guest side has not finished sending get up
 * to `linger_ms` to do so; after that they are reset. A connection that has sent everything is closed
 * in order: the kernel still delivers what it holds. */
void xs_mover_free(struct xs_mover *m, unsigned linger_ms);
#endif
