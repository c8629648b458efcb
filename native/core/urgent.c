/* See urgent.h. */
#include "urgent.h"

void xs_urgent_init(struct xs_urgent *u, struct xs_indexes *p, enum xs_role role, bool produces)
{
	*u = (struct xs_urgent){.words = (role == XS_FRONT) == produces ? &p->out_urgent : &p->in_urgent};
}

void xs_urgent_announce(struct xs_urgent *u, const struct xs_half *tx, uint32_t offset)
{
	xs_store_relaxed(&u->words[0], tx->own + offset);
	xs_store_release(&u->words[1], ++u->count);
}

uint32_t xs_urgent_ahead(struct xs_urgent *u, const struct xs_half *rx)
{
	uint32_t count;

	if (!u->words)
		return XS_NO_MARK;
	count = xs_load_acquire(&u->words[1]);
	if (count != u->count) {
		u->count = count;
		u->mark = xs_load_relaxed(&u->words[0]);
		u->marked = true;
	}
	/* Behind us, or a lie. */
	if (u->marked && u->mark - rx->own >= rx->size)
		u->marked = false;
	return u->marked ? u->mark - rx->own : XS_NO_MARK;
}
