/* A socket that connects is asked to connect elsewhere while another thread takes its attempt apart: the second address
 * counts all of a sudden. argv: HOST SILENT-HOST REFUSED-PORT SECONDS. Says how often the refused port answered. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static atomic_int target = -1, delay, done;

static long now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000L + t.tv_nsec;
}

/* Once for each target, after a while. */
static void *take_apart(void *argument)
{
	(void)argument;
	while (!atomic_load(&done)) {
		int fd = atomic_exchange(&target, -1);

		if (fd < 0)
			continue;
		for (long start = now(), wait = atomic_load(&delay); now() - start < wait;)
			;
		shutdown(fd, SHUT_RDWR);
	}
	return NULL;
}

static struct sockaddr_in6 at(const char *host, int port)
{
	struct sockaddr_in6 a = {.sin6_family = AF_INET6, .sin6_port = htons((in_port_t)port)};
	char mapped[64];

	snprintf(mapped, sizeof mapped, "::ffff:%s", host);
	inet_pton(AF_INET6, mapped, &a.sin6_addr);
	return a;
}

int main(int argc, char **argv)
{
	struct sockaddr_in6 silent, refused, name;
	pthread_t thread;
	int tried = 0, reached = 0;
	time_t end;

	if (argc != 5)
		return 2;
	silent = at(argv[2], 9);
	refused = at(argv[1], atoi(argv[3]));
	end = time(NULL) + atoi(argv[4]);
	pthread_create(&thread, NULL, take_apart, NULL);
	for (; time(NULL) <= end && reached < 3; tried++) {
		int fd = socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK, 0);

		connect(fd, (struct sockaddr *)&silent, sizeof silent);
		/* Not always at the same moment after the second connect has begun. */
		atomic_store(&delay, tried % 300 * 3000);
		atomic_store(&target, fd);
		refused.sin6_scope_id = (unsigned)tried; /* no matter to IPv4, but no verdict is known for it */
		/* EALREADY: the first attempt answers. EINPROGRESS: a new one was begun. */
		int begun = connect(fd, (struct sockaddr *)&refused, sizeof refused) && errno == EINPROGRESS;
		for (int i = 0; begun && i < 100; i++) {
			socklen_t size = sizeof name;

			if (!getpeername(fd, (struct sockaddr *)&name, &size)) {
				reached += name.sin6_port == refused.sin6_port;
				break;
			}
			usleep(500);
		}
		atomic_store(&target, -1);
		close(fd);
	}
	atomic_store(&done, 1);
	pthread_join(thread, NULL);
	printf("{\"tried\": %d, \"reached\": %d}\n", tried, reached);
	return 0;
}
