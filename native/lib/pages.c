/* Pages that the backend may map, and event channels. Memory is a sealed memfd per region; what the
 * frontend never touched takes none. Rings that are let go are kept for the next socket, warm ones first. */
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#define REGION_PAGES 4096u
#define WARM_MAX ((size_t)8 << 20) /* bytes of free rings that keep their memory */
#define SPARE_EVENTS 64

static struct xs_region *region_new(struct xensock *x, uint32_t pages)
{
	struct xs_region *r = malloc(sizeof *r);
	int fd = memfd_create("xensock", MFD_CLOEXEC | MFD_ALLOW_SEALING), error;

	if (!r || fd < 0 || ftruncate(fd, (off_t)pages * XS_PAGE))
		goto failed;
	if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
		goto failed;
	r->memory = mmap(NULL, (size_t)pages * XS_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (r->memory == MAP_FAILED)
		goto failed;
	/* A child must not move the parent's indices: it has no such pages. */
	madvise(r->memory, (size_t)pages * XS_PAGE, MADV_DONTFORK);
	r->first = x->next_ref;
	r->pages = pages;
	r->used = 0;
	if (!xs_store_send(x, XS_MEMORY, r->first, pages, NULL, 0, &fd, 1)) {
		munmap(r->memory, (size_t)pages * XS_PAGE);
		goto failed;
	}
	close(fd);
	x->next_ref += pages;
	r->next = x->regions;
	x->regions = r;
	return r;
failed:
	error = errno;
	free(r);
	if (fd >= 0)
		close(fd);
	errno = error;
	return NULL;
}

uint8_t *xs_pages_take(struct xensock *x, uint32_t pages, uint32_t *ref)
{
	struct xs_region *r = x->regions;

	while (r && r->pages - r->used < pages)
		r = r->next;
	if (!r)
		r = region_new(x, pages > REGION_PAGES ? pages : REGION_PAGES);
	if (!r)
		return NULL;
	*ref = r->first + r->used;
	r->used += pages;
	return r->memory + (size_t)(*ref - r->first) * XS_PAGE;
}

/* A backend bounds the pages that a guest may grant, touched or not: many rings are smaller ones. */
uint32_t xs_default_order(const struct xensock *x)
{
	static const struct {
		unsigned rings;
		uint32_t order;
	} steps[] = {{64, 9}, {512, 7}, {3072, 5}};
	uint32_t order = 3;

	for (size_t i = sizeof steps / sizeof *steps; i--;)
		if (x->rings < steps[i].rings)
			order = steps[i].order;
	return order < x->max_order ? order : x->max_order;
}

static size_t chunk_bytes(const struct xs_chunk *c)
{
	return (size_t)XS_PAGE * (1 + (1u << c->order));
}

struct xs_chunk *xs_chunk_take(struct xensock *x, uint32_t order)
{
	struct xs_chunk *c = x->chunks[order];
	struct xs_indexes *page;

	if (c) {
		x->chunks[order] = c->next;
		if (!c->cold)
			x->warm -= chunk_bytes(c);
	} else {
		c = calloc(1, sizeof *c);
		if (!c)
			return NULL;
		c->order = order;
		c->memory = xs_pages_take(x, 1 + (1u << order), &c->ref);
		if (!c->memory) {
			free(c);
			return NULL;
		}
	}
	c->cold = false;
	x->rings++;
	page = (struct xs_indexes *)(void *)c->memory;
	xs_indexes_init(page);
	xs_store_relaxed(&page->ring_order, order);
	for (uint32_t i = 0; i < 1u << order; i++)
		xs_store_relaxed(&page->ref[i], c->ref + 1 + i);
	return c;
}

void xs_chunk_give(struct xensock *x, struct xs_chunk *c)
{
	struct xs_chunk **at = &x->chunks[c->order];

	x->rings--;
	if (x->warm + chunk_bytes(c) <= WARM_MAX) {
		x->warm += chunk_bytes(c);
	} else {
		c->cold = true;
		/* Punches a hole: the memory goes back on both sides. */
		madvise(c->memory, chunk_bytes(c), MADV_REMOVE);
		while (*at && !(*at)->cold)
			at = &(*at)->next;
	}
	c->next = *at;
	*at = c;
}

static void event_close(struct xs_event *e)
{
	close(e->notify);
	close(e->wait);
	free(e);
}

struct xs_event *xs_event_take(struct xensock *x)
{
	struct xs_event *e = x->events;
	uint64_t stale;
	int error;

	if (e) {
		x->events = e->next;
		x->spare_events--;
		/* What an earlier socket was told is not this one's. */
		if (read(e->wait, &stale, sizeof stale) < 0)
			stale = 0;
		return e;
	}
	e = calloc(1, sizeof *e);
	if (!e)
		return NULL;
	e->wait = e->notify = -1;
	e->port = x->next_port;
	e->notify = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	e->wait = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (e->notify >= 0 && e->wait >= 0 && xs_store_send(x, XS_EVENT, e->port, 0, NULL, 0, (int[]){e->notify, e->wait}, 2)) {
		x->next_port++;
		return e;
	}
	error = errno;
	if (e->notify >= 0)
		close(e->notify);
	if (e->wait >= 0)
		close(e->wait);
	free(e);
	errno = error;
	return NULL;
}

void xs_event_give(struct xensock *x, struct xs_event *e)
{
	if (!e->lent && x->spare_events < SPARE_EVENTS) {
		x->spare_events++;
		e->next = x->events;
		x->events = e;
		return;
	}
	if (!x->dead)
		xs_store_send(x, XS_UNEVENT, e->port, 0, NULL, 0, NULL, 0);
	event_close(e);
}

void xs_pages_free(struct xensock *x)
{
	xs_shared_free(x);
	for (uint32_t i = 0; i <= XS_ORDER_V1; i++)
		for (struct xs_chunk *c = x->chunks[i], *next; c; c = next) {
			next = c->next;
			free(c);
		}
	for (struct xs_event *e = x->events, *next; e; e = next) {
		next = e->next;
		event_close(e);
	}
	for (struct xs_region *r = x->regions, *next; r; r = next) {
		next = r->next;
		munmap(r->memory, (size_t)r->pages * XS_PAGE);
		free(r);
	}
}
