/* What the host's sockets tell about a datagram beside its bytes. */
#ifndef XS_UDPIN_H
#define XS_UDPIN_H

#include "udpflows.h"

#include <sys/socket.h>

/* Asks the kernel for it: the address that was called, TTL, TOS, errors; and for datagrams taken together (UDP_GRO). */
void xs_in_prepare(const struct xs_port *p);

/* Reads it into dst, ttl and tos; *gso is the length of each of several datagrams, untouched where there is one. */
void xs_in_control(struct msghdr *m, struct xs_datagram *d, uint16_t *gso);

#endif
