/* Urgent data (urgent.h) between a ring and a stream socket, for ringflow.c.
 *
 * The socket has SO_OOBINLINE: the urgent byte is one of the stream, as it is in the ring, and the ring's words mark it.
 */
#ifndef XS_RINGURGENT_H
#define XS_RINGURGENT_H
#include "ringwire.h"

#include <sys/socket.h>

/* How many of the next n bytes are sent at once, and by which flags: those up to the urgent one, or it alone. */
static inline uint32_t xs_urgent_part(size_t ahead, uint32_t n, int *flags)
{
	*flags = MSG_DONTWAIT | MSG_NOSIGNAL | (ahead ? 0 : MSG_OOB);
	return ahead == 0 ? 1 : ahead < n ? (uint32_t)ahead : n;
}

/* sendmsg(2). Where a socket knows no urgent data the byte is lost, as it is for who does not ask for it. */
ssize_t xs_urgent_send(int fd, const struct msghdr *m, int flags);

/* recvmsg(2) into the ring, at most `room` bytes; of what it read the caller moves the index. EINTR: look again. *drained:
 * there was no more just now. */
ssize_t xs_urgent_receive(struct xs_wire *l, int fd, uint32_t room, bool *drained);

#endif
