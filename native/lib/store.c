/* The store of the local transport: packets on a unix socket (docs/reference/local-transport.md). */
#include "internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>
#include <unistd.h>

#define HEADER 16
#define LARGEST (64u << 10)

const char *const xs_feature_names[] = {"data-events", "shutdown", "names", "options", "ipv6", "async-connect", "close", "shared-rings", "urgent", NULL};

int xs_store_connect(const char *path)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	struct timeval patience = {10, 0};
	size_t length = strlen(path);
	int fd, error;

	if (!length || length >= sizeof a.sun_path) {
		errno = length ? ENAMETOOLONG : EINVAL;
		return -1;
	}
	memcpy(a.sun_path, path, length);
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -1;
	/* A backend that does not read is not waited for without end. */
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
	if (!connect(fd, (struct sockaddr *)&a, sizeof a))
		return fd;
	error = errno;
	close(fd);
	errno = error;
	return -1;
}

bool xs_store_send(struct xensock *x, enum xs_message type, uint32_t a, uint32_t b, const void *payload, size_t size,
		   const int *fds, int nfds)
{
	uint32_t head[4] = {type, (uint32_t)size, a, b};
	struct iovec parts[2] = {{head, sizeof head}, {(void *)(uintptr_t)payload, size}};
	union {
		struct cmsghdr align;
		char room[CMSG_SPACE(2 * sizeof(int))];
	} control;
	struct msghdr m = {.msg_iov = parts, .msg_iovlen = size ? 2 : 1};
	ssize_t n;

	if (nfds) {
		struct cmsghdr *c;

		memset(&control, 0, sizeof control);
		m.msg_control = control.room;
		m.msg_controllen = CMSG_SPACE((size_t)nfds * sizeof(int));
		c = CMSG_FIRSTHDR(&m);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN((size_t)nfds * sizeof(int));
		memcpy(CMSG_DATA(c), fds, (size_t)nfds * sizeof(int));
	}
	do
		n = sendmsg(x->fd, &m, MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	if (n >= 0)
		return true;
	/* Its last words, why it let us go, may still be there to be read. */
	xs_store_receive(x);
	xs_die(x, "the backend takes no more messages");
	errno = ENETDOWN;
	return false;
}

void xs_die(struct xensock *x, const char *reason)
{
	if (atomic_exchange(&x->dead, true))
		return;
	snprintf(x->reason, sizeof x->reason, "%s", reason);
	/* Whoever sleeps looks at this descriptor, too. */
	shutdown(x->fd, SHUT_RDWR);
	xs_abandon(x);
}

static uint32_t number(const char *text)
{
	char *end;
	unsigned long n = strtoul(text, &end, 10);

	return *end || !*text || n > UINT32_MAX ? 0 : (uint32_t)n;
}

/* "1" in a list as "1" or "1,2". */
static bool offers_v1(const char *list)
{
	while (*list) {
		size_t n = strcspn(list, ",");

		if (n == 1 && *list == '1')
			return true;
		list += n + (list[n] == ',');
	}
	return false;
}

static void node(struct xensock *x, const char *key, const char *value)
{
	if (!strcmp(key, "state"))
		x->backend_state = number(value);
	else if (!strcmp(key, "versions"))
		x->versions = offers_v1(value);
	else if (!strcmp(key, "function-calls"))
		x->calls = !strcmp(value, "1");
	else if (!strcmp(key, "max-page-order"))
		x->max_order = number(value);
	else if (!strcmp(key, "max-ring-page-order"))
		x->max_ring_order = number(value);
	else if (!strncmp(key, "feature-", 8))
		for (unsigned i = 0; xs_feature_names[i]; i++)
			if (!strcmp(key + 8, xs_feature_names[i]) && !strcmp(value, "1"))
				x->announced |= 1u << i;
}

static bool nodes(struct xensock *x, const char *at, size_t size)
{
	const char *end = at + size;

	while (at < end) {
		const char *key = at, *value = memchr(key, 0, (size_t)(end - key));
		const char *stop = value ? memchr(value + 1, 0, (size_t)(end - value - 1)) : NULL;

		if (!stop)
			return false;
		node(x, key, value + 1);
		at = stop + 1;
	}
	return true;
}

/* One packet, and its descriptor if it has one; none has two. */
static ssize_t receive(int sock, char packet[LARGEST], int *fd)
{
	struct iovec part = {packet, LARGEST};
	union {
		struct cmsghdr align;
		char room[CMSG_SPACE(sizeof(int))];
	} control;
	struct msghdr m = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control.room, .msg_controllen = sizeof control.room};
	ssize_t n = recvmsg(sock, &m, MSG_DONTWAIT | MSG_TRUNC | MSG_CMSG_CLOEXEC);
	struct cmsghdr *c = n < 0 ? NULL : CMSG_FIRSTHDR(&m);

	*fd = -1;
	if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS && c->cmsg_len == CMSG_LEN(sizeof(int)))
		memcpy(fd, CMSG_DATA(c), sizeof(int));
	return n;
}

void xs_store_receive(struct xensock *x)
{
	static const char false_packet[] = "the backend broke the protocol: a packet that is none";
	char packet[LARGEST], reason[sizeof x->reason];
	uint32_t head[4];
	bool reset = false;
	int fd;

	while (!x->dead) {
		ssize_t n = receive(x->fd, packet, &fd);

		if (n < 0 && errno == EINTR)
			continue;
		/* It closed without having read all. That is told first and once; its last words come behind it. */
		if (n < 0 && errno == ECONNRESET && !reset) {
			reset = true;
			continue;
		}
		if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
			return;
		if (n <= 0) {
			xs_die(x, n ? strerror(errno) : "the backend closed the connection");
			return;
		}
		memcpy(head, packet, sizeof head);
		if (n < HEADER || (size_t)n > sizeof packet || head[1] != (size_t)n - HEADER ||
		    (fd >= 0) != (head[0] == XS_SHARED || head[0] == XS_PEER)) {
			if (fd >= 0)
				close(fd);
			xs_die(x, false_packet);
			return;
		}
		switch (head[0]) {
		case XS_SHARED:
			xs_shared_arrived(x, head[2], head[3], fd);
			break;
		case XS_PEER:
			xs_shared_peer(x, head[2], fd);
			break;
		case XS_WELCOME:
			if (head[2] == 1)
				break;
			xs_die(x, "the backend speaks another version of the local transport");
			return;
		case XS_NODES:
			if (nodes(x, packet + HEADER, head[1]))
				break;
			xs_die(x, false_packet);
			return;
		case XS_GOODBYE:
			snprintf(reason, sizeof reason, "the backend says: %.*s", (int)(head[1] < 150 ? head[1] : 150), packet + HEADER);
			xs_die(x, reason);
			return;
		default:
			xs_die(x, "the backend broke the protocol: an unknown packet");
			return;
		}
	}
}
