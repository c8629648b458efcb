/* Moves bytes both ways between two ends, without Python: two sockets, a data ring and a socket, or two data rings.
 *
 * What an end's peer may notice is carried over: data in order, the end of a stream (half-close), resets,
 * back-pressure and, between sockets, urgent data. Between two sockets side A is the guest's end, side B the far end.
 */
#ifndef XS_MOVER_H
#define XS_MOVER_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct xs_mover;

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

/* An eventfd that is readable while ended connections or notices wait to be fetched. It stays the mover's. */
int xs_mover_fd(const struct xs_mover *m);

/* Fetches up to `max` ended connections, oldest first; returns how many. */
size_t xs_mover_ended(struct xs_mover *m, struct xs_ended *out, size_t max);

/* Fetches up to `max` notices, oldest first; returns how many. */
size_t xs_mover_notices(struct xs_mover *m, struct xs_notice *out, size_t max);

/* Bytes moved so far by a live connection. Returns false when it has ended. */
bool xs_mover_bytes(struct xs_mover *m, uint64_t token, uint64_t bytes[2]);

/* Live connections. */
size_t xs_mover_live(struct xs_mover *m);

/* Stops everything and frees the mover. Connections whose guest side has not finished sending get up
 * to `linger_ms` to do so; after that they are reset. A connection that has sent everything is closed
 * in order: the kernel still delivers what it holds. */
void xs_mover_free(struct xs_mover *m, unsigned linger_ms);
#endif
