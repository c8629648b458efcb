/*
 * A connect that waits a bounded time on a file that may be blocking. A listener whose queue is full drops what comes,
 * as a far host that does not answer would; once the queue has room, the repeated SYN is answered.
 */
#include "check.h"
#include "connect.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define FILLERS 4

struct server {
	int fd, filler[FILLERS];
	struct sockaddr_in at;
};

static struct sockaddr_in loopback(void)
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};

	return a;
}

static struct server server(int backlog)
{
	struct server s = {.at = loopback(), .filler = {-1, -1, -1, -1}};
	socklen_t len = sizeof s.at;

	s.fd = socket(AF_INET, SOCK_STREAM, 0);
	CHECK(s.fd >= 0 && !bind(s.fd, (void *)&s.at, len) && !listen(s.fd, backlog) && !getsockname(s.fd, (void *)&s.at, &len));
	return s;
}

/* A listener whose queue is full. */
static struct server silent(void)
{
	struct server s = server(0);

	for (int i = 0; i < FILLERS; i++) {
		s.filler[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
		CHECK(connect(s.filler[i], (void *)&s.at, sizeof s.at) < 0 && errno == EINPROGRESS);
	}
	return s;
}

static void give_room(struct server *s)
{
	for (int i = 0; i < FILLERS; i++) {
		close(s->filler[i]);
		s->filler[i] = -1;
	}
	CHECK(!fcntl(s->fd, F_SETFL, O_NONBLOCK));
	for (int fd; (fd = accept(s->fd, NULL, NULL)) >= 0;)
		close(fd);
	CHECK(errno == EAGAIN);
}

static void end(struct server *s)
{
	for (int i = 0; i < FILLERS; i++)
		if (s->filler[i] >= 0)
			close(s->filler[i]);
	close(s->fd);
}

static int stream(int flags)
{
	int fd = socket(AF_INET, SOCK_STREAM | flags, 0);

	CHECK(fd >= 0);
	return fd;
}

static int start(int fd, const struct sockaddr_in *at) { return xs_connect_start(fd, (const void *)at, sizeof *at, 1000); }

static int64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static int state(int fd)
{
	struct tcp_info info;
	socklen_t len = sizeof info;

	CHECK(!getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len));
	return info.tcpi_state;
}

static void at_once(int flags)
{
	struct server s = server(8);
	struct sockaddr_in nobody = s.at;
	int fd = stream(flags), refused = stream(flags), error;

	error = start(fd, &s.at);
	CHECK(error == 0 || (flags && error == EINPROGRESS));
	if (error)
		CHECK(start(fd, &s.at) == 0); /* loopback: established, and now told */
	CHECK(start(fd, &s.at) == EISCONN);
	end(&s);
	error = start(refused, &nobody);
	if (error == EINPROGRESS)
		error = start(refused, &nobody);
	CHECK(error == ECONNREFUSED);
	close(fd);
	close(refused);
}

static void errors_of_the_kernel(void)
{
	struct sockaddr_in a = loopback(), other = {.sin_family = AF_INET6};
	struct server s = server(1);
	int fd = stream(0), ends[2];

	CHECK(start(-1, &a) == EBADF);
	CHECK(!pipe(ends) && start(ends[0], &a) == ENOTSOCK);
	CHECK(xs_connect_start(fd, (void *)&a, 4, 1000) == EINVAL);
	CHECK(start(fd, &other) == EAFNOSUPPORT);
	CHECK(start(s.fd, &a) == EISCONN); /* a listener */
	close(ends[0]);
	close(ends[1]);
	close(fd);
	end(&s);
}

/* Blocking: started, given back in time, goes on by itself, and the file's flags are nobody's business. */
static void goes_on(int flags)
{
	struct server s = silent();
	int fd = stream(flags), before = fcntl(fd, F_GETFL), error = 0;
	struct pollfd p = {fd, POLLOUT, 0};
	socklen_t len = sizeof error;
	int64_t begin = now_ms();

	CHECK(!!(before & O_NONBLOCK) == !!flags);
	CHECK(start(fd, &s.at) == EINPROGRESS);
	CHECK(now_ms() - begin < 500);
	CHECK(fcntl(fd, F_GETFL) == before);
	CHECK(state(fd) == TCP_SYN_SENT && poll(&p, 1, 0) == 0);
	CHECK(start(fd, &s.at) == (flags ? EALREADY : EINPROGRESS)); /* waits again, begins nothing new */
	CHECK(state(fd) == TCP_SYN_SENT && fcntl(fd, F_GETFL) == before);
	give_room(&s);
	CHECK(poll(&p, 1, 10000) == 1 && (p.revents & POLLOUT) && !(p.revents & POLLERR));
	CHECK(!getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len) && !error);
	CHECK(state(fd) == TCP_ESTABLISHED);
	CHECK(start(fd, &s.at) == 0 && start(fd, &s.at) == EISCONN);
	CHECK(fcntl(fd, F_GETFL) == before);
	close(fd);
	end(&s);
}

static void a_shorter_send_timeout(void)
{
	struct server s = silent();
	struct timeval tv = {0, 1};
	int fd = stream(0);

	CHECK(!setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof tv));
	CHECK(start(fd, &s.at) == EINPROGRESS && state(fd) == TCP_SYN_SENT);
	close(fd);
	end(&s);
}

static int timers(void)
{
	char line[256];
	int n = 0;
	FILE *f = fopen("/proc/self/timers", "re");

	if (!f)
		return -1; /* a kernel without CONFIG_CHECKPOINT_RESTORE */
	while (fgets(line, sizeof line, f))
		n += !strncmp(line, "ID:", 3);
	fclose(f);
	return n;
}

static void *with_everything_blocked(void *arg)
{
	struct server *s = arg;
	sigset_t all, now;
	int fd = stream(0);

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, NULL);
	CHECK(start(fd, &s->at) == EINPROGRESS);
	pthread_sigmask(SIG_SETMASK, NULL, &now);
	CHECK(sigismember(&now, xs_wake_signal()) == 1 && sigismember(&now, SIGTERM) == 1);
	close(fd);
	return NULL;
}

/* A thread's mask is as before, and its timer goes with it. */
static void threads(void)
{
	struct server s = silent();
	int before = timers();

	for (int round = 0; round < 3; round++) {
		pthread_t t[4];

		for (int i = 0; i < 4; i++)
			CHECK(!pthread_create(&t[i], NULL, with_everything_blocked, &s));
		for (int i = 0; i < 4; i++)
			CHECK(!pthread_join(t[i], NULL));
	}
	CHECK(timers() == before);
	end(&s);
}

static volatile sig_atomic_t foreign;

static void on_foreign(int sig)
{
	(void)sig;
	foreign++;
}

/* A wake signal that comes outside of a call does nothing; no timer goes off after the call. */
static void quiet_afterwards(void)
{
	struct server s = silent();
	struct pollfd p;
	int fd = stream(0);
	struct sigaction sa = {.sa_handler = on_foreign}, old;

	CHECK(start(fd, &s.at) == EINPROGRESS);
	CHECK(!sigaction(xs_wake_signal(), &sa, &old));
	p = (struct pollfd){s.fd, POLLPRI, 0};
	CHECK(poll(&p, 1, 20) == 0 && !foreign); /* the timer's interval is 1 ms */
	CHECK(!sigaction(xs_wake_signal(), &old, NULL));
	raise(xs_wake_signal());
	close(fd);
	end(&s);
}

/* What a socket's state answers, and where it answers nothing, no connection. */
static void joined(int flags)
{
	struct server open = server(1), full = silent();
	int fd = socket(AF_INET, SOCK_STREAM | flags, 0), six = socket(AF_INET6, SOCK_STREAM | flags, 0);

	CHECK(xs_connect_join(fd, 100) == ENETUNREACH);
	CHECK(six < 0 || xs_connect_join(six, 100) == ENETUNREACH);
	CHECK(xs_connect_start(fd, (void *)&full.at, sizeof full.at, 100) == EINPROGRESS);
	CHECK(xs_connect_join(fd, 100) == (flags ? EALREADY : EINPROGRESS));
	CHECK(!shutdown(fd, SHUT_RDWR) && xs_connect_join(fd, 100) == ENETUNREACH);
	close(fd);
	fd = socket(AF_INET, SOCK_STREAM, 0);
	CHECK(xs_connect_start(fd, (void *)&open.at, sizeof open.at, 100000) == 0 && xs_connect_join(fd, 100) == EISCONN);
	close(fd);
	if (six >= 0)
		close(six);
	end(&open);
	end(&full);
}

int main(void)
{
	CHECK(xs_wake_install() == 0);
	at_once(0);
	at_once(SOCK_NONBLOCK);
	errors_of_the_kernel();
	goes_on(0);
	goes_on(SOCK_NONBLOCK);
	a_shorter_send_timeout();
	joined(0);
	joined(SOCK_NONBLOCK);
	threads();
	quiet_afterwards();
	return 0;
}
