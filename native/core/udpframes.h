/* Datagrams of ports that another backend carries: each is a packet of a SOCK_SEQPACKET socket, which is a frame of the
 * extension datagrams (docs/reference/extensions.md). */
#ifndef XS_UDPFRAMES_H
#define XS_UDPFRAMES_H

#include "udppacket.h"

#include <netinet/in.h>

#define XS_FRAME_ERROR 2u
#define XS_FRAME_ICMP 4u /* and what the ICMP message said */

struct xs_frame_head {
	uint32_t len, flags, addr_len;
	uint8_t addr[28];
};

/* A packet that came: a datagram, or the report that one did not arrive. */
struct xs_framed {
	uint8_t remote[16]; /* from whom, or to whom; of family "any" where the frame does not say */
	uint16_t rport;
	int error; /* 0: a datagram */
	bool told; /* by ICMP: as in icmp, from that host */
	struct xs_icmp icmp;
	uint8_t from[16];
	uint8_t *data; /* the payload, or the beginning of that of the lost one */
	size_t len;
};

/* The header of a datagram; the payload follows it in the packet. `six`: the socket is of AF_INET6. */
void xs_frame_of(struct xs_frame_head *h, const struct xs_datagram *d, bool six);
/* Reads a packet; false: it is no frame. */
bool xs_frame_read(uint8_t *at, size_t n, struct xs_framed *f);

/* An address as a socket has it. IPv4 is mapped in one of AF_INET6. */
socklen_t xs_name_of(struct sockaddr_in6 *name, const uint8_t addr[16], uint16_t port, bool six);
/* The other way round, mapped; false for another family. */
bool xs_name_read(const struct sockaddr_in6 *name, uint8_t addr[16], uint16_t *port);

#endif
