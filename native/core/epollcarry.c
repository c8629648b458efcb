#include "epollcarry.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <unistd.h>

struct job {
	int epfd, op, sock, number, error;
	uint32_t events;
	uint64_t data;
};

static int carry(struct job *j)
{
	struct epoll_event e;
	int ep = j->epfd, sock = j->sock;

	if (unshare(CLONE_FILES))
		return errno;
	if (ep == j->number) {
		ep = dup(ep);
		if (ep < 0)
			return errno;
	}
	if (sock != j->number && dup3(sock, j->number, O_CLOEXEC) < 0)
		return errno;
	memset(&e, 0, sizeof e);
	e.events = j->events;
	e.data.u64 = j->data;
	return epoll_ctl(ep, j->op, j->number, &e) ? errno : 0;
}

static void *run(void *arg)
{
	struct job *j = arg;

	j->error = carry(j);
	return NULL; /* the private table goes with the thread */
}

int xs_epoll_carry(int epfd, int op, int sock, int number, uint32_t events, uint64_t data)
{
	struct job j = {.epfd = epfd, .op = op, .sock = sock, .number = number, .events = events, .data = data};
	pthread_t t;
	int error = pthread_create(&t, NULL, run, &j);

	if (error)
		return error;
	pthread_join(t, NULL);
	return j.error;
}
