/* Descriptors of guest threads: pidfd cache, duplicates, which network a socket belongs to. */
#ifndef XS_GUESTFD_H
#define XS_GUESTFD_H

#include <stdbool.h>
#include <stdint.h>

struct xs_guestfd;

struct xs_guestfd *xs_guestfd_new(void);
void xs_guestfd_free(struct xs_guestfd *g);
/* Duplicate of the descriptor fd of thread tid (pidfd_getfd(2)), or -errno. */
int xs_guestfd_get(struct xs_guestfd *g, uint32_t tid, int fd);
/* The short name of the program that a thread runs (proc(5), comm), ended by a zero byte; "?" once it is gone. Calls come by
 * the thousand: one that came within a millisecond after another of this thread has that one's. start_ns: when it came. */
#define XS_PROGRAM 16
void xs_guestfd_program(struct xs_guestfd *g, uint32_t tid, uint64_t start_ns, char out[XS_PROGRAM]);
/* Whether a socket belongs to the network namespace of this process. */
bool xs_guestfd_is_host(const struct xs_guestfd *g, int fd);

#endif
