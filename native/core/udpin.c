#include "udpin.h"

#include "udpframes.h"

#include <netinet/in.h>
#include <netinet/udp.h>
#include <string.h>
#include <unistd.h>

#ifndef UDP_GRO
#define UDP_GRO 104
#endif

#ifndef IPV6_MULTICAST_ALL
#define IPV6_MULTICAST_ALL 29
#endif
#define ECHO_REPLY4 0
#define ECHO_REPLY6 129

int xs_in_receive(int fd, struct xs_in *in, uint8_t *room, bool told)
{
	memset(in->msg, 0, sizeof in->msg);
	for (int i = 0; i < XS_IN_BATCH; i++) {
		struct msghdr *m = &in->msg[i].msg_hdr;

		in->iov[i] = (struct iovec){room + (size_t)i * XS_IN_ROOM, XS_IN_ROOM};
		m->msg_iov = in->iov + i;
		m->msg_iovlen = 1;
		if (!told)
			continue;
		m->msg_name = in->name + i;
		m->msg_namelen = sizeof in->name[i];
		m->msg_control = in->control[i];
		m->msg_controllen = XS_IN_CONTROL;
	}
	return recvmmsg(fd, in->msg, XS_IN_BATCH, MSG_DONTWAIT, NULL);
}

void xs_in_control(struct msghdr *m, struct xs_datagram *d, uint16_t *gso)
{
	int v;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c)) {
		memset(&v, 0, sizeof v);
		if (c->cmsg_level == IPPROTO_UDP && c->cmsg_type == UDP_GRO) {
			memcpy(&v, CMSG_DATA(c), sizeof v);
			*gso = (uint16_t)v;
		} else if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_PKTINFO) {
			struct in_pktinfo info;

			memcpy(&info, CMSG_DATA(c), sizeof info);
			memset(d->dst, 0, 10);
			d->dst[10] = d->dst[11] = 0xff;
			memcpy(d->dst + 12, &info.ipi_addr, 4);
		} else if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_PKTINFO) {
			struct in6_pktinfo info;

			memcpy(&info, CMSG_DATA(c), sizeof info);
			memcpy(d->dst, &info.ipi6_addr, 16);
		} else if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_TOS) {
			memcpy(&d->tos, CMSG_DATA(c), 1);
		} else if ((c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_TTL) ||
			   (c->cmsg_level == IPPROTO_IPV6 && (c->cmsg_type == IPV6_HOPLIMIT || c->cmsg_type == IPV6_TCLASS))) {
			memcpy(&v, CMSG_DATA(c), sizeof v);
			*(c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_TCLASS ? &d->tos : &d->ttl) = (uint8_t)v;
		}
	}
}

/* Whether the source is an address of this host: one that can be bound. */
static bool of_this_host(const struct xs_datagram *d)
{
	struct sockaddr_in6 name;
	bool six = !xs_is4(d->src), own;
	socklen_t l = xs_name_of(&name, d->src, 0, six);
	int fd = socket(six ? AF_INET6 : AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return false;
	if (six)
		name.sin6_scope_id = d->scope;
	own = !bind(fd, (struct sockaddr *)&name, l);
	close(fd);
	return own;
}

bool xs_in_echoed(const struct xs_flows *t, struct xs_flow *f, const struct xs_datagram *d)
{
	enum xs_flow_own own = f ? f->own : XS_OWN_UNKNOWN;

	if (!xs_port_shown(t, d->sport))
		return false;
	if (own == XS_OWN_UNKNOWN)
		own = of_this_host(d) ? XS_OWN : XS_OTHERS;
	if (f)
		f->own = own;
	return own == XS_OWN;
}

void xs_in_prepare(struct xs_port *p)
{
	struct sockaddr_in6 name;
	socklen_t l = sizeof name;
	uint8_t addr[16];
	int one = 1, zero = 0;

	memset(&name, 0, sizeof name);
	if (!getsockname(p->fd, (struct sockaddr *)&name, &l))
		xs_name_read(&name, addr, &p->hport);

	/* Datagrams to groups that this very socket has joined, none that others of the host's are in. */
	setsockopt(p->fd, IPPROTO_IP, IP_MULTICAST_ALL, &zero, sizeof zero);
	if (p->six)
		setsockopt(p->fd, IPPROTO_IPV6, IPV6_MULTICAST_ALL, &zero, sizeof zero);
	/* Each makes the guest see more; one that this kernel does not know is not missed by the others. */
	setsockopt(p->fd, IPPROTO_IP, IP_RECVERR, &one, sizeof one);
	setsockopt(p->fd, IPPROTO_IP, IP_RECVTOS, &one, sizeof one);
	setsockopt(p->fd, IPPROTO_IP, IP_RECVTTL, &one, sizeof one);
	if (p->six) {
		setsockopt(p->fd, IPPROTO_IPV6, IPV6_RECVERR, &one, sizeof one);
		setsockopt(p->fd, IPPROTO_IPV6, IPV6_RECVPKTINFO, &one, sizeof one);
		setsockopt(p->fd, IPPROTO_IPV6, IPV6_RECVTCLASS, &one, sizeof one);
		setsockopt(p->fd, IPPROTO_IPV6, IPV6_RECVHOPLIMIT, &one, sizeof one);
	} else {
		setsockopt(p->fd, IPPROTO_IP, IP_PKTINFO, &one, sizeof one);
	}
	if (p->proto == XS_UDP)
		setsockopt(p->fd, IPPROTO_UDP, UDP_GRO, &one, sizeof one);
}

bool xs_in_echo_reply(const struct xs_port *p, struct xs_datagram *d, uint8_t *at)
{
	bool four = xs_is4(d->src);

	if (p->raw && four) {
		size_t head = d->len ? (size_t)(at[0] & 15) * 4 : 0;

		if (d->len < head + 8)
			return false;
		at += head;
		d->len -= head;
	}
	if (d->len < 8 || at[0] != (four ? ECHO_REPLY4 : ECHO_REPLY6))
		return false;
	if (p->raw && (at[4] << 8 | at[5]) != p->hid)
		return false;
	d->data = at;
	return true;
}
