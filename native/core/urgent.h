/* Urgent data of a half of a ring (extension `urgent`): its producer says which byte is the urgent one, by two words of
 * the indexes page, before it publishes that byte. As in TCP there is one at a time: a later one takes its place.
 *
 * A consumer asks what is readable first, and for the mark then: so no byte is taken for an ordinary one.
 */
#ifndef XS_URGENT_H
#define XS_URGENT_H
#include "dataring.h"

#define XS_NO_MARK UINT32_MAX

struct xs_urgent {
	xs_word *words; /* the index of the byte; how many there have been. NULL: not negotiated */
	uint32_t count; /* as this side knows it: own or seen */
	uint32_t mark;	/* consumer: the index of the urgent byte */
	bool marked;	/* consumer: it is not behind us */
};

/* For the half that `role` consumes, or the one that it produces. */
void xs_urgent_init(struct xs_urgent *u, struct xs_indexes *p, enum xs_role role, bool produces);

/* Producer: the byte `offset` after its index is urgent; that is published next. */
void xs_urgent_announce(struct xs_urgent *u, const struct xs_half *tx, uint32_t offset);

/* Consumer: how many bytes come before the urgent one, which may not be there yet; XS_NO_MARK: none is known. */
uint32_t xs_urgent_ahead(struct xs_urgent *u, const struct xs_half *rx);

#endif
