/* A call on a descriptor that names something local when it is looked at, and a TCP socket when it is carried out.
 * argv: listen|ioctl SECONDS WANTED-ADDRESS. Says how often the TCP socket came to listen, or the address was shown. */
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

static int listens(int fd)
{
	int yes = 0;
	socklen_t size = sizeof yes;

	getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &yes, &size);
	return yes;
}

static int shows(const struct ifconf *list, in_addr_t wanted)
{
	for (size_t i = 0; i < (size_t)list->ifc_len / sizeof(struct ifreq); i++)
		if (((struct sockaddr_in *)&list->ifc_req[i].ifr_addr)->sin_addr.s_addr == wanted)
			return 1;
	return 0;
}

int main(int argc, char **argv)
{
	int listening = argc == 4 && !strcmp(argv[1], "listen"), tried = 0, got = 0;
	struct ifreq room[32];
	pthread_t thread;
	time_t end;

	if (argc != 4)
		return 2;
	end = time(NULL) + atoi(argv[2]);
	atomic_store(&local, listening ? local_socket() : open("/dev/null", O_RDWR));
	atomic_store(&stream, socket(AF_INET, SOCK_STREAM, 0));
	pthread_create(&thread, NULL, swap, NULL);
	for (; time(NULL) <= end && got < 3; tried++) {
		if (listening) {
			listen(NUMBER, 1);
			got += listens(atomic_load(&stream));
		} else {
			struct ifconf list = {.ifc_len = sizeof room, .ifc_req = room};

			got += !ioctl(NUMBER, SIOCGIFCONF, &list) && shows(&list, inet_addr(argv[3]));
		}
	}
	atomic_store(&done, 1);
	pthread_join(thread, NULL);
	printf("{\"tried\": %d, \"got\": %d}\n", tried, got);
	return 0;
}
