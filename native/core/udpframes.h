/* Datagrams of ports that another backend carries: each is a packet of a SOCK_SEQPACKET socket, which is a frame of the
 * extension datagrams (docs/reference/extensions.md). */
#ifndef XS_UDPFRAMES_H
#define XS_UDPFRAMES_H

#include "ringframes.h"
#include "udppacket.h"

#include <netinet/in.h>

#define XS_FRAME_ERROR 2u
#define XS_FRAME_ICMP 4u /* and what the ICMP message said */

struct xs_frame_head {
	uint32_t len, flags, addr_len;
	uint8_t addr[28];
};

/* What IP says beside the payload: which of it is there, then as in struct xs_datagram. */
#define XS_INFO_ADDRESS 1u
#define XS_INFO_HOPS 2u
#define XS_INFO_TOS 4u

struct xs_frame_info {
	uint8_t has, hops, tos, zero[5];
	uint8_t addr[16];
};

struct xs_framing {
	struct xs_frame_head head;
	struct xs_frame_info info;
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
	struct xs_frame_info info; /* of a datagram that has it */
};

/* The header of a datagram; the payload follows it in the packet. `six`: the socket is of AF_INET6. `info`: what goes
 * with it, which may be empty. Returns the header's length. */
size_t xs_frame_of(struct xs_framing *h, const struct xs_datagram *d, bool six, const struct xs_frame_info *info);
/* Reads a packet; false: it is no frame. `informed`: packet-info was agreed on. */
bool xs_frame_read(uint8_t *at, size_t n, bool informed, struct xs_framed *f);

/* What came in a frame; the address that was called is its destination where that is said: true. */
bool xs_frame_datagram(const struct xs_framed *f, struct xs_datagram *d);

/* An address as a socket has it. IPv4 is mapped in one of AF_INET6. */
socklen_t xs_name_of(struct sockaddr_in6 *name, const uint8_t addr[16], uint16_t port, bool six);
/* The other way round, mapped; false for another family. */
bool xs_name_read(const struct sockaddr_in6 *name, uint8_t addr[16], uint16_t *port);

#endif
