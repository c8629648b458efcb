#include "udpframes.h"

#include <string.h>
#include <sys/socket.h>

_Static_assert(sizeof(struct xs_frame_head) == 40, "a frame's header has 40 bytes");

_Static_assert(sizeof(struct xs_frame_info) == XS_FRAME_INFO_SIZE, "packet information has 24 bytes");
_Static_assert(sizeof(struct xs_framing) == 64, "and follows the header");

/* The payload of a report: the errno, negated, then what ICMP said. */
struct report {
	int32_t error;
	uint8_t type, code, zero[2];
	uint32_t info;
	uint8_t from[16];
};
_Static_assert(sizeof(struct report) == 28, "a report has 28 bytes");

socklen_t xs_name_of(struct sockaddr_in6 *name, const uint8_t addr[16], uint16_t port, bool six)
{
	struct sockaddr_in four;

	memset(name, 0, sizeof *name);
	if (six) {
		name->sin6_family = AF_INET6;
		name->sin6_port = htons(port);
		memcpy(&name->sin6_addr, addr, 16);
		return sizeof *name;
	}
	memset(&four, 0, sizeof four);
	four.sin_family = AF_INET;
	four.sin_port = htons(port);
	memcpy(&four.sin_addr, addr + 12, 4);
	memcpy(name, &four, sizeof four);
	return sizeof four;
}

bool xs_name_read(const struct sockaddr_in6 *name, uint8_t addr[16], uint16_t *port)
{
	struct sockaddr_in four;

	if (name->sin6_family == AF_INET6) {
		memcpy(addr, &name->sin6_addr, 16);
		*port = ntohs(name->sin6_port);
		return true;
	}
	if (name->sin6_family != AF_INET)
		return false;
	memcpy(&four, name, sizeof four);
	memset(addr, 0, 10);
	addr[10] = addr[11] = 0xff;
	memcpy(addr + 12, &four.sin_addr, 4);
	*port = ntohs(four.sin_port);
	return true;
}

size_t xs_frame_of(struct xs_framing *h, const struct xs_datagram *d, bool six, const struct xs_frame_info *info)
{
	struct sockaddr_in6 name;

	memset(h, 0, sizeof *h);
	h->head.len = (uint32_t)(d->len + (info->has ? sizeof *info : 0));
	h->head.addr_len = (uint32_t)xs_name_of(&name, d->dst, d->dport, six);
	memcpy(h->head.addr, &name, h->head.addr_len);
	if (!info->has)
		return sizeof h->head;
	h->head.flags = XS_FRAME_INFO;
	h->info = *info;
	return sizeof *h;
}

bool xs_frame_read(uint8_t *at, size_t n, bool informed, struct xs_framed *f)
{
	struct xs_frame_head h;
	struct sockaddr_in6 name;
	struct report r;

	memset(f, 0, sizeof *f);
	if (n < sizeof h)
		return false;
	memcpy(&h, at, sizeof h);
	if (h.len > n - sizeof h || h.addr_len > sizeof h.addr)
		return false;
	memset(&name, 0, sizeof name);
	memcpy(&name, h.addr, h.addr_len);
	f->data = at + sizeof h;
	f->len = h.len;
	if (!(h.flags & XS_FRAME_ERROR)) {
		if (informed && h.flags & XS_FRAME_INFO) {
			if (h.len < sizeof f->info)
				return false;
			memcpy(&f->info, f->data, sizeof f->info);
			f->data += sizeof f->info;
			f->len -= sizeof f->info;
		}
		return xs_name_read(&name, f->remote, &f->rport);
	}
	xs_name_read(&name, f->remote, &f->rport);
	memset(&r, 0, sizeof r);
	if (h.len < sizeof r.error)
		return false;
	memcpy(&r, f->data, h.len < sizeof r ? h.len : sizeof r);
	if (r.error >= 0 || r.error < -4095)
		return false;
	f->error = -r.error;
	f->told = h.flags & XS_FRAME_ICMP && h.len >= sizeof r;
	f->icmp = (struct xs_icmp){r.type, r.code, r.info};
	memcpy(f->from, r.from, 16);
	f->data = f->told ? f->data + sizeof r : NULL;
	f->len = f->told ? f->len - sizeof r : 0;
	return true;
}

bool xs_frame_datagram(const struct xs_framed *f, struct xs_datagram *d)
{
	memset(d, 0, sizeof *d);
	memcpy(d->src, f->remote, 16);
	d->sport = f->rport;
	d->len = f->len;
	d->ttl = f->info.has & XS_INFO_HOPS ? f->info.hops : 64;
	d->tos = f->info.has & XS_INFO_TOS ? f->info.tos : 0;
	if (!(f->info.has & XS_INFO_ADDRESS) || xs_is4(f->info.addr) != xs_is4(d->src))
		return false;
	memcpy(d->dst, f->info.addr, 16);
	return true;
}
