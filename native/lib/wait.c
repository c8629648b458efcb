/* Sleeping until the backend, or another thread, has news.
 *
 * Events are counters that one reader empties. Where several threads wait on one source, whoever
 * takes an event writes to the eventfds of the others, so that they look again by themselves. Each
 * waiter is in the list before it asks for an event, so the event it asked for finds it there.
 */
#include "internal.h"

#include <errno.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_key_t kick_key; /* the thread's eventfd + 1 */

static void close_kick(void *fd)
{
	close((int)(intptr_t)fd - 1);
}

static void make_key(void)
{
	pthread_key_create(&kick_key, close_kick);
}

int xs_kick_fd(void)
{
	intptr_t held;
	int fd;

	pthread_once(&once, make_key);
	held = (intptr_t)pthread_getspecific(kick_key);
	if (held)
		return (int)held - 1;
	fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (fd >= 0 && pthread_setspecific(kick_key, (void *)(intptr_t)(fd + 1))) {
		close(fd);
		errno = ENOMEM;
		return -1;
	}
	return fd;
}

void xs_kick(int fd)
{
	uint64_t one = 1;

	while (write(fd, &one, sizeof one) < 0 && errno == EINTR)
		;
}

static void empty(int fd)
{
	uint64_t count;
	struct iovec part = {&count, sizeof count};

	/* Others hold the same file and may have made it blocking. */
	while (preadv2(fd, &part, 1, -1, RWF_NOWAIT) < 0)
		if (errno == EOPNOTSUPP) { /* an older kernel */
			struct pollfd p = {fd, POLLIN, 0};

			if (poll(&p, 1, 0) > 0 && read(fd, &count, sizeof count) < 0)
				continue;
			return;
		} else if (errno != EINTR) {
			return;
		}
}

void xs_source_init(struct xs_source *s, int fd)
{
	s->fd = fd;
	s->first = NULL;
	pthread_mutex_init(&s->lock, NULL);
}

void xs_source_end(struct xs_source *s)
{
	pthread_mutex_destroy(&s->lock);
}

bool xs_wait_begin(struct xs_waiting *w, struct xs_source *s)
{
	w->source = s;
	w->kick = xs_kick_fd();
	if (w->kick < 0)
		return false;
	pthread_mutex_lock(&s->lock);
	w->next = s->first;
	w->at = &s->first;
	if (w->next)
		w->next->at = &w->next;
	s->first = w;
	pthread_mutex_unlock(&s->lock);
	return true;
}

void xs_wait_end(struct xs_waiting *w)
{
	struct xs_source *s = w->source;

	pthread_mutex_lock(&s->lock);
	*w->at = w->next;
	if (w->next)
		w->next->at = w->at;
	pthread_mutex_unlock(&s->lock);
}

void xs_source_kick(struct xs_source *s, int but)
{
	pthread_mutex_lock(&s->lock);
	for (const struct xs_waiting *w = s->first; w; w = w->next)
		if (w->kick != but)
			xs_kick(w->kick);
	pthread_mutex_unlock(&s->lock);
}

uint64_t xs_clock(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

uint64_t xs_deadline(uint64_t ns)
{
	return ns ? xs_clock() + ns : XS_NEVER;
}

bool xs_poll_until(struct pollfd *fds, size_t count, uint64_t deadline)
{
	struct timespec left, *limit = NULL;
	int n;

	if (deadline != XS_NEVER) {
		uint64_t now = deadline == XS_NOW ? 0 : xs_clock(), ns = now < deadline ? deadline - now : 0;

		left = (struct timespec){(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};
		limit = &left;
	}
	n = ppoll(fds, count, limit, NULL);
	if (!n)
		errno = ETIMEDOUT;
	return n > 0;
}

void xs_kicked(int kick)
{
	empty(kick);
}

void xs_woken(struct xensock *x, bool store, bool commands, int kick)
{
	if (commands)
		empty(x->source.fd);
	pthread_mutex_lock(&x->lock);
	if (store)
		xs_store_receive(x);
	if (commands)
		xs_responses(x, kick);
	pthread_mutex_unlock(&x->lock);
}

void xs_take_event(struct xs_source *s, int but)
{
	empty(s->fd);
	xs_source_kick(s, but);
}

bool xs_sleep(struct xensock *x, struct xs_waiting *w, bool commands, uint64_t deadline)
{
	struct pollfd fds[4];
	size_t own = commands ? 3 : 2;
	int kick = w ? w->kick : xs_kick_fd();

	if (kick < 0)
		return false;
	fds[0] = (struct pollfd){kick, POLLIN, 0};
	fds[1] = (struct pollfd){x->fd, POLLIN, 0};
	fds[2] = (struct pollfd){x->source.fd, POLLIN, 0};
	if (w)
		fds[own] = (struct pollfd){w->source->fd, POLLIN, 0};
	if (!xs_poll_until(fds, own + (w != NULL), deadline))
		return false;
	if (fds[0].revents)
		xs_kicked(kick);
	if (fds[1].revents || (commands && fds[2].revents))
		xs_woken(x, fds[1].revents, commands && fds[2].revents, kick);
	if (w && fds[own].revents)
		xs_take_event(w->source, kick);
	return true;
}
