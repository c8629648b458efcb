/* Signalling an eventfd whose other holders may do with it what they like. */
#include "check.h"
#include "notify.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <sys/wait.h>
#include <unistd.h>

#define FULL 0xfffffffffffffffeull

static uint64_t taken(int fd)
{
	uint64_t value = 0;

	CHECK(read(fd, &value, sizeof value) == sizeof value);
	return value;
}

static void *many(void *arg)
{
	for (int i = 0; i < 1000; i++)
		xs_notify(*(int *)arg);
	return NULL;
}

static void it_adds_one(void)
{
	int fd = eventfd(0, 0);

	CHECK(fd >= 0);
	xs_notify(fd);
	CHECK(taken(fd) == 1);
	for (int i = 0; i < 10000; i++)
		xs_notify(fd);
	CHECK(taken(fd) == 10000);
	CHECK(!close(fd));
}

static void threads_do_not_meet(void)
{
	pthread_t thread[4];
	int fd = eventfd(0, 0);

	for (int i = 0; i < 4; i++)
		CHECK(!pthread_create(&thread[i], NULL, many, &fd));
	for (int i = 0; i < 4; i++)
		CHECK(!pthread_join(thread[i], NULL));
	CHECK(taken(fd) == 4000);
	CHECK(!close(fd));
}

/* Without a fix this test blocks, and the time limit of its runner ends it. */
static void a_full_one_does_not_block(void)
{
	uint64_t full = FULL;
	int fd = eventfd(0, 0);

	CHECK(write(fd, &full, sizeof full) == sizeof full);
	for (int i = 0; i < 3; i++)
		xs_notify(fd);
	CHECK(taken(fd) >= FULL);
	CHECK(!close(fd));
}

static void what_is_no_eventfd_is_left_alone(void)
{
	int pipes[2];
	char byte;

	CHECK(!pipe2(pipes, O_NONBLOCK));
	xs_notify(pipes[1]);
	CHECK(read(pipes[0], &byte, 1) < 0 && errno == EAGAIN);
	xs_notify(-1);
	xs_notify(1 << 20);
	close(pipes[0]);
	close(pipes[1]);
}

static void a_child_of_fork_can_do_it_too(void)
{
	int fd = eventfd(0, 0), status = 1;
	pid_t pid = fork();

	CHECK(pid >= 0);
	if (!pid) {
		xs_notify(fd);
		_exit(0);
	}
	CHECK(waitpid(pid, &status, 0) == pid && status == 0);
	xs_notify(fd);
	CHECK(taken(fd) == 2);
	CHECK(!close(fd));
}

int main(void)
{
	it_adds_one();
	threads_do_not_meet();
	a_full_one_does_not_block();
	what_is_no_eventfd_is_left_alone();
	a_child_of_fork_can_do_it_too();
	return 0;
}
