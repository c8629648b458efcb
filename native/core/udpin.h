/* What the host's sockets tell about a datagram beside its bytes. */
#ifndef XS_UDPIN_H
#define XS_UDPIN_H

#include "udpflows.h"

#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/uio.h>

#define XS_IN_BATCH 32
#define XS_IN_ROOM (1u << 17) /* one packet of the card or one datagram: 64 KiB and headers, a power of two */
#define XS_IN_CONTROL 256

struct xs_in {
	struct mmsghdr msg[XS_IN_BATCH];
	struct iovec iov[XS_IN_BATCH];
	struct sockaddr_in6 name[XS_IN_BATCH];
	_Alignas(8) uint8_t control[XS_IN_BATCH][XS_IN_CONTROL];
};

/* Receives what is there, each in its own XS_IN_ROOM of `room`. `told`: with addresses and control messages. How many, or
 * -1 and errno. */
int xs_in_receive(int fd, struct xs_in *in, uint8_t *room, bool told);

/* Asks the kernel for it: the address that was called, TTL, TOS, errors; and for datagrams taken together (UDP_GRO). Notes the
 * port's number. */
void xs_in_prepare(struct xs_port *p);

/* Whether something that was sent to a group comes from this guest: its own kernel has handed that to its members, as
 * IP_MULTICAST_LOOP says, and the host's does it once more. */
bool xs_in_echoed(const struct xs_flows *t, struct xs_flow *f, const struct xs_datagram *d);

/* Reads it into dst, ttl and tos; *gso is the length of each of several datagrams, untouched where there is one. */
void xs_in_control(struct msghdr *m, struct xs_datagram *d, uint16_t *gso);

/* Whether it is an answer to an echo request of this port's, at `at`; its data then begins at the ICMP header. The guest's
 * own identifier is the caller's to put back. */
bool xs_in_echo_reply(const struct xs_port *p, struct xs_datagram *d, uint8_t *at);

#endif
