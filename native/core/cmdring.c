#include "cmdring.h"

#include <errno.h>

uint32_t xs_cmd_slots(size_t pages)
{
	uint32_t slots = 1;

	if (pages < 1 || pages > XS_CMD_PAGES_MAX)
		return 0;
	while ((size_t)2 * slots * XS_SLOT + sizeof(struct xs_cmdpage) <= pages * XS_PAGE)
		slots *= 2;
	return slots;
}

static uint32_t slots_of(const void *pages, size_t length)
{
	if (length % XS_PAGE || (uintptr_t)pages % _Alignof(struct xs_cmdpage))
		return 0;
	return xs_cmd_slots(length / XS_PAGE);
}

void xs_cmdfront_attach(struct xs_cmdfront *f, void *pages, uint32_t slots)
{
	f->page = pages;
	f->slots = slots;
	f->req_prod = f->told = xs_load_relaxed(&f->page->req_prod);
	f->rsp_cons = xs_load_relaxed(&f->page->rsp_prod);
}

void xs_cmdback_attach(struct xs_cmdback *b, void *pages, uint32_t slots)
{
	b->page = pages;
	b->slots = slots;
	b->rsp_prod = b->told = b->req_cons = xs_load_relaxed(&b->page->rsp_prod);
}

int xs_cmdfront_init(struct xs_cmdfront *f, void *pages, size_t length)
{
	uint32_t slots = slots_of(pages, length);

	if (!slots)
		return EINVAL;
	xs_cmdfront_attach(f, pages, slots);
	/* More asked than fits is no ring; the back would be blamed for it later. */
	return f->req_prod - f->rsp_cons > slots ? EINVAL : 0;
}

int xs_cmdback_init(struct xs_cmdback *b, void *pages, size_t length)
{
	uint32_t slots = slots_of(pages, length);

	if (!slots)
		return EINVAL;
	xs_cmdback_attach(b, pages, slots);
	return 0;
}

int xs_cmdring_clear(void *pages, size_t length)
{
	struct xs_cmdpage *p = pages;

	if (!slots_of(pages, length))
		return EINVAL;
	memset(pages, 0, length);
	xs_store_relaxed(&p->req_event, 1);
	xs_store_relaxed(&p->rsp_event, 1);
	return 0;
}
