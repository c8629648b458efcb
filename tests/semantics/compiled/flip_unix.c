/* One thread changes a path while another connects to it: only the program's own socket may be reached.
 * argv: OWN-PATH OTHER-PATH TIMES. The paths are equally long. */
#define _GNU_SOURCE
#define PROBE "flip unix"
#include <pthread.h>
#include <stdatomic.h>
#include <sys/un.h>
#include "say.h"

static struct sockaddr_un to = {.sun_family = AF_UNIX};
static atomic_int done;
static char **paths;

static void *flip(void *argument)
{
	size_t size = strlen(paths[1]);
	volatile char *at = to.sun_path;

	(void)argument;
	for (unsigned i = 0; !atomic_load_explicit(&done, memory_order_relaxed); i++)
		for (size_t k = 0; k < size; k++)
			at[k] = paths[1 + (i & 1)][k];
	return NULL;
}

static void *accept_all(void *listener)
{
	for (;;) {
		int fd = accept(*(int *)listener, NULL, NULL);

		if (fd < 0)
			return NULL;
		close(fd);
	}
}

int main(int argc, char **argv)
{
	int connected = 0, refused = 0, other = 0, own;
	pthread_t flipper, server;

	if (argc != 4 || strlen(argv[1]) != strlen(argv[2]))
		return 2;
	paths = argv;
	strncpy(to.sun_path, argv[1], sizeof to.sun_path - 1);
	own = socket(AF_UNIX, SOCK_STREAM, 0);
	if (bind(own, (struct sockaddr *)&to, sizeof to) || listen(own, 64))
		return 3;
	pthread_create(&server, NULL, accept_all, &own);
	pthread_create(&flipper, NULL, flip, NULL);
	for (int left = atoi(argv[3]); left; left--) {
		int fd = socket(AF_UNIX, SOCK_STREAM, 0);

		if (!connect(fd, (struct sockaddr *)&to, sizeof to))
			connected++;
		else if (errno == EACCES)
			refused++;
		else if (errno != ENOENT && errno != ECONNREFUSED) /* half of one path, half of the other */
			other++;
		close(fd);
	}
	atomic_store(&done, 1);
	pthread_join(flipper, NULL);
	say("connected", "%d", connected > 0);
	say("refused", "%d", refused > 0);
	say("other outcomes", "%d", other);
	return 0;
}
