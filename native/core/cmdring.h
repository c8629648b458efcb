/*
 * The command ring: 64-byte requests one way and responses the other through the same slots, with the meaning of ring.h
 * of the Xen tree, event indices included. 1 page has 32 slots (v1); up to 16 pages (`multi-page`), contiguous here.
 *
 * Free-running indices; each side keeps its own in private memory. Each side is used by one thread at a time.
 * A front's request is copied out before anybody looks at it; what was answered is found by req_id alone.
 */
#ifndef XS_CMDRING_H
#define XS_CMDRING_H

#include "order.h"

#include <stdbool.h>

#define XS_SLOT 64u
#define XS_CMD_PAGES_MAX 16u

/* The beginning of the first page. Offsets are the wire's. */
struct xs_cmdpage {
	xs_word req_prod, req_event, rsp_prod, rsp_event;
	xs_word pad[12];
	uint8_t slot[][XS_SLOT];
};

_Static_assert(offsetof(struct xs_cmdpage, rsp_prod) == 8 && offsetof(struct xs_cmdpage, slot) == 64, "offsets of ring.h");

struct xs_cmdfront {
	struct xs_cmdpage *page;
	uint32_t slots;	   /* a power of two */
	uint32_t req_prod; /* requests put */
	uint32_t told;	   /* requests that the back knows or was told of */
	uint32_t rsp_cons; /* responses fetched */
};

struct xs_cmdback {
	struct xs_cmdpage *page;
	uint32_t slots;
	uint32_t req_cons; /* requests taken */
	uint32_t rsp_prod; /* responses put */
	uint32_t told;
};

/* Slots of a ring of that many pages (1 to 16), 0 for other numbers. */
uint32_t xs_cmd_slots(size_t pages);

/* Both go on from where the ring stands; requests that nobody answered are taken again by a new back. 0, or EINVAL. */
int xs_cmdfront_init(struct xs_cmdfront *f, void *pages, size_t length);
int xs_cmdback_init(struct xs_cmdback *b, void *pages, size_t length);
/* Front, before it grants the pages: indices 0, event indices 1, everything else 0. 0, or EINVAL. */
int xs_cmdring_clear(void *pages, size_t length);

/* The rings by their parts, for any power of two of slots. */
void xs_cmdfront_attach(struct xs_cmdfront *f, void *pages, uint32_t slots);
void xs_cmdback_attach(struct xs_cmdback *b, void *pages, uint32_t slots);

/* Requests that may be put before a response is fetched. */
static inline uint32_t xs_cmdfront_free(const struct xs_cmdfront *f)
{
	return f->slots - (f->req_prod - f->rsp_cons);
}

/* Puts a request, xs_cmdfront_free() being above 0. The back sees it after xs_cmdfront_push(). */
static inline void xs_cmdfront_put(struct xs_cmdfront *f, const void *request)
{
	xs_copy_to_shared(f->page->slot[f->req_prod & (f->slots - 1)], request, XS_SLOT);
	f->req_prod++;
}

/* Shows what was put. True: notify. */
static inline bool xs_cmdfront_push(struct xs_cmdfront *f)
{
	uint32_t old = f->told, new = f->req_prod;

	f->told = new;
	xs_store_release(&f->page->req_prod, new);
	xs_full_barrier();
	return (uint32_t)(new - xs_load_relaxed(&f->page->req_event)) < (uint32_t)(new - old);
}

/* Fetches a response: 1, 0 when there is none, -1 when the back claims more than was asked. */
static inline int xs_cmdfront_pop(struct xs_cmdfront *f, void *response)
{
	uint32_t ready = xs_load_acquire(&f->page->rsp_prod) - f->rsp_cons;

	if (ready > f->told - f->rsp_cons)
		return -1;
	if (!ready)
		return 0;
	xs_copy_from_shared(response, f->page->slot[f->rsp_cons & (f->slots - 1)], XS_SLOT);
	f->rsp_cons++;
	return 1;
}

/* Before it sleeps: asks to be told of the next response. True: there is one, do not sleep. */
static inline bool xs_cmdfront_arm(struct xs_cmdfront *f)
{
	xs_store_relaxed(&f->page->rsp_event, f->rsp_cons + 1);
	xs_full_barrier();
	return xs_load_acquire(&f->page->rsp_prod) != f->rsp_cons;
}

/* Takes (copies out) a request: 1, 0 when there is none, -1 when the front claims more than the ring can hold. */
static inline int xs_cmdback_take(struct xs_cmdback *b, void *request)
{
	uint32_t ready = xs_load_acquire(&b->page->req_prod) - b->req_cons;

	if (ready > b->slots - (b->req_cons - b->rsp_prod))
		return -1;
	if (!ready)
		return 0;
	xs_copy_from_shared(request, b->page->slot[b->req_cons & (b->slots - 1)], XS_SLOT);
	b->req_cons++;
	return 1;
}

/* Requests taken and not yet answered. */
static inline uint32_t xs_cmdback_owed(const struct xs_cmdback *b)
{
	return b->req_cons - b->rsp_prod;
}

/* Puts a response, xs_cmdback_owed() being above 0. The front sees it after xs_cmdback_push(). */
static inline void xs_cmdback_put(struct xs_cmdback *b, const void *response)
{
	xs_copy_to_shared(b->page->slot[b->rsp_prod & (b->slots - 1)], response, XS_SLOT);
	b->rsp_prod++;
}

/* Shows what was put. True: notify. */
static inline bool xs_cmdback_push(struct xs_cmdback *b)
{
	uint32_t old = b->told, new = b->rsp_prod;

	b->told = new;
	xs_store_release(&b->page->rsp_prod, new);
	xs_full_barrier();
	return (uint32_t)(new - xs_load_relaxed(&b->page->rsp_event)) < (uint32_t)(new - old);
}

/* Before it sleeps: asks to be told of the next request. True: there is one (or an impossible claim), do not sleep. */
static inline bool xs_cmdback_arm(struct xs_cmdback *b)
{
	xs_store_relaxed(&b->page->req_event, b->req_cons + 1);
	xs_full_barrier();
	return xs_load_acquire(&b->page->req_prod) != b->req_cons;
}

#endif
