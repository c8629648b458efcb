/* Nothing of libc between the program and the kernel but syscall(); linked statically.
 * argv: VERSION HOST ECHO-PORT CLOSED-PORT */
#define _GNU_SOURCE
#define PROBE "static"
#include <poll.h>
#include <sys/syscall.h>
#include "say.h"

int main(int argc, char **argv)
{
	struct sockaddr_storage to, name;
	socklen_t size = argc == 5 ? address(argv, &to) : 0, length = sizeof name;
	long fd, value;

	if (!size)
		return 2;
	fd = syscall(SYS_socket, family(argv), SOCK_STREAM | SOCK_CLOEXEC, 0);
	say("connect", "%s", result(syscall(SYS_connect, fd, &to, size)));
	say("echo", "%s", echo((int)fd));
	value = syscall(SYS_getpeername, fd, &name, &length);
	say("peer", "%s %d %d", result(value), (int)length, !memcmp(&name, &to, length));
	say("again", "%s", result(syscall(SYS_connect, fd, &to, size)));
	close((int)fd);

	char *closed[] = {argv[0], argv[1], argv[2], argv[4]};
	size = address(closed, &to);
	fd = syscall(SYS_socket, family(argv), SOCK_STREAM | SOCK_NONBLOCK, IPPROTO_TCP);
	say("refused", "%s", result(syscall(SYS_connect, fd, &to, size)));
	struct pollfd wait = {.fd = (int)fd, .events = POLLOUT};
	say("poll", "%s", result(poll(&wait, 1, 10000)));
	int error = 0;
	length = sizeof error;
	getsockopt((int)fd, SOL_SOCKET, SO_ERROR, &error, &length);
	say("error", "%s", error ? strerrorname_np(error) : "0");
	close((int)fd);

	fd = syscall(SYS_socket, family(argv), SOCK_STREAM, 0);
	say("listen", "%s", result(syscall(SYS_listen, fd, 3)));
	say("upper half", "%s", result(syscall(SYS_listen, fd | (1L << 40), 3)));
	say("bind", "%s", result(syscall(SYS_bind, fd, &to, (unsigned long)size | (1UL << 33))));
	return 0;
}
