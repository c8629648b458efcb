#include "pagemap.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

const char *xs_region_fault(int fd, uint64_t pages)
{
	struct statfs fs;
	struct stat st;
	int flags = fcntl(fd, F_GETFL), seals;

	if (flags < 0 || fstatfs(fd, &fs) || fstat(fd, &st))
		return "it is no open descriptor";
	if ((flags & O_PATH) || (flags & O_ACCMODE) != O_RDWR)
		return "it is not open for reading and writing";
	/* Only a memfd can have F_SEAL_SHRINK; hugetlbfs has memfds too, and longer pages than we map. */
	if (!S_ISREG(st.st_mode) || (unsigned long)fs.f_type != TMPFS_MAGIC)
		return "it is no memfd of ordinary pages";
	seals = fcntl(fd, F_GET_SEALS);
	if (seals < 0 || (seals & (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)) != (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
		return "it is not sealed against shrinking, growing and sealing";
	if (seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE))
		return "it is sealed against writing";
	if (st.st_size < 0 || pages > UINT64_MAX / XS_GRANT_PAGE || (uint64_t)st.st_size != pages * XS_GRANT_PAGE)
		return "it has another size";
	return NULL;
}

static void *map_run(void *where, const struct xs_page_run *run, int flags)
{
	return mmap(where, run->pages * XS_GRANT_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | flags, run->fd,
		    (off_t)(run->first * XS_GRANT_PAGE));
}

void *xs_pages_map(const struct xs_page_run *runs, size_t count, size_t total)
{
	char *base, *at;

	if (!count || !total) {
		errno = EINVAL;
		return NULL;
	}
	if (count == 1) {
		base = map_run(NULL, runs, 0);
		if (base == MAP_FAILED)
			return NULL;
	} else {
		base = mmap(NULL, total * XS_GRANT_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (base == MAP_FAILED)
			return NULL;
		at = base;
		for (size_t i = 0; i < count; i++) {
			size_t left = total - (size_t)(at - base) / XS_GRANT_PAGE;
			int error;

			/* A run never leaves what was reserved: beyond are other mappings of ours. */
			if (!runs[i].pages || runs[i].pages > left)
				error = EINVAL;
			else
				error = map_run(at, &runs[i], MAP_FIXED) == MAP_FAILED ? errno : 0;
			if (error) {
				xs_pages_unmap(base, total);
				errno = error;
				return NULL;
			}
			at += runs[i].pages * XS_GRANT_PAGE;
		}
	}
	return base;
}

int xs_pages_own(void *address, size_t total)
{
	return madvise(address, total * XS_GRANT_PAGE, MADV_DONTFORK) ? errno : 0;
}

void xs_pages_unmap(void *address, size_t total)
{
	munmap(address, total * XS_GRANT_PAGE);
}
