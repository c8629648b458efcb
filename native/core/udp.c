#include "udp.h"

#include "udpcard.h"
#include "udpin.h"
#include "udpout.h"
#include "udptold.h"

#include <errno.h>
#include <linux/virtio_net.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#ifndef VIRTIO_NET_HDR_GSO_UDP_L4
#define VIRTIO_NET_HDR_GSO_UDP_L4 5
#endif

#define ROUNDS 8 /* batches of one descriptor before the others have their turn */
#define LAST_ROUNDS 64
#define UNREPLIED_MS 30000u
#define REPLIED_MS 180000u
#define REFUSED_MS 1000u
#define SWEEP_MS 1000
#define CARD ((uint64_t)1 << 63)
#define WAKE ((uint64_t)1 << 62)

struct xs_udp {
	int ep, wake;
	struct xs_told told;
	bool record, stop;
	pthread_t thread;
	pthread_mutex_t lock; /* of everything below */
	struct xs_flows *flows;
	struct xs_fragments fragments;
	struct xs_card card;
	struct xs_out out;
	uint8_t plain[4][16];
	uint8_t *room; /* XS_IN_BATCH times XS_IN_ROOM */
	uint64_t now;  /* milliseconds */
	uint64_t swept;
	struct xs_in in;
	uint8_t copy[XS_IN_ROOM]; /* an echo that is renamed */
};

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* --- errors for the guest --- */

static void send_error(struct xs_udp *u, const uint8_t from[16], const struct xs_datagram *about, const struct xs_icmp *e)
{
	uint8_t packet[XS_ICMP_ERROR_MAX];

	xs_card_packet(&u->card, packet, xs_icmp_error(packet, from, about, e));
}

static void failed(void *arg, const struct xs_datagram *d, int error, uint32_t mtu)
{
	struct xs_udp *u = arg;
	struct xs_icmp e;
	bool six = !xs_is4(d->src);

	if (error == EMSGSIZE && mtu) {
		e.type = six ? 2 : 3;
		e.code = six ? 0 : 4;
		e.info = mtu;
	} else if (xs_icmp_of(error, six, &e)) {
		return; /* nothing that a network could say */
	}
	send_error(u, d->dst, d, &e);
}

/* --- from the guest --- */

static void forward(struct xs_udp *u, struct xs_flow *f, struct xs_port *p, const struct xs_datagram *d, uint16_t gso)
{
	struct xs_datagram echo;

	xs_flow_touch(u->flows, f, u->now);
	memcpy(f->src, d->src, 16);
	f->known = true;
	p->last = u->now;
	if (p->raw) {
		/* A raw socket sends what it is given, so that the identifier must be the one we listen for. */
		echo = *d;
		memcpy(u->copy, d->data, d->len);
		echo.data = u->copy;
		xs_echo_rename(u->copy, d->len, p->hid, d->src, d->dst);
		xs_out_add(&u->out, p, &echo, 0);
		xs_out_flush(&u->out);
		return;
	}
	xs_out_add(&u->out, p, d, gso);
}

static void from_guest(struct xs_udp *u, const struct xs_datagram *d, uint16_t gso)
{
	struct xs_flow *f = xs_flow_find(u->flows, d->proto, d->sport, d->dst, d->dport);
	struct xs_port *p;
	struct xs_icmp e;

	if (f && f->state == XS_REFUSED) {
		if (!f->stale && u->now - f->last < REFUSED_MS) {
			if (!xs_icmp_of(f->error, !xs_is4(d->src), &e))
				send_error(u, d->dst, d, &e);
			return;
		}
		xs_flow_drop(u->flows, f);
		f = NULL;
	}
	if (f && f->state == XS_OPEN) {
		p = xs_port_for(u->flows, d->proto, d->src, d->sport, f->via);
		if (p && !f->stale) {
			forward(u, f, p, d, gso);
			return;
		}
		f->state = XS_ASKED; /* its port has gone, so that another one is needed; or the policy may have changed */
		if (!xs_told_put(&u->told, XS_UDP_ASK, d)) {
			xs_flow_drop(u->flows, f);
			return;
		}
	}
	if (!f) {
		f = xs_flow_add(u->flows, d->proto, d->sport, d->dst, d->dport, u->now);
		if (!f)
			return;
		memcpy(f->src, d->src, 16);
		f->known = true;
		if (!xs_told_put(&u->told, XS_UDP_ASK, d)) {
			xs_flow_drop(u->flows, f);
			return;
		}
	}
	xs_flow_wait(u->flows, f, d, gso);
}

static bool read_card(struct xs_udp *u)
{
	struct xs_in *in = &u->in;
	int n = xs_in_receive(u->card.fd, in, u->room, false);

	for (int i = 0; i < n; i++) {
		const uint8_t *at = in->iov[i].iov_base;
		struct virtio_net_hdr vh;
		struct xs_datagram d;
		uint16_t gso;

		if (in->msg[i].msg_len < XS_CARD_PREFIX)
			continue;
		memcpy(&vh, at, 10);
		gso = (vh.gso_type & ~VIRTIO_NET_HDR_GSO_ECN) == VIRTIO_NET_HDR_GSO_UDP_L4 ? vh.gso_size : 0;
		if (!xs_packet_read(&u->fragments, at + XS_CARD_PREFIX, in->msg[i].msg_len - XS_CARD_PREFIX, &d))
			continue;
		from_guest(u, &d, gso);
		if (d.data < at || d.data >= at + XS_IN_ROOM)
			xs_out_flush(&u->out); /* put together from fragments, in room that the next one needs */
	}
	xs_out_flush(&u->out);
	xs_card_flush(&u->card);
	return n == XS_IN_BATCH;
}

/* --- to the guest --- */

/* `called`: d->dst is the address that was called, and one that the guest may be shown. */
static void from_host(struct xs_udp *u, struct xs_port *p, struct xs_datagram *d, uint8_t *at, uint16_t gso, bool called)
{
	struct xs_flow *f;

	d->proto = p->proto;
	d->dport = p->gport;
	d->data = at;
	if (p->proto == XS_ICMP) {
		d->sport = 0;
		if (!xs_in_echo_reply(p, d, at))
			return;
	}
	f = xs_flow_find(u->flows, p->proto, p->gport, d->src, d->sport);
	if (xs_is_group(d->dst) && xs_in_echoed(u->flows, f, d))
		return;
	if (f && (f->state != XS_OPEN || f->via != p->via) && !p->open)
		return;
	if (!f) {
		struct xs_datagram asked;

		if (!p->open || !(f = xs_flow_add(u->flows, p->proto, p->gport, d->src, d->sport, u->now)))
			return;
		f->state = XS_OPEN;
		f->via = p->via;
		if (u->record) {
			asked = *d;
			memcpy(asked.src, d->dst, 16);
			memcpy(asked.dst, d->src, 16);
			asked.sport = p->gport;
			asked.dport = d->sport;
			xs_told_put(&u->told, XS_UDP_INBOUND, &asked); /* a full queue loses the record, as any trace that nobody reads */
		}
	}
	f->replied = true;
	if (f->state != XS_OPEN)
		f->via = p->via;
	f->state = XS_OPEN;
	xs_flow_touch(u->flows, f, u->now);
	p->last = u->now;
	/* The address by which the guest's socket knows itself; for one that has not spoken yet, the one that was called. */
	if (!p->wild)
		memcpy(d->dst, p->addr, 16);
	else if (f->known && !xs_is_many(d->dst) && (f->pinned || !called || p->proto == XS_ICMP || !xs_out_plain(&u->out, f->src)))
		memcpy(d->dst, f->src, 16);
	if (xs_is4(d->src) != xs_is4(d->dst))
		return;
	if (p->proto == XS_ICMP)
		xs_echo_rename((uint8_t *)(uintptr_t)d->data, d->len, p->gport, d->src, d->dst);
	xs_card_datagram(&u->card, d, gso);
}

static bool read_port(struct xs_udp *u, struct xs_port *p)
{
	struct xs_in *in = &u->in;
	int n = xs_in_receive(p->fd, in, u->room, true);

	for (int i = 0; i < n; i++) {
		struct xs_datagram d;
		uint16_t gso = 0;

		memset(&d, 0, sizeof d);
		d.ttl = 64;
		d.len = in->msg[i].msg_len;
		if (!xs_name_read(in->name + i, d.src, &d.sport))
			continue;
		d.scope = in->name[i].sin6_family == AF_INET6 ? in->name[i].sin6_scope_id : 0;
		xs_in_control(&in->msg[i].msg_hdr, &d, &gso);
		from_host(u, p, &d, in->iov[i].iov_base, gso, !p->via);
	}
	xs_card_flush(&u->card);
	return n == XS_IN_BATCH;
}

/* A datagram of the guest's did not arrive: its socket is told by ICMP. `data`: as much as is known of it. */
static void undelivered(struct xs_udp *u, struct xs_port *p, const uint8_t remote[16], uint16_t rport, const uint8_t from[16], const struct xs_icmp *e,
			const uint8_t *data, size_t len)
{
	struct xs_flow *f = xs_flow_find(u->flows, p->proto, p->gport, remote, p->proto == XS_ICMP ? 0 : rport);
	struct xs_datagram about;

	if (!f || !f->known)
		return;
	memset(&about, 0, sizeof about);
	about.proto = p->proto;
	memcpy(about.src, f->src, 16);
	memcpy(about.dst, remote, 16);
	about.sport = p->gport;
	about.dport = f->rport;
	about.ttl = 1;
	about.data = data;
	about.len = len;
	send_error(u, from, &about, e);
}

/* ICMP errors that the host's socket received, for the guest's socket whose datagram they are about. */
static void read_errors(struct xs_udp *u, struct xs_port *p)
{
	struct xs_err e;
	int error;
	socklen_t l = sizeof error;

	while (xs_out_error(p, &e))
		if (!e.local)
			undelivered(u, p, e.remote, e.rport, e.from, &e.icmp, e.room, e.len);
	/* Taken off, or epoll would report it for ever. */
	if (getsockopt(p->fd, SOL_SOCKET, SO_ERROR, &error, &l))
		xs_port_drop(u->flows, p);
	xs_card_flush(&u->card);
}

/* From another backend. False: nothing more is there, or the port has gone. */
static bool read_frames(struct xs_udp *u, struct xs_port *p)
{
	struct xs_in *in = &u->in;
	int n = xs_in_receive(p->fd, in, u->room, false);
	bool gone = n < 0 && errno != EAGAIN && errno != EINTR;

	for (int i = 0; i < n; i++) {
		struct xs_datagram d;
		struct xs_framed f;
		bool called;

		if (!in->msg[i].msg_len) {
			gone = true; /* no frame is empty */
			break;
		}
		if (!xs_frame_read(in->iov[i].iov_base, in->msg[i].msg_len, p->informed, &f))
			continue;
		if (f.error) {
			if (f.told || !xs_icmp_of(f.error, !xs_is4(f.remote), &f.icmp))
				undelivered(u, p, f.remote, f.rport, f.told ? f.from : f.remote, &f.icmp, f.data, f.len);
			continue;
		}
		called = xs_frame_datagram(&f, &d);
		/* Else nobody says which address was called: the guest's own. */
		for (size_t k = u->out.nplain; k-- && !called;)
			if (xs_is4(u->plain[k]) == xs_is4(d.src))
				memcpy(d.dst, u->plain[k], 16);
		from_host(u, p, &d, f.data, 0, called);
	}
	xs_card_flush(&u->card);
	if (gone) {
		epoll_ctl(u->ep, EPOLL_CTL_DEL, p->fd, NULL); /* others may hold the file */
		xs_port_drop(u->flows, p);
	}
	return n == XS_IN_BATCH && !gone;
}

/* --- the thread --- */

static void sweep(struct xs_udp *u)
{
	if (u->now - u->swept < SWEEP_MS)
		return;
	u->swept = u->now;
	xs_flows_sweep(u->flows, u->now, UNREPLIED_MS, REPLIED_MS);
}

static void serve(struct xs_udp *u, const struct epoll_event *e)
{
	struct xs_port *p;

	if (e->data.u64 == WAKE)
		return;
	if (e->data.u64 == CARD) {
		for (int i = 0; i < ROUNDS && read_card(u); i++)
			;
		return;
	}
	p = xs_port_at(u->flows, (uint32_t)e->data.u64, (uint32_t)(e->data.u64 >> 32));
	if (p && p->framed) {
		for (int i = 0; i < ROUNDS && read_frames(u, p); i++)
			;
		return;
	}
	if (p && (e->events & EPOLLERR))
		read_errors(u, p);
	p = xs_port_at(u->flows, (uint32_t)e->data.u64, (uint32_t)(e->data.u64 >> 32));
	if (p && (e->events & EPOLLIN))
		for (int i = 0; i < ROUNDS && read_port(u, p); i++)
			;
}

static void *run(void *arg)
{
	struct xs_udp *u = arg;
	struct epoll_event e[64];
	int timeout = -1;

	for (;;) {
		int n = epoll_wait(u->ep, e, 64, timeout);
		bool stop;

		pthread_mutex_lock(&u->lock);
		u->now = now_ns() / 1000000u;
		for (int i = 0; i < n; i++)
			serve(u, e + i);
		sweep(u);
		timeout = xs_flows_count(u->flows) + xs_ports_count(u->flows) ? SWEEP_MS : -1;
		stop = u->stop;
		pthread_mutex_unlock(&u->lock);
		if (stop)
			return NULL;
	}
}

static int watch(struct xs_udp *u, int fd, uint64_t what)
{
	struct epoll_event e;

	memset(&e, 0, sizeof e);
	e.events = EPOLLIN;
	e.data.u64 = what;
	return epoll_ctl(u->ep, EPOLL_CTL_ADD, fd, &e) ? errno : 0;
}

struct xs_udp *xs_udp_new(int card, const uint8_t mac[6], const uint8_t (*plain)[16], size_t nplain, bool record)
{
	struct xs_udp *u = calloc(1, sizeof *u);
	sigset_t all, old;
	int error = ENOMEM;

	if (!u) {
		close(card);
		errno = error;
		return NULL;
	}
	u->card.fd = card;
	memcpy(u->card.mac, mac, 6);
	u->record = record;
	u->out.nplain = nplain < 4 ? nplain : 4;
	memcpy(u->plain, plain, u->out.nplain * 16);
	u->out.plain = (const uint8_t (*)[16])u->plain;
	u->out.failed = failed;
	u->out.arg = u;
	u->now = now_ns() / 1000000u;
	u->ep = epoll_create1(EPOLL_CLOEXEC);
	u->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	u->flows = xs_flows_new();
	/* Touched as far as datagrams are long. */
	u->room = mmap(NULL, (size_t)XS_IN_BATCH * XS_IN_ROOM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	pthread_mutex_init(&u->lock, NULL);
	if (!xs_told_init(&u->told) || u->ep < 0 || u->wake < 0 || !u->flows || u->room == MAP_FAILED)
		error = errno;
	else
		error = watch(u, u->wake, WAKE);
	error = error ? error : watch(u, card, CARD);
	if (!error) {
		sigfillset(&all);
		pthread_sigmask(SIG_SETMASK, &all, &old);
		error = pthread_create(&u->thread, NULL, run, u);
		pthread_sigmask(SIG_SETMASK, &old, NULL);
	}
	if (error) {
		u->stop = true;
		xs_udp_free(u);
		errno = error;
		return NULL;
	}
	return u;
}

int xs_udp_fd(const struct xs_udp *u) { return u->told.fd; }

size_t xs_udp_events(struct xs_udp *u, struct xs_udp_event *out, size_t max)
{
	size_t n;
	uint64_t count;

	if (read(u->told.fd, &count, sizeof count) < 0 && errno != EAGAIN)
		return 0;
	pthread_mutex_lock(&u->lock);
	n = xs_told_take(&u->told, out, max);
	pthread_mutex_unlock(&u->lock);
	return n;
}

int xs_udp_port(struct xs_udp *u, uint8_t proto, const uint8_t addr[16], uint16_t gport, int fd, unsigned flags, uint16_t hid)
{
	struct xs_port *p;
	uint8_t via = (uint8_t)(flags >> 8);
	int error = ENFILE;

	pthread_mutex_lock(&u->lock);
	if (xs_port_exact(u->flows, proto, addr, gport, via)) {
		error = EEXIST;
	} else if ((p = xs_port_add(u->flows, proto, addr, gport, flags & XS_PORT_DUAL, via))) {
		p->fd = fd;
		p->six = flags & XS_PORT_SIX;
		p->open = flags & XS_PORT_OPEN;
		p->automatic = flags & XS_PORT_AUTOMATIC;
		p->raw = flags & XS_PORT_RAW;
		p->framed = flags & XS_PORT_FRAMED;
		p->informed = flags & XS_PORT_INFORMED;
		p->hid = hid;
		p->last = now_ns() / 1000000u;
		if (!p->framed)
			xs_in_prepare(p);
		error = watch(u, fd, (uint64_t)p->generation << 32 | xs_port_slot(u->flows, p));
		fd = -1;
		if (error)
			xs_port_drop(u->flows, p);
	}
	pthread_mutex_unlock(&u->lock);
	if (fd >= 0)
		close(fd);
	return error;
}

int xs_udp_unport(struct xs_udp *u, uint8_t proto, const uint8_t addr[16], uint16_t gport, bool automatic, uint8_t via)
{
	struct xs_port *p;
	int error = ENOENT;

	pthread_mutex_lock(&u->lock);
	u->now = now_ns() / 1000000u;
	for (int i = 0; !automatic && i < LAST_ROUNDS && read_card(u); i++)
		; /* what was sent before its last socket ended goes by it */
	while ((p = automatic ? xs_port_automatic(u->flows, proto, addr, gport) : xs_port_exact(u->flows, proto, addr, gport, via)) &&
	       p->automatic == automatic) {
		xs_port_drop(u->flows, p);
		error = 0;
	}
	pthread_mutex_unlock(&u->lock);
	return error;
}

bool xs_udp_has(struct xs_udp *u, uint8_t proto, const uint8_t addr[16], uint16_t gport, uint8_t via)
{
	bool found;

	pthread_mutex_lock(&u->lock);
	found = xs_port_for(u->flows, proto, addr, gport, via) != NULL;
	pthread_mutex_unlock(&u->lock);
	return found;
}

void xs_udp_decide(struct xs_udp *u, uint8_t proto, uint16_t gport, const uint8_t remote[16], uint16_t rport, int error, bool pinned, uint8_t via)
{
	struct xs_flow *f;
	struct xs_port *p;
	struct xs_waiting *w;
	struct xs_icmp e;

	pthread_mutex_lock(&u->lock);
	u->now = now_ns() / 1000000u;
	f = xs_flow_find(u->flows, proto, gport, remote, rport);
	if (f && f->state == XS_ASKED) {
		f->stale = false;
		f->state = error ? XS_REFUSED : XS_OPEN;
		f->error = error;
		f->pinned = pinned;
		f->via = via;
		xs_flow_touch(u->flows, f, u->now);
		while ((w = xs_flow_unwait(u->flows, f))) {
			p = error ? NULL : xs_port_for(u->flows, proto, w->d.src, gport, via);
			if (p) {
				forward(u, f, p, &w->d, w->gso);
				xs_out_flush(&u->out);
			} else if (error && !xs_icmp_of(error, !xs_is4(w->d.src), &e)) {
				send_error(u, w->d.dst, &w->d, &e);
				xs_card_flush(&u->card);
			}
			free(w);
		}
	}
	xs_card_flush(&u->card); /* what sending failed with */
	pthread_mutex_unlock(&u->lock);
}

void xs_udp_pin(struct xs_udp *u, uint8_t proto, uint16_t gport, const uint8_t remote[16], uint16_t rport, const uint8_t src[16])
{
	struct xs_flow *f;

	pthread_mutex_lock(&u->lock);
	f = xs_flow_find(u->flows, proto, gport, remote, rport);
	if (f) {
		memcpy(f->src, src, 16);
		f->known = f->pinned = true;
	}
	pthread_mutex_unlock(&u->lock);
}

void xs_udp_doubt(struct xs_udp *u)
{
	pthread_mutex_lock(&u->lock);
	xs_flows_doubt(u->flows);
	pthread_mutex_unlock(&u->lock);
}

void xs_udp_count(struct xs_udp *u, size_t *flows, size_t *ports)
{
	pthread_mutex_lock(&u->lock);
	*flows = xs_flows_count(u->flows);
	*ports = xs_ports_count(u->flows);
	pthread_mutex_unlock(&u->lock);
}

void xs_udp_free(struct xs_udp *u)
{
	uint64_t one = 1;

	if (!u->stop) {
		pthread_mutex_lock(&u->lock);
		u->stop = true;
		pthread_mutex_unlock(&u->lock);
		if (write(u->wake, &one, sizeof one) == sizeof one)
			pthread_join(u->thread, NULL);
	}
	if (u->flows)
		xs_flows_free(u->flows);
	xs_fragments_free(&u->fragments);
	xs_told_free(&u->told);
	if (u->room && u->room != MAP_FAILED)
		munmap(u->room, (size_t)XS_IN_BATCH * XS_IN_ROOM);
	if (u->ep >= 0)
		close(u->ep);
	if (u->wake >= 0)
		close(u->wake);
	close(u->card.fd);
	pthread_mutex_destroy(&u->lock);
	free(u);
}
