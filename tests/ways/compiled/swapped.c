/* A call on a descriptor that names something local when it is looked at, and a TCP socket when it is carried out.
 * argv: CALL SECONDS ADDRESS PORT. Says how often the call did to the TCP socket what it must not:
 *   listen     it came to listen                          beside a bound unix socket
 *   bind       it got a port                              the same
 *   connect    it was connected to ADDRESS                the same
 *   loopback   the same, where it is bound or shut down   beside a TCP socket that is neither
 *   ioctl      ADDRESS, the host's, was shown             beside a file */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define NUMBER 100

static atomic_int stream, local, done;
static struct sockaddr_in wanted;

static void *swap(void *argument)
{
	(void)argument;
	for (unsigned i = 0; !atomic_load(&done); i++)
		dup2(i & 1 ? atomic_load(&stream) : atomic_load(&local), NUMBER);
	return NULL;
}

static int local_socket(void)
{
	struct sockaddr_un any = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	bind(fd, (struct sockaddr *)&any, sizeof any.sun_family);
	return fd;
}

static int local_file(void) { return open("/dev/null", O_RDWR); }

static int listens(int fd)
{
	int yes = 0;
	socklen_t size = sizeof yes;

	getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &yes, &size);
	return yes;
}

static int shows(const struct ifconf *list)
{
	for (size_t i = 0; i < (size_t)list->ifc_len / sizeof(struct ifreq); i++)
		if (((struct sockaddr_in *)&list->ifc_req[i].ifr_addr)->sin_addr.s_addr == wanted.sin_addr.s_addr)
			return 1;
	return 0;
}

static int has_port(int fd)
{
	struct sockaddr_in name = {0};
	socklen_t size = sizeof name;

	return !getsockname(fd, (struct sockaddr *)&name, &size) && name.sin_port;
}

static int is_connected(int fd)
{
	struct sockaddr_in name = {0};
	socklen_t size = sizeof name;

	return !getpeername(fd, (struct sockaddr *)&name, &size) && name.sin_port == wanted.sin_port;
}

/* Bound, and every other one a listener that was shut down. */
static int used(int turn)
{
	struct sockaddr_in any = {.sin_family = AF_INET};
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	bind(fd, (struct sockaddr *)&any, sizeof any);
	if (turn & 1) {
		listen(fd, 1);
		shutdown(fd, SHUT_RDWR);
	}
	return fd;
}

static int try_listen(int turn)
{
	(void)turn;
	listen(NUMBER, 1);
	return listens(atomic_load(&stream));
}

static int try_bind(int turn)
{
	struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = wanted.sin_port};

	(void)turn;
	bind(NUMBER, (struct sockaddr *)&any, sizeof any);
	return has_port(atomic_load(&stream));
}

static int try_connect(int turn)
{
	(void)turn;
	connect(NUMBER, (struct sockaddr *)&wanted, sizeof wanted);
	return is_connected(atomic_load(&stream));
}

/* New ones each time: once they were refused by the guest's loopback they are of its own network. */
static int try_loopback(int turn)
{
	close(atomic_exchange(&stream, used(turn)));
	close(atomic_exchange(&local, socket(AF_INET, SOCK_STREAM, 0)));
	return try_connect(turn) || is_connected(atomic_load(&local));
}

static int try_ioctl(int turn)
{
	struct ifreq room[32];
	struct ifconf list = {.ifc_len = sizeof room, .ifc_req = room};

	(void)turn;
	return !ioctl(NUMBER, SIOCGIFCONF, &list) && shows(&list);
}

static const struct {
	const char *name;
	int (*once)(int);
	int (*beside)(void);
} calls[] = {
	{"listen", try_listen, local_socket},
	{"bind", try_bind, local_socket},
	{"connect", try_connect, local_socket},
	{"loopback", try_loopback, local_socket},
	{"ioctl", try_ioctl, local_file},
};

int main(int argc, char **argv)
{
	size_t which = 0;
	int tried = 0, got = 0;
	pthread_t thread;
	time_t end;

	while (argc == 5 && which < sizeof calls / sizeof *calls && strcmp(argv[1], calls[which].name))
		which++;
	if (argc != 5 || which == sizeof calls / sizeof *calls)
		return 2;
	end = time(NULL) + atoi(argv[2]);
	wanted.sin_family = AF_INET;
	wanted.sin_addr.s_addr = inet_addr(argv[3]);
	wanted.sin_port = htons((in_port_t)atoi(argv[4]));
	atomic_store(&local, calls[which].beside());
	atomic_store(&stream, socket(AF_INET, SOCK_STREAM, 0));
	pthread_create(&thread, NULL, swap, NULL);
	for (; time(NULL) <= end && got < 3; tried++)
		got += calls[which].once(tried);
	atomic_store(&done, 1);
	pthread_join(thread, NULL);
	printf("{\"tried\": %d, \"got\": %d}\n", tried, got);
	return 0;
}
