/* libxensock against a scripted backend (scripted_backend.h): as v1 has it, and with all extensions. */
#include "xensock.h"

#include "scripted_backend.h"

#include <arpa/inet.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <time.h>

#define EXTENSIONS "data-events shutdown names options async-connect close"
static struct fake *back;
static struct xensock *x;
static bool extended;

static struct sockaddr_in at(int port)
{
	return (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(0xc0000201)};
}

static int try_connect(int s, int port)
{
	struct sockaddr_in a = at(port);

	return xensock_connect(s, (struct sockaddr *)&a, sizeof a);
}

static int connected(int port)
{
	int s = xensock_socket(x, AF_INET, SOCK_STREAM, 0);

	if (s < 0 || try_connect(s, port))
		fprintf(stderr, "port %d: %s, %s\n", port, strerror(errno), xensock_reason(x));
	CHECK(s >= 0 && xensock_getsockopt(s, SOL_SOCKET, SO_TYPE, &(int){0}, &(socklen_t){4}) == 0);
	return s;
}

static short polled(int s, short events, int timeout)
{
	struct pollfd p = {s, events, 0};

	CHECK(xensock_poll(&p, 1, timeout) == (p.revents != 0));
	return p.revents;
}

static void begin(const char *features, unsigned ring_order, unsigned flags)
{
	char url[128];

	back = fake_start(features, ring_order);
	snprintf(url, sizeof url, "local:%s", back->path);
	x = xensock_attach(url, "tester", flags);
	CHECK(x && !xensock_reason(x));
	extended = *features && !(flags & XENSOCK_V1);
	CHECK(xensock_feature(x, "close") == extended && !xensock_feature(x, "nothing"));
}

static void finish(void)
{
	xensock_detach(x);
	CHECK(back->closes == 0 || extended);
	fake_end(back);
}

/* ---- */

static void echo(void)
{
	static char out[3 << 20], in[sizeof out];
	size_t sent = 0, got = 0;
	int s = connected(7);
	char small[8];

	CHECK(xensock_send(s, "ping", 4, 0) == 4);
	CHECK(xensock_recv(s, small, sizeof small, MSG_PEEK) == 4);
	CHECK(xensock_recv(s, small, 4, MSG_WAITALL) == 4 && !memcmp(small, "ping", 4));
	CHECK(xensock_recv(s, small, 4, MSG_DONTWAIT) == -1 && errno == EAGAIN);
	CHECK(xensock_recv(s, small, 4, MSG_OOB) == -1 && errno == EOPNOTSUPP);
	for (size_t i = 0; i < sizeof out; i++)
		out[i] = (char)(i * 7 + i / 4093);
	/* More than both halves hold, so both directions wrap and wait. */
	while (got < sizeof in) {
		struct pollfd p = {s, (short)(POLLIN | (sent < sizeof out ? POLLOUT : 0)), 0};
		ssize_t n;

		CHECK(xensock_poll(&p, 1, 5000) == 1);
		if (p.revents & POLLOUT) {
			n = xensock_send(s, out + sent, sizeof out - sent, MSG_DONTWAIT);
			CHECK(n > 0);
			sent += (size_t)n;
		}
		if (p.revents & POLLIN) {
			n = xensock_recv(s, in + got, sizeof in - got, MSG_DONTWAIT);
			CHECK(n > 0);
			got += (size_t)n;
		}
	}
	CHECK(!memcmp(in, out, sizeof out));
	CHECK(xensock_sendv(s, (struct iovec[]){{"ab", 2}, {NULL, 0}, {"cde", 3}}, 3, 0) == 5);
	CHECK(xensock_recvv(s, (struct iovec[]){{in, 3}, {small, 2}}, 2, MSG_WAITALL) == 5);
	CHECK(!memcmp(in, "abc", 3) && !memcmp(small, "de", 2));
	CHECK(!xensock_close(s) && xensock_close(s) == -1 && errno == EBADF);
}

static void errors(void)
{
	struct sockaddr_in6 six = {.sin6_family = AF_INET6};
	int s = xensock_socket(x, AF_INET, SOCK_STREAM, 0);
	char b[8];

	CHECK(xensock_socket(x, AF_UNIX, SOCK_STREAM, 0) == -1 && errno == EAFNOSUPPORT);
	CHECK(xensock_socket(x, AF_INET, SOCK_DGRAM, 0) == -1 && errno == ESOCKTNOSUPPORT);
	CHECK(xensock_socket(x, AF_INET, SOCK_STREAM, 17) == -1 && errno == EPROTONOSUPPORT);
	CHECK(xensock_recv(s, b, 1, 0) == -1 && errno == ENOTCONN);
	CHECK(xensock_send(s, b, 1, 0) == -1 && errno == EPIPE);
	CHECK(xensock_shutdown(s, SHUT_RD) == -1 && errno == ENOTCONN);
	CHECK(xensock_connect(s, (struct sockaddr *)&six, sizeof six) == -1 && errno == EAFNOSUPPORT);
	CHECK(xensock_accept(s, NULL, NULL, 0) == -1 && errno == EINVAL);
	CHECK(polled(s, POLLIN | POLLOUT, 0) == (POLLOUT | POLLHUP));
	CHECK(try_connect(s, 9) == -1 && errno == ECONNREFUSED);
	CHECK(try_connect(s, 7) == 0); /* may be tried again */
	CHECK(try_connect(s, 7) == -1 && errno == EISCONN);
	CHECK(xensock_recv(1, b, 1, 0) == -1 && errno == EBADF);
	CHECK(!xensock_close(s));
}

static void ends(void)
{
	char b[16];
	int s = connected(13), code;
	socklen_t length = sizeof code;

	CHECK(xensock_recv(s, b, sizeof b, 0) == 5 && !memcmp(b, "hello", 5));
	CHECK(xensock_recv(s, b, sizeof b, 0) == 0 && xensock_recv(s, b, sizeof b, 0) == 0);
	CHECK(polled(s, POLLIN | POLLRDHUP | POLLOUT, 0) == (POLLIN | POLLRDHUP | POLLOUT));
	CHECK(!xensock_close(s));
	s = connected(14);
	while (polled(s, POLLOUT, 5000) != (POLLOUT | POLLERR | POLLHUP))
		;
	CHECK(xensock_recv(s, b, sizeof b, 0) == 3 && !memcmp(b, "bye", 3));
	CHECK(xensock_recv(s, b, sizeof b, 0) == -1 && errno == ECONNRESET); /* once, as the kernel */
	CHECK(xensock_recv(s, b, sizeof b, 0) == 0 && xensock_send(s, b, 1, 0) == -1 && errno == EPIPE);
	CHECK(!xensock_close(s));
	s = connected(14);
	CHECK(polled(s, POLLERR, 5000));
	CHECK(!xensock_getsockopt(s, SOL_SOCKET, SO_ERROR, &code, &length) && code == ECONNRESET);
	CHECK(!xensock_getsockopt(s, SOL_SOCKET, SO_ERROR, &code, &length) && code == 0);
	CHECK(!xensock_close(s));
}

static void later(void)
{
	int s = xensock_socket(x, AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), code = -1;
	socklen_t length = sizeof code;
	char b[8];

	CHECK(try_connect(s, 10) == -1 && errno == EINPROGRESS);
	CHECK(try_connect(s, 10) == -1 && errno == EALREADY);
	CHECK(xensock_send(s, "x", 1, 0) == -1 && errno == EAGAIN);
	CHECK(polled(s, POLLIN | POLLOUT, 20) == 0);
	told(back, 'c');
	CHECK(polled(s, POLLIN | POLLOUT, 5000) == POLLOUT);
	CHECK(!xensock_getsockopt(s, SOL_SOCKET, SO_ERROR, &code, &length) && code == 0);
	CHECK(try_connect(s, 10) == -1 && errno == EISCONN);
	CHECK(!xensock_close(s));
	s = xensock_socket(x, AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	CHECK(try_connect(s, 9) == -1 && errno == EINPROGRESS);
	CHECK(polled(s, POLLIN | POLLOUT, 5000) == (POLLIN | POLLOUT | POLLERR | POLLHUP));
	CHECK(!xensock_getsockopt(s, SOL_SOCKET, SO_ERROR, &code, &length) && code == ECONNREFUSED);
	CHECK(try_connect(s, 7) == -1 && errno == EINPROGRESS);
	CHECK(polled(s, POLLOUT, 5000) == POLLOUT && xensock_set_nonblocking(s, 0) == 1);
	CHECK(xensock_send(s, "x", 1, 0) == 1 && xensock_recv(s, b, sizeof b, 0) == 1);
	CHECK(!xensock_close(s));
	/* Closed before it is connected. */
	s = xensock_socket(x, AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	CHECK(try_connect(s, 10) == -1 && errno == EINPROGRESS && !xensock_close(s));
	told(back, 'c');
}

static void full(void)
{
	static char data[4 << 20];
	struct timeval brief = {0, 30000};
	int s = connected(15), size = 0;
	socklen_t length = sizeof size;
	ssize_t n, more;

	CHECK(!xensock_getsockopt(s, SOL_SOCKET, SO_SNDBUF, &size, &length) && size == 1 << 20);
	n = xensock_send(s, data, sizeof data, MSG_DONTWAIT);
	CHECK(n == size); /* the backend reads nothing */
	CHECK(xensock_send(s, data, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN);
	CHECK(polled(s, POLLOUT, 0) == 0);
	CHECK(!xensock_setsockopt(s, SOL_SOCKET, SO_SNDTIMEO, &brief, sizeof brief));
	CHECK(xensock_send(s, data, 1, 0) == -1 && errno == EAGAIN);
	brief.tv_usec = 0;
	CHECK(!xensock_setsockopt(s, SOL_SOCKET, SO_SNDTIMEO, &brief, sizeof brief));
	told(back, 'r');
	CHECK(polled(s, POLLOUT, 5000) == POLLOUT);
	more = xensock_send(s, data, sizeof data, 0);
	CHECK(more == sizeof data);
	CHECK(!xensock_close(s)); /* v1: waits until all was read; the backend checks */
	back->reading = false;
	s = xensock_socket(x, AF_INET, SOCK_STREAM, 0);
	size = 5000;
	CHECK(!xensock_setsockopt(s, SOL_SOCKET, SO_SNDBUF, &size, sizeof size) && !try_connect(s, 15));
	CHECK(xensock_send(s, data, sizeof data, MSG_DONTWAIT) == 8192);
	told(back, 'r');
	CHECK(!xensock_close(s));
}

static void names(void)
{
	struct sockaddr_in a = at(0);
	socklen_t length = sizeof a;
	struct linger l = {1, 0};
	int one = 1, s = xensock_socket(x, AF_INET, SOCK_STREAM, 0);

	CHECK(!xensock_getsockname(s, (struct sockaddr *)&a, &length) && a.sin_family == AF_INET && !a.sin_port);
	a = at(0xff00);
	CHECK(xensock_bind(s, (struct sockaddr *)&a, sizeof a) == -1 && errno == EADDRINUSE);
	a = at(0);
	CHECK(!xensock_bind(s, (struct sockaddr *)&a, sizeof a));
	CHECK(xensock_bind(s, (struct sockaddr *)&a, sizeof a) == -1 && errno == EINVAL);
	if (extended)
		CHECK(!xensock_getsockname(s, (struct sockaddr *)&a, &length) && a.sin_port == htons(0x3000));
	else
		CHECK(xensock_getsockname(s, (struct sockaddr *)&a, &length) == -1 && errno == EOPNOTSUPP);
	CHECK(xensock_getpeername(s, (struct sockaddr *)&a, &length) == -1 && errno == ENOTCONN);
	CHECK(!try_connect(s, 7));
	CHECK(!xensock_getpeername(s, (struct sockaddr *)&a, &length) && a.sin_port == htons(7));
	if (extended) {
		CHECK(!xensock_setsockopt(s, IPPROTO_TCP, 1, &one, sizeof one));
		one = 0;
		CHECK(!xensock_getsockopt(s, IPPROTO_TCP, 1, &one, &length) && one == 1 && length == sizeof one);
		CHECK(xensock_setsockopt(s, SOL_SOCKET, SO_MARK, &one, sizeof one) == -1 && errno == ENOPROTOOPT);
		CHECK(!xensock_setsockopt(s, SOL_SOCKET, SO_LINGER, &l, sizeof l));
	} else {
		CHECK(xensock_setsockopt(s, IPPROTO_TCP, 1, &one, sizeof one) == -1 && errno == ENOPROTOOPT);
	}
	CHECK(!xensock_close(s));
}

static void halves(void)
{
	int s = connected(7);
	char b[8];

	if (!extended) {
		CHECK(xensock_shutdown(s, SHUT_WR) == -1 && errno == EOPNOTSUPP);
	} else {
		CHECK(xensock_send(s, "last", 4, 0) == 4 && !xensock_shutdown(s, SHUT_WR));
		CHECK(xensock_send(s, "x", 1, 0) == -1 && errno == EPIPE);
		CHECK(xensock_recv(s, b, 4, MSG_WAITALL) == 4 && !memcmp(b, "last", 4));
		CHECK(xensock_recv(s, b, 4, 0) == 0);
		CHECK(polled(s, POLLIN | POLLRDHUP, 0) == (POLLIN | POLLRDHUP | POLLHUP));
	}
	CHECK(!xensock_shutdown(s, SHUT_RD) && xensock_recv(s, b, 1, 0) == 0);
	CHECK(!xensock_close(s));
}

static void *delayed_accept(void *arg)
{
	(void)arg;
	usleep(20000);
	told(back, 'a');
	return NULL;
}

static int listening(void)
{
	struct sockaddr_in a = at(0);
	int s = xensock_socket(x, AF_INET, SOCK_STREAM, 0);

	CHECK(s >= 0 && !xensock_bind(s, (struct sockaddr *)&a, sizeof a) && !xensock_listen(s, 5));
	return s;
}

static void listeners(void)
{
	int s = listening(), c, pipes[2], on = 0, many[40], ready;
	struct sockaddr_in a;
	struct pollfd p[40];
	socklen_t length = sizeof a;
	pthread_t thread;
	char b[8];

	CHECK(!xensock_getsockopt(s, SOL_SOCKET, SO_ACCEPTCONN, &on, &length) && on == 1);
	CHECK(!pthread_create(&thread, NULL, delayed_accept, NULL));
	length = sizeof a;
	c = xensock_accept(s, (struct sockaddr *)&a, &length, 0);
	CHECK(c >= 0 && !pthread_join(thread, NULL));
	CHECK(length == (extended ? sizeof a : 0) && (!extended || a.sin_addr.s_addr == htonl(0xc0000209)));
	CHECK(xensock_send(c, "hi", 2, 0) == 2 && xensock_recv(c, b, 2, MSG_WAITALL) == 2);
	CHECK(!xensock_close(c));
	/* Without waiting: asks once, and collects later. */
	xensock_set_nonblocking(s, 1);
	CHECK(xensock_accept(s, NULL, NULL, 0) == -1 && errno == EAGAIN);
	told(back, 'a');
	CHECK(polled(s, POLLIN, 5000) == POLLIN);
	c = xensock_accept(s, NULL, NULL, SOCK_NONBLOCK);
	CHECK(c >= 0 && xensock_recv(c, b, 1, 0) == -1 && errno == EAGAIN && !xensock_close(c));
	/* Ours and an ordinary descriptor in one poll. */
	CHECK(!pipe2(pipes, O_CLOEXEC));
	p[0] = (struct pollfd){s, POLLIN, 0};
	p[1] = (struct pollfd){pipes[0], POLLIN, 0};
	CHECK(xensock_poll(p, 2, 0) == 0 && write(pipes[1], "x", 1) == 1);
	CHECK(xensock_poll(p, 2, 5000) == 1 && !p[0].revents && p[1].revents == POLLIN);
	told(back, 'a');
	while ((ready = xensock_poll(p, 2, 5000)) == 1)
		;
	CHECK(ready == 2 && p[0].revents == POLLIN);
	close(pipes[0]);
	close(pipes[1]);
	CHECK(!xensock_close(s)); /* the connection nobody took goes, too */
	/* More listeners than calls that may be parked: the backend checks the limit. */
	for (int i = 0; i < 40; i++) {
		many[i] = listening();
		p[i] = (struct pollfd){many[i], POLLIN, 0};
	}
	CHECK(xensock_poll(p, 40, 0) == 0);
	c = connected(7); /* other calls are not kept waiting */
	CHECK(!xensock_close(c));
	for (int i = 0; i < 30; i++) {
		told(back, 'a');
		CHECK(xensock_poll(p, 40, 5000) >= 1);
		for (int k = 0; k < 40; k++)
			if (p[k].revents && p[k].fd >= 0) {
				c = xensock_accept(p[k].fd, NULL, NULL, 0);
				CHECK(c >= 0 && !xensock_close(c) && !xensock_close(p[k].fd));
				p[k].fd = -1;
				break;
			}
	}
	CHECK(back->most >= 20); /* at most 24: the backend checks */
	for (int i = 0; i < 40; i++)
		CHECK(p[i].fd < 0 || !xensock_close(p[i].fd));
}

/* ---- threads ---- */

struct both {
	int s;
	uint64_t sum[2];
};
#define BULK (5000u * 1200)

static void *writes(void *arg)
{
	struct both *w = arg;
	char data[5000];

	for (size_t i = 0; i < sizeof data; i++)
		data[i] = (char)i;
	for (size_t n = 0; n < BULK; n += sizeof data) {
		CHECK(xensock_send(w->s, data, sizeof data, 0) == sizeof data);
		for (size_t i = 0; i < sizeof data; i++)
			w->sum[0] += (unsigned char)data[i];
	}
	return NULL;
}

static void threads(void)
{
	struct both w[3] = {0};
	pthread_t t[3];

	for (int i = 0; i < 3; i++) {
		w[i].s = connected(7);
		CHECK(!pthread_create(&t[i], NULL, writes, &w[i]));
	}
	for (int i = 0; i < 3; i++)
		for (size_t n = 0; n < BULK;) {
			unsigned char data[7000];
			ssize_t got = xensock_recv(w[i].s, data, sizeof data, 0);

			CHECK(got > 0);
			n += (size_t)got;
			for (ssize_t k = 0; k < got; k++)
				w[i].sum[1] += data[k];
		}
	for (int i = 0; i < 3; i++) {
		CHECK(!pthread_join(t[i], NULL) && w[i].sum[0] == w[i].sum[1]);
		CHECK(!xensock_close(w[i].s));
	}
}

static void *blocked(void *arg)
{
	char b;

	CHECK(xensock_recv(*(int *)arg, &b, 1, 0) == -1 && errno == EBADF);
	return NULL;
}

static void closing_wakes(void)
{
	int s = connected(7);
	pthread_t t;

	CHECK(!pthread_create(&t, NULL, blocked, &s));
	usleep(20000);
	CHECK(!xensock_close(s) && !pthread_join(t, NULL));
}

static void nothing(int number)
{
	(void)number;
}

static void interrupted(void)
{
	struct itimerval soon = {.it_value = {0, 20000}}, never = {0};
	struct sigaction act = {.sa_handler = nothing};
	int s = connected(7), l = listening();
	char b;

	CHECK(!sigaction(SIGALRM, &act, NULL));
	CHECK(!setitimer(ITIMER_REAL, &soon, NULL));
	CHECK(xensock_recv(s, &b, 1, 0) == -1 && errno == EINTR);
	CHECK(!setitimer(ITIMER_REAL, &soon, NULL));
	CHECK(xensock_accept(l, NULL, NULL, 0) == -1 && errno == EINTR);
	CHECK(!setitimer(ITIMER_REAL, &never, NULL));
	CHECK(!xensock_close(s) && !xensock_close(l));
}

static void own_loop(void)
{
	struct epoll_event e = {EPOLLIN, {0}};
	int s = connected(7), ep = epoll_create1(EPOLL_CLOEXEC);
	char b[4];

	CHECK(!epoll_ctl(ep, EPOLL_CTL_ADD, s, &e));
	CHECK(xensock_arm(s, POLLOUT) == POLLOUT && xensock_arm(s, POLLIN) == 0);
	while (epoll_wait(ep, &e, 1, 20) == 1)
		CHECK(xensock_arm(s, POLLIN) == 0);
	CHECK(xensock_send(s, "abc", 3, 0) == 3);
	while (xensock_arm(s, POLLIN) == 0)
		CHECK(epoll_wait(ep, &e, 1, 5000) == 1);
	CHECK(xensock_recv(s, b, 3, MSG_WAITALL) == 3);
	close(ep);
	CHECK(!xensock_close(s));
}

static void many(void)
{
	/* Rings, events and ids go round; nothing is left behind. */
	for (int i = 0; i < 300; i++) {
		int s = connected(i % 2 ? 7 : 13);

		CHECK(!xensock_close(s));
	}
	CHECK(back->sockets <= 1);
}

enum { CROWD = 150 }; /* more than the largest ring has slots */

static void crowd(int s[CROWD])
{
	for (int i = 0; i < CROWD; i++)
		s[i] = connected(7);
	back->released = 0;
}

/* Who closes much and does nothing else is not the last to know of it. */
static void closed_and_left_alone(void)
{
	int s[CROWD];

	crowd(s);
	for (int i = 0; i < CROWD; i++)
		CHECK(!xensock_close(s[i]));
	for (int i = 0; back->released < CROWD; i++) {
		CHECK(i < 5000);
		usleep(1000);
	}
}

static void *another(void *arg)
{
	int s = xensock_socket(x, AF_INET, SOCK_STREAM, 0);

	(void)arg;
	CHECK(s >= 0 && !xensock_close(s));
	return NULL;
}

/* A socket that is made after others were closed comes after them, also at a backend that had no ear for them. */
static void closed_before_others_are_made(void)
{
	pthread_t t[4];
	int s[CROWD];

	crowd(s);
	told(back, 'm');
	while (!back->mute)
		usleep(100);
	for (int i = 0; i < CROWD; i++)
		CHECK(!xensock_close(s[i])); /* once it waits for the backend in vain, then no more */
	CHECK(back->released == 0);
	back->expected = CROWD;
	for (int i = 0; i < 4; i++)
		CHECK(!pthread_create(&t[i], NULL, another, NULL));
	told(back, 'l');
	for (int i = 0; i < 4; i++)
		CHECK(!pthread_join(t[i], NULL));
	back->expected = 0;
}

static void all(void)
{
	echo();
	errors();
	ends();
	later();
	full();
	names();
	halves();
	listeners();
	threads();
	closing_wakes();
	interrupted();
	own_loop();
	many();
	closed_and_left_alone();
	closed_before_others_are_made();
}

/* ---- the end of an attachment ---- */

static void *waits(void *arg)
{
	char b;

	CHECK(xensock_recv(*(int *)arg, &b, 1, 0) == -1 && errno == ECONNRESET);
	return NULL;
}

static void lost(char how, const char *why)
{
	pthread_t t;
	int s, l, n;
	char b;

	begin(EXTENSIONS, 0, 0);
	s = connected(7);
	l = listening();
	n = xensock_socket(x, AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	CHECK(try_connect(n, 10) == -1);
	CHECK(!pthread_create(&t, NULL, waits, &s));
	usleep(10000);
	told(back, how);
	for (struct pollfd p = {xensock_fileno(x), POLLIN, 0}; how == 'b' && !xensock_reason(x);) {
		CHECK(poll(&p, 1, 5000) == 1);
		xensock_dispatch(x);
	}
	CHECK(!pthread_join(t, NULL));
	CHECK(xensock_reason(x) && strstr(xensock_reason(x), why));
	CHECK(polled(s, POLLIN, 0) == (POLLIN | POLLERR | POLLHUP) && polled(l, POLLIN, 0) == POLLIN);
	CHECK(xensock_send(s, &b, 1, 0) == -1 && errno == ECONNRESET);
	CHECK(xensock_accept(l, NULL, NULL, 0) == -1 && errno == ENETDOWN);
	CHECK(polled(n, POLLOUT, 5000) & POLLERR && try_connect(n, 7) == -1 && errno == ENETDOWN);
	CHECK(xensock_socket(x, AF_INET, SOCK_STREAM, 0) == -1 && errno == ENETDOWN);
	CHECK(!xensock_close(n));
	xensock_detach(x);
	fake_end(back);
}

static void refused(void)
{
	char url[128];

	back = fake_start("", 0);
	back->refuses = true;
	snprintf(url, sizeof url, "local:%s", back->path);
	CHECK(!xensock_attach(url, NULL, 0) && errno == EACCES && strstr(xensock_reason(NULL), "nobody"));
	fake_end(back);
	CHECK(!xensock_attach("local:/nonexistent/socket", NULL, 0) && !xensock_reason(NULL));
}

int main(void)
{
	CHECK(!xensock_attach("tcp:nowhere", NULL, 0) && errno == EINVAL);
	CHECK(!xensock_attach("local:/nonexistent/socket", NULL, 0) && errno == ENOENT);
	begin("", 0, 0);
	all();
	finish();
	begin(EXTENSIONS, 0, XENSOCK_V1); /* v1 is asked for: the backend is not told of more */
	back->features = "";
	halves();
	finish();
	begin(EXTENSIONS, 0, 0);
	all();
	finish();
	begin(EXTENSIONS, 2, 0);
	listeners();
	many();
	closed_and_left_alone();
	closed_before_others_are_made();
	finish();
	refused();
	lost('d', "closed");
	lost('g', "enough");
	lost('b', "protocol");
	return 0;
}
