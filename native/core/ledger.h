/*
 * The audit log's lines of connects that the core carried out, and of the ends of those connections, as the kernel tells
 * of them (sock_diag(7)). What the lines of one destination, verdict and program have in common is their kind. Benchmark
 * rows: audit, audit.here. One thread at a time.
 */
#ifndef XS_LEDGER_H
#define XS_LEDGER_H

#include "lines.h"
#include "super.h"

#define XS_CALL_PARTS 6 /* between which: time, pid, duration, user, connection */
#define XS_END_PARTS 10 /* time, pid, result, error, duration, user, connection, sent, received */
#define XS_PARTS (XS_CALL_PARTS + XS_END_PARTS)
#define XS_NO_KIND UINT32_MAX

struct xs_ledger;

struct xs_text {
	const char *at;
	size_t size;
};

/* A connection under way; time_ns: of unix time. kind XS_NO_KIND: its beginning is somebody else's to know. */
struct xs_begun {
	uint64_t cookie, time_ns;
	int64_t user;
	uint32_t kind, tid;
};

/* How one ended, of those that the guest made: error as tcpinfo.counted() has it. counted: the kernel said. ended_ns: of
 * unix time; 0: the message did not say. */
struct xs_counts {
	uint64_t sent, received;
	int error;
	bool counted;
	uint64_t ended_ns;
};

/* An attribute of end_program.py's messages, which begins with ns of CLOCK_MONOTONIC. */
#define XS_ENDED_TYPE 0x100

enum xs_about {
	XS_ABOUT_NOTHING, /* no message of a socket */
	XS_ABOUT_STRANGER, /* nobody has told of it, yet: it is remembered */
	XS_ABOUT_BEGUN,	   /* of a connection with a kind, which is under way no more */
	XS_ABOUT_OTHER,	   /* somebody else knows: it is under way no more, or has a port that is heeded */
};

/* NULL: no memory. */
struct xs_ledger *xs_ledger_new(void);
void xs_ledger_free(struct xs_ledger *l);
/* Lines to fill, empty, in memory that is warm; they are the caller's until they are given back. */
struct xs_lines xs_ledger_lines(struct xs_ledger *l);
void xs_ledger_give(struct xs_ledger *l, struct xs_lines *lines);
/* The number of a new kind, its parts copied; XS_NO_KIND: no memory. */
uint32_t xs_ledger_kind(struct xs_ledger *l, const struct xs_text parts[XS_PARTS]);
/* No more calls are of this kind. It goes with the last of its connections. */
void xs_ledger_drop(struct xs_ledger *l, uint32_t kind);
/* A connection of this kind, of which somebody was told that it is under way no more, is recorded. */
void xs_ledger_done(struct xs_ledger *l, uint32_t kind);
/* Adds the line of a call (XS_DONE) of this kind; epoch_ns: the unix time at which CLOCK_MONOTONIC was 0. */
void xs_ledger_call(struct xs_ledger *l, struct xs_lines *out, const struct xs_event *ev, uint32_t kind, int64_t user,
		    uint64_t epoch_ns);
/* Adds the line of an end, now or when it was, and is xs_ledger_done(). */
void xs_ledger_end(struct xs_ledger *l, struct xs_lines *out, const struct xs_begun *b, const struct xs_counts *c, uint64_t now_ns);
/* A connection began. True: it has ended already, as in *c; xs_ledger_done() is due. Where `most` are under way nothing is
 * remembered. An end that is known to have been before that time was of an earlier connection of the same socket. */
bool xs_ledger_begin(struct xs_ledger *l, const struct xs_begun *b, size_t most, struct xs_counts *c);
/* What a message (struct nlmsghdr and all) is about; of XS_ABOUT_BEGUN, *b and *c, and xs_ledger_done() is due. epoch_ns: as
 * above. */
enum xs_about xs_ledger_heard(struct xs_ledger *l, const uint8_t *message, size_t size, uint64_t epoch_ns, struct xs_begun *b,
			      struct xs_counts *c);
/* The message is about a stranger, it turned out. */
void xs_ledger_stranger(struct xs_ledger *l, const uint8_t *message, size_t size, uint64_t epoch_ns);
/* Takes one out of those under way; xs_ledger_done() is due. */
bool xs_ledger_take(struct xs_ledger *l, uint64_t cookie, struct xs_begun *b);
/* The one at or after *at, which is then the next place to look; begin with 0. */
bool xs_ledger_each(const struct xs_ledger *l, size_t *at, struct xs_begun *b);
size_t xs_ledger_live(const struct xs_ledger *l);
/* Whether messages about this local port are somebody else's. */
void xs_ledger_heed(struct xs_ledger *l, uint16_t port, bool on);
/* Forgets connections and strangers. */
void xs_ledger_clear(struct xs_ledger *l);

#endif
