/* The mover between a ring of frames and a program's SOCK_SEQPACKET pair. */
#include "ringpeer.h"
#include "sockets.h"

#define HEAD 40u

static struct xs_mover *mover;
static char buf[1 << 17], packet[1 << 17];

static uint64_t add(struct peer *p, unsigned order, int fd)
{
	struct xs_ring_end e;
	uint64_t token;

	peer_open(p, order, XS_BACK, true);
	e = peer_end(p);
	token = xs_mover_add_ring(mover, fd, &e, XS_FRONT, true);
	CHECK(token);
	return token;
}

static size_t frame(size_t len, unsigned seed, uint32_t flags)
{
	uint32_t words[3] = {(uint32_t)len, flags, 16};

	memset(packet, 0, sizeof packet);
	memcpy(packet, words, sizeof words);
	memset(packet + 12, 'a', 16);
	fill(packet + HEAD, len, seed);
	return (HEAD + len + 7) & ~(size_t)7;
}

static void read_n(struct peer *p, size_t n)
{
	for (size_t got = 0; got < n;) {
		ssize_t k = peer_read(p, buf + got, n - got);

		CHECK(k > 0);
		got += (size_t)k;
	}
}

/* A frame is shown whole or not at all. */
static void write_frame(struct peer *p, size_t size)
{
	while (xs_room(&p->r.tx) < size)
		if (!xs_tx_arm(&p->r.tx, (uint32_t)size))
			peer_wait(p);
	CHECK(peer_write(p, packet, size) == 0);
}

/* The program may have a packet before it is counted. */
static bool counted(uint64_t token, uint64_t total)
{
	uint64_t bytes[2];

	for (int i = 0; i < 5000; i++, usleep(1000))
		if (xs_mover_bytes(mover, token, bytes) && bytes[0] == total)
			return true;
	return false;
}

static void both_ways(unsigned order)
{
	struct peer p;
	int s[2];
	size_t size, most = ((size_t)XS_PAGE << order) / 2 - HEAD, len = 0;
	uint64_t token, total = 0;

	if (most > 65507)
		most = 65507;
	CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, s) == 0);
	token = add(&p, order, s[1]);
	for (unsigned i = 0; i < 300; i++) {
		len = i == 7 ? most : (i * 7919u) % most;
		size = frame(len, i, i & 1 ? 3 : 0);
		CHECK(send(s[0], packet, size, 0) == (ssize_t)size);
		read_n(&p, size);
		frame(len, i, 0); /* the flags are the backend's to set */
		CHECK(memcmp(buf, packet, size) == 0);
		frame(len, i, 1);
		write_frame(&p, size);
		CHECK(recv(s[0], buf, sizeof buf, 0) == (ssize_t)size && memcmp(buf, packet, size) == 0);
		total += len;
	}
	CHECK(counted(token, total));
	close(s[0]);
	CHECK(wait_notice(mover, token).kind == XS_NOTICE_EOF);
	CHECK(wait_ended(mover, token).error == 0);
	peer_close(&p);
}

/* Nothing that a program sends makes a frame that is none. */
static void rubbish(void)
{
	struct peer p;
	int s[2];
	size_t size;
	uint64_t token;

	CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, s) == 0);
	token = add(&p, 3, s[1]);
	memset(packet, 0xff, sizeof packet);
	CHECK(send(s[0], packet, 39, 0) == 39 && send(s[0], "", 0, 0) == 0);
	CHECK(send(s[0], packet, 100, 0) == 100 && send(s[0], packet, 100000, 0) == 100000);
	size = frame(10, 4, 0);
	packet[8] = 29;
	CHECK(send(s[0], packet, size, 0) == (ssize_t)size);
	size = frame(10, 5, 0);
	CHECK(send(s[0], packet, size - 6, 0) == (ssize_t)size - 6); /* without its padding */
	read_n(&p, size);
	CHECK(memcmp(buf, packet, size) == 0 && xs_readable(&p.r.rx) == 0);
	CHECK(xs_mover_release(mover, token, false, 0) == 0);
	CHECK(recv(s[0], buf, 1, 0) == 0);
	close(s[0]);
	peer_close(&p);
	wait_ended(mover, token);
}

/* A program that does not read keeps the rest in the ring, frame by frame. */
static void back_pressure(void)
{
	struct peer p;
	int s[2];
	size_t size, put = 0, got;
	uint64_t token;

	CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, s) == 0);
	token = add(&p, 4, s[1]);
	size = frame(1000, 6, 0);
	for (int idle = 0; idle < 20;) {
		if (xs_room(&p.r.tx) < size) {
			idle++;
			usleep(1000);
			continue;
		}
		idle = 0;
		CHECK(peer_write(&p, packet, size) == 0);
		CHECK(++put < 100000);
	}
	for (got = 0; got < put; got++)
		CHECK(recv(s[0], buf, sizeof buf, 0) == (ssize_t)size && memcmp(buf, packet, size) == 0);
	peer_fail(&p, -ECONNRESET, -ECONNRESET);
	CHECK(wait_ended(mover, token).error == ECONNRESET);
	CHECK(recv(s[0], buf, 1, 0) == 0);
	CHECK(wait_notice(mover, token).kind == XS_NOTICE_RESET);
	close(s[0]);
	peer_close(&p);
}

/* A backend that writes no frames ends that one socket. */
static void broken(void)
{
	for (int i = 0; i < 3; i++) {
		struct peer p;
		int s[2];
		uint64_t token;
		size_t size = frame(100, 7, 0);
		struct xs_ended e;

		CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, s) == 0);
		token = add(&p, 1, s[1]);
		if (i == 0)
			size = 24;
		else if (i == 1)
			packet[1] = 127; /* longer than what is there */
		else
			packet[8] = 29; /* a longer address than there are */
		CHECK(peer_write(&p, packet, size) == 0);
		e = wait_ended(mover, token);
		CHECK(e.error == EPROTO && e.side == 0);
		CHECK(wait_notice(mover, token).kind == XS_NOTICE_ERROR);
		close(s[0]);
		peer_close(&p);
	}
}

int main(void)
{
	int s[2];
	struct peer p;
	struct xs_ring_end e;

	mover = xs_mover_new(1);
	CHECK(mover);
	both_ways(1);
	both_ways(2);
	both_ways(7);
	rubbish();
	back_pressure();
	broken();
	peer_open(&p, 1, XS_FRONT, true);
	e = peer_end(&p);
	CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, s) == 0);
	CHECK(xs_mover_add_ring(mover, s[1], &e, XS_BACK, true) == 0 && errno == EPROTOTYPE);
	close(s[0]);
	peer_close(&p);
	CHECK(xs_mover_live(mover) == 0);
	xs_mover_free(mover, 0);
	return 0;
}
