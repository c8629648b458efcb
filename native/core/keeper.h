/* A process that shares this one's table of descriptors and outlives it: what is open here stays open.
 *
 * It answers at a SOCK_SEQPACKET socket, and ends when the other end of that is closed. A request is up to XS_KEPT_MOST
 * numbers (int), -1 for the one that it was told of at its start; the answer is its process number (int), then a byte for each, 1 where there is such a descriptor, and
 * those descriptors in this order (SCM_RIGHTS).
 */
#ifndef XS_KEEPER_H
#define XS_KEEPER_H
#include <sys/types.h>

#define XS_KEPT_MOST 250 /* below SCM_MAX_FD */

/* The process, whose exit sends no signal (wait with __WALL); -1 and errno. `sock` must stay open. */
pid_t xs_keeper_start(int sock, int first);
#endif
