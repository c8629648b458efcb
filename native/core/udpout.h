/* Sending a guest's datagrams by sockets of the host: collected per socket, sent together, failures told. */
#ifndef XS_UDPOUT_H
#define XS_UDPOUT_H

#include "udpflows.h"
#include "udpframes.h"

#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/uio.h>

#define XS_OUT_BATCH 64
#define XS_OUT_CONTROL 160

struct xs_out {
	struct xs_port *port;
	const uint8_t (*plain)[16]; /* source addresses that no program chose */
	size_t nplain;
	/* The datagram did not leave: an errno, and for EMSGSIZE what fits (0: unknown). */
	void (*failed)(void *arg, const struct xs_datagram *d, int error, uint32_t mtu);
	void *arg;
	unsigned n;
	struct mmsghdr msg[XS_OUT_BATCH];
	struct iovec iov[XS_OUT_BATCH][2];
	struct xs_framing head[XS_OUT_BATCH];
	struct sockaddr_in6 name[XS_OUT_BATCH];
	struct xs_datagram d[XS_OUT_BATCH];
	uint16_t gso[XS_OUT_BATCH];
	_Alignas(8) uint8_t control[XS_OUT_BATCH][XS_OUT_CONTROL];
};

/* Whether no program chose this source address. */
bool xs_out_plain(const struct xs_out *o, const uint8_t addr[16]);

/* The payload must stay until xs_out_flush(), and the port too. */
void xs_out_add(struct xs_out *o, struct xs_port *p, const struct xs_datagram *d, uint16_t gso);
void xs_out_flush(struct xs_out *o);

/* The next entry of the socket's error queue: true, *about a piece of the datagram to `remote` (data and len point into
 * `room`), *e what ICMP said, *from who. Entries of this host's own say only how much fits (*mtu). */
struct xs_err {
	uint8_t remote[16], from[16];
	uint16_t rport;
	struct xs_icmp icmp;
	bool local;
	uint8_t room[2048];
	size_t len;
};
bool xs_out_error(const struct xs_port *p, struct xs_err *e);

#endif
