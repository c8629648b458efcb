/* The conversation with the backend: who it is for, the description as the engine wrote it, and as it is to be. */
#include "runtime.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define SYSTEM "/run/xensock/containers.sock"

/* Where it is: as told, else the user's own backend if there is one, else the system's. */
static const char *place(const struct order *o, char *room, size_t size)
{
	const char *base = getenv("XDG_RUNTIME_DIR");

	if (o->backend && *o->backend)
		return o->backend;
	if (base && *base && (size_t)snprintf(room, size, "%s/xensock/containers.sock", base) < size && !access(room, F_OK))
		return room;
	return SYSTEM;
}

int call_backend(const struct order *o)
{
	struct sockaddr_un to = {.sun_family = AF_UNIX};
	char room[sizeof to.sun_path];
	const char *path = place(o, room, sizeof room);
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	if (strlen(path) >= sizeof to.sun_path)
		give_up(o, "the path of the backend is too long: %s", path);
	strcpy(to.sun_path, path);
	if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to))
		give_up(o, "cannot reach the backend at %s: %s (start it: xensock backend --containers %s)", path, strerror(errno), path);
	return fd;
}

static void add(const struct order *o, char *text, size_t size, size_t *used, const char *word)
{
	size_t length = strlen(word) + 1;

	if (*used + length > size)
		give_up(o, "the container's name or path is too long");
	memcpy(text + *used, word, length);
	*used += length;
}

int ask_backend(const struct order *o, int backend, int description, int fd)
{
	union { char room[CMSG_SPACE(sizeof(int))]; struct cmsghdr h; } u;
	char text[8192], number[16], *bundle = realpath(o->bundle, NULL);
	size_t used = 0;
	struct iovec v = {text, 0};
	struct msghdr h = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = u.room, .msg_controllen = sizeof u.room};
	struct cmsghdr *c = CMSG_FIRSTHDR(&h);
	ssize_t n;

	snprintf(number, sizeof number, "%d", fd);
	add(o, text, sizeof text, &used, strcmp(o->name, "exec") ? "create" : "exec");
	add(o, text, sizeof text, &used, o->id);
	add(o, text, sizeof text, &used, bundle ? bundle : "");
	add(o, text, sizeof text, &used, number);
	v.iov_len = used;
	memset(&u, 0, sizeof u);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof description);
	memcpy(CMSG_DATA(c), &description, sizeof description);
	free(bundle);
	if (sendmsg(backend, &h, MSG_NOSIGNAL) < 0)
		give_up(o, "the backend does not listen: %s", strerror(errno));
	v.iov_len = sizeof text - 1;
	h.msg_controllen = sizeof u.room;
	do
		n = recvmsg(backend, &h, MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n <= 0)
		give_up(o, "the backend turned away: %s", n < 0 ? strerror(errno) : "see what it says, and its --user");
	text[n] = 0;
	c = CMSG_FIRSTHDR(&h);
	if (text[0] != 'O' || !c || c->cmsg_type != SCM_RIGHTS || c->cmsg_len != CMSG_LEN(sizeof fd))
		give_up(o, "%s", text[0] == 'N' ? text + 1 : "the backend's answer makes no sense; are it and this runtime of one version?");
	memcpy(&fd, CMSG_DATA(c), sizeof fd);
	return fd;
}
