/*
 * A short busy wait before a sleep. An answer that comes within microseconds is not worth a sleep: waking up takes longer.
 * Only who waited briefly the last time looks for one, so that idle connections cost nothing; and it lets others have the
 * processor meanwhile.
 */
#ifndef XS_SPIN_H
#define XS_SPIN_H
#include <sched.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <time.h>

#define XS_SPIN_MAX_NS 100000u

static inline uint64_t xs_spin_clock(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* How long to look the next time, when the last wait, sleep included, took so long. */
static inline uint32_t xs_spin_next(uint64_t took_ns)
{
	if (took_ns > XS_SPIN_MAX_NS)
		return 0;
	return took_ns * 2 < XS_SPIN_MAX_NS ? (uint32_t)(took_ns * 2) : XS_SPIN_MAX_NS;
}

static inline void xs_spin_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__("yield"); /* without outputs it stays where it is */
#endif
}

/* epoll_wait() without a timeout; *spin_ns is the caller's, 0 at first. */
static inline int xs_spin_epoll(int epfd, struct epoll_event *ev, int max, uint32_t *spin_ns)
{
	uint64_t start = xs_spin_clock(), took = 0;
	int n = 0;

	while (!n && took < *spin_ns) {
		n = epoll_wait(epfd, ev, max, 0);
		if (!n)
			sched_yield();
		took = xs_spin_clock() - start;
	}
	if (!n) {
		n = epoll_wait(epfd, ev, max, -1);
		took = xs_spin_clock() - start;
	}
	*spin_ns = xs_spin_next(took);
	return n;
}

#endif
