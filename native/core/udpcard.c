#include "udpcard.h"

#include <errno.h>
#include <linux/if_ether.h>
#include <linux/virtio_net.h>
#include <string.h>

#ifndef VIRTIO_NET_HDR_GSO_UDP_L4
#define VIRTIO_NET_HDR_GSO_UDP_L4 5
#endif
#define LARGEST 65535u /* of the card (its MTU) */

static void gso_again(struct xs_card *c, unsigned i);

void xs_card_flush(struct xs_card *c)
{
	unsigned sent = 0;

	while (sent < c->n) {
		int r = sendmmsg(c->fd, c->msg + sent, c->n - sent, MSG_DONTWAIT);

		if (r > 0) {
			sent += (unsigned)r;
			continue;
		}
		/* A full queue loses packets, as a wire does; what a kernel refuses by its form is sent in another. */
		if (r < 0 && errno == EINTR)
			continue;
		if (r < 0 && errno == EINVAL)
			gso_again(c, sent);
		sent++;
	}
	c->n = 0;
}

/* The next free place, its prefix written for this family of packet. */
static uint8_t *place(struct xs_card *c, bool six, struct virtio_net_hdr **v)
{
	uint8_t *at;

	if (c->n == XS_CARD_BATCH)
		xs_card_flush(c);
	at = c->head[c->n];
	memset(at, 0, XS_CARD_PREFIX);
	*v = (struct virtio_net_hdr *)(void *)at;
	memcpy(at + 10, c->mac, 6);
	memcpy(at + 16, c->mac, 6);
	at[22] = six ? 0x86 : 0x08;
	at[23] = six ? 0xdd : 0x00;
	return at + XS_CARD_PREFIX;
}

static void done(struct xs_card *c, size_t head, const uint8_t *data, size_t len)
{
	struct iovec *v = c->iov[c->n];

	v[0].iov_base = c->head[c->n];
	v[0].iov_len = XS_CARD_PREFIX + head;
	v[1].iov_base = (void *)(uintptr_t)data;
	v[1].iov_len = len;
	memset(c->msg + c->n, 0, sizeof *c->msg);
	c->msg[c->n].msg_hdr.msg_iov = v;
	c->msg[c->n].msg_hdr.msg_iovlen = len ? 2 : 1;
	c->n++;
}

static void multicast(struct xs_card *c, const struct xs_datagram *d)
{
	uint8_t *mac = c->head[c->n] + 10;

	if (xs_is4(d->dst) && d->dst[12] >> 4 == 14) {
		memcpy(mac, "\x01\x00\x5e", 3);
		mac[3] = d->dst[13] & 0x7f;
		memcpy(mac + 4, d->dst + 14, 2);
	} else if (xs_is4(d->dst) && !memcmp(d->dst + 12, "\xff\xff\xff\xff", 4)) {
		memset(mac, 0xff, 6);
	} else if (!xs_is4(d->dst) && d->dst[0] == 0xff) {
		memcpy(mac, "\x33\x33", 2);
		memcpy(mac + 2, d->dst + 12, 4);
	}
}

/* IPv6 and its largest datagrams: two fragments. The checksum is over both, so it is made here. */
static void in_two(struct xs_card *c, const struct xs_datagram *d, const uint8_t *ip, size_t l4)
{
	static const size_t first = 32768;
	struct virtio_net_hdr *v;
	uint8_t udp[8];
	uint32_t id = 0, sum;

	memcpy(udp, ip + l4, 8);
	sum = (uint32_t)(udp[6] << 8 | udp[7]);
	memset(udp + 6, 0, 2);
	sum = ~xs_sum(xs_sum(sum, udp, 8), d->data, d->len) & 0xffff;
	sum = sum ? sum : 0xffff;
	udp[6] = (uint8_t)(sum >> 8);
	udp[7] = (uint8_t)sum;
	memcpy(&id, udp + 4, 4);
	for (int part = 0; part < 2; part++) {
		uint8_t *at = place(c, true, &v);
		size_t from = part ? first - 8 : 0, len = part ? d->len - from : first - 8, payload = 8 + len + (part ? 0 : 8);

		memcpy(at, ip, 40);
		at[4] = (uint8_t)(payload >> 8);
		at[5] = (uint8_t)payload;
		at[6] = 44;
		memset(at + 40, 0, 8);
		at[40] = XS_UDP;
		at[42] = part ? (uint8_t)(first >> 8) : 0;
		at[43] = part ? 0 : 1;
		memcpy(at + 44, &id, 4);
		if (!part)
			memcpy(at + 48, udp, 8);
		done(c, part ? 48 : 56, d->data + from, len);
	}
	xs_card_flush(c);
}

void xs_card_datagram(struct xs_card *c, const struct xs_datagram *d, uint16_t gso)
{
	bool six = !xs_is4(d->src);
	struct virtio_net_hdr *v;
	uint8_t *at;
	size_t head, l4 = 0;

	if (gso && (c->nogso || d->len > LARGEST - XS_HEAD_MAX)) {
		struct xs_datagram one = *d;

		for (size_t from = 0; from < d->len; from += gso) {
			one.data = d->data + from;
			one.len = d->len - from < gso ? d->len - from : gso;
			xs_card_datagram(c, &one, 0);
		}
		return;
	}
	at = place(c, six, &v);
	if (d->proto != XS_UDP) {
		head = xs_icmp_head(at, d);
	} else {
		head = xs_udp_head(at, d, &l4);
		if (six && d->len + head > LARGEST) {
			uint8_t ip[XS_HEAD_MAX];

			memcpy(ip, at, head);
			in_two(c, d, ip, l4);
			return;
		}
		v->flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
		v->csum_start = (uint16_t)(14 + l4);
		v->csum_offset = 6;
		if (gso && gso < d->len) {
			v->gso_type = VIRTIO_NET_HDR_GSO_UDP_L4;
			v->gso_size = gso;
			v->hdr_len = (uint16_t)(14 + head);
		}
	}
	if (head + d->len > LARGEST)
		return;
	multicast(c, d);
	done(c, head, d->data, d->len);
}

/* A super-packet that the kernel did not take: as single ones, from now on. */
static void gso_again(struct xs_card *c, unsigned i)
{
	struct virtio_net_hdr *v = (struct virtio_net_hdr *)(void *)c->head[i];
	uint8_t *ip = c->head[i] + XS_CARD_PREFIX;
	size_t l4 = (size_t)v->csum_start - 14, len = c->iov[i][1].iov_len, gso = v->gso_size;

	if (!v->gso_type)
		return;
	c->nogso = true;
	v->gso_type = 0;
	v->gso_size = v->hdr_len = 0;
	for (size_t from = 0; from < len; from += gso) {
		size_t part = len - from < gso ? len - from : gso;
		uint8_t *data = (uint8_t *)c->iov[i][1].iov_base + from;
		struct xs_datagram d;
		struct iovec io[2] = {{c->head[i], c->iov[i][0].iov_len}, {data, part}};
		struct msghdr m = {.msg_iov = io, .msg_iovlen = 2};
		size_t at;

		memset(&d, 0, sizeof d);
		d.proto = XS_UDP;
		d.ttl = l4 == 20 ? ip[8] : ip[7];
		d.tos = l4 == 20 ? ip[1] : (uint8_t)(ip[0] << 4 | ip[1] >> 4);
		if (l4 == 20) {
			d.src[10] = d.src[11] = d.dst[10] = d.dst[11] = 0xff;
			memcpy(d.src + 12, ip + 12, 4);
			memcpy(d.dst + 12, ip + 16, 4);
		} else {
			memcpy(d.src, ip + 8, 16);
			memcpy(d.dst, ip + 24, 16);
		}
		d.sport = (uint16_t)(ip[l4] << 8 | ip[l4 + 1]);
		d.dport = (uint16_t)(ip[l4 + 2] << 8 | ip[l4 + 3]);
		d.len = part;
		xs_udp_head(ip, &d, &at);
		if (sendmsg(c->fd, &m, MSG_DONTWAIT) < 0)
			return; /* a full queue, as above */
	}
}

void xs_card_packet(struct xs_card *c, const uint8_t *ip, size_t len)
{
	struct virtio_net_hdr *v;
	uint8_t *at = place(c, ip[0] >> 4 == 6, &v);

	memcpy(at, ip, len);
	done(c, len, NULL, 0);
}
