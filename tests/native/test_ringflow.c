/* The mover between a data ring and a socket, in both roles, as v1 and with data-events. */
#include "ringpeer.h"
#include "sockets.h"

#include <pthread.h>
#include <signal.h>

#define BIG ((size_t)6 << 20)

static struct xs_mover *mover;
static bool events; /* of the rings of this round */
static char *sent_bytes, *buf;

static uint64_t add(struct peer *p, unsigned order, enum xs_role movers, int fd)
{
	struct xs_ring_end e;
	uint64_t token;

	peer_open(p, order, movers == XS_BACK ? XS_FRONT : XS_BACK, events);
	e = peer_end(p);
	token = xs_mover_add_ring(mover, fd, &e, movers, true);
	CHECK(token);
	return token;
}

struct writer {
	struct peer *p;
	int fd;
	size_t n;
};

static void *write_all(void *arg)
{
	struct writer *w = arg;

	if (w->p)
		CHECK(peer_write(w->p, sent_bytes, w->n) == 0);
	else
		CHECK(send(w->fd, sent_bytes, w->n, MSG_NOSIGNAL) == (ssize_t)w->n && shutdown(w->fd, SHUT_WR) == 0);
	return NULL;
}

/* A backend's connection: much data both ways at once, half-close both ways, then CLOSE. */
static void back_both_ways(unsigned order)
{
	struct peer p;
	int s[2];
	size_t got;
	pthread_t a, b;
	uint64_t token, bytes[2];
	struct writer up = {.n = BIG / 2 + 5}, down = {.n = BIG};
	struct xs_ended e;

	tcp_pair(s);
	token = add(&p, order, XS_BACK, s[1]);
	up.fd = s[0];
	down.p = &p;
	CHECK(pthread_create(&a, NULL, write_all, &up) == 0);
	CHECK(peer_read_all(&p, buf, BIG + 1, &got) == 0 && got == up.n);
	expect(buf, got, 1);
	CHECK(pthread_create(&b, NULL, write_all, &down) == 0);
	for (got = 0; got < BIG;) {
		ssize_t n = recv(s[0], buf + got, BIG - got, 0);

		CHECK(n > 0);
		got += (size_t)n;
	}
	expect(buf, got, 1);
	pthread_join(a, NULL);
	pthread_join(b, NULL);
	CHECK(peer_write(&p, "bye", 3) == 0);
	CHECK(xs_mover_shutdown(mover, token, SHUT_WR, 0) == 0);
	CHECK(read_all(s[0], buf, BIG, &got) == 0 && got == 3);
	CHECK(xs_mover_bytes(mover, token, bytes) && bytes[0] == BIG + 3 && bytes[1] == up.n);
	CHECK(xs_mover_release(mover, token, false, 0) == 0);
	peer_close(&p);
	e = wait_ended(mover, token);
	CHECK(e.error == 0 && e.bytes[0] == BIG + 3 && e.bytes[1] == up.n);
	CHECK(xs_mover_release(mover, token, false, 0) == ESRCH);
	close(s[0]);
}

/* What is in `out` at RELEASE arrives though the memory is gone and the peer is slow; so does the end, or the reset. */
static void back_release(bool reset)
{
	struct peer p;
	int s[2], small = 60000;
	size_t got, n = 300000;
	uint64_t token;
	struct xs_ended e;

	tcp_pair(s);
	CHECK(setsockopt(s[1], SOL_SOCKET, SO_SNDBUF, &small, sizeof small) == 0);
	CHECK(setsockopt(s[0], SOL_SOCKET, SO_RCVBUF, &small, sizeof small) == 0);
	token = add(&p, 8, XS_BACK, s[1]);
	CHECK(peer_write(&p, sent_bytes, n) == 0);
	CHECK(xs_mover_release(mover, token, reset, 0) == 0);
	memset(p.data, 'x', p.length);
	peer_close(&p);
	CHECK(read_all(s[0], buf, BIG, &got) == (reset ? ECONNRESET : 0) && got == n);
	expect(buf, got, 1);
	e = wait_ended(mover, token);
	CHECK(e.bytes[0] == n && e.error == 0);
	close(s[0]);
}

/* A reset of the host's socket is both errors, behind the data. */
static void back_reset(void)
{
	struct peer p;
	int s[2];
	size_t got;
	uint64_t token;

	tcp_pair(s);
	token = add(&p, 1, XS_BACK, s[1]);
	CHECK(send(s[0], "last words", 10, 0) == 10);
	hard_close(s[0]);
	CHECK(peer_read_all(&p, buf, BIG, &got) == -ECONNRESET && got == 10);
	while (!xs_error(&p.r.tx)) /* set behind in_error */
		peer_wait(&p);
	CHECK(xs_error(&p.r.tx) == -ECONNRESET);
	CHECK(xs_mover_release(mover, token, false, 0) == 0);
	peer_close(&p);
	CHECK(wait_ended(mover, token).error == ECONNRESET);
}

/* A reset is told to the writer though `in` is full and nobody reads; the data is still there then. */
static void back_reset_while_full(void)
{
	struct peer p;
	int s[2];
	size_t got;
	uint64_t token;

	tcp_pair(s);
	token = add(&p, 1, XS_BACK, s[1]);
	CHECK(send(s[0], sent_bytes, 20000, 0) == 20000);
	for (int i = 0; xs_readable(&p.r.rx) != p.r.rx.size; i++)
		CHECK(i < 5000 && usleep(1000) == 0);
	hard_close(s[0]);
	for (int i = 0; !xs_error(&p.r.tx); i++)
		CHECK(i < 5000 && usleep(1000) == 0);
	CHECK(xs_error(&p.r.tx) == -ECONNRESET && xs_error(&p.r.rx) == 0);
	CHECK(peer_read_all(&p, buf, BIG, &got) == -ECONNRESET && got == 20000);
	expect(buf, got, 1);
	CHECK(xs_mover_release(mover, token, false, 0) == 0);
	peer_close(&p);
	wait_ended(mover, token);
}

/* The host's peer closed for good: what the frontend still sends is answered by a reset, in_error stays the end. */
static void back_write_after_close(void)
{
	struct peer p;
	int s[2], error;
	size_t got;
	uint64_t token;

	tcp_pair(s);
	token = add(&p, 1, XS_BACK, s[1]);
	close(s[0]);
	CHECK(peer_read_all(&p, buf, BIG, &got) == 0 && got == 0);
	while ((error = peer_write(&p, "x", 1)) == 0)
		usleep(1000);
	CHECK(error == -EPIPE || error == -ECONNRESET);
	CHECK(xs_error(&p.r.rx) == -ENOTCONN);
	CHECK(xs_mover_release(mover, token, false, 0) == 0);
	peer_close(&p);
	wait_ended(mover, token);
}

static void back_shutdown_read(void)
{
	struct peer p;
	int s[2];
	size_t got;
	uint64_t token;

	tcp_pair(s);
	token = add(&p, 1, XS_BACK, s[1]);
	CHECK(xs_mover_shutdown(mover, token, SHUT_RD, 0) == 0);
	CHECK(peer_read_all(&p, buf, BIG, &got) == 0 && got == 0);
	CHECK(peer_write(&p, "still", 5) == 0);
	CHECK(recv(s[0], buf, 5, MSG_WAITALL) == 5);
	CHECK(xs_mover_release(mover, token, true, 0) == 0);
	CHECK(read_all(s[0], buf, BIG, &got) == ECONNRESET);
	peer_close(&p);
	wait_ended(mover, token);
	close(s[0]);
}

static void front_pair(bool tcp, int s[2])
{
	if (tcp)
		tcp_pair(s);
	else
		CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, s) == 0);
}

/* A frontend's connection: the program at s[0], the test is the backend. */
static void front_both_ways(bool tcp, unsigned order)
{
	struct peer p;
	int s[2];
	size_t got = 0;
	pthread_t a, b;
	uint64_t token;
	struct writer up = {.n = BIG}, down = {.n = BIG / 2};
	struct xs_notice n;
	struct xs_ended e;

	front_pair(tcp, s);
	token = add(&p, order, XS_FRONT, s[1]);
	up.fd = s[0];
	down.p = &p;
	CHECK(pthread_create(&a, NULL, write_all, &up) == 0);
	while (got < BIG) {
		ssize_t k = peer_read(&p, buf + got, BIG - got);

		CHECK(k > 0);
		got += (size_t)k;
	}
	expect(buf, got, 1);
	n = wait_notice(mover, token);
	CHECK(n.kind == XS_NOTICE_EOF && n.error == 0);
	CHECK(pthread_create(&b, NULL, write_all, &down) == 0);
	for (got = 0; got < down.n;) {
		ssize_t k = recv(s[0], buf + got, down.n - got, 0);

		CHECK(k > 0);
		got += (size_t)k;
	}
	expect(buf, got, 1);
	pthread_join(a, NULL);
	pthread_join(b, NULL);
	CHECK(xs_mover_live(mover) == 1);
	peer_fail(&p, -ENOTCONN, 0);
	CHECK(read_all(s[0], buf, BIG, &got) == 0 && got == 0);
	e = wait_ended(mover, token);
	CHECK(e.error == 0 && e.bytes[0] == down.n && e.bytes[1] == BIG);
	close(s[0]);
	peer_close(&p);
}

/* The backend says reset: the program gets the data before it, then a reset where its socket knows one. */
static void front_reset(bool tcp)
{
	struct peer p;
	int s[2];
	size_t got;
	uint64_t token;
	struct xs_ended e;

	front_pair(tcp, s);
	token = add(&p, 1, XS_FRONT, s[1]);
	CHECK(peer_write(&p, "last words", 10) == 0);
	peer_fail(&p, -ECONNRESET, -ECONNRESET);
	CHECK(read_all(s[0], buf, BIG, &got) == (tcp ? ECONNRESET : 0) && got == 10);
	CHECK(wait_notice(mover, token).kind == XS_NOTICE_RESET);
	e = wait_ended(mover, token);
	CHECK(e.error == ECONNRESET && e.side == 0);
	close(s[0]);
	peer_close(&p);
}

/* The program resets, or goes away with data unread: the owner is told, and the end waits until `out` was read. */
static void front_program_resets(bool tcp)
{
	struct peer p;
	int s[2];
	size_t got = 0;
	uint64_t token;
	struct xs_ended e;

	front_pair(tcp, s);
	token = add(&p, 1, XS_FRONT, s[1]);
	CHECK(send(s[0], "last words", 10, 0) == 10);
	if (tcp) {
		hard_close(s[0]);
	} else {
		struct pollfd w = {s[0], POLLIN, 0};

		CHECK(peer_write(&p, "unread", 6) == 0);
		CHECK(poll(&w, 1, 5000) == 1);
		close(s[0]);
	}
	CHECK(wait_notice(mover, token).kind == XS_NOTICE_RESET);
	CHECK(xs_mover_live(mover) == 1);
	while (got < 10)
		got += (size_t)peer_read(&p, buf + got, 10 - got);
	CHECK(memcmp(buf, "last words", 10) == 0);
	e = wait_ended(mover, token);
	CHECK(e.error == ECONNRESET && e.side == 1);
	peer_close(&p);
}

/* The program closes its end of a pair in order: everything it sent is read, then it is over, which its end alone tells. */
static void front_program_closes(void)
{
	struct peer p;
	int s[2];
	size_t got = 0;
	uint64_t token;

	front_pair(false, s);
	token = add(&p, 1, XS_FRONT, s[1]);
	CHECK(send(s[0], sent_bytes, 100000, 0) == 100000);
	close(s[0]);
	while (got < 100000)
		got += (size_t)peer_read(&p, buf + got, BIG - got);
	expect(buf, got, 1);
	CHECK(wait_ended(mover, token).error == 0);
	peer_close(&p);
}

/* Whether a program is there is known before what it left was read. TCP's half of an end may be a close. */
static void front_leaves(bool tcp)
{
	struct peer p;
	int s[2];
	uint64_t token;

	front_pair(tcp, s);
	token = add(&p, 1, XS_FRONT, s[1]);
	CHECK(xs_mover_leaving(mover, token) == XS_STAYS);
	CHECK(send(s[0], "x", 1, 0) == 1 && shutdown(s[0], SHUT_WR) == 0);
	CHECK(wait_notice(mover, token).kind == XS_NOTICE_EOF);
	CHECK(xs_mover_leaving(mover, token) == (tcp ? XS_HALF_LEFT : XS_STAYS));
	close(s[0]);
	CHECK(xs_mover_leaving(mover, token) == (tcp ? XS_HALF_LEFT : XS_LEFT));
	CHECK(peer_read(&p, buf, 1) == 1);
	peer_fail(&p, -ENOTCONN, 0);
	wait_ended(mover, token);
	CHECK(xs_mover_leaving(mover, token) == XS_LEFT);
	peer_close(&p);
}

/* out_error alone: a writer learns it, a reader reads on. */
static void front_out_error(void)
{
	struct peer p;
	int s[2];
	uint64_t token;

	front_pair(false, s);
	token = add(&p, 1, XS_FRONT, s[1]);
	peer_fail(&p, 0, -EPIPE);
	while (send(s[0], "x", 1, MSG_NOSIGNAL | MSG_DONTWAIT) == 1)
		usleep(1000);
	CHECK(errno == EPIPE);
	CHECK(peer_write(&p, "yes", 3) == 0);
	CHECK(recv(s[0], buf, 3, MSG_WAITALL) == 3);
	CHECK(xs_mover_release(mover, token, false, 0) == 0);
	peer_close(&p);
	CHECK(recv(s[0], buf, 3, 0) == 0);
	close(s[0]);
	wait_ended(mover, token);
}

/* A program that stopped reading (SHUT_RD) does not stop the connection. */
static void front_deaf(void)
{
	struct peer p;
	int s[2];
	uint64_t token;

	front_pair(false, s);
	token = add(&p, 1, XS_FRONT, s[1]);
	CHECK(shutdown(s[0], SHUT_RD) == 0);
	CHECK(peer_write(&p, sent_bytes, BIG) == 0);
	CHECK(send(s[0], "still", 5, 0) == 5);
	CHECK(peer_read(&p, buf, 5) == 5);
	CHECK(xs_mover_release(mover, token, false, 0) == 0);
	peer_close(&p);
	wait_ended(mover, token);
	close(s[0]);
}

/* Nothing is read by the far side: the ring fills, and the mover neither holds more nor spins. */
static void back_pressure(void)
{
	struct peer p;
	int s[2];
	size_t put = 0, got;
	uint64_t token, bytes[2], before = 1;
	struct xs_half *tx = &p.r.tx;

	tcp_pair(s);
	token = add(&p, 2, XS_BACK, s[1]);
	for (int idle = 0; idle < 50;) {
		uint32_t room = xs_room(tx);

		if (!room) {
			idle++;
			usleep(1000);
			continue;
		}
		idle = 0;
		for (uint32_t i = 0; i < room; i++) {
			char c = byte_at(1, put + i);

			xs_copy_in(tx, i, &c, 1);
		}
		put += room;
		if (xs_advance(tx, room))
			peer_notify(&p);
		CHECK(put < (size_t)64 << 20);
	}
	CHECK(xs_mover_bytes(mover, token, bytes));
	while (before != bytes[0]) {
		before = bytes[0];
		usleep(2000);
		CHECK(xs_mover_bytes(mover, token, bytes));
	}
	CHECK(put - bytes[0] == tx->size);
	CHECK(xs_mover_release(mover, token, false, 0) == 0);
	peer_close(&p);
	free(buf);
	buf = malloc((size_t)64 << 20);
	CHECK(buf && read_all(s[0], buf, (size_t)64 << 20, &got) == 0 && got == put);
	expect(buf, got, 1);
	CHECK(wait_ended(mover, token).bytes[0] == put);
	close(s[0]);
}

/* A frontend that lies about its indices hurts nobody else, and does not keep the thread. */
static void hostile(void)
{
	struct peer p, good;
	int s[2], t[2];
	uint64_t token, other;
	struct xs_indexes *x;

	tcp_pair(s);
	tcp_pair(t);
	token = add(&p, 1, XS_BACK, s[1]);
	other = add(&good, 1, XS_BACK, t[1]);
	x = p.page;
	for (uint32_t i = 0; i < 2000; i++) {
		xs_store_relaxed(&x->out_prod, i * 2654435761u);
		xs_store_relaxed(&x->in_cons, ~i * 40503u);
		xs_store_relaxed(&x->in_prod, i);
		xs_store_relaxed(&x->out_cons, 77 * i);
		xs_store_relaxed(&x->in_prod_event, i * 3);
		xs_store_relaxed(&x->out_cons_event, i * 5);
		xs_store_relaxed(&x->in_error, i);
		peer_notify(&p);
		(void)!recv(s[0], buf, 65536, MSG_DONTWAIT);
		(void)!send(s[0], buf, 100, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (i % 100 == 0) {
			CHECK(peer_write(&good, "x", 1) == 0);
			CHECK(recv(t[0], buf, 1, 0) == 1);
		}
	}
	CHECK(xs_mover_release(mover, token, true, 0) == 0);
	peer_close(&p);
	wait_ended(mover, token);
	CHECK(xs_mover_release(mover, other, false, 0) == 0);
	peer_close(&good);
	wait_ended(mover, other);
	close(s[0]);
	close(t[0]);
}

/* A backend whose error words are no errors ends that one connection; lies about indices do not hang it. */
static void hostile_backend(bool tcp)
{
	static const int32_t words[] = {1, INT32_MAX, INT32_MIN, -4096};

	for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
		struct peer p;
		int s[2];
		uint64_t token;
		struct xs_indexes *x;
		struct xs_ended e;

		front_pair(tcp, s);
		token = add(&p, 1, XS_FRONT, s[1]);
		x = p.page;
		for (uint32_t k = 0; k < 200; k++) {
			xs_store_relaxed(&x->in_prod, k * 2654435761u);
			xs_store_relaxed(&x->out_cons, k * 40503u);
			xs_store_relaxed(&x->in_prod_event, k);
			peer_notify(&p);
			(void)!recv(s[0], buf, 65536, MSG_DONTWAIT);
			(void)!send(s[0], buf, 100, MSG_DONTWAIT | MSG_NOSIGNAL);
		}
		xs_store_relaxed(&x->in_prod, xs_load_relaxed(&x->in_cons));
		xs_store_relaxed(&x->in_error, (uint32_t)words[i]);
		xs_store_relaxed(&x->out_error, (uint32_t)words[i]);
		do {
			peer_notify(&p);
			xs_store_relaxed(&x->in_prod, xs_load_relaxed(&x->in_cons));
			(void)!recv(s[0], buf, 65536, MSG_DONTWAIT);
		} while (xs_mover_live(mover));
		CHECK(wait_notice(mover, token).kind == XS_NOTICE_ERROR);
		e = wait_ended(mover, token);
		CHECK(e.error == EPROTO && e.side == 0);
		close(s[0]);
		peer_close(&p);
	}
}

/* What cannot be taken is refused, and the socket is closed. */
static void refused(void)
{
	struct peer p;
	struct xs_ring_end e;
	int s[2];

	peer_open(&p, 1, XS_FRONT, events);
	e = peer_end(&p);
	e.length = 12345;
	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, s) == 0);
	CHECK(xs_mover_add_ring(mover, s[1], &e, XS_BACK, true) == 0 && errno == EINVAL);
	CHECK(recv(s[0], buf, 1, 0) == 0);
	e = peer_end(&p);
	CHECK(xs_mover_add_ring(mover, -1, &e, XS_BACK, true) == 0 && errno == EINVAL);
	CHECK(xs_mover_shutdown(mover, 12345, SHUT_WR, 0) == ESRCH);
	close(s[0]);
	peer_close(&p);
}

/* RELEASE from another thread at any instant: the memory is unmapped right after it. */
static void release_at_any_time(void)
{
	for (int i = 0; i < 60; i++) {
		struct peer p;
		int s[2];
		uint64_t token;

		front_pair(i & 1, s);
		token = add(&p, 3, i & 2 ? XS_BACK : XS_FRONT, s[1]);
		(void)!send(s[0], sent_bytes, 100000, MSG_DONTWAIT | MSG_NOSIGNAL);
		CHECK(peer_write(&p, sent_bytes, 1000 * (size_t)(i % 7)) == 0);
		for (volatile int k = 0; k < i * 300; k++)
			;
		CHECK(xs_mover_release(mover, token, i & 4, 0) == 0);
		peer_close(&p);
		close(s[0]);
		wait_ended(mover, token);
		for (struct xs_notice n; xs_mover_notices(mover, &n, 1);)
			;
	}
}

int main(void)
{
	signal(SIGPIPE, SIG_IGN);
	sent_bytes = malloc(BIG);
	buf = malloc(BIG + 1);
	mover = xs_mover_new(2);
	CHECK(mover && sent_bytes && buf);
	fill(sent_bytes, BIG, 1);
	for (int i = 0; i < 2; i++) {
		events = i;
		back_both_ways(1);
		back_both_ways(7);
		back_release(false);
		back_release(true);
		back_reset();
		back_reset_while_full();
		back_write_after_close();
		back_shutdown_read();
		for (int tcp = 0; tcp < 2; tcp++) {
			front_both_ways(tcp, 1);
			front_both_ways(tcp, 6);
			front_reset(tcp);
			front_program_resets(tcp);
			front_leaves(tcp);
		}
		front_program_closes();
		front_out_error();
		front_deaf();
		hostile();
		hostile_backend(false);
		hostile_backend(true);
		back_pressure();
		refused();
		release_at_any_time();
	}
	CHECK(xs_mover_live(mover) == 0);
	xs_mover_free(mover, 0);
	free(sent_bytes);
	free(buf);
	return 0;
}
