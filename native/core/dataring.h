/*
 * The data ring of one connection: two halves of S = 2^(order+11) bytes, `in` (backend to frontend) and `out`, and the
 * indexes page that steers them (PV Calls v1; extensions `data-events`, `async-connect`).
 *
 * A half is used by one producer and one consumer, each from one thread at a time. Each side trusts its own index, kept
 * in private memory, and masks the other's: whatever a hostile peer writes, no more than S bytes are ever readable or free.
 *
 *   consumer:  p = xs_peek(&r.rx, &n);     … use up to n bytes at p …  if (xs_advance(&r.rx, used)) notify();
 *   producer:  p = xs_reserve(&r.tx, &n);  … put up to n bytes at p …  if (xs_advance(&r.tx, put)) notify();
 *   sleeper:   clear the event; if (!xs_rx_arm(&r.rx)) wait for the event;   (or xs_tx_arm(&r.tx, wanted))
 *
 * Several chunks may be published one by one with xs_publish() and asked about once with xs_tell().
 */
#ifndef XS_DATARING_H
#define XS_DATARING_H

#include "order.h"

#include <stdbool.h>
#include <sys/uio.h>

#define XS_ORDER_MIN 1u
#define XS_ORDER_V1 9u	 /* what ref[] of one page can name */
#define XS_ORDER_MAX 13u /* `large-rings` */

/* The indexes page. Offsets are the wire's. */
struct xs_indexes {
	xs_word in_cons, in_prod, in_error, pad0;
	xs_word in_prod_event; /* the frontend: tell me when in_prod passes this */
	xs_word in_cons_event; /* the backend */
	xs_word in_cons_high; /* `shared-rings`: how often in_cons has wrapped */
	xs_word in_urgent, in_urgent_count; /* `urgent`: the index of the urgent byte, and how many there have been */
	xs_word pad1[7];
	xs_word out_cons, out_prod, out_error, pad2;
	xs_word out_prod_event; /* the backend */
	xs_word out_cons_event; /* the frontend */
	xs_word status;		/* `async-connect`: 1 once connected */
	xs_word shared;		/* `shared-rings`: the pages that are used instead of these */
	xs_word side;		/* 0: in and out as they are called; 1: exchanged */
	xs_word out_cons_high;
	xs_word out_urgent, out_urgent_count;
	xs_word pad3[4];
	xs_word ring_order;
	xs_word ref[991];
};

_Static_assert(sizeof(struct xs_indexes) == XS_PAGE, "the indexes page is a page");
_Static_assert(offsetof(struct xs_indexes, in_prod_event) == 16 && offsetof(struct xs_indexes, out_cons) == 64 &&
		       offsetof(struct xs_indexes, out_prod_event) == 80 && offsetof(struct xs_indexes, status) == 88 && offsetof(struct xs_indexes, out_cons_high) == 100 &&
		       offsetof(struct xs_indexes, in_urgent) == 28 && offsetof(struct xs_indexes, out_urgent) == 104 &&
		       offsetof(struct xs_indexes, ring_order) == 128 && offsetof(struct xs_indexes, ref) == 132,
	       "offsets of PV Calls v1");

enum xs_role { XS_FRONT, XS_BACK };

/* One half as one of its two sides sees it. */
struct xs_half {
	xs_word *mine;		/* the index that this side moves */
	const xs_word *theirs;
	xs_word *my_event;	/* where this side says what it waits for */
	const xs_word *their_event;
	const xs_word *error;	/* the half's error word; NULL at the backend, which sets it */
	uint8_t *data;
	uint32_t size;		/* S, a power of two */
	uint32_t own;		/* this side's index: what *mine would be if nobody else wrote it */
	uint32_t told;		/* `own` when the other side was last considered for a notification */
	bool events;		/* `data-events` was negotiated; without it every move is told */
};

struct xs_dataring {
	struct xs_half rx, tx; /* what this side consumes, what it produces */
	struct xs_indexes *page;
	int32_t in_error, out_error; /* set by xs_dataring_fail() */
	enum xs_role role;
};

/* A half by its parts. The index goes on from where *mine stands. */
void xs_half_init(struct xs_half *h, xs_word *mine, const xs_word *theirs, xs_word *my_event, const xs_word *their_event,
		  const xs_word *error, void *data, uint32_t size, bool events);

/* `data`: the 2^order pages, contiguous; both buffers stay the caller's. 0, or EINVAL: length or alignment is none of a ring. */
int xs_dataring_init(struct xs_dataring *r, void *indexes, void *data, size_t length, enum xs_role role, bool events);

/* Frontend, before it grants the page: indices 0, event indices 1, no error. ring_order and ref[] are left alone. */
void xs_indexes_init(void *indexes);

/* Backend only: ends `in` and/or `out` with a negated errno (0: leaves it as it is). Then notify, whatever the events say. */
void xs_dataring_fail(struct xs_dataring *r, int32_t in_error, int32_t out_error);

/* v1's rule: bytes between two free-running indices, 0 to size, whatever they are. */
static inline uint32_t xs_queued(uint32_t prod, uint32_t cons, uint32_t size)
{
	uint32_t masked = (prod - cons) & (size - 1);

	if (prod == cons)
		return 0;
	return masked ? masked : size;
}

/* The half's error as the frontend sees it, 0 or a negated errno; at the backend always 0. */
static inline int32_t xs_error(const struct xs_half *h)
{
	return h->error ? (int32_t)xs_load_acquire(h->error) : 0;
}

/* Consumer: bytes there to be read. */
static inline uint32_t xs_readable(const struct xs_half *h)
{
	return xs_queued(xs_load_acquire(h->theirs), h->own, h->size);
}

/*
 * Consumer: bytes there, and in *error the half's error once there are none: everything that was sent before the error
 * is read before it. (The error is looked at first: looked at last it could hide bytes that came in between.)
 */
static inline uint32_t xs_readable_or_error(const struct xs_half *h, int32_t *error)
{
	int32_t seen = xs_error(h);
	uint32_t n = xs_readable(h);

	*error = n ? 0 : seen;
	return n;
}

/* Producer: free bytes. */
static inline uint32_t xs_room(const struct xs_half *h)
{
	return h->size - xs_queued(h->own, xs_load_acquire(h->theirs), h->size);
}

/* Where the byte `offset` (below size) after this side's index is. */
static inline uint8_t *xs_at(const struct xs_half *h, uint32_t offset)
{
	return h->data + ((h->own + offset) & (h->size - 1));
}

/* How many of `length` bytes from `offset` on lie before the half's end. */
static inline uint32_t xs_contiguous(const struct xs_half *h, uint32_t offset, uint32_t length)
{
	uint32_t rest = h->size - ((h->own + offset) & (h->size - 1));

	return length < rest ? length : rest;
}

/* Consumer: the first contiguous chunk of what is readable; *length 0: nothing. */
static inline const uint8_t *xs_peek(const struct xs_half *h, uint32_t *length)
{
	*length = xs_contiguous(h, 0, xs_readable(h));
	return xs_at(h, 0);
}

/* Producer: the first contiguous chunk of what is free; *length 0: full. */
static inline uint8_t *xs_reserve(const struct xs_half *h, uint32_t *length)
{
	*length = xs_contiguous(h, 0, xs_room(h));
	return xs_at(h, 0);
}

/* The `length` bytes (at most xs_readable() or xs_room()) after this side's index as one or two chunks, for readv(2) and
 * its like. Returns how many chunks; 0 for no bytes. */
static inline int xs_chunks(const struct xs_half *h, uint32_t length, struct iovec chunk[2])
{
	uint32_t first = xs_contiguous(h, 0, length);

	chunk[0] = (struct iovec){xs_at(h, 0), first};
	chunk[1] = (struct iovec){h->data, length - first};
	return first == 0 ? 0 : first < length ? 2 : 1;
}

/* Copies out of or into the half, from `offset` after this side's index on; the caller has asked for readable bytes or room. */
static inline void xs_copy_out(const struct xs_half *h, uint32_t offset, void *copy, uint32_t length)
{
	uint32_t first = xs_contiguous(h, offset, length);

	xs_copy_from_shared(copy, xs_at(h, offset), first);
	if (first < length)
		xs_copy_from_shared((uint8_t *)copy + first, h->data, length - first);
}

static inline void xs_copy_in(const struct xs_half *h, uint32_t offset, const void *bytes, uint32_t length)
{
	uint32_t first = xs_contiguous(h, offset, length);

	xs_copy_to_shared(xs_at(h, offset), bytes, first);
	if (first < length)
		xs_copy_to_shared(h->data, (const uint8_t *)bytes + first, length - first);
}

/* Moves this side's index: n bytes were read (and are free now) or written (and may be read now). */
static inline void xs_publish(struct xs_half *h, uint32_t n)
{
	h->own += n;
	xs_store_release(h->mine, h->own);
}

/* Whether the other side must be notified of what was published since the last time this was asked. */
static inline bool xs_tell(struct xs_half *h)
{
	uint32_t old = h->told, new = h->own;

	h->told = new;
	if (new == old)
		return false;
	if (!h->events)
		return true;
	xs_full_barrier();
	return (uint32_t)(new - xs_load_relaxed(h->their_event)) < (uint32_t)(new - old);
}

static inline bool xs_advance(struct xs_half *h, uint32_t n)
{
	xs_publish(h, n);
	return xs_tell(h);
}

/* Consumer, before it sleeps: asks to be told of the next byte. True: there are bytes or an error, do not sleep. */
static inline bool xs_rx_arm(struct xs_half *h)
{
	int32_t error;

	if (h->events) {
		xs_store_relaxed(h->my_event, h->own + 1);
		xs_full_barrier();
	}
	return xs_readable_or_error(h, &error) || error;
}

/*
 * Producer, before it sleeps: asks to be told once `wanted` bytes (1 to size) are free. More than 1 saves wake-ups; a
 * consumer that waits for more than one byte is not foreseen, so the two never wait for one another.
 * True: there is that much room or an error, do not sleep.
 */
static inline bool xs_tx_arm(struct xs_half *h, uint32_t wanted)
{
	if (h->events) {
		xs_store_relaxed(h->my_event, h->own - h->size + wanted);
		xs_full_barrier();
	}
	return xs_room(h) >= wanted || xs_error(h);
}

#endif
