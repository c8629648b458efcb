/* From the number that a program holds to the socket: a table by descriptor number. */
#include "internal.h"

#include <errno.h>
#include <stdlib.h>

#define BLOCK 1024u
#define BLOCKS 1024u /* 2^20 descriptors, the most that Linux gives by default */

struct place {
	atomic_flag busy; /* held for some instructions: a reference must not be taken from a socket that goes */
	struct xs_sock *sock;
};
static struct place *_Atomic blocks[BLOCKS];

static struct place *place_of(int fd, bool make)
{
	unsigned block = (unsigned)fd / BLOCK;
	struct place *b, *none = NULL;

	if (fd < 0 || block >= BLOCKS)
		return NULL;
	b = atomic_load_explicit(&blocks[block], memory_order_acquire);
	if (!b && make) {
		b = calloc(BLOCK, sizeof *b);
		if (b && !atomic_compare_exchange_strong(&blocks[block], &none, b)) {
			free(b);
			b = none;
		}
	}
	return b ? &b[(unsigned)fd % BLOCK] : NULL;
}

static void hold(struct place *p)
{
	while (atomic_flag_test_and_set_explicit(&p->busy, memory_order_acquire))
		;
}

static void let_go(struct place *p)
{
	atomic_flag_clear_explicit(&p->busy, memory_order_release);
}

struct xs_sock *xs_get(int fd)
{
	struct place *p = place_of(fd, false);
	struct xs_sock *s = NULL;

	if (p) {
		hold(p);
		s = p->sock;
		if (s)
			atomic_fetch_add_explicit(&s->refs, 1, memory_order_relaxed);
		let_go(p);
	}
	if (!s)
		errno = EBADF;
	return s;
}

bool xs_sock_publish(struct xs_sock *s)
{
	struct place *p = place_of(s->fd, true);

	if (!p) {
		errno = EMFILE;
		return false;
	}
	hold(p);
	p->sock = s;
	let_go(p);
	return true;
}

bool xs_sock_hide(struct xs_sock *s)
{
	struct place *p = place_of(s->fd, false);
	bool was;

	if (!p)
		return false;
	hold(p);
	was = p->sock == s;
	if (was)
		p->sock = NULL;
	let_go(p);
	return was;
}
