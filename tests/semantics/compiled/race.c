/* One thread connects sockets while another closes and replaces their numbers: every outcome is one
 * the kernel could give, and the replaced number is never connected by mistake.
 * argv: VERSION HOST ECHO-PORT */
#define _GNU_SOURCE
#define PROBE "race"
#include <pthread.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include "say.h"

static atomic_int number = -1;
static atomic_int done;

static void *replace(void *argument)
{
	int null = open("/dev/null", O_RDWR);

	(void)argument;
	while (!atomic_load(&done)) {
		int fd = atomic_load(&number);

		if (fd >= 0)
			dup2(null, fd);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	struct sockaddr_storage to;
	socklen_t size = argc == 4 ? address(argv, &to) : 0;
	pthread_t thread;
	int odd = 0, broken = 0;

	if (!size)
		return 2;
	pthread_create(&thread, NULL, replace, NULL);
	for (int i = 0; i < 500; i++) {
		int fd = socket(family(argv), SOCK_STREAM, 0);

		atomic_store(&number, fd);
		int value = connect(fd, (struct sockaddr *)&to, size);
		if (value < 0 && errno != ENOTSOCK)
			odd = errno;
		atomic_store(&number, -1);
		/* The other thread may be between its load and its dup2: take the number out of play. */
		struct stat about;
		if (fstat(fd, &about) || !(S_ISSOCK(about.st_mode) || S_ISCHR(about.st_mode)))
			broken++;
		close(fd);
	}
	atomic_store(&done, 1);
	pthread_join(thread, NULL);
	say("odd errno", "%s", odd ? strerrorname_np(odd) : "none");
	say("broken", "%d", broken);
	return 0;
}
