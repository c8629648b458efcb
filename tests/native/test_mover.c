/* The mover between two loopback TCP connections: guest --(a0,a1)-- mover --(b0,b1)-- far. */
#include "check.h"
#include "mover.h"

#include <arpa/inet.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

static struct xs_mover *mover;

static void tcp_pair(int out[2])
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

/* Joins a guest socket and a far socket by the mover. */
static uint64_t join(int *guest, int *far)
{
	int a[2], b[2];
	uint64_t token;

	tcp_pair(a);
	tcp_pair(b);
	*guest = a[0];
	*far = b[0];
	token = xs_mover_add(mover, a[1], b[1], true);
	CHECK(token);
	return token;
}

static struct xs_ended ended(uint64_t token)
{
	struct pollfd p = {xs_mover_fd(mover), POLLIN, 0};
	struct xs_ended e;

	CHECK(poll(&p, 1, 5000) == 1);
	CHECK(xs_mover_ended(mover, &e, 1) == 1);
	CHECK(e.token == token);
	CHECK(poll(&p, 1, 0) == 0);
	return e;
}

static void hard_close(int fd)
{
	struct linger l = {1, 0};

	CHECK(setsockopt(fd, SOL_SOCKET, SO_LINGER, &l, sizeof l) == 0);
	close(fd);
}

/* Reads until the end of the stream; returns the errno that ended it, 0 for an orderly end. */
static int read_all(int fd, char *buf, size_t size, size_t *got)
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

struct feed {
	int fd;
	size_t size;
	unsigned seed;
};

static char byte_at(unsigned seed, size_t i)
{
	return (char)((i * 2654435761u + seed) >> 13);
}

static void *feed(void *arg)
{
	struct feed *f = arg;
	static _Thread_local char buf[70000];

	for (size_t done = 0; done < f->size;) {
		size_t n = f->size - done < sizeof buf ? f->size - done : 1 + (done * 7919) % sizeof buf;

		if (n > f->size - done)
			n = f->size - done;
		for (size_t i = 0; i < n; i++)
			buf[i] = byte_at(f->seed, done + i);
		CHECK(send(f->fd, buf, n, MSG_NOSIGNAL) == (ssize_t)n);
		done += n;
	}
	CHECK(shutdown(f->fd, SHUT_WR) == 0);
	return NULL;
}

static void expect(const char *buf, size_t n, unsigned seed)
{
	for (size_t i = 0; i < n; i++)
		CHECK(buf[i] == byte_at(seed, i));
}

static void data_both_ways(void)
{
	size_t size = (size_t)8 << 20, got;
	struct feed up = {.size = size, .seed = 1}, down = {.size = size / 2 + 7, .seed = 9};
	char *buf = malloc(size + 1);
	pthread_t t1, t2;
	int guest, far;
	struct xs_ended e;
	uint64_t token = join(&guest, &far);

	up.fd = guest;
	down.fd = far;
	CHECK(buf && pthread_create(&t1, NULL, feed, &up) == 0 && pthread_create(&t2, NULL, feed, &down) == 0);
	CHECK(read_all(far, buf, size + 1, &got) == 0 && got == up.size);
	expect(buf, got, 1);
	CHECK(read_all(guest, buf, size + 1, &got) == 0 && got == down.size);
	expect(buf, got, 9);
	pthread_join(t1, NULL);
	pthread_join(t2, NULL);
	e = ended(token);
	CHECK(e.error == 0 && e.side == -1 && e.bytes[0] == up.size && e.bytes[1] == down.size);
	close(guest);
	close(far);
	free(buf);
}

static void half_close(void)
{
	char buf[64];
	size_t got;
	uint64_t bytes[2];
	int guest, far;
	uint64_t token = join(&guest, &far);

	CHECK(send(guest, "question", 8, 0) == 8 && shutdown(guest, SHUT_WR) == 0);
	CHECK(read_all(far, buf, sizeof buf, &got) == 0 && got == 8);
	CHECK(xs_mover_bytes(mover, token, bytes) && bytes[0] == 8 && bytes[1] == 0);
	CHECK(send(far, "answer", 6, 0) == 6);
	close(far);
	CHECK(read_all(guest, buf, sizeof buf, &got) == 0 && got == 6);
	close(guest);
	CHECK(ended(token).error == 0);
	CHECK(!xs_mover_bytes(mover, token, bytes));
}

/* A reset arrives as a reset, behind the data that went before it. */
static void reset(bool by_guest)
{
	char buf[64];
	size_t got;
	int guest, far, from, to;
	struct xs_ended e;
	uint64_t token = join(&guest, &far);

	from = by_guest ? guest : far;
	to = by_guest ? far : guest;
	CHECK(send(from, "last words", 10, 0) == 10);
	hard_close(from);
	CHECK(read_all(to, buf, sizeof buf, &got) == ECONNRESET && got == 10);
	e = ended(token);
	CHECK(e.error == ECONNRESET && e.side == (by_guest ? 0 : 1));
	close(to);
}

/* The far side closed for good; what the guest sends afterwards must be answered by a reset. */
static void reset_after_end(void)
{
	char buf[64];
	size_t got;
	struct pollfd p = {.events = POLLOUT};
	int guest, far;
	uint64_t token = join(&guest, &far);

	close(far);
	CHECK(read_all(guest, buf, sizeof buf, &got) == 0 && got == 0);
	CHECK(send(guest, "x", 1, MSG_NOSIGNAL) == 1);
	p.fd = guest;
	do
		CHECK(poll(&p, 1, 5000) == 1);
	while (!(p.revents & POLLERR) && usleep(1000) == 0);
	CHECK(send(guest, "y", 1, MSG_NOSIGNAL) < 0 && (errno == EPIPE || errno == ECONNRESET));
	CHECK(ended(token).side == 1);
	close(guest);
}

static void back_pressure(void)
{
	static char chunk[1 << 16];
	size_t size = (size_t)64 << 20, sent = 0, got = 0;
	char *buf = malloc(size);
	int guest, far, small = 200000, idle = 0;
	ssize_t n;
	uint64_t token;

	CHECK(buf);
	token = join(&guest, &far);
	CHECK(setsockopt(far, SOL_SOCKET, SO_RCVBUF, &small, sizeof small) == 0);
	while (idle < 100) {
		size_t want = sizeof chunk;

		for (size_t i = 0; i < want; i++)
			chunk[i] = byte_at(3, sent + i);
		n = send(guest, chunk, want, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (n > 0) {
			sent += (size_t)n;
			idle = 0;
		} else {
			CHECK(errno == EAGAIN);
			usleep(1000);
			idle++;
		}
		CHECK(sent < size); /* else the mover holds without bound */
	}
	CHECK(sent > 100000);
	CHECK(shutdown(guest, SHUT_WR) == 0);
	CHECK(read_all(far, buf, size, &got) == 0 && got == sent);
	expect(buf, got, 3);
	close(far);
	close(guest);
	CHECK(ended(token).error == 0);
	free(buf);
}

static void urgent(void)
{
	char buf[64] = {0};
	struct pollfd p = {.events = POLLPRI};
	int guest, far;
	uint64_t token = join(&guest, &far);

	CHECK(send(guest, "ab", 2, 0) == 2);
	CHECK(send(guest, "!", 1, MSG_OOB) == 1);
	p.fd = far;
	CHECK(poll(&p, 1, 5000) == 1 && recv(far, buf, 1, MSG_OOB) == 1 && buf[0] == '!');
	CHECK(send(guest, "cd", 2, 0) == 2);
	CHECK(recv(far, buf, 2, MSG_WAITALL) == 2 && memcmp(buf, "ab", 2) == 0);
	CHECK(recv(far, buf, 2, MSG_WAITALL) == 2 && memcmp(buf, "cd", 2) == 0);
	close(guest);
	close(far);
	CHECK(ended(token).error == 0);
}

static void many(void)
{
	enum { N = 200 };
	int guest[N], far[N];
	char buf[8];
	struct xs_ended e[N];
	size_t n = 0;

	for (int i = 0; i < N; i++)
		join(&guest[i], &far[i]);
	for (int i = 0; i < N; i++)
		CHECK(send(guest[i], &i, sizeof i, 0) == sizeof i);
	for (int i = N; i--;) {
		CHECK(recv(far[i], buf, sizeof i, MSG_WAITALL) == sizeof i && memcmp(buf, &i, sizeof i) == 0);
		close(far[i]);
		close(guest[i]);
	}
	while (n < N) {
		struct pollfd p = {xs_mover_fd(mover), POLLIN, 0};

		CHECK(poll(&p, 1, 5000) == 1);
		n += xs_mover_ended(mover, e + n, N - n);
	}
	CHECK(xs_mover_live(mover) == 0);
}

/* At the end, what a guest sent before closing still arrives; a guest that still sends is cut. */
static void end_of_all(void)
{
	size_t got;
	static char buf[1 << 20];
	int guest, far, open_guest, open_far;

	join(&guest, &far);
	join(&open_guest, &open_far);
	memset(buf, 'z', 300000);
	CHECK(send(guest, buf, 300000, 0) == 300000);
	close(guest);
	xs_mover_free(mover, 300);
	CHECK(read_all(far, buf, sizeof buf, &got) == 0 && got == 300000);
	CHECK(recv(open_far, buf, 1, 0) < 0 && errno == ECONNRESET);
	CHECK(recv(open_guest, buf, 1, 0) < 0 && errno == ECONNRESET);
	close(far);
	close(open_guest);
	close(open_far);
}

int main(void)
{
	signal(SIGPIPE, SIG_IGN);
	mover = xs_mover_new(2);
	CHECK(mover);
	CHECK(xs_mover_add(mover, -1, -1, false) == 0 && errno == EINVAL);
	data_both_ways();
	half_close();
	reset(true);
	reset(false);
	reset_after_end();
	back_pressure();
	urgent();
	many();
	end_of_all();
	return 0;
}
