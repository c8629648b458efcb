/* A guest for test_vanishing.py: does a little of everything with the backend at argv[1] and the echo server at port argv[2],
 * and stops for its tracer before it begins. */
#include <arpa/inet.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xensock.h>

static void must(int good, const char *what)
{
	if (good)
		return;
	perror(what);
	exit(1);
}

static void echoes(int s, size_t size)
{
	static char out[1 << 16], in[1 << 16];

	memset(out, 'x', size);
	must(xensock_send(s, out, size, 0) == (ssize_t)size, "send");
	must(xensock_recv(s, in, size, MSG_WAITALL) == (ssize_t)size, "recv");
	must(memcmp(out, in, size) == 0, "compare");
}

int main(int argc, char **argv)
{
	struct sockaddr_in far = {.sin_family = AF_INET}, own = far, peer;
	socklen_t length = sizeof own;
	struct xensock *x;
	int one = 1, s, listener, client, served;
	char byte;

	must(argc == 3, "arguments");
	far.sin_port = htons((uint16_t)atoi(argv[2]));
	far.sin_addr.s_addr = own.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	raise(SIGSTOP);
	x = xensock_attach(argv[1], "vanishing", 0);
	must(x != NULL, "attach");

	s = xensock_socket(x, AF_INET, SOCK_STREAM, 0);
	must(s >= 0, "socket");
	must(xensock_setsockopt(s, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one) == 0, "setsockopt");
	must(xensock_connect(s, (struct sockaddr *)&far, sizeof far) == 0, "connect");
	echoes(s, 20000);

	listener = xensock_socket(x, AF_INET, SOCK_STREAM, 0);
	must(listener >= 0, "socket");
	must(xensock_bind(listener, (struct sockaddr *)&own, sizeof own) == 0, "bind");
	must(xensock_listen(listener, 4) == 0, "listen");
	must(xensock_getsockname(listener, (struct sockaddr *)&own, &length) == 0, "getsockname");
	client = xensock_socket(x, AF_INET, SOCK_STREAM, 0);
	must(client >= 0, "socket");
	must(xensock_connect(client, (struct sockaddr *)&own, sizeof own) == 0, "connect to itself");
	length = sizeof peer;
	served = xensock_accept(listener, (struct sockaddr *)&peer, &length, 0);
	must(served >= 0, "accept");
	must(xensock_send(client, "!", 1, 0) == 1, "send to itself");
	must(xensock_recv(served, &byte, 1, 0) == 1 && byte == '!', "recv from itself");
	must(xensock_shutdown(client, SHUT_WR) == 0, "shutdown");
	must(xensock_recv(served, &byte, 1, 0) == 0, "recv the end");
	must(xensock_close(served) == 0, "close");
	must(xensock_close(listener) == 0, "close");

	must(xensock_shutdown(s, SHUT_WR) == 0, "shutdown");
	must(xensock_recv(s, &byte, 1, 0) == 0, "recv the end");
	must(xensock_close(s) == 0, "close");
	xensock_detach(x); /* closes what is left */
	puts("done");
	return 0;
}
