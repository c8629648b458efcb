/*
 * Theory of operation: the first page has our position, which we write, the second the kernel's; then come the data,
 * mapped twice in a row, so that nothing is broken at the end. A message has 8 bytes before it: its length, whose upper
 * bits say that it is not complete or not to be read, and one that is of no use to us.
 */
#include "endring.h"

#include "order.h"

#include <errno.h>
#include <linux/bpf.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

struct xs_endring {
	xs_position *ours;
	const xs_position *theirs;
	const uint8_t *data;
	size_t size, page;
};

struct xs_endring *xs_endring_open(int fd, size_t size, int *error)
{
	struct xs_endring *r = calloc(1, sizeof *r);
	void *near, *far;

	*error = ENOMEM;
	if (!r)
		return NULL;
	r->size = size;
	r->page = (size_t)sysconf(_SC_PAGESIZE);
	near = mmap(NULL, r->page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	far = near == MAP_FAILED ? near : mmap(NULL, r->page + 2 * size, PROT_READ, MAP_SHARED, fd, (off_t)r->page);
	if (far == MAP_FAILED) {
		*error = errno;
		if (near != MAP_FAILED)
			munmap(near, r->page);
		free(r);
		return NULL;
	}
	r->ours = near;
	r->theirs = far;
	r->data = (const uint8_t *)far + r->page;
	*error = 0;
	return r;
}

void xs_endring_free(struct xs_endring *r)
{
	munmap((void *)r->theirs, r->page + 2 * r->size);
	munmap(r->ours, r->page);
	free(r);
}

size_t xs_endring_read(struct xs_endring *r, uint8_t *into, size_t room)
{
	uint64_t at = xs_position_acquire(r->ours), end = xs_position_acquire(r->theirs);
	size_t used = 0;

	while (at < end) {
		const uint8_t *head = r->data + (at & (r->size - 1));
		uint32_t word = xs_load_acquire((const xs_word *)(const void *)head);
		size_t length = word & ~(BPF_RINGBUF_BUSY_BIT | BPF_RINGBUF_DISCARD_BIT);

		if (word & BPF_RINGBUF_BUSY_BIT)
			break;
		if (!(word & BPF_RINGBUF_DISCARD_BIT) && length <= room) {
			if (length > room - used)
				break;
			xs_copy_from_shared(into + used, head + BPF_RINGBUF_HDR_SZ, length);
			used += length;
		}
		at += (length + BPF_RINGBUF_HDR_SZ + 7) & ~(size_t)7;
	}
	xs_position_release(r->ours, at);
	return used;
}
