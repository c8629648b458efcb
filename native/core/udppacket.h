/* IP packets of datagrams, as the card of a guest carries them: read, put together from fragments, written. No IO.
 *
 * Addresses are 16 bytes; IPv4 ones are mapped (::ffff:a.b.c.d, RFC 4291). Ports are in host byte order. An ICMP echo
 * has its identifier for a port. Lengths come from the guest's kernel, and are checked all the same.
 */
#ifndef XS_UDPPACKET_H
#define XS_UDPPACKET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define XS_UDP 17
#define XS_ICMP 1 /* stands for ICMPv6 too */
#define XS_HEAD_MAX 64 /* room for an IPv6, a fragment and a UDP header */
#define XS_ICMP_QUOTE 512 /* bytes of a datagram that an error about it quotes (RFC 1812, 4.3.2.3) */
#define XS_ICMP_ERROR_MAX (XS_ICMP_QUOTE + 128)
#define XS_FRAG_SLOTS 8

struct xs_datagram {
	uint8_t proto; /* XS_UDP or XS_ICMP */
	uint8_t src[16], dst[16];
	uint16_t sport, dport;
	uint8_t ttl, tos;
	uint32_t scope; /* of what the host received: the interface, for a link-local source */
	bool whole; /* it came in one packet that routers must not fragment */
	const uint8_t *data;
	size_t len; /* UDP: payload. ICMP: the whole message */
};

/* Datagrams of which the first fragments are there. The guest's kernel sends them in order, on a card that keeps it. */
struct xs_fragments {
	struct xs_partial {
		uint8_t src[16], dst[16], proto;
		uint32_t id;
		size_t have;
		uint64_t used;
		uint8_t *buf;
	} slot[XS_FRAG_SLOTS];
	uint64_t clock;
};

static inline bool xs_is4(const uint8_t a[16])
{
	static const uint8_t prefix[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

	return !__builtin_memcmp(a, prefix, 12);
}

/* To a group, or to everybody. */
static inline bool xs_is_many(const uint8_t a[16]) { return xs_is4(a) ? a[12] >= 224 : a[0] == 0xff; }

static inline bool xs_is_group(const uint8_t a[16]) { return xs_is4(a) ? a[12] >> 4 == 14 : a[0] == 0xff; }

void xs_fragments_free(struct xs_fragments *f);

/* Reads an IP packet. True: *d is a datagram; its data points into the packet, or into *f until the next call. False: a
 * fragment that was kept, or nothing that is carried (other protocols, ICMP that is no echo request, malformed). */
bool xs_packet_read(struct xs_fragments *f, const uint8_t *ip, size_t len, struct xs_datagram *d);

/* Writes the headers of a UDP datagram with `len` bytes of payload; the checksum is that of the pseudo-header, for the
 * kernel to complete (virtio's VIRTIO_NET_HDR_F_NEEDS_CSUM). Returns their length; *l4 is where the UDP header starts. */
size_t xs_udp_head(uint8_t out[XS_HEAD_MAX], const struct xs_datagram *d, size_t *l4);

/* Writes the IP header before an ICMP message of `len` bytes. Returns its length. */
size_t xs_icmp_head(uint8_t out[XS_HEAD_MAX], const struct xs_datagram *d);

/* Sets identifier and checksum of an echo message of `len` >= 8 bytes, from src to dst. */
void xs_echo_rename(uint8_t *msg, size_t len, uint16_t id, const uint8_t src[16], const uint8_t dst[16]);

/* What an ICMP error says (RFC 792, RFC 4443); info: the MTU of type 3 code 4 and of ICMPv6 type 2. */
struct xs_icmp {
	uint8_t type, code;
	uint32_t info;
};

/* The error that gives a socket this errno; -1: none does. */
int xs_icmp_of(int error, bool six, struct xs_icmp *e);

/* Writes the whole packet of an ICMP error about a datagram of the guest's. Returns its length. */
size_t xs_icmp_error(uint8_t out[XS_ICMP_ERROR_MAX], const uint8_t from[16], const struct xs_datagram *about, const struct xs_icmp *e);

/* The Internet checksum (RFC 1071) over `len` bytes on top of `sum`, not complemented. */
uint32_t xs_sum(uint32_t sum, const uint8_t *p, size_t len);

#endif
