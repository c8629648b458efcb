/* A process that shares this one's table of descriptors and outlives it: what is open here stays open.
 *
 * It answers at a SOCK_SEQPACKET socket, and ends when the other end of that is closed. A request is up to XS_KEPT_MOST
 * numbers (int), -1 for the one that it was told of at its start; the answer is its process number (int), then a byte for each, 1 where there is such a descriptor, and
 * those descriptors in this order (SCM_RIGHTS).
 *
 * Sockets whose SO_SNDTIMEO is XS_ENDS_WITH_S seconds are closed when the process that started it has ended, as all of
 * them would be without it: nobody can go on with them, and their peers shall not wait for the next one to say so.
 */
#ifndef XS_KEEPER_H
#define XS_KEEPER_H
#include <sys/types.h>

#define XS_KEPT_MOST 250 /* below SCM_MAX_FD */

/* socket(7): says nothing of sockets that do not block. No other socket of ours has such a time. */
#define XS_ENDS_WITH_S 47103

/* The process, whose exit sends no signal (wait with __WALL); -1 and errno. `sock` must stay open. */
pid_t xs_keeper_start(int sock, int first);
#endif
