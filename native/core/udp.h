/* The relay of a guest's datagrams: UDP and ICMP echo, between the card of its network namespace and sockets of the host.
 *
 * One thread. The card is a packet socket on the far end of the guest's veth pair: what the guest sends to the outside
 * comes out of it, what is written to it the guest receives. Who may talk to whom is asked of the owner once per flow;
 * datagrams wait meanwhile. ICMP errors go both ways: those that the host's sockets receive are written for the guest,
 * so is the refusal of a flow. See docs/explanation/udp.md. */
#ifndef XS_UDP_H
#define XS_UDP_H

#include "udpflows.h"

enum xs_udp_kind { XS_UDP_ASK = 0, XS_UDP_INBOUND = 1 };

/* ASK: may the guest send from there to there? Answered by xs_udp_decide(). INBOUND: a stranger's first datagram. */
struct xs_udp_event {
	enum xs_udp_kind kind;
	uint8_t proto, src[16], dst[16]; /* src is the guest's end */
	uint16_t sport, dport;
	uint64_t start_ns;
};

/* What the host's socket of a port is. */
enum xs_udp_flags {
	XS_PORT_SIX = 1,	/* AF_INET6 */
	XS_PORT_DUAL = 2,	/* and takes IPv4 too */
	XS_PORT_OPEN = 4,	/* strangers may send to it */
	XS_PORT_AUTOMATIC = 8,	/* made for a flow, not for a bind */
	XS_PORT_RAW = 16,	/* a raw ICMP socket instead of a ping socket */
	XS_PORT_FRAMED = 32,	/* none, but another backend's, in frames */
	XS_PORT_INFORMED = 64,	/* which say what IP says beside the payload */
};
/* And who carries it (udpflows.h). */
#define XS_PORT_VIA(n) ((unsigned)(n) << 8)

struct xs_udp;

/* Takes the packet socket, also when it fails. `mac` is the guest's card's. `plain`: up to 4 addresses that the guest's
 * kernel puts into datagrams when no program chose one. NULL and errno. */
struct xs_udp *xs_udp_new(int card, const uint8_t mac[6], const uint8_t (*plain)[16], size_t nplain, bool record);
int xs_udp_fd(const struct xs_udp *u);
size_t xs_udp_events(struct xs_udp *u, struct xs_udp_event *out, size_t max);

/* Takes the socket fd, also when it fails: a bound one, or a SOCK_SEQPACKET one of frames. 0, EEXIST, ENFILE, or what
 * epoll says. `hid`: of a raw ICMP socket. */
int xs_udp_port(struct xs_udp *u, uint8_t proto, const uint8_t addr[16], uint16_t gport, int fd, unsigned flags, uint16_t hid);
/* 0 or ENOENT. With `automatic`, only those that are: of any address and carrier. Else one that this carrier has. */
int xs_udp_unport(struct xs_udp *u, uint8_t proto, const uint8_t addr[16], uint16_t gport, bool automatic, uint8_t via);
/* Whether what the guest sends from there by this carrier has a port. */
bool xs_udp_has(struct xs_udp *u, uint8_t proto, const uint8_t addr[16], uint16_t gport, uint8_t via);
/* Answers an ASK: 0, or the errno by which the guest is refused; and who carries the flow. */
void xs_udp_decide(struct xs_udp *u, uint8_t proto, uint16_t gport, const uint8_t remote[16], uint16_t rport, int error, bool pinned, uint8_t via);
/* The flow, if there is one, is that of a connected socket: what arrives must be addressed to src. */
void xs_udp_pin(struct xs_udp *u, uint8_t proto, uint16_t gport, const uint8_t remote[16], uint16_t rport, const uint8_t src[16]);
/* The policy has changed: every flow is asked about again (XS_UDP_ASK) at the guest's next datagram. */
void xs_udp_doubt(struct xs_udp *u);
/* How many flows and ports there are. */
void xs_udp_count(struct xs_udp *u, size_t *flows, size_t *ports);
void xs_udp_free(struct xs_udp *u);

#endif
