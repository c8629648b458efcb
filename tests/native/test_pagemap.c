/* Pages of memfds side by side; and which descriptors are regions that cannot go away. */
#include "check.h"
#include "pagemap.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

static int region(size_t pages, int seals)
{
	int fd = memfd_create("pages", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	CHECK(fd >= 0 && ftruncate(fd, (off_t)(pages * XS_GRANT_PAGE)) == 0);
	CHECK(fcntl(fd, F_ADD_SEALS, seals) == 0);
	return fd;
}

static void in_the_order_of_the_runs(void)
{
	int a = region(4, SEALS), b = region(2, SEALS);
	struct xs_page_run runs[] = {{a, 2, 2}, {b, 1, 1}, {a, 0, 1}};
	char *map = xs_pages_map(runs, 3, 4), byte;

	CHECK(map);
	for (char i = 0; i < 4; i++)
		map[i * XS_GRANT_PAGE] = (char)('a' + i);
	CHECK(pread(a, &byte, 1, 2 * XS_GRANT_PAGE) == 1 && byte == 'a');
	CHECK(pread(a, &byte, 1, 3 * XS_GRANT_PAGE) == 1 && byte == 'b');
	CHECK(pread(b, &byte, 1, XS_GRANT_PAGE) == 1 && byte == 'c');
	CHECK(pread(a, &byte, 1, 0) == 1 && byte == 'd');
	xs_pages_unmap(map, 4);
	close(a);
	close(b);
}

static void never_beyond_what_was_reserved(void)
{
	int a = region(4, SEALS), readonly = open("/dev/zero", O_RDONLY | O_CLOEXEC);
	struct xs_page_run more[] = {{a, 0, 1}, {a, 0, 4}}, refused[] = {{a, 0, 1}, {readonly, 0, 1}}, none[] = {{a, 0, 0}};

	CHECK(readonly >= 0);
	errno = 0;
	CHECK(!xs_pages_map(more, 2, 3) && errno == EINVAL);
	CHECK(!xs_pages_map(refused, 2, 2) && errno == EACCES);
	CHECK(!xs_pages_map(none, 0, 0) && errno == EINVAL);
	close(a);
	close(readonly);
}

static void what_is_no_region(void)
{
	int good = region(2, SEALS), loose = region(2, F_SEAL_GROW), writable = region(2, F_SEAL_SHRINK | F_SEAL_GROW);
	int sealed = region(2, SEALS | F_SEAL_WRITE), zero = open("/dev/zero", O_RDWR | O_CLOEXEC), readonly;
	int huge = memfd_create("huge", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_HUGETLB);
	char path[64];

	snprintf(path, sizeof path, "/proc/self/fd/%d", good);
	readonly = open(path, O_RDONLY | O_CLOEXEC);
	CHECK(zero >= 0 && readonly >= 0);
	CHECK(!xs_region_fault(good, 2));
	CHECK(xs_region_fault(good, 1) && xs_region_fault(good, 3));
	CHECK(xs_region_fault(good, UINT64_MAX / XS_GRANT_PAGE + 3));
	CHECK(xs_region_fault(loose, 2));
	CHECK(xs_region_fault(writable, 2));
	CHECK(xs_region_fault(sealed, 2));
	CHECK(xs_region_fault(zero, 2));
	CHECK(xs_region_fault(readonly, 2));
	CHECK(xs_region_fault(-1, 2));
	if (huge >= 0) { /* a kernel without hugetlbfs has none */
		CHECK(ftruncate(huge, 1 << 21) == 0 && fcntl(huge, F_ADD_SEALS, SEALS) == 0);
		CHECK(xs_region_fault(huge, (1 << 21) / XS_GRANT_PAGE));
		close(huge);
	}
	close(good);
	close(loose);
	close(writable);
	close(sealed);
	close(zero);
	close(readonly);
}

int main(void)
{
	in_the_order_of_the_runs();
	never_beyond_what_was_reserved();
	what_is_no_region();
	return 0;
}
