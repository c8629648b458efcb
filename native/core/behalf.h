/*
 * Calls that the receiver carries out itself on the file that was looked at. To let the guest's own call go on instead
 * would run it on whatever its descriptor names by then: another thread may have put a socket of the host's there (dup2).
 */
#ifndef XS_BEHALF_H
#define XS_BEHALF_H

#include <linux/seccomp.h>
#include <stdbool.h>

/* Whether this call on such a socket is one of them: listen(2) on what is no TCP socket, setsockopt(2) on what is no
 * datagram socket either. */
bool xs_behalf_does(int nr, int domain, int type);
/* Carry it out on fd, a duplicate of the caller's descriptor. Returns 0 or the errno for the caller. */
int xs_behalf_do(const struct seccomp_notif *n, int fd, int domain, int type);

#endif
