#include "udpout.h"

#include <errno.h>
#include <linux/errqueue.h>
#include <netinet/udp.h>
#include <string.h>

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif
#define USUAL_TTL 64
#define MOST_SEGMENTS 64 /* what kernels before 6.9 take at once */

static void add(struct msghdr *m, int level, int type, const void *value, size_t len)
{
	/* Into zeroed room, as CMSG_NXTHDR wants it. */
	struct cmsghdr *c = (struct cmsghdr *)(void *)((uint8_t *)m->msg_control + m->msg_controllen);

	c->cmsg_level = level;
	c->cmsg_type = type;
	c->cmsg_len = CMSG_LEN(len);
	memcpy(CMSG_DATA(c), value, len);
	m->msg_controllen += CMSG_SPACE(len);
}

bool xs_out_plain(const struct xs_out *o, const uint8_t addr[16])
{
	for (size_t i = 0; i < o->nplain; i++)
		if (!memcmp(o->plain[i], addr, 16))
			return true;
	return false;
}

/* Whether the host's socket would send it from elsewhere. */
static bool chosen(const struct xs_out *o, const struct xs_port *p, const struct xs_datagram *d)
{
	return p->wild && !xs_out_plain(o, d->src);
}

/* What control() tells the host's socket, for another backend's. */
static void inform(const struct xs_out *o, const struct xs_port *p, const struct xs_datagram *d, struct xs_frame_info *info)
{
	memset(info, 0, sizeof *info);
	if (!p->informed)
		return;
	if (d->ttl != USUAL_TTL) {
		info->has |= XS_INFO_HOPS;
		info->hops = d->ttl;
	}
	if (d->tos) {
		info->has |= XS_INFO_TOS;
		info->tos = d->tos;
	}
	if (chosen(o, p, d)) {
		info->has |= XS_INFO_ADDRESS;
		memcpy(info->addr, d->src, 16);
	}
}

static void control(const struct xs_out *o, unsigned i, bool segments)
{
	const struct xs_datagram *d = o->d + i;
	struct msghdr *m = (struct msghdr *)(uintptr_t)&o->msg[i].msg_hdr;
	bool four = xs_is4(d->dst);
	int v;

	m->msg_controllen = 0;
	memset(m->msg_control, 0, XS_OUT_CONTROL);
	if (d->ttl != USUAL_TTL || xs_is_group(d->dst)) { /* to groups a socket's own is 1 */
		v = d->ttl;
		add(m, four ? IPPROTO_IP : IPPROTO_IPV6, four ? IP_TTL : IPV6_HOPLIMIT, &v, sizeof v);
	}
	if (d->tos) {
		v = d->tos;
		add(m, four ? IPPROTO_IP : IPPROTO_IPV6, four ? IP_TOS : IPV6_TCLASS, &v, sizeof v);
	}
	if (chosen(o, o->port, d)) {
		if (o->port->six) {
			struct in6_pktinfo info;

			memset(&info, 0, sizeof info);
			memcpy(&info.ipi6_addr, d->src, 16);
			add(m, IPPROTO_IPV6, IPV6_PKTINFO, &info, sizeof info);
		} else {
			struct in_pktinfo info;

			memset(&info, 0, sizeof info);
			memcpy(&info.ipi_spec_dst, d->src + 12, 4);
			add(m, IPPROTO_IP, IP_PKTINFO, &info, sizeof info);
		}
	}
	if (segments)
		add(m, IPPROTO_UDP, UDP_SEGMENT, &o->gso[i], sizeof o->gso[i]);
	if (!m->msg_controllen)
		m->msg_control = NULL;
}

/* What the guest's kernel would not have fragmented, the host's must not: path MTU discovery is the guest's. */
static void discover(struct xs_out *o, struct xs_port *p, bool whole)
{
	int mode = whole ? IP_PMTUDISC_DO : IP_PMTUDISC_WANT;

	if (p->discover == mode)
		return;
	xs_out_flush(o);
	p->discover = mode;
	/* A ping socket may lack one of the two; then fragments are made where they are needed. */
	setsockopt(p->fd, IPPROTO_IP, IP_MTU_DISCOVER, &mode, sizeof mode);
	if (p->six)
		setsockopt(p->fd, IPPROTO_IPV6, IPV6_MTU_DISCOVER, &mode, sizeof mode);
}

void xs_out_add(struct xs_out *o, struct xs_port *p, const struct xs_datagram *d, uint16_t gso)
{
	struct mmsghdr *m;

	size_t most = (size_t)gso * (p->framed ? 1 : MOST_SEGMENTS); /* a frame is one datagram */

	if (gso && d->len > most) {
		struct xs_datagram part = *d;

		for (size_t from = 0; from < d->len; from += part.len) {
			part.data = d->data + from;
			part.len = d->len - from < most ? d->len - from : most;
			xs_out_add(o, p, &part, gso);
		}
		return;
	}
	if (o->n && (o->port != p || o->n == XS_OUT_BATCH))
		xs_out_flush(o);
	if (!p->framed)
		discover(o, p, d->whole);
	o->port = p;
	o->d[o->n] = *d;
	o->gso[o->n] = gso && gso < d->len ? gso : 0;
	m = o->msg + o->n;
	memset(m, 0, sizeof *m);
	m->msg_hdr.msg_iov = o->iov[o->n];
	o->iov[o->n][p->framed] = (struct iovec){(void *)(uintptr_t)d->data, d->len};
	m->msg_hdr.msg_iovlen = p->framed ? 2 : 1;
	if (p->framed) {
		struct xs_frame_info info;

		inform(o, p, d, &info);
		o->iov[o->n][0] = (struct iovec){&o->head[o->n], xs_frame_of(&o->head[o->n], d, p->six, &info)};
		o->n++;
		return;
	}
	m->msg_hdr.msg_name = o->name + o->n;
	m->msg_hdr.msg_namelen = xs_name_of(o->name + o->n, d->dst, d->dport, p->six);
	m->msg_hdr.msg_control = o->control[o->n];
	control(o, o->n, o->gso[o->n] && !p->nogso);
	o->n++;
	if (o->gso[o->n - 1] && p->nogso)
		xs_out_flush(o);
}

static uint32_t fits(const struct xs_port *p)
{
	struct xs_err e;
	uint32_t mtu = 0;

	while (xs_out_error(p, &e))
		if (e.icmp.info && (e.local || (e.icmp.type == 3 && e.icmp.code == 4) || e.icmp.type == 2))
			mtu = e.icmp.info;
	return mtu;
}

/* One message again, after a failure: the error may have been that of an earlier one, which sockets tell late. */
static int again(struct xs_out *o, unsigned i)
{
	if (sendmsg(o->port->fd, &o->msg[i].msg_hdr, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0)
		return 0;
	return errno;
}

static int in_pieces(struct xs_out *o, unsigned i)
{
	struct iovec *v = o->iov[i];
	uint8_t *data = v->iov_base;
	size_t len = v->iov_len;
	int error = 0;

	o->msg[i].msg_hdr.msg_control = o->control[i];
	control(o, i, false);
	for (size_t from = 0; from < len && !error; from += o->gso[i]) {
		v->iov_base = data + from;
		v->iov_len = len - from < o->gso[i] ? len - from : o->gso[i];
		error = again(o, i);
		error = error ? again(o, i) : 0;
	}
	return error;
}

static bool lost(int error) { return error == EAGAIN || error == ENOBUFS || error == ENOMEM; }

static void send_failed(struct xs_out *o, unsigned i, int error)
{
	if (lost(error) || o->port->framed)
		return; /* a full queue loses datagrams, as a wire does; so does a backend that is gone */
	if (!(error = again(o, i)))
		return;
	if (o->gso[i] && (error == EINVAL || error == EIO || error == EMSGSIZE || error == EOPNOTSUPP)) {
		if (error == EIO || error == EOPNOTSUPP)
			o->port->nogso = true; /* no checksums by the card: segments are made by us */
		error = in_pieces(o, i);
	}
	if (error && !lost(error))
		o->failed(o->arg, o->d + i, error, error == EMSGSIZE ? fits(o->port) : 0);
}

void xs_out_flush(struct xs_out *o)
{
	unsigned sent = 0;

	while (sent < o->n) {
		int r, error;

		if (o->gso[sent] && o->port->nogso) {
			error = in_pieces(o, sent);
			if (error && !lost(error))
				o->failed(o->arg, o->d + sent, error, error == EMSGSIZE ? fits(o->port) : 0);
			sent++;
			continue;
		}
		r = sendmmsg(o->port->fd, o->msg + sent, o->n - sent, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (r > 0) {
			sent += (unsigned)r;
			continue;
		}
		if (r < 0 && errno == EINTR)
			continue;
		send_failed(o, sent, errno);
		sent++;
	}
	o->n = 0;
}

bool xs_out_error(const struct xs_port *p, struct xs_err *e)
{
	_Alignas(8) uint8_t room[512];
	struct sockaddr_in6 name;
	struct iovec v = {e->room, sizeof e->room};
	struct msghdr m;
	ssize_t n;

	for (;;) {
		memset(&m, 0, sizeof m);
		memset(&name, 0, sizeof name);
		m.msg_name = &name;
		m.msg_namelen = sizeof name;
		m.msg_iov = &v;
		m.msg_iovlen = 1;
		m.msg_control = room;
		m.msg_controllen = sizeof room;
		n = recvmsg(p->fd, &m, MSG_ERRQUEUE | MSG_DONTWAIT);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return false;
		e->len = (size_t)n;
		if (!xs_name_read(&name, e->remote, &e->rport))
			continue;
		for (struct cmsghdr *c = CMSG_FIRSTHDR(&m); c; c = CMSG_NXTHDR(&m, c)) {
			struct sock_extended_err x;
			struct sockaddr_in6 from;
			size_t rest;
			uint16_t port;

			if (!((c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_RECVERR) ||
			      (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_RECVERR)))
				continue;
			memcpy(&x, CMSG_DATA(c), sizeof x);
			e->local = x.ee_origin == SO_EE_ORIGIN_LOCAL;
			if (!e->local && x.ee_origin != SO_EE_ORIGIN_ICMP && x.ee_origin != SO_EE_ORIGIN_ICMP6)
				continue;
			e->icmp.type = x.ee_type;
			e->icmp.code = x.ee_code;
			e->icmp.info = x.ee_errno == EMSGSIZE ? x.ee_info : 0;
			memset(&from, 0, sizeof from);
			rest = c->cmsg_len - CMSG_LEN(sizeof x);
			memcpy(&from, CMSG_DATA(c) + sizeof x, rest < sizeof from ? rest : sizeof from);
			if (!xs_name_read(&from, e->from, &port))
				memcpy(e->from, e->remote, 16);
			return true;
		}
	}
}
