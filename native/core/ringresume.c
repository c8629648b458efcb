/* See ringresume.h. */
#include "ringresume.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

static void go_on(struct xs_half *h, uint32_t index)
{
	h->own = h->told = index;
	xs_store_release(h->mine, index);
}

void xs_ringflow_resume(struct xs_ringflow *f, const struct xs_ring_start *s)
{
	struct xs_dataring *r = &f->wire.ring;
	int in, out;

	go_on(&r->rx, s->rx);
	go_on(&r->tx, s->tx);
	r->in_error = (int32_t)xs_load_acquire(&r->page->in_error);
	r->out_error = (int32_t)xs_load_acquire(&r->page->out_error);
	in = xs_wire_errno(r->in_error);
	out = xs_wire_errno(r->out_error);
	if (f->wire.out.words)
		f->wire.out.count = xs_load_acquire(&f->wire.out.words[1]);
	f->eof = in != 0;
	f->error = out ? out : s->error;
	f->shut = s->shut;
	f->stopping = s->stopping;
	/* What was noted is a word of the guest's, and from before the mover stopped: an end that the ring cannot have is
	 * where it ends now. */
	f->stop = s->stop;
	if (f->stop - s->rx > r->rx.size)
		f->stop = s->rx + xs_readable(&r->rx);
	f->look = true;
}

char *xs_rest_take(struct xs_ringflow *f, size_t n, struct xs_left *left)
{
	int memory = left ? memfd_create("xensock-rest", MFD_CLOEXEC) : -1;
	void *shared = MAP_FAILED;

	if (memory >= 0 && ftruncate(memory, (off_t)n) == 0)
		shared = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
	if (shared == MAP_FAILED) {
		if (memory >= 0)
			close(memory);
		return malloc(n); /* nobody could go on with it, but it is delivered */
	}
	f->rest_mapped = n;
	*left = (struct xs_left){memory, f->sock.fd, (uint32_t)n, f->wire.ring.rx.own};
	return shared;
}

void xs_rest_drop(struct xs_ringflow *f)
{
	if (f->rest_mapped)
		munmap(f->rest, f->rest_mapped);
	else
		free(f->rest);
	f->rest = NULL;
	f->rest_at = f->rest_end = f->rest_mapped = 0;
}
