/* What the supervisor remembers of sockets by their SO_COOKIE: outcomes of calls that were interrupted, and births. */
#include "super_parts.h"

#include <sys/socket.h>
#include <time.h>

void xs_super_keep(struct xs_super *s, uint64_t c, int nr, int error)
{
	if (!c)
		return;
	pthread_mutex_lock(&s->lock);
	s->kept[s->kept_at % KEPT].cookie = c;
	s->kept[s->kept_at % KEPT].nr = nr;
	s->kept[s->kept_at % KEPT].error = error;
	s->kept_at++;
	if (s->nkept < KEPT)
		s->nkept++;
	pthread_mutex_unlock(&s->lock);
}

bool xs_super_kept(struct xs_super *s, uint64_t c, int nr, int *error)
{
	bool found = false;

	pthread_mutex_lock(&s->lock);
	for (unsigned i = 0; c && i < s->nkept && !found; i++) {
		if (s->kept[i].cookie == c && s->kept[i].nr == nr) {
			*error = s->kept[i].error;
			s->kept[i].cookie = 0;
			found = true;
		}
	}
	pthread_mutex_unlock(&s->lock);
	return found;
}

void xs_note_birth(struct xs_super *s, uint64_t cookie, uint32_t tid, int domain)
{
	struct timespec t;

	clock_gettime(CLOCK_BOOTTIME, &t);
	pthread_mutex_lock(&s->lock);
	s->born[cookie % BORN].cookie = cookie;
	s->born[cookie % BORN].boot_ns = (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
	s->born[cookie % BORN].tid = tid;
	s->born[cookie % BORN].domain = domain;
	pthread_mutex_unlock(&s->lock);
}

bool xs_super_born(struct xs_super *s, uint64_t cookie, uint32_t *tid, uint64_t *boot_ns)
{
	bool found;

	pthread_mutex_lock(&s->lock);
	found = cookie && s->born[cookie % BORN].cookie == cookie;
	*tid = s->born[cookie % BORN].tid;
	*boot_ns = s->born[cookie % BORN].boot_ns;
	pthread_mutex_unlock(&s->lock);
	return found;
}

/* What the kernel would say of a socket that was handed out, without asking it three times. Not of AF_INET6, which the guest
 * can make AF_INET (ipv6(7), IPV6_ADDRFORM). The receiver's, which alone writes what it reads here. */
bool xs_handed_out(const struct xs_super *s, uint64_t cookie, struct xs_event *ev)
{
	if (!cookie || s->born[cookie % BORN].cookie != cookie || s->born[cookie % BORN].domain != AF_INET)
		return false;
	ev->domain = AF_INET;
	ev->type = SOCK_STREAM;
	ev->host = true;
	return true;
}
