/* The names of programs that calls come from: as they are, or as they were a moment before. */
#include "check.h"
#include "guestfd.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define MS 1000000u

static uint32_t tid_of_mine(void) { return (uint32_t)syscall(SYS_gettid); }

static void is_named(struct xs_guestfd *g, uint32_t tid, uint64_t start_ns, const char *name)
{
	char found[XS_PROGRAM];

	memset(found, 'x', sizeof found);
	xs_guestfd_program(g, tid, start_ns, found);
	CHECK(!strcmp(found, name));
}

static void call_myself(const char *name) { CHECK(!prctl(PR_SET_NAME, name)); }

static void a_name_is_kept_for_a_millisecond(void)
{
	struct xs_guestfd *g = xs_guestfd_new();
	uint32_t me = tid_of_mine();

	CHECK(g);
	call_myself("first");
	is_named(g, me, 1000 * MS, "first");
	call_myself("fifteen letters");
	is_named(g, me, 1001 * MS - 1, "first");
	is_named(g, me, 1001 * MS, "fifteen letters");
	call_myself("third");
	is_named(g, me, 1002 * MS - 1, "fifteen letters");
	/* A call that waited for long may be told after later ones. */
	is_named(g, me, 500 * MS, "third");
	call_myself("a%\n\"");
	is_named(g, me, 1002 * MS, "a%\n\"");
	xs_guestfd_free(g);
}

static void nobody_has_the_name_of_one_that_is_gone(void)
{
	struct xs_guestfd *g = xs_guestfd_new();
	int ready[2], go[2], status;
	char byte;
	pid_t child;

	CHECK(g && !pipe(ready) && !pipe(go));
	child = fork();
	CHECK(child >= 0);
	if (!child) {
		call_myself("child");
		_exit(write(ready[1], "", 1) == 1 && read(go[0], &byte, 1) == 1 ? 0 : 1);
	}
	CHECK(read(ready[0], &byte, 1) == 1);
	is_named(g, (uint32_t)child, 1000 * MS, "child");
	CHECK(write(go[1], "", 1) == 1 && waitpid(child, &status, 0) == child && !status);
	is_named(g, (uint32_t)child, 1001 * MS, "?");
	is_named(g, (uint32_t)child, 1001 * MS, "?");
	for (int i = 0; i < 2; i++) {
		close(ready[i]);
		close(go[i]);
	}
	xs_guestfd_free(g);
}

struct other {
	atomic_uint tid;
	atomic_bool end;
};

static void *run_other(void *arg)
{
	struct other *o = arg;

	call_myself("other");
	atomic_store(&o->tid, tid_of_mine());
	while (!atomic_load(&o->end))
		usleep(1000);
	return NULL;
}

static void each_thread_has_its_own(void)
{
	struct xs_guestfd *g = xs_guestfd_new();
	struct other o;
	pthread_t thread;

	CHECK(g);
	memset(&o, 0, sizeof o);
	CHECK(!pthread_create(&thread, NULL, run_other, &o));
	while (!atomic_load(&o.tid))
		usleep(1000);
	call_myself("mine");
	for (int i = 0; i < 3; i++) {
		is_named(g, tid_of_mine(), 1000 * MS, "mine");
		is_named(g, atomic_load(&o.tid), 1000 * MS, "other");
	}
	atomic_store(&o.end, true);
	CHECK(!pthread_join(thread, NULL));
	xs_guestfd_free(g);
}

int main(void)
{
	a_name_is_kept_for_a_millisecond();
	nobody_has_the_name_of_one_that_is_gone();
	each_thread_has_its_own();
	return 0;
}
