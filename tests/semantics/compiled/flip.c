/* One thread changes the address while another connects to it: only what was judged may be reached.
 * argv: VERSION HOST ALLOWED-PORT REFUSED-PORT TIMES. Without rules it reaches both. */
#define _GNU_SOURCE
#define PROBE "flip"
#include <pthread.h>
#include <stdatomic.h>
#include "say.h"

static struct sockaddr_storage to;
static atomic_int done;
static in_port_t ports[2];

static void *flip(void *argument)
{
	volatile in_port_t *port = &((struct sockaddr_in *)&to)->sin_port; /* same place in sin6 */

	(void)argument;
	for (unsigned i = 0; !atomic_load_explicit(&done, memory_order_relaxed); i++)
		*port = ports[i & 1];
	return NULL;
}

int main(int argc, char **argv)
{
	socklen_t size = argc == 6 ? address(argv, &to) : 0;
	int connected = 0, refused = 0, other = 0;
	pthread_t thread;

	if (!size)
		return 2;
	ports[0] = htons((in_port_t)atoi(argv[3]));
	ports[1] = htons((in_port_t)atoi(argv[4]));
	pthread_create(&thread, NULL, flip, NULL);
	for (int left = atoi(argv[5]); left; left--) {
		int fd = socket(family(argv), SOCK_STREAM, 0);

		if (!connect(fd, (struct sockaddr *)&to, size))
			connected++;
		else if (errno == EACCES)
			refused++;
		else
			other++;
		close(fd);
	}
	atomic_store(&done, 1);
	pthread_join(thread, NULL);
	say("connected", "%d", connected > 0);
	say("refused", "%d", refused > 0);
	say("other outcomes", "%d", other);
	return 0;
}
