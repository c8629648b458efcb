/*
 * The supervisor's hot path: seccomp notifications received, host sockets handed out, connects with a cached verdict
 * carried out. Everything else becomes a question to Python. Benchmark row: direct.http.new.
 *
 * Threads: a receiver (blocks in SECCOMP_IOCTL_NOTIF_RECV) and a waiter (epoll over connects under way). Python drains
 * the question queue from a thread of its own and answers by id.
 */
#ifndef XS_SUPER_H
#define XS_SUPER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

/* AF_XENSOCK (xensock.calls.family): treated as AF_INET6. */
#define XS_AF_XENSOCK 0x5853

enum xs_kind { XS_QUESTION = 0, XS_DONE = 1 };

/* One trapped call for Python to judge (XS_QUESTION), or one connect that the core finished (XS_DONE). */
struct xs_event {
	enum xs_kind kind;
	uint64_t id;        /* of the notification */
	uint32_t tid;       /* thread in the backend's PID namespace */
	int nr;             /* system call number */
	uint64_t args[6];   /* XS_DONE: [0] is the socket's SO_COOKIE, 0 where no connection was begun */
	int fd;             /* duplicate of the guest's socket, owned by whoever takes the event; -1: none */
	int domain, type;   /* SO_DOMAIN, SO_TYPE of fd */
	bool host;          /* fd belongs to the backend's network namespace */
	uint32_t verdict;   /* XS_DONE: the verdict it ran under */
	int error;          /* XS_DONE: 0 or errno that the guest was given */
	uint64_t start_ns;  /* CLOCK_MONOTONIC at receipt */
	uint64_t took_ns;   /* XS_DONE */
	char program[16];   /* of the caller, while records are wanted: it may be gone when they are read; else empty */
	uint32_t addrlen;
	uint8_t addr[128];  /* copy of the sockaddr argument; last, since most of it is not in use */
};

struct xs_super;

/* killable: the filter was installed with SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV. */
struct xs_super *xs_super_new(int notify_fd, bool record, bool killable, int *error);
/* With a memfd, which stays the caller's, for calls under way (journal.h); what a predecessor left there is finished first. */
struct xs_super *xs_super_resume(int notify_fd, bool record, bool killable, int journal_fd, int *error);
/* How many sockets are handed out before Python is asked for each, how many connects are waited for at once (further ones:
 * EAGAIN), how many calls a second are looked at (further ones wait). Without this call there is no limit. */
void xs_super_limit(struct xs_super *s, uint32_t sockets, uint32_t connects, uint32_t calls);
/* Python has counted: so many sockets may be handed out, the one that it was asked for among them. */
void xs_super_room(struct xs_super *s, uint32_t sockets);
void xs_super_stop(struct xs_super *s);
void xs_super_free(struct xs_super *s);
/* Whether connects that the core carries out are told (XS_DONE). Cached verdicts are forgotten: they have no numbers. */
void xs_super_record(struct xs_super *s, bool on);
/* Up to max events; several XS_DONE in a row may come some milliseconds late, to be fetched together; waits up to timeout_ms (-1: for ever) for the first. Returns the count, -1 once stopped or the guest is gone. */
int xs_super_next(struct xs_super *s, struct xs_event *out, int max, int timeout_ms);
/* Answer; 0, or ENOENT when the caller is gone or was interrupted. */
int xs_super_answer(struct xs_super *s, uint64_t id, int64_t val, int error, bool go_on);
bool xs_super_valid(struct xs_super *s, uint64_t id);
/* Install srcfd in the caller; newfd -1: lowest number, and that is the call's result; -2: lowest number, not yet answered.
   Returns the number or -errno. */
int xs_super_addfd(struct xs_super *s, uint64_t id, int srcfd, int newfd, uint32_t newfd_flags);
/* Carry out connect on fd (taken over) and answer; later calls to the same address do so at once if cache. begun: it
 * connects, is connected or listens already, and no more than that is to be answered, whatever becomes of it meanwhile. */
void xs_super_connect(struct xs_super *s, uint64_t id, uint32_t tid, int fd, const uint8_t *addr, uint32_t addrlen, uint32_t verdict,
		      uint64_t start_ns, bool cache, bool begun);
/* As connect(2) was started already: wait until fd is writable, then finish and answer. */
void xs_super_await(struct xs_super *s, uint64_t id, uint32_t tid, int fd, const uint8_t *addr, uint32_t addrlen, uint32_t verdict,
		    uint64_t start_ns);
/* Remember that addr is refused with error. */
void xs_super_refuse(struct xs_super *s, const uint8_t *addr, uint32_t addrlen, uint32_t verdict, int error);
void xs_super_flush(struct xs_super *s);
int xs_super_getfd(struct xs_super *s, uint32_t tid, int fd);
/* Keep the result of a call whose caller was interrupted, for its re-issue on the same socket (SO_COOKIE). */
void xs_super_keep(struct xs_super *s, uint64_t cookie, int nr, int error);
bool xs_super_kept(struct xs_super *s, uint64_t cookie, int nr, int *error);
/* Which thread was given the socket with this SO_COOKIE, and when (CLOCK_BOOTTIME); false for those of long ago. */
bool xs_super_born(struct xs_super *s, uint64_t cookie, uint32_t *tid, uint64_t *boot_ns);

#endif
