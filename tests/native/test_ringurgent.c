/* Urgent bytes between rings and sockets, and between rings: they keep their place, and are marked. */
#include "ringpeer.h"
#include "sockets.h"
#include "urgent.h"

#include <sys/ioctl.h>

static struct xs_mover *mover;
static char buf[1 << 20];

/* The test's side of the words. */
struct marks {
	struct xs_urgent in, out;
};

static struct marks marks_of(struct peer *p)
{
	struct marks m;

	xs_urgent_init(&m.in, p->page, p->r.role, false);
	xs_urgent_init(&m.out, p->page, p->r.role, true);
	return m;
}

static void open_peer(struct peer *p, unsigned order, enum xs_role role, bool urgent)
{
	peer_open(p, order, role, true);
	p->urgent = urgent;
}

/* Writes text whose last byte is urgent. */
static void write_urgent(struct peer *p, struct marks *m, const char *text)
{
	xs_urgent_announce(&m->out, &p->r.tx, (uint32_t)strlen(text) - 1);
	CHECK(peer_write(p, text, strlen(text)) == 0);
}

/* Reads up to the urgent byte, and that. */
static void read_urgent(struct peer *p, struct marks *m, const char *before, char byte)
{
	size_t n = strlen(before);
	uint32_t ahead;
	char c;

	/* What is readable is asked for first (urgent.h). */
	while (xs_readable(&p->r.rx) < n + 1)
		if (!xs_rx_arm(&p->r.rx) || xs_readable(&p->r.rx) < n + 1)
			usleep(1000);
	ahead = xs_urgent_ahead(&m->in, &p->r.rx);
	CHECK(ahead == n);
	for (size_t i = 0; i < n; i++)
		CHECK(peer_read(p, &c, 1) == 1 && c == before[i]);
	CHECK(xs_urgent_ahead(&m->in, &p->r.rx) == 0);
	CHECK(peer_read(p, &c, 1) == 1 && c == byte);
	CHECK(xs_urgent_ahead(&m->in, &p->r.rx) == XS_NO_MARK);
}

static void pair(bool tcp, int s[2])
{
	if (tcp)
		tcp_pair(s);
	else
		CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, s) == 0);
}

/* What a program at the socket sees. */
static void expect_urgent(int fd, const char *before, char byte)
{
	struct pollfd p = {fd, POLLPRI, 0};
	size_t n = strlen(before);
	int mark = 0;
	char c;

	CHECK(poll(&p, 1, 5000) == 1 && p.revents & POLLPRI);
	CHECK(recv(fd, buf, sizeof buf, 0) == (ssize_t)n && !memcmp(buf, before, n));
	CHECK(ioctl(fd, SIOCATMARK, &mark) == 0 && mark);
	CHECK(recv(fd, &c, 1, MSG_OOB) == 1 && c == byte);
}

static void both_ways(enum xs_role role, bool tcp)
{
	struct peer p;
	struct marks m;
	int s[2];
	uint64_t token;
	struct xs_ring_end e;

	pair(tcp, s);
	open_peer(&p, 1, role == XS_BACK ? XS_FRONT : XS_BACK, true);
	m = marks_of(&p);
	e = peer_end(&p);
	token = xs_mover_add_ring(mover, s[1], &e, role, true);
	CHECK(token);
	for (int i = 0; i < 200; i++) { /* rings wrap */
		char text[64];
		int n = snprintf(text, sizeof text, "%d bytes before!", i);

		write_urgent(&p, &m, text);
		text[n - 1] = 0;
		expect_urgent(s[0], text, '!');
		CHECK(peer_write(&p, "cd", 2) == 0);
		CHECK(recv(s[0], buf, 2, MSG_WAITALL) == 2 && !memcmp(buf, "cd", 2));

		CHECK(send(s[0], text, (size_t)n - 1, 0) == n - 1);
		CHECK(send(s[0], "?", 1, MSG_OOB) == 1);
		read_urgent(&p, &m, text, '?');
		CHECK(send(s[0], "ef", 2, 0) == 2);
		for (size_t got = 0; got < 2;)
			got += (size_t)peer_read(&p, buf + got, 2 - got);
		CHECK(!memcmp(buf, "ef", 2));
	}
	CHECK(xs_mover_release(mover, token, false, 0) == 0);
	close(s[0]); /* not before: a program that has gone may have ended the connection */
	peer_close(&p);
	wait_ended(mover, token);
}

/* The mark is kept though the ring is gone and its peer slow. */
static void released(void)
{
	struct peer p;
	struct marks m;
	int s[2], small = 20000;
	size_t before = 300000, got = 0;
	uint64_t token;
	struct xs_ring_end e;
	int mark = 0;
	char c;

	tcp_pair(s);
	CHECK(setsockopt(s[1], SOL_SOCKET, SO_SNDBUF, &small, sizeof small) == 0);
	CHECK(setsockopt(s[0], SOL_SOCKET, SO_RCVBUF, &small, sizeof small) == 0);
	open_peer(&p, 8, XS_FRONT, true);
	m = marks_of(&p);
	e = peer_end(&p);
	token = xs_mover_add_ring(mover, s[1], &e, XS_BACK, true);
	CHECK(token);
	memset(buf, '.', before);
	CHECK(peer_write(&p, buf, before) == 0);
	write_urgent(&p, &m, "!");
	CHECK(peer_write(&p, "cd", 2) == 0);
	CHECK(xs_mover_release(mover, token, false, 0) == 0);
	memset(p.data, 'x', p.length);
	peer_close(&p);
	while (got < before) {
		ssize_t n = recv(s[0], buf, sizeof buf, 0);

		CHECK(n > 0);
		got += (size_t)n;
	}
	CHECK(got == before);
	while (recv(s[0], &c, 1, MSG_OOB) != 1)
		CHECK(errno == EINVAL || errno == EAGAIN);
	CHECK(c == '!' && ioctl(s[0], SIOCATMARK, &mark) == 0 && mark);
	CHECK(recv(s[0], buf, 3, MSG_WAITALL) == 2 && !memcmp(buf, "cd", 2));
	wait_ended(mover, token);
	close(s[0]);
}

/* Two guests; one that does not know urgent data is not given the byte. */
static void joined(bool known, bool first_goes)
{
	struct peer a, b;
	struct marks m, n;
	struct xs_ring_end e[2];
	uint64_t token;
	size_t got;

	open_peer(&a, 1, XS_FRONT, true);
	open_peer(&b, 1, XS_FRONT, known);
	m = marks_of(&a);
	n = marks_of(&b);
	e[0] = peer_end(&a);
	e[1] = peer_end(&b);
	token = xs_mover_join(mover, &e[0], NULL, true);
	CHECK(token);
	write_urgent(&a, &m, "ab!");
	CHECK(peer_write(&a, "cd", 2) == 0);
	if (first_goes)
		CHECK(xs_mover_release(mover, token, false, 0) == 0);
	CHECK(xs_mover_join_other(mover, token, &e[1]) == 0);
	if (known)
		read_urgent(&b, &n, "ab", '!');
	if (!first_goes)
		CHECK(xs_mover_release(mover, token, false, 0) == 0);
	CHECK(peer_read_all(&b, buf, sizeof buf, &got) == 0);
	CHECK(known ? got == 2 && !memcmp(buf, "cd", 2) : got == 4 && !memcmp(buf, "abcd", 4));
	CHECK(xs_mover_release(mover, token, false, 1) == 0);
	wait_ended(mover, token);
	peer_close(&a);
	peer_close(&b);
}

/* Words that cannot be true change nothing but which byte is urgent. */
static void lies(void)
{
	struct peer p;
	int s[2];
	size_t got = 0;
	uint64_t token;
	struct xs_ring_end e;
	struct xs_indexes *page;

	tcp_pair(s);
	open_peer(&p, 1, XS_FRONT, true);
	page = p.page;
	e = peer_end(&p);
	token = xs_mover_add_ring(mover, s[1], &e, XS_BACK, true);
	CHECK(token);
	for (uint32_t i = 1; i <= 1000; i++) {
		xs_store_relaxed(&page->out_urgent, i * 0x9e3779b9u);
		xs_store_release(&page->out_urgent_count, i);
		CHECK(peer_write(&p, "x", 1) == 0);
	}
	xs_store_relaxed(&page->out_urgent, 5); /* long behind */
	xs_store_release(&page->out_urgent_count, 1001);
	CHECK(peer_write(&p, ".", 1) == 0);
	CHECK(xs_mover_shutdown(mover, token, SHUT_WR, 0) == 0);
	CHECK(setsockopt(s[0], SOL_SOCKET, SO_OOBINLINE, &(int){1}, sizeof(int)) == 0);
	CHECK(read_all(s[0], buf, sizeof buf, &got) == 0 && got == 1001 && buf[1000] == '.');
	CHECK(xs_mover_release(mover, token, false, 0) == 0);
	peer_close(&p);
	wait_ended(mover, token);
	close(s[0]);
}

int main(void)
{
	mover = xs_mover_new(2);
	CHECK(mover);
	for (int tcp = 0; tcp < 2; tcp++)
		both_ways(XS_FRONT, tcp);
	both_ways(XS_BACK, true);
	released();
	for (int i = 0; i < 4; i++)
		joined(i & 1, i & 2);
	lies();
	xs_mover_free(mover, 0);
	return 0;
}
