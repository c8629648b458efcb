/* What the parts of libxensock share.
 *
 * Locks, outermost first: a socket's in_lock or out_lock (its data ring's private indices), the
 * attachment's lock (command ring, store, pages, what sockets are), a source's lock (its waiters).
 * Nobody sleeps with one held.
 */
#ifndef XS_LIB_INTERNAL_H
#define XS_LIB_INTERNAL_H
#include "xensock.h"

#include "cmdring.h"
#include "dataring.h"
#include "urgent.h"

#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define XS_PARKED_MAX 24    /* calls that the backend may answer late; v1's ring has 32 slots */
#define XS_PARKED_ACCEPT 20 /* of them ACCEPT: listeners leave room for who connects */
#define XS_CMD_ORDER_MAX 2  /* of the command ring */
#define XS_ADDRESS 28
#define XS_OPTION 36

/* PV Calls on the wire; docs/reference/pvcalls.md and extensions.md. */
enum xs_command {
	XS_SOCKET, XS_CONNECT, XS_RELEASE, XS_BIND, XS_LISTEN, XS_ACCEPT, XS_POLL,
	XS_SHUTDOWN = 256, XS_GETNAME, XS_SETOPT, XS_GETOPT, XS_CLOSE, XS_ATTACH,
};
#define XS_ASYNC 1u /* CONNECT's flag */
#define XS_RESET 1u /* CLOSE's flag */
#define XS_WIRE_ENOTSUP (-524)

struct xs_address {
	uint8_t bytes[XS_ADDRESS];
	uint32_t length;
};

struct xs_request {
	uint32_t req_id, cmd;
	uint64_t id;
	union {
		struct { uint32_t domain, type, protocol; } socket;
		struct { struct xs_address address; uint32_t flags, ref, port; } connect;
		struct { uint8_t reuse; } release;
		struct { struct xs_address address; } bind;
		struct { uint32_t backlog; } listen;
		struct { uint64_t id_new; uint32_t ref, port; } accept;
		struct { uint32_t how; } shutdown;
		struct { uint32_t which; } name;
		struct { uint32_t level, name, length, ref; uint8_t value[XS_OPTION - 4]; } option; /* value from ref on in SETOPT */
		struct { uint32_t flags; } close;
		uint8_t room[48];
	};
};
struct xs_response {
	uint32_t req_id, cmd;
	int32_t ret;
	uint32_t pad;
	uint64_t id;
	uint32_t length; /* extensions: of what follows */
	uint8_t value[XS_OPTION];
};
_Static_assert(sizeof(struct xs_request) == 64 && sizeof(struct xs_response) == 64, "a slot has 64 bytes");
_Static_assert(offsetof(struct xs_request, connect.ref) == 52, "CONNECT as in the specification");
_Static_assert(offsetof(struct xs_request, accept.ref) == 24, "ACCEPT as in the specification");

enum xs_feature {
	XS_F_DATA_EVENTS = 1, XS_F_SHUTDOWN = 2, XS_F_NAMES = 4, XS_F_OPTIONS = 8, XS_F_IPV6 = 16,
	XS_F_ASYNC_CONNECT = 32, XS_F_CLOSE = 64, XS_F_SHARED_RINGS = 128,
	XS_F_URGENT = 256,
};

/* ---- waiting (wait.c) ---- */

/* A descriptor that becomes readable when something happened, and who waits for that. */
struct xs_source {
	int fd;
	pthread_mutex_t lock;
	struct xs_waiting *first;
};
/* One thread that waits on one source. */
struct xs_waiting {
	struct xs_source *source;
	int kick; /* the thread's own eventfd: written when another thread took the event away */
	struct xs_waiting *next, **at;
};
void xs_source_init(struct xs_source *s, int fd);
void xs_source_end(struct xs_source *s);
/* The calling thread's eventfd; -1 and errno. */
int xs_kick_fd(void);
void xs_kick(int fd);
bool xs_wait_begin(struct xs_waiting *w, struct xs_source *s);
void xs_wait_end(struct xs_waiting *w);
/* Lets all who wait on a source look again. */
void xs_source_kick(struct xs_source *s, int but);
/* A deadline is in ns of CLOCK_MONOTONIC; XS_NEVER, or XS_NOW: do not wait. */
#define XS_NEVER UINT64_MAX
#define XS_NOW 0
uint64_t xs_clock(void);
uint64_t xs_deadline(uint64_t ns);
/* Sleeps until the source of `w` (may be NULL) or the attachment may have news, or the deadline. With
 * `commands` also until responses came, which it processes. False and errno: ETIMEDOUT, EINTR. */
bool xs_sleep(struct xensock *x, struct xs_waiting *w, bool commands, uint64_t deadline);
/* The parts of it, for poll: the thread was kicked; the store or the command ring has news. */
bool xs_poll_until(struct pollfd *fds, size_t count, uint64_t deadline);
void xs_kicked(int kick);
void xs_woken(struct xensock *x, bool store, bool commands, int kick);
void xs_take_event(struct xs_source *s, int but);

/* ---- pages and events (pages.c); the attachment's lock is held ---- */

struct xs_region {
	uint8_t *memory;
	uint32_t first, pages, used;
	struct xs_region *next;
};
/* The pages of one data ring: its index page and, behind it, its 2^order data pages. */
struct xs_chunk {
	uint8_t *memory;
	uint32_t ref, order;
	bool cold; /* its memory was given back */
	struct xs_chunk *next;
};
struct xs_event {
	uint32_t port;
	int notify, wait; /* eventfds: what we write, what the backend writes */
	bool lent; /* another guest may have its descriptor: it serves no other socket */
	struct xs_event *next;
};
struct xs_sock;
/* Pages of the backend's that a socket has in common with another guest's (shared.c). */
struct xs_shared {
	uint32_t number, pages;
	uint8_t *memory;
	_Atomic int peer; /* what wakes the other guest; -1 until it has come */
	struct xs_shared *next;
};
void xs_shared_arrived(struct xensock *x, uint32_t number, uint32_t pages, int fd);
void xs_shared_peer(struct xensock *x, uint32_t number, int fd);
/* Has the ring of a socket be in such pages, if the backend says so. False: it broke the protocol. */
bool xs_shared_enter(struct xs_sock *s);
void xs_shared_leave(struct xs_sock *s);
void xs_shared_free(struct xensock *x);
/* Wakes the other side of the ring; the attachment's lock is not held. */
void xs_notify_other(struct xs_sock *s);
uint8_t *xs_pages_take(struct xensock *x, uint32_t pages, uint32_t *ref);
/* The order of a new socket's ring, unless it says otherwise. */
uint32_t xs_default_order(const struct xensock *x);
struct xs_chunk *xs_chunk_take(struct xensock *x, uint32_t order);
void xs_chunk_give(struct xensock *x, struct xs_chunk *c);
struct xs_event *xs_event_take(struct xensock *x);
void xs_event_give(struct xensock *x, struct xs_event *e);
void xs_pages_free(struct xensock *x);

/* ---- sockets (socket.c, handle.c) ---- */

enum xs_state { XS_NEW, XS_BOUND, XS_LISTENING, XS_CONNECTING, XS_CONNECTED, XS_FAILED };

struct xs_sock {
	struct xensock *x;
	_Atomic uint32_t refs;
	int fd; /* by which the program knows it: event->wait */
	uint64_t id;
	int domain, protocol;
	_Atomic int state;
	_Atomic bool nonblocking, closed;
	_Atomic int error;  /* SO_ERROR */
	uint32_t order;
	bool sized; /* by the program */
	uint64_t receive_ns, send_ns; /* SO_RCVTIMEO, SO_SNDTIMEO; 0: for ever */
	bool reset_on_close;
	bool known; /* the backend has a socket of this id */
	struct xs_event *event;
	struct xs_source source;
	struct xs_chunk *chunk;
	struct xs_shared *shared;
	/* The data ring: set before the state becomes XS_CONNECTED. */
	pthread_mutex_t in_lock, out_lock;
	struct xs_dataring ring;
	_Atomic bool in_shut, out_shut;
	struct xs_urgent in_urgent, out_urgent;
	bool urgent_read; /* by MSG_OOB */
	_Atomic bool oobinline;
	_Atomic uint32_t spin_ns; /* how long to look for bytes before sleeping; 0 after a long wait */
	_Atomic bool told; /* the ring's error was reported */
	/* Names: length 0 is unknown. */
	struct xs_address own, peer;
	/* A listener: the ACCEPT under way, and connections that came. */
	struct xs_sock *coming;
	bool wants; /* stands in line for a parked call */
	struct xs_sock *ready, **ready_tail;
	struct xs_sock *next_ready, *next_wanting, *next_doomed;
	int accept_error;
	bool async; /* its CONNECT was answered: the ring's status word tells the rest */
	struct xs_sock *prev, *next; /* all of the attachment */
};
/* The socket that a program calls `fd`, held; NULL and EBADF. xs_put() lets go; the last one frees. */
struct xs_sock *xs_get(int fd);
void xs_put(struct xs_sock *s);
void xs_put_locked(struct xs_sock *s); /* the attachment's lock is held */
bool xs_sock_publish(struct xs_sock *s);
bool xs_sock_hide(struct xs_sock *s);
struct xs_sock *xs_sock_new(struct xensock *x, int domain, int protocol, uint32_t order);
void xs_start_ring(struct xs_sock *s);
/* The lock is held: issues ACCEPT for a listener if none is under way; or puts it in line. */
bool xs_want_accept(struct xs_sock *s);
void xs_next_accept(struct xensock *x);
/* The lock is held: the answers, and news for whoever waits on the socket. */
void xs_connected(struct xs_sock *s, const struct xs_response *r, int error);
void xs_accepted(struct xs_sock *listener, const struct xs_response *r, int error);
void xs_sock_news(struct xs_sock *s);
/* The lock is held: tells the backend that a socket is closed, now or when the ring has room. */
void xs_doom(struct xs_sock *s, bool reset);
void xs_doomed(struct xensock *x);
/* Looks whether an asynchronous connect has come to an end. */
void xs_look_connect(struct xs_sock *s);
/* Waits until it has; 0 or an errno. */
int xs_connect_wait(struct xs_sock *s, uint64_t deadline);
int xs_check_address(const struct xs_sock *s, const struct sockaddr *address, socklen_t length);
void xs_set_address(struct xs_address *a, const struct sockaddr *address, int domain);
void xs_give_address(const struct xs_address *a, struct sockaddr *address, socklen_t *length);
void xs_name(struct xs_address *a, const struct xs_response *r);
/* Bytes were read; wakes the other side where that is due. in_lock is held, as for all about the mark. */
void xs_consume(struct xs_sock *s, uint32_t n);

/* ---- urgent data (urgent.c) ---- */

void xs_start_urgent(struct xs_sock *s);
/* How many bytes come before the urgent one; XS_NO_MARK: there is none. *readable may become less. */
uint32_t xs_mark(struct xs_sock *s, uint32_t *readable);
/* How many of the readable bytes a read may take that has got so many already; *stop: it ends with them. Where reading
 * stands at the mark the urgent byte is skipped, without SO_OOBINLINE; who peeks sees it when xs_peeks_behind_mark(). */
uint32_t xs_up_to_mark(struct xs_sock *s, uint32_t readable, size_t got, bool peek, bool *stop);
bool xs_peeks_behind_mark(const struct xs_sock *s);
/* recv(2) with MSG_OOB. */
ssize_t xs_receive_urgent(struct xs_sock *s, void *byte, size_t size, bool peek);

/* How much must be free before a socket counts as writable: few wake-ups instead of many. */
uint32_t xs_room_wanted(const struct xs_sock *s);
/* Reports SO_ERROR once. */
int xs_take_error(struct xs_sock *s);
/* What poll(2) would say; `arm`: events of what is not yet true are asked for. */
short xs_ready(struct xs_sock *s, short events, bool arm);

/* ---- commands (command.c) ---- */

enum xs_owner { XS_FREE, XS_CALL, XS_SOCK_CONNECT, XS_SOCK_ACCEPT, XS_SOCK_CLOSE };
struct xs_pending {
	enum xs_owner owner;
	uint32_t cmd, generation;
	uint64_t id;
	bool parked;
	struct xs_call *call;
	struct xs_sock *sock; /* held */
	uint32_t next_free;
};
/* A thread that waits for a response. */
struct xs_call {
	bool done;
	int error; /* 0 or an errno */
	struct xs_response response;
	int kick;
};
/* Sends `q` and waits for the response; 0 or an errno. Signals do not interrupt it. */
int xs_command(struct xensock *x, struct xs_request *q, struct xs_response *r);
/* The lock is held: sends `q` for a socket; its response is processed by whoever finds it.
 * 0, EAGAIN when the ring or the parked calls are full, or ENETDOWN. */
int xs_request_send(struct xensock *x, struct xs_request *q, enum xs_owner owner, struct xs_call *call, struct xs_sock *sock);
/* The same, waiting for room in the ring and among the parked calls. Lets go of the lock meanwhile. */
int xs_request_wait(struct xensock *x, struct xs_request *q, enum xs_owner owner, struct xs_call *call, struct xs_sock *sock);
/* The lock is held: takes all responses and asks for an event for the next. `but`: the caller's kick. */
void xs_responses(struct xensock *x, int but);
/* The lock is held: nothing will be answered any more. */
void xs_abandon(struct xensock *x);
int xs_errno(int32_t ret);

/* ---- the attachment (session.c, store.c) ---- */

struct xensock {
	pthread_mutex_t lock;
	int fd; /* the store's unix socket */
	_Atomic bool dead;
	bool spins; /* there is a processor to wait on */
	char reason[200];
	/* The backend's nodes that matter. */
	unsigned backend_state, announced, features;
	uint32_t max_order, max_ring_order;
	bool versions, calls;
	/* The command ring. */
	struct xs_cmdfront ring;
	struct xs_event *event;
	struct xs_source source;
	struct xs_pending *pending;
	uint32_t slots, free_pending;
	unsigned parked;
	struct xs_sock *wanting, **wanting_tail; /* listeners in line for a parked call */
	struct xs_sock *doomed, **doomed_tail; /* closed here, and the backend has yet to be told, in this order */
	bool mute; /* close(2) has waited for room in the ring in vain, and no response has come since */
	/* Pages and events. */
	struct xs_region *regions;
	struct xs_chunk *chunks[XS_ORDER_V1 + 1];
	unsigned rings; /* in use */
	size_t warm; /* bytes of free chunks that may hold memory */
	struct xs_shared *shared; /* those that no socket has yet, and all others */
	struct xs_event *events;
	unsigned spare_events;
	uint32_t next_ref, next_port;
	uint64_t next_id;
	struct xs_sock *socks;
};
extern const char *const xs_feature_names[];
/* store.c. Messages of the local transport; the lock is held but in attach. */
enum xs_message {
	XS_HELLO = 1, XS_MEMORY, XS_EVENT, XS_UNEVENT, XS_WRITE, XS_UNMAP,
	XS_WELCOME = 16, XS_NODES, XS_GOODBYE, XS_SHARED, XS_PEER,
};
int xs_store_connect(const char *path);
bool xs_store_send(struct xensock *x, enum xs_message type, uint32_t a, uint32_t b, const void *payload, size_t size, const int *fds, int nfds);
/* Takes what the backend sent, without waiting. */
void xs_store_receive(struct xensock *x);
/* The attachment has ended. The lock is held. */
void xs_die(struct xensock *x, const char *reason);
#endif
