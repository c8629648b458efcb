#include "guestfd.h"

#include "sys.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define SLOTS 256
#define FRESH_NS 1000000u /* how long a name that was read is a caller's: execve(2) alone takes a good part of it */

struct xs_guestfd {
	pthread_mutex_t lock;
	uint64_t host; /* SO_NETNS_COOKIE of our own network */
	struct { uint32_t tid; int pidfd; } slot[SLOTS];
	/* Open files: one that is gone says so, whoever has its number now. What was read, and of a call of when. */
	struct { uint32_t tid; int fd; uint64_t at_ns; char name[XS_PROGRAM]; } comm[SLOTS];
};

static uint64_t netns_of(int fd)
{
	uint64_t c = 0;
	socklen_t l = sizeof c;

	return getsockopt(fd, SOL_SOCKET, SO_NETNS_COOKIE, &c, &l) ? 0 : c;
}

struct xs_guestfd *xs_guestfd_new(void)
{
	struct xs_guestfd *g = calloc(1, sizeof *g);
	int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (!g || s < 0) {
		free(g);
		if (s >= 0)
			close(s);
		return NULL;
	}
	pthread_mutex_init(&g->lock, NULL);
	g->host = netns_of(s);
	close(s);
	for (int i = 0; i < SLOTS; i++)
		g->slot[i].pidfd = g->comm[i].fd = -1;
	return g;
}

void xs_guestfd_free(struct xs_guestfd *g)
{
	for (int i = 0; i < SLOTS; i++) {
		if (g->slot[i].pidfd >= 0)
			close(g->slot[i].pidfd);
		if (g->comm[i].fd >= 0)
			close(g->comm[i].fd);
	}
	pthread_mutex_destroy(&g->lock);
	free(g);
}

/* Before Linux 6.9 a pidfd names a thread group, so the leader is looked up. */
static int leader_of(uint32_t tid)
{
	char path[40], text[2048], *p;
	ssize_t n;
	int fd;

	snprintf(path, sizeof path, "/proc/%u/status", tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	n = read(fd, text, sizeof text - 1);
	close(fd);
	if (n <= 0)
		return -1;
	text[n] = 0;
	p = strstr(text, "\nTgid:");
	return p ? atoi(p + 6) : -1;
}

static int open_pidfd(uint32_t tid)
{
	int fd = (int)syscall(SYS_pidfd_open, tid, PIDFD_THREAD);

	if (fd < 0 && errno == EINVAL)
		fd = (int)syscall(SYS_pidfd_open, leader_of(tid), 0);
	return fd;
}

int xs_guestfd_get(struct xs_guestfd *g, uint32_t tid, int fd)
{
	int r = -ESRCH;

	pthread_mutex_lock(&g->lock);
	/* A recycled tid shows as ESRCH on the old pidfd; then once more with a new one. */
	for (int fresh = 0; fresh < 2 && r == -ESRCH; fresh++) {
		int i = (int)(tid % SLOTS);

		if (fresh || g->slot[i].tid != tid || g->slot[i].pidfd < 0) {
			if (g->slot[i].pidfd >= 0)
				close(g->slot[i].pidfd);
			g->slot[i].tid = tid;
			g->slot[i].pidfd = open_pidfd(tid);
			if (g->slot[i].pidfd < 0) {
				r = -errno;
				break;
			}
		}
		r = (int)syscall(SYS_pidfd_getfd, g->slot[i].pidfd, fd, 0);
		if (r < 0)
			r = -errno;
	}
	pthread_mutex_unlock(&g->lock);
	return r;
}

void xs_guestfd_program(struct xs_guestfd *g, uint32_t tid, uint64_t start_ns, char out[XS_PROGRAM])
{
	int i = (int)(tid % SLOTS);
	ssize_t n = -1;
	char path[40];

	pthread_mutex_lock(&g->lock);
	if (g->comm[i].tid == tid && start_ns >= g->comm[i].at_ns && start_ns - g->comm[i].at_ns < FRESH_NS) {
		memcpy(out, g->comm[i].name, XS_PROGRAM);
		pthread_mutex_unlock(&g->lock);
		return;
	}
	memset(out, 0, XS_PROGRAM);
	for (int fresh = 0; fresh < 2 && n <= 0; fresh++) {
		if (fresh || g->comm[i].tid != tid || g->comm[i].fd < 0) {
			if (g->comm[i].fd >= 0)
				close(g->comm[i].fd);
			snprintf(path, sizeof path, "/proc/%u/comm", tid);
			g->comm[i].tid = tid;
			g->comm[i].fd = open(path, O_RDONLY | O_CLOEXEC);
			fresh = 1;
		}
		if (g->comm[i].fd >= 0)
			n = pread(g->comm[i].fd, out, XS_PROGRAM, 0);
	}
	/* It ends with a line feed. */
	if (n > 0)
		out[n - 1] = 0;
	else
		strcpy(out, "?");
	g->comm[i].at_ns = n > 0 ? start_ns : 0;
	memcpy(g->comm[i].name, out, XS_PROGRAM);
	pthread_mutex_unlock(&g->lock);
}

bool xs_guestfd_is_host(const struct xs_guestfd *g, int fd) { return netns_of(fd) == g->host; }
