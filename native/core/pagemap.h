/*
 * A guest's pages, mapped contiguously in the order in which it granted them.
 *
 * Runs of adjacent pages of one memfd are one mmap(2) each, put side by side into reserved address space. The memory is
 * the guest's: it may change at any time. That it cannot go away under us is what xs_region_fault() makes sure of.
 */
#ifndef XS_PAGEMAP_H
#define XS_PAGEMAP_H

#include <stddef.h>
#include <stdint.h>

#define XS_GRANT_PAGE 4096u

struct xs_page_run {
	int fd;
	uint64_t first; /* page of the memfd, from 0 on */
	size_t pages;
};

/*
 * Why a descriptor is no region of `pages` pages that can be mapped safely, or NULL when it is one: a memfd of this very
 * size, open for reading and writing, sealed against shrinking, growing and further sealing, and of ordinary pages (a
 * fault in huge ones can fail with SIGBUS).
 */
const char *xs_region_fault(int fd, uint64_t pages);

/* Where the runs, `total` pages together, are mapped for reading and writing; NULL with errno. */
void *xs_pages_map(const struct xs_page_run *runs, size_t count, size_t total);
void xs_pages_unmap(void *address, size_t total);

/* Processes that are made from now on do not have them mapped: they would keep the memory of guests that are gone. An
 * errno. */
int xs_pages_own(void *address, size_t total);

#endif
