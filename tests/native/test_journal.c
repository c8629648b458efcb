/* Calls under way as a successor finds them. */
#include "check.h"
#include "journal.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static struct xs_entry *receive(struct xs_journal *j, uint64_t id)
{
	struct xs_entry *e = xs_journal_room(j, -1);

	if (!e)
		return NULL;
	e->call.id = id;
	e->call.pid = (uint32_t)id;
	xs_journal_received(j, e);
	return e;
}

static void test_what_is_left(void)
{
	int error, fd = memfd_create("journal", MFD_CLOEXEC);
	struct xs_journal *j = xs_journal_open(fd, &error);
	struct xs_entry *e;

	CHECK(j && !error);
	for (uint64_t id = 100; id > 0; id--)
		CHECK(receive(j, id) != NULL);
	for (uint64_t id = 1; id <= 100; id++)
		if (id % 10)
			xs_journal_done(j, id);
	xs_journal_note(j, 30, 7);
	/* One that the kernel wrote, and we never came to. */
	e = xs_journal_room(j, -1);
	CHECK(e == xs_journal_room(j, -1));
	e->call.id = 200;
	xs_journal_free(j);

	j = xs_journal_open(fd, &error);
	CHECK(j && !error);
	e = NULL;
	for (uint64_t id = 10; id <= 100; id += 10) {
		e = xs_journal_after(j, e ? e->call.id : 0);
		CHECK(e && e->call.id == id && e->call.pid == id);
		CHECK(e->seen == (id == 30) && e->before == (id == 30 ? 7u : 0u));
	}
	e = xs_journal_after(j, 100);
	CHECK(e && e->call.id == 200);
	CHECK(!xs_journal_after(j, 200));
	/* New calls have places of their own. */
	for (uint64_t id = 1000; id < 1100; id++) {
		e = receive(j, id);
		CHECK(e && !e->seen && !e->before);
	}
	CHECK(xs_journal_after(j, 0)->call.id == 10);
	xs_journal_free(j);
	close(fd);
}

static void test_no_file(void)
{
	int error;

	CHECK(!xs_journal_open(-1, &error) && error == EBADF);
}

int main(void)
{
	test_what_is_left();
	test_no_file();
	return 0;
}
