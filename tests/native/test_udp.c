/* Datagrams: packets of any bytes, the tables' bounds, and the whole relay with a socketpair for a card. */
#include "check.h"
#include "udp.h"
#include "udpcard.h"
#include "udpframes.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

static volatile uint8_t sink;
static uint32_t state = 2463534242u;

static uint32_t rnd(void)
{
	state ^= state << 13;
	state ^= state >> 17;
	state ^= state << 5;
	return state;
}

static void four(uint8_t out[16], uint32_t host)
{
	memset(out, 0, 10);
	out[10] = out[11] = 0xff;
	host = htonl(host);
	memcpy(out + 12, &host, 4);
}

/* Packets of a guest's kernel with some bytes changed, in blocks of their own so that ASan sees every step beyond. */
static void any_bytes(void)
{
	struct xs_fragments f;
	struct xs_datagram d;

	memset(&f, 0, sizeof f);
	for (int round = 0; round < 200000; round++) {
		size_t len = rnd() % 160;
		uint8_t *p = malloc(len ? len : 1);

		CHECK(p);
		for (size_t i = 0; i < len; i++)
			p[i] = (uint8_t)rnd();
		if (len) /* often a header that is nearly right */
			p[0] = rnd() % 4 ? (rnd() % 2 ? 0x45 : 0x60) : p[0];
		if (len > 9 && rnd() % 2)
			p[p[0] == 0x45 ? 9 : 6] = (uint8_t[]){17, 1, 58, 44, 0, 60, 43}[rnd() % 7];
		if (len > 5 && rnd() % 2) {
			p[p[0] == 0x45 ? 2 : 4] = 0;
			p[p[0] == 0x45 ? 3 : 5] = (uint8_t)(p[0] == 0x45 ? len : len - 40);
		}
		if (len > 7 && p[0] == 0x45 && rnd() % 2)
			p[6] = p[7] = 0;
		if (xs_packet_read(&f, p, len, &d)) {
			CHECK(d.len <= 65535);
			for (size_t i = 0; i < d.len; i++)
				sink ^= d.data[i];
		}
		free(p);
	}
	xs_fragments_free(&f);
}

static void bounds(void)
{
	struct xs_flows *t = xs_flows_new();
	struct xs_datagram d;
	uint8_t addr[16], bytes[1000] = {0};
	struct xs_flow *f = NULL;

	CHECK(t);
	memset(&d, 0, sizeof d);
	d.data = bytes;
	d.len = sizeof bytes;
	for (uint32_t i = 0; i < XS_UDP_FLOWS + 1000; i++) {
		four(addr, i);
		f = xs_flow_add(t, XS_UDP, 7, addr, 9, i);
		CHECK(f);
		xs_flow_wait(t, f, &d, 0);
		CHECK(xs_flows_count(t) <= XS_UDP_FLOWS);
	}
	four(addr, 5);
	CHECK(!xs_flow_find(t, XS_UDP, 7, addr, 9)); /* the oldest made room */
	four(addr, 1005);
	CHECK(xs_flow_find(t, XS_UDP, 7, addr, 9));
	CHECK(!xs_flow_find(t, XS_ICMP, 7, addr, 9));
	for (int i = 0; i < 10000; i++)
		xs_flow_wait(t, f, &d, 0);
	CHECK(f->waiting <= XS_UDP_WAITING_EACH);
	xs_flows_sweep(t, 1000000, 10, 20);
	CHECK(xs_flows_count(t) == 0);

	four(addr, 0);
	for (unsigned i = 0; i < XS_UDP_PORTS + 10; i++) {
		struct xs_port *p = xs_port_add(t, XS_UDP, addr, (uint16_t)(i + 1), false, 0);

		CHECK(p && p->wild);
		p->automatic = true;
		p->last = i;
		p->fd = open("/dev/null", O_RDONLY);
	}
	CHECK(xs_ports_count(t) == XS_UDP_PORTS);
	CHECK(!xs_port_exact(t, XS_UDP, addr, 1, 0));
	CHECK(xs_port_exact(t, XS_UDP, addr, XS_UDP_PORTS + 10, 0));
	xs_flows_free(t);
}

static void which_port(void)
{
	struct xs_flows *t = xs_flows_new();
	uint8_t any4[16], one4[16], any6[16] = {0}, one6[16] = {0x20, 1};
	struct xs_port *wild, *exact, *dual;

	CHECK(t);
	four(any4, 0);
	four(one4, 0x7f000001);
	dual = xs_port_add(t, XS_UDP, any6, 5, true, 0);
	CHECK(xs_port_for(t, XS_UDP, one4, 5, 0) == dual && xs_port_for(t, XS_UDP, one6, 5, 0) == dual);
	wild = xs_port_add(t, XS_UDP, any4, 5, false, 0);
	CHECK(xs_port_for(t, XS_UDP, one4, 5, 0) == wild);
	exact = xs_port_add(t, XS_UDP, one4, 5, false, 0);
	CHECK(xs_port_for(t, XS_UDP, one4, 5, 0) == exact);
	CHECK(xs_port_for(t, XS_UDP, one4, 6, 0) == NULL && xs_port_for(t, XS_ICMP, one4, 5, 0) == NULL);
	xs_port_drop(t, exact);
	CHECK(xs_port_for(t, XS_UDP, one4, 5, 0) == wild);
	xs_flows_free(t);
}

static void wait_for(int fd)
{
	struct pollfd p = {fd, POLLIN, 0};

	CHECK(poll(&p, 1, 10000) == 1);
}

/* A guest's datagram goes out by a socket of ours and the answer comes back; a refused one is answered by ICMP. */
static void relayed(void)
{
	uint8_t guest[16], any4[16], remote[16], packet[2048] = {0};
	const uint8_t mac[6] = {2, 0, 0, 0, 0, 1};
	int card[2], out = socket(AF_INET, SOCK_DGRAM, 0), far = socket(AF_INET, SOCK_DGRAM, 0);
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}}, from;
	socklen_t l = sizeof a;
	struct xs_datagram d;
	struct xs_udp_event e;
	struct xs_udp *u;
	size_t head, l4;
	ssize_t n;

	CHECK(!socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, card));
	CHECK(!bind(far, (struct sockaddr *)&a, sizeof a) && !getsockname(far, (struct sockaddr *)&a, &l));
	four(guest, 0xc0000008);
	four(any4, 0);
	four(remote, INADDR_LOOPBACK);
	u = xs_udp_new(card[0], mac, (const uint8_t (*)[16])guest, 1, true);
	CHECK(u);
	memset(&d, 0, sizeof d);
	d.proto = XS_UDP;
	memcpy(d.src, guest, 16);
	memcpy(d.dst, remote, 16);
	d.sport = 4000;
	d.dport = ntohs(a.sin_port);
	d.ttl = 64;
	d.len = 5;
	head = xs_udp_head(packet + XS_CARD_PREFIX, &d, &l4);
	memcpy(packet + XS_CARD_PREFIX + head, "hello", 5);
	CHECK(write(card[1], packet, XS_CARD_PREFIX + head + 5) > 0);
	wait_for(xs_udp_fd(u));
	CHECK(xs_udp_events(u, &e, 1) == 1 && e.kind == XS_UDP_ASK && e.sport == 4000 && e.dport == d.dport && !memcmp(e.dst, remote, 16));
	CHECK(!xs_udp_has(u, XS_UDP, guest, 4000, 0));
	CHECK(!xs_udp_port(u, XS_UDP, any4, 4000, out, XS_PORT_AUTOMATIC, 0) && xs_udp_has(u, XS_UDP, guest, 4000, 0));
	CHECK(xs_udp_port(u, XS_UDP, any4, 4000, dup(far), XS_PORT_AUTOMATIC, 0) == EEXIST);
	xs_udp_decide(u, XS_UDP, 4000, remote, d.dport, 0, false, 0);
	wait_for(far);
	l = sizeof from;
	CHECK(recvfrom(far, packet, sizeof packet, 0, (struct sockaddr *)&from, &l) == 5 && !memcmp(packet, "hello", 5));
	CHECK(sendto(far, "answer", 6, 0, (struct sockaddr *)&from, l) == 6);
	wait_for(card[1]);
	n = read(card[1], packet, sizeof packet);
	CHECK(n == XS_CARD_PREFIX + 28 + 6 && !memcmp(packet + XS_CARD_PREFIX + 28, "answer", 6));
	CHECK(!memcmp(packet + XS_CARD_PREFIX + 12, remote + 12, 4));
	/* A stranger is nobody's business here: the port is not open. */
	CHECK(xs_udp_events(u, &e, 1) == 0);

	d.dport = 1;
	head = xs_udp_head(packet + XS_CARD_PREFIX, &d, &l4);
	memset(packet, 0, XS_CARD_PREFIX);
	CHECK(write(card[1], packet, XS_CARD_PREFIX + head + 5) > 0);
	wait_for(xs_udp_fd(u));
	CHECK(xs_udp_events(u, &e, 1) == 1);
	xs_udp_decide(u, XS_UDP, 4000, remote, 1, EACCES, false, 0);
	wait_for(card[1]);
	n = read(card[1], packet, sizeof packet);
	CHECK(n > XS_CARD_PREFIX + 28 && packet[XS_CARD_PREFIX + 9] == 1 && packet[XS_CARD_PREFIX + 20] == 3 && packet[XS_CARD_PREFIX + 21] == 13);
	CHECK(!xs_udp_unport(u, XS_UDP, guest, 4000, true, 0) && xs_udp_unport(u, XS_UDP, guest, 4000, true, 0) == ENOENT);
	xs_udp_free(u);
	close(card[1]);
	close(far);
}

/* What a socket sent before it was closed goes out, though the port is given back before the card was read. */
static void last_words(void)
{
	uint8_t guest[16], any4[16], remote[16], packet[2048];
	const uint8_t mac[6] = {2, 0, 0, 0, 0, 1};
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}}, own = a;
	socklen_t l = sizeof a;
	int card[2], far = socket(AF_INET, SOCK_DGRAM, 0);
	struct xs_datagram d;
	struct xs_udp *u;
	size_t head, l4;

	CHECK(!socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, card));
	CHECK(!bind(far, (struct sockaddr *)&a, sizeof a) && !getsockname(far, (struct sockaddr *)&a, &l));
	four(guest, 0xc0000008);
	four(any4, 0);
	four(remote, INADDR_LOOPBACK);
	u = xs_udp_new(card[0], mac, (const uint8_t (*)[16])guest, 1, false);
	CHECK(u);
	for (int round = 0; round < 300; round++) {
		int out = socket(AF_INET, SOCK_DGRAM, 0);

		own.sin_port = 0;
		l = sizeof own;
		CHECK(!bind(out, (struct sockaddr *)&own, sizeof own) && !getsockname(out, (struct sockaddr *)&own, &l));
		CHECK(!xs_udp_port(u, XS_UDP, any4, 4000, out, XS_PORT_OPEN, 0));
		CHECK(sendto(far, "question", 8, 0, (struct sockaddr *)&own, l) == 8);
		wait_for(card[1]);
		CHECK(read(card[1], packet, sizeof packet) == XS_CARD_PREFIX + 28 + 8);
		memset(&d, 0, sizeof d);
		memset(packet, 0, sizeof packet);
		d.proto = XS_UDP;
		memcpy(d.src, guest, 16);
		memcpy(d.dst, remote, 16);
		d.sport = 4000;
		d.dport = ntohs(a.sin_port);
		d.ttl = 64;
		d.len = 6;
		head = xs_udp_head(packet + XS_CARD_PREFIX, &d, &l4);
		memcpy(packet + XS_CARD_PREFIX + head, "answer", 6);
		CHECK(write(card[1], packet, XS_CARD_PREFIX + head + 6) > 0);
		CHECK(!xs_udp_unport(u, XS_UDP, any4, 4000, false, 0));
		wait_for(far);
		CHECK(recv(far, packet, sizeof packet, 0) == 6 && !memcmp(packet, "answer", 6));
	}
	xs_udp_free(u);
	close(card[1]);
	close(far);
}

/* The same by another backend: frames go out, frames and reports come in; its end is the port's. */
static void framed(void)
{
	uint8_t guest[16], any4[16], remote[16], packet[2048] = {0}, report[200] = {0};
	const uint8_t mac[6] = {2, 0, 0, 0, 0, 1};
	const int32_t refused = -ECONNREFUSED;
	int card[2], pair[2];
	struct xs_datagram d;
	struct xs_udp_event e;
	struct xs_frame_head h;
	struct xs_udp *u;
	size_t head, l4, ports = 1, flows;
	ssize_t n, m;

	CHECK(!socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, card));
	CHECK(!socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair));
	four(guest, 0xc0000008);
	four(any4, 0);
	four(remote, 0xc6336407);
	u = xs_udp_new(card[0], mac, (const uint8_t (*)[16])guest, 1, true);
	CHECK(u);
	memset(&d, 0, sizeof d);
	d.proto = XS_UDP;
	memcpy(d.src, guest, 16);
	memcpy(d.dst, remote, 16);
	d.sport = 4000;
	d.dport = 123;
	d.ttl = 64;
	d.len = 5;
	head = xs_udp_head(packet + XS_CARD_PREFIX, &d, &l4);
	memcpy(packet + XS_CARD_PREFIX + head, "hello", 5);
	CHECK(write(card[1], packet, XS_CARD_PREFIX + head + 5) > 0);
	wait_for(xs_udp_fd(u));
	CHECK(xs_udp_events(u, &e, 1) == 1);
	CHECK(!xs_udp_port(u, XS_UDP, any4, 4000, dup(pair[0]), XS_PORT_AUTOMATIC | XS_PORT_FRAMED | XS_PORT_VIA(3), 0));
	CHECK(xs_udp_has(u, XS_UDP, guest, 4000, 3) && !xs_udp_has(u, XS_UDP, guest, 4000, 0));
	xs_udp_decide(u, XS_UDP, 4000, remote, 123, 0, true, 3);
	n = read(pair[1], packet, sizeof packet);
	memcpy(&h, packet, sizeof h);
	CHECK(n == (ssize_t)sizeof h + 5 && h.len == 5 && h.addr_len == 16 && !memcmp(packet + sizeof h, "hello", 5));
	CHECK(h.addr[2] == 0 && h.addr[3] == 123 && !memcmp(h.addr + 4, remote + 12, 4));
	CHECK(write(pair[1], packet, 17) == 17); /* no frame: nothing comes of it */
	CHECK(write(pair[1], packet, (size_t)n) == n);
	wait_for(card[1]);
	n = read(card[1], packet, sizeof packet);
	CHECK(n == XS_CARD_PREFIX + 28 + 5 && !memcmp(packet + XS_CARD_PREFIX + 28, "hello", 5));

	/* Nothing is said beside the payload where that was not agreed on, else what is not usual; and shown as it was told. */
	CHECK(h.flags == 0);
	CHECK(!xs_udp_unport(u, XS_UDP, any4, 4000, true, 3));
	close(pair[0]);
	close(pair[1]);
	CHECK(!socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair));
	CHECK(!xs_udp_port(u, XS_UDP, any4, 4000, dup(pair[0]), XS_PORT_AUTOMATIC | XS_PORT_FRAMED | XS_PORT_INFORMED | XS_PORT_VIA(3), 0));
	d.ttl = 7;
	d.tos = 0xb8;
	four(d.src, 0xc0000209);
	memset(packet, 0, sizeof packet);
	head = xs_udp_head(packet + XS_CARD_PREFIX, &d, &l4);
	memcpy(packet + XS_CARD_PREFIX + head, "hello", 5);
	CHECK(write(card[1], packet, XS_CARD_PREFIX + head + 5) > 0);
	wait_for(pair[1]);
	m = read(pair[1], packet, sizeof packet);
	memcpy(&h, packet, sizeof h);
	CHECK(m == (ssize_t)(sizeof h + 24 + 5) && h.len == 24 + 5 && h.flags == XS_FRAME_INFO && !memcmp(packet + m - 5, "hello", 5));
	CHECK(packet[40] == 7 && packet[41] == 7 && packet[42] == 0xb8 && !memcmp(packet + 48, d.src, 16));
	CHECK(write(pair[1], packet, (size_t)m) == m);
	wait_for(card[1]);
	CHECK(read(card[1], packet, sizeof packet) == XS_CARD_PREFIX + 28 + 5);
	CHECK(packet[XS_CARD_PREFIX + 1] == 0xb8 && packet[XS_CARD_PREFIX + 8] == 7 && !memcmp(packet + XS_CARD_PREFIX + 16, d.src + 12, 4));

	/* What ICMP told there is told here, by whom it was: 192.0.2.9 says that a port is closed. */
	h.len = 28 + 5;
	h.flags = XS_FRAME_ERROR | XS_FRAME_ICMP;
	memcpy(report, &h, sizeof h);
	memcpy(report + 40, &refused, 4);
	report[44] = report[45] = 3;
	four(report + 52, 0xc0000209);
	memcpy(report + 68, "hello", 5);
	CHECK(write(pair[1], report, 73) == 73);
	wait_for(card[1]);
	n = read(card[1], packet, sizeof packet);
	CHECK(n > XS_CARD_PREFIX + 28 && packet[XS_CARD_PREFIX + 9] == 1 && packet[XS_CARD_PREFIX + 20] == 3 && packet[XS_CARD_PREFIX + 21] == 3);
	CHECK(!memcmp(packet + XS_CARD_PREFIX + 12, report + 64, 4) && !memcmp(packet + n - 5, "hello", 5));
	/* An errno alone: the destination is who tells it. */
	h.len = 4;
	h.flags = XS_FRAME_ERROR;
	memcpy(report, &h, sizeof h);
	CHECK(write(pair[1], report, 44) == 44);
	wait_for(card[1]);
	n = read(card[1], packet, sizeof packet);
	CHECK(n > XS_CARD_PREFIX + 28 && packet[XS_CARD_PREFIX + 21] == 3 && !memcmp(packet + XS_CARD_PREFIX + 12, remote + 12, 4));

	close(pair[1]);
	for (int i = 0; i < 1000 && ports; i++) {
		xs_udp_count(u, &flows, &ports);
		poll(NULL, 0, 10);
	}
	CHECK(!ports);
	xs_udp_free(u);
	close(card[1]);
	close(pair[0]);
}

/* No packet of another process is read beyond its end, and none is believed. */
static void any_frames(void)
{
	struct xs_framed f;

	for (int round = 0; round < 100000; round++) {
		size_t len = rnd() % 120;
		uint8_t *p = malloc(len ? len : 1);

		CHECK(p);
		for (size_t i = 0; i < len; i++)
			p[i] = (uint8_t)rnd();
		if (len >= 40 && rnd() % 2) {
			memset(p, 0, 16);
			p[0] = (uint8_t)(rnd() % (len - 39));
			p[4] = (uint8_t)(rnd() % 16);
			p[8] = (uint8_t)(rnd() % 30);
			p[12] = rnd() % 2 ? AF_INET : AF_INET6;
			p[13] = 0;
		}
		if (xs_frame_read(p, len, rnd() % 2, &f)) {
			CHECK(f.len <= len && f.error >= 0 && f.error <= 4095);
			for (size_t i = 0; i < f.len; i++)
				sink ^= f.data[i];
		}
		free(p);
	}
}

int main(void)
{
	any_bytes();
	bounds();
	which_port();
	relayed();
	last_words();
	any_frames();
	framed();
	return 0;
}
