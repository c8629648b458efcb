/* Writing to a guest's card: packets collected, sent together. */
#ifndef XS_UDPCARD_H
#define XS_UDPCARD_H

#include "udppacket.h"

#include <sys/socket.h>
#include <sys/uio.h>

#define XS_CARD_BATCH 64
#define XS_CARD_PREFIX 24 /* virtio_net_hdr and the Ethernet header */

struct xs_card {
	int fd;
	uint8_t mac[6];
	bool nogso; /* the kernel takes no super-packets of UDP (before 6.2) */
	unsigned n;
	struct mmsghdr msg[XS_CARD_BATCH];
	struct iovec iov[XS_CARD_BATCH][2];
	uint8_t head[XS_CARD_BATCH][XS_CARD_PREFIX + XS_ICMP_ERROR_MAX];
};

/* The payload must stay until xs_card_flush(). gso: length of each datagram in it but the last; 0: it is one. */
void xs_card_datagram(struct xs_card *c, const struct xs_datagram *d, uint16_t gso);
/* A whole packet of at most XS_ICMP_ERROR_MAX bytes, which is copied. */
void xs_card_packet(struct xs_card *c, const uint8_t *ip, size_t len);
void xs_card_flush(struct xs_card *c);

#endif
