#include "udp.h"

#include "udpcard.h"
#include "udpin.h"
#include "udpout.h"

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

#define BATCH 32
#define ROOM (1u << 17) /* one packet of the card or one datagram: 64 KiB and headers, a power of two */
#define CONTROL 256
#define ROUNDS 8 /* batches of one descriptor before the others have their turn */
#define UNREPLIED_MS 30000u
#define REPLIED_MS 180000u
#define REFUSED_MS 1000u
#define SWEEP_MS 1000
#define QUEUED 4096u
#define CARD ((uint64_t)1 << 63)
#define WAKE ((uint64_t)1 << 62)

struct xs_udp {
	int ep, wake, told; /* told: an eventfd for the owner */
	bool record, stop;
	pthread_t thread;
	pthread_mutex_t lock; /* of everything below */
	struct xs_flows *flows;
	struct xs_fragments fragments;
	struct xs_card card;
	struct xs_out out;
	uint8_t plain[4][16];
	struct xs_udp_event *event; /* a ring of QUEUED */
	size_t first, events;
	uint8_t *room; /* BATCH times ROOM */
	uint64_t now;  /* milliseconds */
	uint64_t swept;
	uint8_t copy[ROOM]; /* an echo that is renamed */
};

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* --- what the owner is told --- */

static bool tell(struct xs_udp *u, enum xs_udp_kind kind, const struct xs_datagram *d)
{
	struct xs_udp_event *e;
	uint64_t one = 1;

	if (u->events == QUEUED)
		return false;
	e = u->event + (u->first + u->events++) % QUEUED;
	e->kind = kind;
	e->proto = d->proto;
	memcpy(e->src, d->src, 16);
	memcpy(e->dst, d->dst, 16);
	e->sport = d->sport;
	e->dport = d->dport;
	e->start_ns = now_ns();
	return write(u->told, &one, sizeof one) == sizeof one || errno == EAGAIN;
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
		p = xs_port_for(u->flows, d->proto, d->src, d->sport);
		if (p && !f->stale) {
			forward(u, f, p, d, gso);
			return;
		}
		f->state = XS_ASKED; /* its port has gone, so that another one is needed; or the policy may have changed */
		if (!tell(u, XS_UDP_ASK, d)) {
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
		if (!tell(u, XS_UDP_ASK, d)) {
			xs_flow_drop(u->flows, f);
			return;
		}
	}
	xs_flow_wait(u->flows, f, d, gso);
}

static bool read_card(struct xs_udp *u)
{
	struct mmsghdr m[BATCH];
	struct iovec v[BATCH];
	int n;

	memset(m, 0, sizeof m);
	for (int i = 0; i < BATCH; i++) {
		v[i].iov_base = u->room + (size_t)i * ROOM;
		v[i].iov_len = ROOM;
		m[i].msg_hdr.msg_iov = v + i;
		m[i].msg_hdr.msg_iovlen = 1;
	}
	n = recvmmsg(u->card.fd, m, BATCH, MSG_DONTWAIT, NULL);
	for (int i = 0; i < n; i++) {
		const uint8_t *at = v[i].iov_base;
		struct virtio_net_hdr vh;
		struct xs_datagram d;
		uint16_t gso;

		if (m[i].msg_len < XS_CARD_PREFIX)
			continue;
		memcpy(&vh, at, 10);
		gso = (vh.gso_type & ~VIRTIO_NET_HDR_GSO_ECN) == VIRTIO_NET_HDR_GSO_UDP_L4 ? vh.gso_size : 0;
		if (!xs_packet_read(&u->fragments, at + XS_CARD_PREFIX, m[i].msg_len - XS_CARD_PREFIX, &d))
			continue;
		from_guest(u, &d, gso);
		if (d.data < at || d.data >= at + ROOM)
			xs_out_flush(&u->out); /* put together from fragments, in room that the next one needs */
	}
	xs_out_flush(&u->out);
	xs_card_flush(&u->card);
	return n == BATCH;
}

/* --- to the guest --- */

static bool group(const uint8_t a[16]) { return xs_is4(a) ? a[12] >= 224 : a[0] == 0xff; }

static bool plain(const struct xs_udp *u, const uint8_t a[16])
{
	for (size_t i = 0; i < u->out.nplain; i++)
		if (!memcmp(u->plain[i], a, 16))
			return true;
	return false;
}

static void from_host(struct xs_udp *u, struct xs_port *p, struct xs_datagram *d, uint8_t *at, uint16_t gso)
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
	if (f && f->state != XS_OPEN && !p->open)
		return;
	if (!f) {
		struct xs_datagram asked;

		if (!p->open || !(f = xs_flow_add(u->flows, p->proto, p->gport, d->src, d->sport, u->now)))
			return;
		f->state = XS_OPEN;
		if (u->record) {
			asked = *d;
			memcpy(asked.src, d->dst, 16);
			memcpy(asked.dst, d->src, 16);
			asked.sport = p->gport;
			asked.dport = d->sport;
			tell(u, XS_UDP_INBOUND, &asked); /* a full queue loses the record, as any trace that nobody reads */
		}
	}
	f->replied = true;
	f->state = XS_OPEN;
	xs_flow_touch(u->flows, f, u->now);
	p->last = u->now;
	/* The address by which the guest's socket knows itself; for one that has not spoken yet, the one that was called. */
	if (!p->wild)
		memcpy(d->dst, p->addr, 16);
	else if (f->known && !group(d->dst) && (f->pinned || p->proto == XS_ICMP || !plain(u, f->src)))
		memcpy(d->dst, f->src, 16);
	if (xs_is4(d->src) != xs_is4(d->dst))
		return;
	if (p->proto == XS_ICMP)
		xs_echo_rename((uint8_t *)(uintptr_t)d->data, d->len, p->gport, d->src, d->dst);
	xs_card_datagram(&u->card, d, gso);
}

static bool read_port(struct xs_udp *u, struct xs_port *p)
{
	struct mmsghdr m[BATCH];
	struct iovec v[BATCH];
	struct sockaddr_in6 name[BATCH];
	_Alignas(8) uint8_t room[BATCH][CONTROL];
	int n;

	memset(m, 0, sizeof m);
	for (int i = 0; i < BATCH; i++) {
		v[i].iov_base = u->room + (size_t)i * ROOM;
		v[i].iov_len = ROOM;
		m[i].msg_hdr.msg_name = name + i;
		m[i].msg_hdr.msg_namelen = sizeof name[i];
		m[i].msg_hdr.msg_iov = v + i;
		m[i].msg_hdr.msg_iovlen = 1;
		m[i].msg_hdr.msg_control = room[i];
		m[i].msg_hdr.msg_controllen = CONTROL;
	}
	n = recvmmsg(p->fd, m, BATCH, MSG_DONTWAIT, NULL);
	for (int i = 0; i < n; i++) {
		struct xs_datagram d;
		uint16_t gso = 0;

		memset(&d, 0, sizeof d);
		d.ttl = 64;
		d.len = m[i].msg_len;
		if (!xs_out_name(name + i, d.src, &d.sport))
			continue;
		xs_in_control(&m[i].msg_hdr, &d, &gso);
		from_host(u, p, &d, v[i].iov_base, gso);
	}
	xs_card_flush(&u->card);
	return n == BATCH;
}

/* ICMP errors that the host's socket received, for the guest's socket whose datagram they are about. */
static void read_errors(struct xs_udp *u, struct xs_port *p)
{
	struct xs_err e;
	int error;
	socklen_t l = sizeof error;

	while (xs_out_error(p, &e)) {
		struct xs_flow *f = xs_flow_find(u->flows, p->proto, p->gport, e.remote, p->proto == XS_ICMP ? 0 : e.rport);
		struct xs_datagram about;

		if (e.local || !f || !f->known)
			continue;
		memset(&about, 0, sizeof about);
		about.proto = p->proto;
		memcpy(about.src, f->src, 16);
		memcpy(about.dst, e.remote, 16);
		about.sport = p->gport;
		about.dport = f->rport;
		about.ttl = 1;
		about.data = e.room;
		about.len = e.len;
		send_error(u, e.from, &about, &e.icmp);
	}
	/* Taken off, or epoll would report it for ever. */
	if (getsockopt(p->fd, SOL_SOCKET, SO_ERROR, &error, &l))
		xs_port_drop(u->flows, p);
	xs_card_flush(&u->card);
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
	u->told = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	u->flows = xs_flows_new();
	u->event = calloc(QUEUED, sizeof *u->event);
	/* Touched as far as datagrams are long. */
	u->room = mmap(NULL, (size_t)BATCH * ROOM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	pthread_mutex_init(&u->lock, NULL);
	if (u->ep < 0 || u->wake < 0 || u->told < 0 || !u->flows || !u->event || u->room == MAP_FAILED)
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

int xs_udp_fd(const struct xs_udp *u) { return u->told; }

size_t xs_udp_events(struct xs_udp *u, struct xs_udp_event *out, size_t max)
{
	size_t n = 0;
	uint64_t count;

	if (read(u->told, &count, sizeof count) < 0 && errno != EAGAIN)
		return 0;
	pthread_mutex_lock(&u->lock);
	for (; n < max && u->events; u->events--) {
		out[n++] = u->event[u->first];
		u->first = (u->first + 1) % QUEUED;
	}
	pthread_mutex_unlock(&u->lock);
	return n;
}

int xs_udp_port(struct xs_udp *u, uint8_t proto, const uint8_t addr[16], uint16_t gport, int fd, unsigned flags, uint16_t hid)
{
	struct xs_port *p;
	int error = ENFILE;

	pthread_mutex_lock(&u->lock);
	if (xs_port_exact(u->flows, proto, addr, gport)) {
		error = EEXIST;
	} else if ((p = xs_port_add(u->flows, proto, addr, gport, flags & XS_PORT_DUAL))) {
		p->fd = fd;
		p->six = flags & XS_PORT_SIX;
		p->open = flags & XS_PORT_OPEN;
		p->automatic = flags & XS_PORT_AUTOMATIC;
		p->raw = flags & XS_PORT_RAW;
		p->hid = hid;
		p->last = now_ns() / 1000000u;
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

int xs_udp_unport(struct xs_udp *u, uint8_t proto, const uint8_t addr[16], uint16_t gport, bool automatic)
{
	struct xs_port *p;
	int error = ENOENT;

	pthread_mutex_lock(&u->lock);
	p = automatic ? xs_port_for(u->flows, proto, addr, gport) : xs_port_exact(u->flows, proto, addr, gport);
	if (p && p->automatic == automatic) {
		xs_port_drop(u->flows, p);
		error = 0;
	}
	pthread_mutex_unlock(&u->lock);
	return error;
}

bool xs_udp_has(struct xs_udp *u, uint8_t proto, const uint8_t addr[16], uint16_t gport)
{
	bool found;

	pthread_mutex_lock(&u->lock);
	found = xs_port_for(u->flows, proto, addr, gport) != NULL;
	pthread_mutex_unlock(&u->lock);
	return found;
}

void xs_udp_decide(struct xs_udp *u, uint8_t proto, uint16_t gport, const uint8_t remote[16], uint16_t rport, int error, bool pinned)
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
		xs_flow_touch(u->flows, f, u->now);
		while ((w = xs_flow_unwait(u->flows, f))) {
			p = error ? NULL : xs_port_for(u->flows, proto, w->d.src, gport);
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
	free(u->event);
	if (u->room && u->room != MAP_FAILED)
		munmap(u->room, (size_t)BATCH * ROOM);
	if (u->ep >= 0)
		close(u->ep);
	if (u->wake >= 0)
		close(u->wake);
	if (u->told >= 0)
		close(u->told);
	close(u->card.fd);
	pthread_mutex_destroy(&u->lock);
	free(u);
}
