/* What one guest may take; see super.h. */
#include "super.h"

#include "super_parts.h"

#include <pthread.h>
#include <time.h>

#define PACED_PARTS 64 /* of a second, for which calls are counted */

void xs_super_limit(struct xs_super *s, uint32_t sockets, uint32_t connects, uint32_t calls)
{
	pthread_mutex_lock(&s->lock);
	s->room = sockets;
	s->connects = connects;
	pthread_mutex_unlock(&s->lock);
	s->calls = calls;
}

void xs_super_room(struct xs_super *s, uint32_t sockets)
{
	pthread_mutex_lock(&s->lock);
	s->room = sockets ? sockets - 1 : 0;
	pthread_mutex_unlock(&s->lock);
}

bool xs_take_room(struct xs_super *s)
{
	bool room;

	pthread_mutex_lock(&s->lock);
	room = s->room > 0;
	s->room -= room;
	pthread_mutex_unlock(&s->lock);
	return room;
}

void xs_pace(struct xs_super *s)
{
	uint32_t part = s->calls / PACED_PARTS + 1;
	uint64_t now, due;

	if (!s->calls || ++s->looked < part)
		return;
	now = xs_now_ns();
	due = s->paced_ns + (uint64_t)part * 1000000000u / s->calls;
	s->looked = 0;
	if (now < due) {
		const struct timespec rest = {(time_t)((due - now) / 1000000000u), (long)((due - now) % 1000000000u)};

		nanosleep(&rest, NULL); /* shorter if this thread is to stop */
		now = due;
	}
	s->paced_ns = now;
}
