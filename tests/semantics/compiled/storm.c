/* Timer signals every 100 µs against socket, bind, listen and connect, with SA_RESTART and without.
 * argv: VERSION HOST ECHO-PORT */
#define _GNU_SOURCE
#define PROBE "storm"
#include <poll.h>
#include <signal.h>
#include <sys/time.h>
#include "say.h"

#define ROUNDS 300
#define PERIOD_US 100

static volatile sig_atomic_t handled;
static int interrupted, calls, other;

static void on_alarm(int number)
{
	(void)number;
	handled = handled + 1;
}

/* A call that natively never waits: again after EINTR, which is counted. */
#define SHORT(call)                                                                                                  \
	({                                                                                                           \
		long value_;                                                                                         \
		while (calls++, (value_ = (call)) < 0 && errno == EINTR)                                             \
			interrupted++;                                                                               \
		other += value_ < 0;                                                                                 \
		value_;                                                                                              \
	})

/* As connect(2) says: after EINTR the attempt goes on, poll(2) tells its end, and connecting again joins it. */
static int persevere(int fd, const struct sockaddr *to, socklen_t size)
{
	struct pollfd p = {fd, POLLOUT, 0};

	while (connect(fd, to, size)) {
		if (errno != EINTR)
			return -1;
		while (poll(&p, 1, 1000) < 0 && errno == EINTR)
			;
	}
	return 0;
}

static const char *talk(int fd)
{
	char byte = 'x';

	while (send(fd, &byte, 1, MSG_NOSIGNAL) < 0)
		if (errno != EINTR)
			return strerrorname_np(errno);
	byte = 0;
	while (recv(fd, &byte, 1, 0) < 0)
		if (errno != EINTR)
			return strerrorname_np(errno);
	return byte == 'x' ? NULL : "garbled";
}

static void storm(const struct sockaddr *to, socklen_t size, int flags)
{
	struct sigaction action = {.sa_handler = on_alarm, .sa_flags = flags};
	struct itimerval on = {{0, PERIOD_US}, {0, PERIOD_US}}, off = {{0, 0}, {0, 0}};
	struct sockaddr_storage any = {.ss_family = to->sa_family};
	const char *trouble = "none", *name = flags ? "restart" : "interrupt";
	char what[64];

	sigaction(SIGALRM, &action, NULL);
	interrupted = calls = other = handled = 0;
	setitimer(ITIMER_REAL, &on, NULL);
	for (int i = 0; i < ROUNDS; i++) {
		int fd = (int)SHORT(socket(to->sa_family, SOCK_STREAM, 0));
		const char *wrong;

		SHORT(bind(fd, (struct sockaddr *)&any, size));
		SHORT(listen(fd, 5));
		close(fd);
		fd = (int)SHORT(socket(to->sa_family, SOCK_STREAM, 0));
		if (flags ? connect(fd, to, size) : persevere(fd, to, size))
			trouble = strerrorname_np(errno);
		else if (!connect(fd, to, size) || errno != EISCONN)
			/* A call that is cut short before the backend knows of it says EINTR, whatever the socket's state. */
			trouble = !flags && errno == EINTR ? trouble : "connected twice";
		else if ((wrong = talk(fd)))
			trouble = wrong;
		close(fd);
	}
	setitimer(ITIMER_REAL, &off, NULL);
	snprintf(what, sizeof what, "%s: trouble", name);
	say(what, "%s", trouble);
	snprintf(what, sizeof what, "%s: other errors", name);
	say(what, "%d", other);
	snprintf(what, sizeof what, "%s: signals", name);
	say(what, "%s", handled > ROUNDS / 10 ? "many" : "few");
	snprintf(what, sizeof what, "%s: cut short", name);
	say(what, "%s", !interrupted ? "never" : interrupted * 2 < calls ? "rarely" : "often");
	fprintf(stderr, "%s: %d of %d calls cut short by %d signals\n", name, interrupted, calls, (int)handled);
}

int main(int argc, char **argv)
{
	struct sockaddr_storage to;
	socklen_t size;

	if (argc != 4)
		return 2;
	size = address(argv, &to);
	storm((struct sockaddr *)&to, size, SA_RESTART);
	storm((struct sockaddr *)&to, size, 0);
	return 0;
}
