/* epoll's user data and flags stay with a registration made before connect and bind.
 * argv: VERSION HOST ECHO-PORT LOOPBACK */
#define _GNU_SOURCE
#define PROBE "epoll data"
#include <inttypes.h>
#include <sys/epoll.h>
#include "say.h"

static void show(int epoll, const char *what)
{
	struct epoll_event events[8];
	int count = epoll_wait(epoll, events, 8, 5000);

	say("count", "%d", count);
	for (int i = 0; i < count; i++)
		say(what, "%x %" PRIx64, events[i].events, events[i].data.u64);
}

int main(int argc, char **argv)
{
	char *loop[] = {argv[0], argc == 5 ? argv[1] : "", argc == 5 ? argv[4] : "", "0"};
	struct sockaddr_storage world, local;
	socklen_t size, length = sizeof local;

	if (argc != 5)
		return 2;
	size = address(argv, &world);
	address(loop, &local);
	int listener = socket(family(argv), SOCK_STREAM, 0);
	bind(listener, (struct sockaddr *)&local, size);
	listen(listener, 8);
	getsockname(listener, (struct sockaddr *)&local, &length);

	for (int place = 0; place < 2; place++) {
		struct sockaddr *to = (struct sockaddr *)(place ? &local : &world);
		uint32_t flags[] = {EPOLLOUT, EPOLLOUT | EPOLLET, EPOLLOUT | EPOLLONESHOT,
				    EPOLLOUT | EPOLLEXCLUSIVE};

		for (unsigned i = 0; i < 4; i++) {
			int epoll = epoll_create1(0), fd = socket(family(argv), SOCK_STREAM, 0);
			struct epoll_event event = {.events = flags[i],
						    .data.u64 = 0xdeadbeef00000000 + i};

			say("add", "%s", result(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event)));
			say("connect", "%s", result(connect(fd, to, size)));
			show(epoll, place ? "loopback" : "world");
			say("add again", "%s", result(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event)));
			say("delete", "%s", result(epoll_ctl(epoll, EPOLL_CTL_DEL, fd, NULL)));
			say("delete again", "%s", result(epoll_ctl(epoll, EPOLL_CTL_DEL, fd, NULL)));
			close(fd);
			close(epoll);
		}
	}
	return 0;
}
