#include "dataring.h"

#include <errno.h>

void xs_half_init(struct xs_half *h, xs_word *mine, const xs_word *theirs, xs_word *my_event, const xs_word *their_event,
		  const xs_word *error, void *data, uint32_t size, bool events)
{
	h->mine = mine;
	h->theirs = theirs;
	h->my_event = my_event;
	h->their_event = their_event;
	h->error = error;
	h->data = data;
	h->size = size;
	h->own = h->told = xs_load_relaxed(mine);
	h->events = events;
}

int xs_dataring_init(struct xs_dataring *r, void *indexes, void *data, size_t length, enum xs_role role, bool events)
{
	struct xs_indexes *p = indexes;
	size_t size = length / 2;
	bool front = role == XS_FRONT;

	if ((uintptr_t)indexes % _Alignof(struct xs_indexes) || length < (size_t)XS_PAGE << XS_ORDER_MIN ||
	    length > (size_t)XS_PAGE << XS_ORDER_MAX || (length & (length - 1)))
		return EINVAL;
	r->page = p;
	r->role = role;
	r->in_error = r->out_error = 0;
	xs_half_init(front ? &r->rx : &r->tx, front ? &p->in_cons : &p->in_prod, front ? &p->in_prod : &p->in_cons,
		     front ? &p->in_prod_event : &p->in_cons_event, front ? &p->in_cons_event : &p->in_prod_event,
		     front ? &p->in_error : NULL, data, (uint32_t)size, events);
	xs_half_init(front ? &r->tx : &r->rx, front ? &p->out_prod : &p->out_cons, front ? &p->out_cons : &p->out_prod,
		     front ? &p->out_cons_event : &p->out_prod_event, front ? &p->out_prod_event : &p->out_cons_event,
		     front ? &p->out_error : NULL, (uint8_t *)data + size, (uint32_t)size, events);
	return 0;
}

void xs_indexes_init(void *indexes)
{
	struct xs_indexes *p = indexes;

	xs_store_relaxed(&p->in_cons, 0);
	xs_store_relaxed(&p->in_prod, 0);
	xs_store_relaxed(&p->in_error, 0);
	xs_store_relaxed(&p->out_cons, 0);
	xs_store_relaxed(&p->out_prod, 0);
	xs_store_relaxed(&p->out_error, 0);
	xs_store_relaxed(&p->status, 0);
	xs_store_relaxed(&p->shared, 0);
	xs_store_relaxed(&p->side, 0);
	xs_store_relaxed(&p->in_cons_high, 0);
	xs_store_relaxed(&p->out_cons_high, 0);
	xs_store_relaxed(&p->in_urgent_count, 0);
	xs_store_relaxed(&p->out_urgent_count, 0);
	xs_store_relaxed(&p->in_prod_event, 1);
	xs_store_relaxed(&p->in_cons_event, 1);
	xs_store_relaxed(&p->out_prod_event, 1);
	xs_store_relaxed(&p->out_cons_event, 1);
}

void xs_dataring_fail(struct xs_dataring *r, int32_t in_error, int32_t out_error)
{
	if (in_error) {
		r->in_error = in_error;
		xs_store_release(&r->page->in_error, (uint32_t)in_error);
	}
	if (out_error) {
		r->out_error = out_error;
		xs_store_release(&r->page->out_error, (uint32_t)out_error);
	}
}
