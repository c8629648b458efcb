/* Sockets and bytes for the tests of the mover. */
#ifndef SOCKETS_H
#define SOCKETS_H
#include "check.h"
#include "mover.h"

#include <arpa/inet.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

/* Two ends of a TCP connection over loopback; rcvbuf of the first, 0 for the kernel's choice. */
static inline void tcp_pair(int out[2])
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t len = sizeof a;
	int l = socket(AF_INET, SOCK_STREAM, 0);

	CHECK(l >= 0 && bind(l, (void *)&a, len) == 0 && listen(l, 1) == 0);
	CHECK(getsockname(l, (void *)&a, &len) == 0);
	out[0] = socket(AF_INET, SOCK_STREAM, 0);
	CHECK(out[0] >= 0 && connect(out[0], (void *)&a, len) == 0);
	out[1] = accept(l, NULL, NULL);
	CHECK(out[1] >= 0);
	close(l);
}

static inline void hard_close(int fd)
{
	struct linger l = {1, 0};

	CHECK(setsockopt(fd, SOL_SOCKET, SO_LINGER, &l, sizeof l) == 0);
	close(fd);
}

/* Reads until the end of the stream; returns the errno that ended it, 0 for an orderly end. */
static inline int read_all(int fd, char *buf, size_t size, size_t *got)
{
	*got = 0;
	for (;;) {
		struct pollfd p = {fd, POLLIN, 0};
		ssize_t n;

		CHECK(poll(&p, 1, 5000) == 1);
		n = recv(fd, buf + *got, size - *got, 0);
		if (n < 0)
			return errno;
		if (n == 0)
			return 0;
		*got += (size_t)n;
		CHECK(*got < size);
	}
}

static inline char byte_at(unsigned seed, size_t i)
{
	return (char)((i * 2654435761u + seed) >> 13);
}

static inline void fill(char *buf, size_t n, unsigned seed)
{
	for (size_t i = 0; i < n; i++)
		buf[i] = byte_at(seed, i);
}

static inline void expect(const char *buf, size_t n, unsigned seed)
{
	for (size_t i = 0; i < n; i++)
		CHECK(buf[i] == byte_at(seed, i));
}

static inline void wait_fd(struct xs_mover *m)
{
	struct pollfd p = {xs_mover_fd(m), POLLIN, 0};

	CHECK(poll(&p, 1, 5000) == 1);
}

static inline struct xs_ended wait_ended(struct xs_mover *m, uint64_t token)
{
	struct xs_ended e;

	do
		wait_fd(m);
	while (xs_mover_ended(m, &e, 1) == 0);
	CHECK(e.token == token);
	return e;
}

static inline struct xs_notice wait_notice(struct xs_mover *m, uint64_t token)
{
	struct xs_notice n;

	do
		wait_fd(m);
	while (xs_mover_notices(m, &n, 1) == 0);
	CHECK(n.token == token);
	return n;
}
#endif
