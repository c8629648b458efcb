/* family ADDRESS PORT [serve]: one exchange over AF_XENSOCK, as client or (ADDRESS to bind) as server. */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define AF_XENSOCK 0x5853

static int failed(const char *what)
{
	perror(what);
	return 1;
}

int main(int argc, char **argv)
{
	struct sockaddr_in6 a = {.sin6_family = AF_XENSOCK};
	char text[100];
	ssize_t n;
	int s = socket(AF_XENSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (argc < 3 || s < 0)
		return failed("socket");
	a.sin6_port = htons((unsigned short)atoi(argv[2]));
	if (inet_pton(AF_INET6, argv[1], &a.sin6_addr) != 1)
		return failed("inet_pton");
	if (argc > 3) {
		int listener = s;

		if (bind(listener, (struct sockaddr *)&a, sizeof a) || listen(listener, 1))
			return failed("bind");
		s = accept(listener, NULL, NULL);
		if (s < 0)
			return failed("accept");
	} else {
		if (connect(s, (struct sockaddr *)&a, sizeof a))
			return failed("connect");
		if (write(s, "hello", 5) != 5)
			return failed("write");
	}
	n = read(s, text, sizeof text);
	if (n < 0)
		return failed("read");
	if (argc > 3 && write(s, text, (size_t)n) != n)
		return failed("write");
	printf("%.*s\n", (int)n, text);
	return 0;
}
