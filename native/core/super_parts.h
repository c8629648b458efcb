/* What the parts of the supervisor's hot path share: super.c (notifications, queue) and waiting.c (connects under way). */
#ifndef XS_SUPER_PARTS_H
#define XS_SUPER_PARTS_H

#include "interrupt.h"
#include "journal.h"
#include "order.h"
#include "super.h"

#include <pthread.h>

#define KEPT 64
#define BORN 1024

struct node {
	struct xs_event ev;
	struct node *next;
};

/* A blocking connect under way. Its fd is a duplicate that must go as soon as the guest's call is gone. */
struct pending {
	struct pending *next, *prev;
	uint64_t id, start_ns, deadline_ns; /* deadline 0: none (SO_SNDTIMEO) */
	uint64_t look_ns;		    /* when to see next whether the caller is there, and has no signal */
	unsigned shared;		    /* how often a signal for the whole process was found */
	uint32_t tid, verdict, addrlen;
	int fd, late; /* late: errno once the deadline has passed */
	uint8_t addr[128];
};

struct xs_super {
	int nfd, wake, ep;
	int poke;	   /* ends the waiter's sleep */
	uint64_t wakes_ns; /* when the waiter's sleep ends by itself */
	unsigned npend;
	struct xs_going going; /* the waiter's */
	bool in_step;  /* a caller's processor goes to the receiver, and back: XS_SYNC_WAKE_UP */
	bool killable; /* only fatal signals end a wait of the guest's */
	xs_flag stop, gone, record;
	bool patient, napping;	/* under lock, the reader's: only records came last; it sleeps, only questions wake it */
	unsigned questions;	/* under lock: in the queue */
	uint32_t room, connects; /* under lock: sockets that may be handed out still; npend at most */
	uint32_t calls, looked;	 /* the receiver's: a second at most, 0: any number; since the last look at the clock */
	uint64_t paced_ns;
	pthread_t receiver, waiter;
	pthread_mutex_t lock; /* queue, pending list, kept results */
	pthread_mutex_t settling; /* held while a connect is finished, until its outcome is delivered or kept */
	struct node *head, *tail, *spare; /* spare: read ones, whose memory is warm */
	unsigned spares;
	struct pending *pend;
	struct xs_guestfd *fds;
	struct xs_verdicts *verdicts;
	struct xs_journal *journal; /* NULL: nobody comes after us */
	struct xs_entry *entry;	    /* the receiver's: of the call that it looks at */
	struct { uint64_t cookie; int nr, error; } kept[KEPT];
	unsigned nkept, kept_at;
	struct { uint64_t cookie, boot_ns; uint32_t tid; int domain; } born[BORN]; /* by cookie: sockets handed out last */
};

uint64_t xs_now_ns(void);
/* SO_COOKIE, 0 if the socket has none. */
uint64_t xs_cookie_of(int fd);
void xs_only_wake_signal(void);
/* A socket was handed out; what is known of it then. The receiver's. */
void xs_note_birth(struct xs_super *s, uint64_t cookie, uint32_t tid, int domain);
bool xs_handed_out(const struct xs_super *s, uint64_t cookie, struct xs_event *ev);
void xs_post(struct xs_super *s, const struct xs_event *ev);
/* Answers a connect, keeps the outcome for this socket if the caller was interrupted, records. */
void xs_done(struct xs_super *s, uint64_t id, uint32_t tid, uint64_t cookie, const uint8_t *addr, uint32_t addrlen, uint32_t verdict,
	     uint64_t start_ns, int error);
/* Connects fd (taken over; its SO_COOKIE, 0: not known) and answers, now or later. begun: it connects already or has another
 * state that answers, so that nobody has judged the address. */
void xs_run_connect(struct xs_super *s, uint64_t id, uint32_t tid, int fd, uint64_t cookie, const uint8_t *addr, uint32_t addrlen,
		    uint32_t verdict, uint64_t start_ns, bool begun);
void xs_forget_pending(struct xs_super *s, struct pending *p);
/* Whether one more socket may be handed out, which counts then. */
bool xs_take_room(struct xs_super *s);
/* Lets a guest that calls faster than it may wait: its threads do, and nobody else. The receiver's. */
void xs_pace(struct xs_super *s);
/* Answers a call, or has it answered. The receiver's, as the two below. */
void xs_look_at(struct xs_super *s, const struct seccomp_notif *n);
/* Does what the predecessor received and did not answer. */
void xs_replay(struct xs_super *s);
/* Of a call in the journal whose caller's socket is ev->fd: whether the predecessor had carried it out, so that it is
 * answered now. Notes the socket's state where the call is new. */
bool xs_again(struct xs_super *s, const struct xs_event *ev);
/* Of the file that a descriptor names; 0: unknown. */
uint32_t xs_inode_of(int fd);
/* Under which number a process has the socket with this inode; -1: it has not. */
int xs_installed(uint32_t tid, uint32_t inode);
/* The waiter's thread. */
void *xs_waiter(void *super);

#endif
