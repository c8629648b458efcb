/* Both ends of what `xensock bench ring` measures: over the kernel's sockets, or with --url over libxensock.
 *
 *   xensock-ringload [--url URL [--ring BYTES]] serve ADDRESS                    says "ready PORT", serves until killed
 *   xensock-ringload [--url URL] send ADDRESS PORT SECONDS SIZE STREAMS   prints bytes per second that arrived
 *   xensock-ringload [--url URL] rtt ADDRESS PORT TRIPS SIZE      prints microseconds of a round trip, median of ten parts
 *   xensock-ringload [--url URL] connect ADDRESS PORT SECONDS     prints connections per second
 *   xensock-ringload [--url URL] hold ADDRESS PORT COUNT          says "ready"; opens COUNT at a line of input, says "held"
 *
 * A connection begins with one byte: 's' all that comes is thrown away and at the end of the stream answered with how
 * many bytes came, and when the first and the end (ns of CLOCK_MONOTONIC: one host); 'e' everything is sent back; 'h' nothing is done until the other end closes.
 */
#include "xensock.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define SINK (256u << 10) /* bytes of one read */
#define PARTS 10
#define WARM 50

static struct xensock *x;
static const char *url;
static int ring; /* bytes each way */

static void fail(const char *what)
{
	fprintf(stderr, "xensock-ringload: %s: %s\n", what, xensock_reason(x) ? xensock_reason(x) : strerror(errno));
	exit(1);
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* ---- one program over two kinds of socket ---- */

static ssize_t put(int s, const void *data, size_t size)
{
	return x ? xensock_send(s, data, size, 0) : send(s, data, size, MSG_NOSIGNAL);
}

static ssize_t get(int s, void *data, size_t size)
{
	return x ? xensock_recv(s, data, size, 0) : recv(s, data, size, 0);
}

static void get_all(int s, void *data, size_t size)
{
	size_t got = 0;

	while (got < size) {
		ssize_t n = get(s, (char *)data + got, size - got);

		if (n <= 0)
			fail(n ? "recv" : "the connection ended");
		got += (size_t)n;
	}
}

static int new_socket(void)
{
	int s = x ? xensock_socket(x, AF_INET, SOCK_STREAM, 0) : socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (s < 0)
		fail("socket");
	if (x && ring && xensock_setsockopt(s, SOL_SOCKET, SO_SNDBUF, &ring, sizeof ring))
		fail("--ring");
	return s;
}

/* Refused by an option that a backend lacks: the figures tell. */
static void set(int s, int level, int option, const void *value, socklen_t length)
{
	if (x)
		xensock_setsockopt(s, level, option, value, length);
	else
		setsockopt(s, level, option, value, length);
}

static void end(int s)
{
	if (x)
		xensock_close(s);
	else
		close(s);
}

static struct sockaddr_in address(const char *host, const char *port)
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};

	if (inet_pton(AF_INET, host, &a.sin_addr) != 1)
		fail(host);
	return a;
}

static int opened(struct sockaddr_in a, char kind)
{
	int s = new_socket(), one = 1;

	if (x ? xensock_connect(s, (struct sockaddr *)&a, sizeof a) : connect(s, (struct sockaddr *)&a, sizeof a))
		fail("connect");
	set(s, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	if (put(s, &kind, 1) != 1)
		fail("send");
	return s;
}

/* ---- serve ---- */

static void sink(int s)
{
	char *data = malloc(SINK);
	uint64_t told[3] = {0};
	ssize_t n;

	while (data && (n = get(s, data, SINK)) > 0) {
		if (!told[0])
			told[1] = (uint64_t)(now() * 1e9);
		told[0] += (uint64_t)n;
	}
	told[2] = (uint64_t)(now() * 1e9);
	put(s, told, sizeof told);
	free(data);
}

static void *serve_one(void *arg)
{
	int s = (int)(intptr_t)arg, one = 1;
	char kind = 0, data[65536];
	ssize_t n;

	set(s, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	if (get(s, &kind, 1) == 1) {
		if (kind == 's')
			sink(s);
		while (kind != 's' && (n = get(s, data, sizeof data)) > 0)
			if (kind == 'e' && put(s, data, (size_t)n) != n)
				break;
	}
	end(s);
	return NULL;
}

static void serve(const char *host)
{
	struct sockaddr_in a = address(host, "0");
	socklen_t length = sizeof a;
	int s = new_socket(), c;
	pthread_attr_t small;

	if (x ? xensock_bind(s, (struct sockaddr *)&a, sizeof a) : bind(s, (struct sockaddr *)&a, sizeof a))
		fail("bind");
	if (x ? xensock_listen(s, 4096) : listen(s, 4096))
		fail("listen");
	if (x ? xensock_getsockname(s, (struct sockaddr *)&a, &length) : getsockname(s, (struct sockaddr *)&a, &length))
		fail("getsockname");
	printf("ready %d\n", ntohs(a.sin_port));
	fflush(stdout);
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 256 << 10);
	pthread_attr_setdetachstate(&small, PTHREAD_CREATE_DETACHED);
	while ((c = x ? xensock_accept(s, NULL, NULL, 0) : accept(s, NULL, NULL)) >= 0 || errno == ECONNABORTED) {
		pthread_t t;

		if (c >= 0 && pthread_create(&t, &small, serve_one, (void *)(intptr_t)c))
			fail("pthread_create");
	}
	fail("accept");
}

/* ---- send ---- */

struct stream {
	struct sockaddr_in a;
	size_t size;
	double seconds;
	uint64_t told[3];
};

static void *stream(void *arg)
{
	struct stream *st = arg;
	int s = opened(st->a, 's');
	char *data = malloc(st->size);
	double until = now() + st->seconds;

	if (!data)
		fail("malloc");
	memset(data, 'x', st->size);
	/* The clock is looked at seldom: small writes are what is measured. */
	do
		for (size_t sent = 0; sent < 4 << 20; sent += st->size)
			if (put(s, data, st->size) != (ssize_t)st->size)
				fail("send");
	while (now() < until);
	if (x ? xensock_shutdown(s, SHUT_WR) : shutdown(s, SHUT_WR))
		fail("shutdown");
	get_all(s, st->told, sizeof st->told);
	end(s);
	free(data);
	return NULL;
}

static void send_streams(struct sockaddr_in a, double seconds, size_t size, int count)
{
	struct stream *st = calloc((size_t)count, sizeof *st);
	pthread_t *t = calloc((size_t)count, sizeof *t);
	uint64_t bytes = 0, first = UINT64_MAX, last = 0;

	for (int i = 0; i < count; i++) {
		st[i] = (struct stream){a, size, seconds, {0}};
		if (pthread_create(&t[i], NULL, stream, &st[i]))
			fail("pthread_create");
	}
	for (int i = 0; i < count; i++) {
		pthread_join(t[i], NULL);
		bytes += st[i].told[0];
		first = st[i].told[1] < first ? st[i].told[1] : first;
		last = st[i].told[2] > last ? st[i].told[2] : last;
	}
	printf("%.0f\n", (double)bytes * 1e9 / (double)(last - first));
	free(st);
	free(t);
}

/* ---- the others ---- */

static double trips(int s, char *data, size_t size, int count)
{
	double start = now();

	for (int i = 0; i < count; i++) {
		if (put(s, data, size) != (ssize_t)size)
			fail("send");
		get_all(s, data, size);
	}
	return (now() - start) / count * 1e6;
}

static int compare(const void *a, const void *b)
{
	double d = *(const double *)a - *(const double *)b;

	return d < 0 ? -1 : d > 0;
}

static void round_trips(struct sockaddr_in a, int count, size_t size)
{
	int s = opened(a, 'e'), part = count / PARTS > 1 ? count / PARTS : 1;
	char *data = calloc(1, size);
	double each[PARTS];

	trips(s, data, size, part); /* warm */
	for (int i = 0; i < PARTS; i++)
		each[i] = trips(s, data, size, part);
	qsort(each, PARTS, sizeof *each, compare);
	printf("%.4f\n", (each[PARTS / 2 - 1] + each[PARTS / 2]) / 2);
	end(s);
	free(data);
}

static void one_connection(struct sockaddr_in a)
{
	/* Closing resets: thousands of connections in TIME_WAIT would leave no port to the next run. */
	struct linger hard = {1, 0};
	int s = new_socket();

	set(s, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
	if (x ? xensock_connect(s, (struct sockaddr *)&a, sizeof a) : connect(s, (struct sockaddr *)&a, sizeof a))
		fail("connect");
	end(s);
}

static void connections(struct sockaddr_in a, double seconds)
{
	double start, took;
	int n = 0;

	for (int i = 0; i < WARM; i++)
		one_connection(a);
	start = now();
	do
		for (int i = 0; i < 16; i++, n++)
			one_connection(a);
	while ((took = now() - start) < seconds);
	printf("%.1f\n", n / took);
}

static void hold(struct sockaddr_in a, int count)
{
	int *held = calloc((size_t)count, sizeof *held), warm[WARM];
	char line[16];

	for (int i = 0; i < WARM; i++)
		warm[i] = opened(a, 'h');
	for (int i = 0; i < WARM; i++)
		end(warm[i]);
	printf("ready\n");
	fflush(stdout);
	if (!fgets(line, sizeof line, stdin))
		fail("no word to begin");
	for (int i = 0; i < count; i++)
		held[i] = opened(a, 'h');
	printf("held %d\n", count);
	fflush(stdout);
	if (fgets(line, sizeof line, stdin))
		for (int i = 0; i < count; i++)
			end(held[i]);
	free(held);
}

int main(int argc, char **argv)
{
	struct rlimit most;
	const char *what;

	if (argc > 2 && !strcmp(argv[1], "--url")) {
		url = argv[2];
		argv += 2;
		argc -= 2;
	}
	if (argc > 2 && !strcmp(argv[1], "--ring")) {
		ring = atoi(argv[2]);
		argv += 2;
		argc -= 2;
	}
	what = argc > 1 ? argv[1] : "";
	getrlimit(RLIMIT_NOFILE, &most);
	most.rlim_cur = most.rlim_max;
	setrlimit(RLIMIT_NOFILE, &most);
	if (url) {
		x = xensock_attach(url, NULL, 0);
		if (!x)
			fail(url);
	}
	if (!strcmp(what, "serve") && argc == 3)
		serve(argv[2]);
	else if (!strcmp(what, "send") && argc == 7)
		send_streams(address(argv[2], argv[3]), atof(argv[4]), (size_t)atol(argv[5]), atoi(argv[6]));
	else if (!strcmp(what, "rtt") && argc == 6)
		round_trips(address(argv[2], argv[3]), atoi(argv[4]), (size_t)atol(argv[5]));
	else if (!strcmp(what, "connect") && argc == 5)
		connections(address(argv[2], argv[3]), atof(argv[4]));
	else if (!strcmp(what, "hold") && argc == 5)
		hold(address(argv[2], argv[3]), atoi(argv[4]));
	else
		errno = EINVAL, fail("usage: [--url URL] serve|send|rtt|connect|hold …");
	if (x)
		xensock_detach(x);
	return 0;
}
