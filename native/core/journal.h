/*
 * Calls that were received and not answered yet, in memory that outlives this process: the kernel delivers a notification
 * once, but whoever holds the listener may answer it by its number. No benchmark row: it is beside every call of a
 * container, and must not cost one.
 */
#ifndef XS_JOURNAL_H
#define XS_JOURNAL_H

#include <linux/seccomp.h>
#include <stdbool.h>
#include <stdint.h>

/* `seen`: what is below was written, and the call may have been acted on. */
struct xs_entry {
	struct seccomp_notif call; /* id 0: free */
	uint32_t seen, before;	   /* before: see replay.c */
};

struct xs_journal;

/* Over a memfd, which stays the caller's. Its entries are those of a predecessor, if it had one. NULL: errno in *error. */
struct xs_journal *xs_journal_open(int fd, int *error);
void xs_journal_free(struct xs_journal *j);
/* An empty entry to receive into, the same one until xs_journal_received; NULL: too many calls are under way. */
struct xs_entry *xs_journal_room(struct xs_journal *j, int nfd);
void xs_journal_received(struct xs_journal *j, struct xs_entry *e);
/* Writes `before`, and that it is written. */
void xs_journal_note(struct xs_journal *j, uint64_t id, uint32_t before);
/* Answered, or gone. */
void xs_journal_done(struct xs_journal *j, uint64_t id);
/* The predecessor's entry with the smallest number above `after`, NULL after the last. */
struct xs_entry *xs_journal_after(struct xs_journal *j, uint64_t after);

#endif
