/*
 * Theory of operation: write(2) to a full eventfd blocks unless O_NONBLOCK is set, there is no flag for one call, and
 * asking poll(2) first leaves a gap in which the other domain can fill it. The kernel's own way to signal an eventfd
 * (eventfd_signal) never blocks; asynchronous IO uses it to tell of a completion (IOCB_FLAG_RESFD, io_submit(2)). So an
 * empty read is submitted, which completes at once, and its completion is taken off the ring of completions, which is
 * in our memory. Measured: 0.87 us, a plain write 0.54 us, poll and write 0.77 us (Linux 6.18).
 *
 * Each thread has a context of its own. Where the kernel has none to give (fs.aio-max-nr, no CONFIG_AIO), poll and
 * write remain.
 */
#include "notify.h"

#include "order.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define AIO_RING_MAGIC 0xa10a10a1u /* fs/aio.c; the ring's layout is what libaio relies on */
#define AIO_NO_FEATURES 0

/* The head of the ring of completions that a context's number points to. */
struct completions {
	unsigned id, count;
	xs_word head, tail;
	unsigned magic, compat, incompat, length;
};

enum readiness { UNTRIED, READY, UNAVAILABLE };

static _Thread_local aio_context_t context;
static _Thread_local enum readiness readiness;
static pthread_key_t key;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static int empty = -1; /* a file without a byte */

static void thread_ends(void *unused)
{
	(void)unused;
	if (readiness == READY)
		syscall(SYS_io_destroy, context);
	readiness = UNAVAILABLE;
}

/* A context does not survive fork(2). */
static void child(void) { readiness = UNTRIED; }

static void start(void)
{
	int fd = (int)syscall(SYS_memfd_create, "xensock-notify", 1u /* MFD_CLOEXEC */);

	if (fd >= 0 && !pthread_key_create(&key, thread_ends) && !pthread_atfork(NULL, NULL, child))
		empty = fd;
	else if (fd >= 0)
		close(fd);
}

static bool ready(void)
{
	const struct completions *ring;

	if (readiness != UNTRIED)
		return readiness == READY;
	readiness = UNAVAILABLE;
	pthread_once(&once, start);
	context = 0;
	if (empty < 0 || syscall(SYS_io_setup, 1, &context))
		return false;
	ring = (const struct completions *)context;
	if (ring->magic != AIO_RING_MAGIC || ring->incompat != AIO_NO_FEATURES ||
	    pthread_setspecific(key, (void *)&readiness)) {
		syscall(SYS_io_destroy, context);
		return false;
	}
	readiness = READY;
	return true;
}

static bool submit(int fd)
{
	char byte;
	struct iocb request, *list = &request;
	struct completions *ring = (struct completions *)context;

	memset(&request, 0, sizeof request);
	request.aio_fildes = (uint32_t)empty;
	request.aio_lio_opcode = IOCB_CMD_PREAD;
	request.aio_buf = (uint64_t)(uintptr_t)&byte;
	request.aio_nbytes = sizeof byte;
	request.aio_flags = IOCB_FLAG_RESFD;
	request.aio_resfd = (uint32_t)fd;
	if (syscall(SYS_io_submit, context, 1, &list) != 1)
		return errno == EBADF || errno == EINVAL; /* no eventfd: there is nobody to tell */
	xs_store_release(&ring->head, xs_load_acquire(&ring->tail));
	return true;
}

void xs_notify(int fd)
{
	struct pollfd room = {fd, POLLOUT, 0};
	uint64_t one = 1;

	if (ready() && submit(fd))
		return;
	if (poll(&room, 1, 0) == 1 && room.revents == POLLOUT)
		while (write(fd, &one, sizeof one) < 0 && errno == EINTR)
			;
}
