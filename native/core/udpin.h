/* What the host's sockets tell about a datagram beside its bytes. */
#ifndef XS_UDPIN_H
#define XS_UDPIN_H

#include "udpflows.h"

#include <sys/socket.h>

/* Asks the kernel for it: the address that was called, TTL, TOS, errors; and for datagrams taken together (UDP_GRO). */
void xs_in_prepare(const struct xs_port *p);

/* Reads it into dst, ttl and tos; *gso is the length of each of several datagrams, untouched where there is one. */
void xs_in_control(struct msghdr *m, struct xs_datagram *d, uint16_t *gso);

/* Whether it is an answer to an echo request of this port's, at `at`; its data then begins at the ICMP header. The guest's
 * own identifier is the caller's to put back. */
bool xs_in_echo_reply(const struct xs_port *p, struct xs_datagram *d, uint8_t *at);

#endif
