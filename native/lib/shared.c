/* The extension shared-rings: a connection between two guests of one backend, in pages that both have.
 *
 * The backend sends the pages, and what wakes the other guest, over the store; the socket's own indexes page
 * says which pages they are and which side it is. Side 1 uses the words as a backend does, but that it looks
 * at the error words, too: only the backend writes those.
 *
 * The other guest is not trusted. It can fill its eventfd, so that one is signalled without blocking; it has
 * ours, so ours serves no other socket afterwards.
 */
#include "internal.h"

#include "notify.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

void xs_shared_arrived(struct xensock *x, uint32_t number, uint32_t pages, int fd)
{
	struct xs_shared *h = pages > 1 && pages <= 1 + (1u << XS_ORDER_MAX) ? calloc(1, sizeof *h) : NULL;
	int seals = fcntl(fd, F_GET_SEALS);

	/* Memory that may shrink could be taken away while it is used. */
	if (h && seals >= 0 && seals & F_SEAL_SHRINK && lseek(fd, 0, SEEK_END) >= (off_t)pages * XS_PAGE) {
		h->memory = mmap(NULL, (size_t)pages * XS_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		if (h->memory != MAP_FAILED) {
			madvise(h->memory, (size_t)pages * XS_PAGE, MADV_DONTFORK);
			h->number = number;
			h->pages = pages;
			h->peer = -1;
			h->next = x->shared;
			x->shared = h;
			h = NULL;
		}
	}
	free(h);
	close(fd);
}

void xs_shared_peer(struct xensock *x, uint32_t number, int fd)
{
	struct xs_shared *h = x->shared;

	while (h && h->number != number)
		h = h->next;
	if (h && h->peer < 0)
		h->peer = fd;
	else
		close(fd); /* the socket was closed meanwhile */
}

bool xs_shared_enter(struct xs_sock *s)
{
	struct xs_indexes *own = (struct xs_indexes *)(void *)s->chunk->memory, *page;
	uint32_t number = xs_load_acquire(&own->shared), side = xs_load_relaxed(&own->side), order;
	struct xs_shared *h;

	if (!(s->x->features & XS_F_SHARED_RINGS) || !number)
		return true;
	xs_store_receive(s->x); /* they came before the answer */
	for (h = s->x->shared; h && h->number != number;)
		h = h->next;
	if (!h || side > 1)
		return false;
	page = (struct xs_indexes *)(void *)h->memory;
	order = xs_load_relaxed(&page->ring_order);
	if (order > XS_ORDER_MAX || h->pages != 1 + (1u << order))
		return false;
	if (xs_dataring_init(&s->ring, page, h->memory + XS_PAGE, (size_t)XS_PAGE << order, side ? XS_BACK : XS_FRONT, true))
		return false;
	if (side) {
		s->ring.rx.error = &page->out_error;
		s->ring.tx.error = &page->in_error;
	}
	s->event->lent = true;
	s->shared = h;
	return true;
}

void xs_shared_leave(struct xs_sock *s)
{
	struct xs_shared *h = s->shared, **at = &s->x->shared;

	if (!h)
		return;
	while (*at != h)
		at = &(*at)->next;
	*at = h->next;
	munmap(h->memory, (size_t)h->pages * XS_PAGE);
	if (h->peer >= 0)
		close(h->peer);
	free(h);
	s->shared = NULL;
}

void xs_shared_free(struct xensock *x)
{
	while (x->shared) {
		struct xs_shared *h = x->shared;

		x->shared = h->next;
		munmap(h->memory, (size_t)h->pages * XS_PAGE);
		if (h->peer >= 0)
			close(h->peer);
		free(h);
	}
}

void xs_notify_other(struct xs_sock *s)
{
	struct xs_shared *h = s->shared;

	if (!h) {
		xs_kick(s->event->notify);
		return;
	}
	if (h->peer < 0) {
		/* It asks for an event, so it has come, and we were told before it was. */
		pthread_mutex_lock(&s->x->lock);
		xs_store_receive(s->x);
		pthread_mutex_unlock(&s->x->lock);
	}
	if (h->peer >= 0)
		xs_notify(h->peer);
}
