/* A signal handler that connects, in the middle of a blocking connect; with and without SA_RESTART.
 * argv: VERSION BLACKHOLE-HOST PORT ECHO-PORT */
#define _GNU_SOURCE
#define PROBE "handler"
#include <signal.h>
#include <sys/time.h>
#include "say.h"

static char **arguments;
static volatile sig_atomic_t handled;
static int inner = -2, other_fd = -1;

static void on_alarm(int number)
{
	char *where[] = {arguments[0], arguments[1], arguments[2], arguments[4]};
	struct sockaddr_storage to;
	socklen_t size = address(where, &to);
	int saved = errno;

	(void)number;
	handled = handled + 1;
	other_fd = socket(family(arguments), SOCK_STREAM, 0);
	inner = connect(other_fd, (struct sockaddr *)&to, size);
	errno = saved;
}

int main(int argc, char **argv)
{
	struct sockaddr_storage to;
	socklen_t size;

	if (argc != 5)
		return 2;
	arguments = argv;
	size = address(argv, &to);
	for (int restart = 0; restart < 2; restart++) {
		/* TCP_USER_TIMEOUT ends the restarted attempt. */
		unsigned int limit = 1200;
		struct sigaction action = {.sa_handler = on_alarm, .sa_flags = restart ? SA_RESTART : 0};
		struct itimerval soon = {.it_value = {.tv_usec = 150000}};
		int fd = socket(family(argv), SOCK_STREAM, 0);

		setsockopt(fd, IPPROTO_TCP, 18, &limit, sizeof limit);
		sigaction(SIGALRM, &action, NULL);
		setitimer(ITIMER_REAL, &soon, NULL);
		handled = 0;
		int value = connect(fd, (struct sockaddr *)&to, size);
		say(restart ? "restart" : "interrupted", "%s", result(value));
		say("handler ran", "%d", handled);
		say("connect in the handler", "%d", inner);
		say("its echo", "%s", echo(other_fd));
		close(other_fd);
		close(fd);
	}
	return 0;
}
