#include "udppacket.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define WHOLE 65535u
#define HOP_BY_HOP 0
#define ROUTING 43
#define FRAGMENT 44
#define ICMP6 58
#define OPTIONS 60

static uint16_t get16(const uint8_t *p) { return (uint16_t)(p[0] << 8 | p[1]); }
static uint32_t get32(const uint8_t *p) { return (uint32_t)get16(p) << 16 | get16(p + 2); }

static void put16(uint8_t *p, unsigned v)
{
	p[0] = (uint8_t)(v >> 8);
	p[1] = (uint8_t)v;
}

static void put32(uint8_t *p, uint32_t v)
{
	put16(p, v >> 16);
	put16(p + 2, v & 0xffff);
}

uint32_t xs_sum(uint32_t sum, const uint8_t *p, size_t len)
{
	uint64_t s = sum;

	for (; len > 1; p += 2, len -= 2)
		s += get16(p);
	if (len)
		s += (uint32_t)*p << 8;
	while (s >> 16)
		s = (s & 0xffff) + (s >> 16);
	return (uint32_t)s;
}

static uint32_t pseudo(const uint8_t src[16], const uint8_t dst[16], unsigned proto, size_t len)
{
	size_t from = xs_is4(src) ? 12 : 0;
	uint32_t s = xs_sum(0, src + from, 16 - from);

	s = xs_sum(s, dst + from, 16 - from);
	return (uint32_t)(s + proto + (len >> 16) + (len & 0xffff));
}

static uint32_t fold(uint32_t s)
{
	while (s >> 16)
		s = (s & 0xffff) + (s >> 16);
	return s;
}

static void map4(uint8_t out[16], const uint8_t *four)
{
	memset(out, 0, 10);
	out[10] = out[11] = 0xff;
	memcpy(out + 12, four, 4);
}

void xs_fragments_free(struct xs_fragments *f)
{
	for (size_t i = 0; i < XS_FRAG_SLOTS; i++)
		free(f->slot[i].buf);
	memset(f, 0, sizeof *f);
}

/* Adds a fragment; true once the last one is there. */
static bool gather(struct xs_fragments *f, struct xs_datagram *d, uint8_t proto, uint32_t id, size_t offset, bool more, const uint8_t *p,
		   size_t len)
{
	struct xs_partial *at = NULL, *oldest = f->slot;

	for (size_t i = 0; i < XS_FRAG_SLOTS; i++) {
		struct xs_partial *s = f->slot + i;

		if (s->have && s->id == id && s->proto == proto && !memcmp(s->src, d->src, 16) && !memcmp(s->dst, d->dst, 16))
			at = s;
		if (!s->have || (oldest->have && s->used < oldest->used))
			oldest = s;
	}
	if (!offset) {
		at = at ? at : oldest;
		if (!at->buf && !(at->buf = malloc(WHOLE)))
			return false;
		at->have = 0;
		at->id = id;
		at->proto = proto;
		memcpy(at->src, d->src, 16);
		memcpy(at->dst, d->dst, 16);
	}
	if (!at || !len || offset != at->have || len > WHOLE - offset) {
		if (at)
			at->have = 0;
		return false;
	}
	memcpy(at->buf + offset, p, len);
	at->have += len;
	at->used = ++f->clock;
	if (more)
		return false;
	d->data = at->buf;
	d->len = at->have;
	at->have = 0;
	return true;
}

/* d->data and d->len are the transport's header and payload. */
static bool transport(struct xs_datagram *d, uint8_t proto)
{
	const uint8_t *p = d->data;
	size_t len;

	if (d->len < 8)
		return false;
	if (proto == XS_UDP) {
		len = get16(p + 4);
		if (len < 8 || len > d->len) {
			/* Super-packets of the guest's own segmentation may leave the length to the card. */
			if (len)
				return false;
			len = d->len;
		}
		d->proto = XS_UDP;
		d->sport = get16(p);
		d->dport = get16(p + 2);
		d->data += 8;
		d->len = len - 8;
		return true;
	}
	if ((proto != XS_ICMP || p[0] != 8) && (proto != ICMP6 || p[0] != 128))
		return false;
	d->proto = XS_ICMP;
	d->sport = get16(p + 4);
	d->dport = 0;
	return p[1] == 0;
}

static bool read4(struct xs_fragments *f, const uint8_t *ip, size_t len, struct xs_datagram *d)
{
	size_t head = (size_t)(ip[0] & 15) * 4, total; /* the first byte is there */
	unsigned frag;

	if (len < 20 || head < 20)
		return false;
	total = get16(ip + 2);
	total = total ? total : len; /* larger than 65,535 with headers: the length is the packet's */
	if (total > len || head > total)
		return false;
	frag = get16(ip + 6);
	map4(d->src, ip + 12);
	map4(d->dst, ip + 16);
	d->tos = ip[1];
	d->ttl = ip[8];
	d->whole = (frag & 0x4000) != 0;
	d->data = ip + head;
	d->len = total - head;
	if ((frag & 0x3fff) && !gather(f, d, ip[9], get16(ip + 4), (size_t)(frag & 0x1fff) * 8, frag & 0x2000, d->data, d->len))
		return false;
	return ip[9] != ICMP6 && transport(d, ip[9]);
}

static bool read6(struct xs_fragments *f, const uint8_t *ip, size_t len, struct xs_datagram *d)
{
	uint8_t next;
	size_t left, size;

	if (len < 40)
		return false;
	next = ip[6];
	left = get16(ip + 4);
	left = left ? left : len - 40;
	if (left > len - 40)
		return false;
	memcpy(d->src, ip + 8, 16);
	memcpy(d->dst, ip + 24, 16);
	if (xs_is4(d->src) || xs_is4(d->dst))
		return false; /* mapped addresses are never on a wire */
	d->tos = (uint8_t)(ip[0] << 4 | ip[1] >> 4);
	d->ttl = ip[7];
	d->whole = true;
	d->data = ip + 40;
	d->len = left;
	for (int hops = 0; hops < 8 && (next == HOP_BY_HOP || next == ROUTING || next == OPTIONS || next == FRAGMENT); hops++) {
		const uint8_t *p = d->data;

		if (d->len < 8)
			return false;
		size = next == FRAGMENT ? 8 : (size_t)(p[1] + 1) * 8;
		if (size > d->len)
			return false;
		d->data += size;
		d->len -= size;
		if (next != FRAGMENT) {
			next = p[0];
			continue;
		}
		d->whole = false;
		if (!gather(f, d, p[0], get32(p + 4), get16(p + 2) & 0xfff8, p[3] & 1, d->data, d->len))
			return false;
		next = p[0];
		break;
	}
	return next != XS_ICMP && transport(d, next);
}

bool xs_packet_read(struct xs_fragments *f, const uint8_t *ip, size_t len, struct xs_datagram *d)
{
	memset(d, 0, sizeof *d);
	if (!len)
		return false;
	if (ip[0] >> 4 == 4)
		return read4(f, ip, len, d);
	return ip[0] >> 4 == 6 && read6(f, ip, len, d);
}

static size_t ip_head(uint8_t *out, const struct xs_datagram *d, uint8_t proto, size_t payload)
{
	if (xs_is4(d->src)) {
		memset(out, 0, 20);
		out[0] = 0x45;
		out[1] = d->tos;
		put16(out + 2, (unsigned)(20 + payload));
		put16(out + 6, 0x4000);
		out[8] = d->ttl;
		out[9] = proto;
		memcpy(out + 12, d->src + 12, 4);
		memcpy(out + 16, d->dst + 12, 4);
		put16(out + 10, ~xs_sum(0, out, 20) & 0xffff);
		return 20;
	}
	put32(out, 6u << 28 | (uint32_t)d->tos << 20);
	put16(out + 4, (unsigned)payload);
	out[6] = proto;
	out[7] = d->ttl;
	memcpy(out + 8, d->src, 16);
	memcpy(out + 24, d->dst, 16);
	return 40;
}

size_t xs_udp_head(uint8_t out[XS_HEAD_MAX], const struct xs_datagram *d, size_t *l4)
{
	size_t at = ip_head(out, d, XS_UDP, d->len + 8);

	put16(out + at, d->sport);
	put16(out + at + 2, d->dport);
	put16(out + at + 4, (unsigned)(d->len + 8));
	put16(out + at + 6, fold(pseudo(d->src, d->dst, XS_UDP, d->len + 8)));
	*l4 = at;
	return at + 8;
}

size_t xs_icmp_head(uint8_t out[XS_HEAD_MAX], const struct xs_datagram *d)
{
	return ip_head(out, d, xs_is4(d->src) ? XS_ICMP : ICMP6, d->len);
}

static void icmp_checksum(uint8_t *msg, size_t len, const uint8_t src[16], const uint8_t dst[16])
{
	uint32_t s;

	put16(msg + 2, 0);
	s = xs_is4(src) ? 0 : pseudo(src, dst, ICMP6, len);
	put16(msg + 2, ~xs_sum(s, msg, len) & 0xffff);
}

void xs_echo_rename(uint8_t *msg, size_t len, uint16_t id, const uint8_t src[16], const uint8_t dst[16])
{
	put16(msg + 4, id);
	icmp_checksum(msg, len, src, dst);
}

int xs_icmp_of(int error, bool six, struct xs_icmp *e)
{
	e->type = six ? 1 : 3;
	e->info = 0;
	switch (error) {
	case ENETUNREACH:
	case ENETDOWN:
		e->code = six ? 0 : 6; /* network unknown: of 0 the kernel does not tell a program (icmp_err_convert) */
		return 0;
	case EHOSTUNREACH:
	case EHOSTDOWN:
		e->code = six ? 3 : 1;
		return 0;
	case ECONNREFUSED:
		e->code = six ? 4 : 3;
		return 0;
	case ENOPROTOOPT:
		e->type = six ? 4 : 3;
		e->code = six ? 1 : 2;
		return 0;
	case EACCES: /* administratively prohibited; IPv4 knows it as EHOSTUNREACH */
	case EPERM:
		e->code = six ? 1 : 13;
		return 0;
	}
	return -1;
}

size_t xs_icmp_error(uint8_t out[XS_ICMP_ERROR_MAX], const uint8_t from[16], const struct xs_datagram *about, const struct xs_icmp *e)
{
	struct xs_datagram outer;
	bool six = !xs_is4(about->src);
	size_t head = six ? 40 : 20, at = head + 8, quote = about->len < XS_ICMP_QUOTE ? about->len : XS_ICMP_QUOTE;
	uint8_t *msg = out + head;

	memset(&outer, 0, sizeof outer);
	memcpy(outer.src, xs_is4(from) == six ? about->dst : from, 16);
	memcpy(outer.dst, about->src, 16);
	outer.ttl = 64;
	memset(msg, 0, 8);
	msg[0] = e->type;
	msg[1] = e->code;
	if (six)
		put32(msg + 4, e->info);
	else
		put16(msg + 6, e->info > 0xffff ? 0xffff : e->info);
	at += ip_head(out + at, about, about->proto == XS_UDP ? XS_UDP : six ? ICMP6 : XS_ICMP, about->len + (about->proto == XS_UDP ? 8 : 0));
	memset(out + at, 0, 8);
	if (about->proto == XS_UDP) {
		put16(out + at, about->sport);
		put16(out + at + 2, about->dport);
		put16(out + at + 4, (unsigned)(about->len + 8));
	} else { /* the echo request: type, code, checksum, identifier, sequence */
		out[at] = six ? 128 : 8;
		put16(out + at + 4, about->sport);
		if (about->data && about->len >= 8)
			memcpy(out + at + 6, about->data + 6, 2);
	}
	at += 8;
	if (about->data && about->proto == XS_UDP) {
		memcpy(out + at, about->data, quote);
		at += quote;
	} else if (about->data && quote > 8) {
		memcpy(out + at, about->data + 8, quote - 8);
		at += quote - 8;
	}
	outer.len = at - head;
	icmp_checksum(msg, outer.len, outer.src, outer.dst);
	xs_icmp_head(out, &outer);
	return at;
}
