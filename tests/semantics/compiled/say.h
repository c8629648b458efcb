/* Observations of a compiled probe: one JSON object per line, as probes/kit.py prints them. */
#pragma once
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

static inline void say(const char *what, const char *format, ...)
{
	va_list args;

	printf("{\"probe\": \"%s\", \"say\": \"%s\", \"got\": \"", PROBE, what);
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	printf("\"}\n");
	fflush(stdout);
}

/* A result, or the errno's name. */
static inline const char *result(long value)
{
	static char text[32];

	if (value < 0)
		return strerrorname_np(errno);
	snprintf(text, sizeof text, "%ld", value);
	return text;
}

/* argv: VERSION HOST PORT → a socket address and its length. */
static inline socklen_t address(char **argv, struct sockaddr_storage *out)
{
	struct sockaddr_in *four = (struct sockaddr_in *)out;
	struct sockaddr_in6 *six = (struct sockaddr_in6 *)out;

	memset(out, 0, sizeof *out);
	if (argv[1][0] == '4') {
		four->sin_family = AF_INET;
		four->sin_port = htons((unsigned short)atoi(argv[3]));
		inet_pton(AF_INET, argv[2], &four->sin_addr);
		return sizeof *four;
	}
	six->sin6_family = AF_INET6;
	six->sin6_port = htons((unsigned short)atoi(argv[3]));
	inet_pton(AF_INET6, argv[2], &six->sin6_addr);
	return sizeof *six;
}

static inline int family(char **argv)
{
	return argv[1][0] == '4' ? AF_INET : AF_INET6;
}

/* Send five bytes to an echo service and compare what comes back. */
static inline const char *echo(int fd)
{
	char text[6] = "";
	size_t got = 0;

	if (send(fd, "hello", 5, MSG_NOSIGNAL) != 5)
		return strerrorname_np(errno);
	while (got < 5) {
		ssize_t more = recv(fd, text + got, 5 - got, 0);

		if (more <= 0)
			return more ? strerrorname_np(errno) : "end";
		got += (size_t)more;
	}
	return strcmp(text, "hello") ? "garbled" : "hello";
}
