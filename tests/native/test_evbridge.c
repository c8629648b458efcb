/* Event channels carried from and to eventfds: a packet socket stands for /dev/xen/evtchn, whose far end says which ports
 * are pending and sees which are unmasked. */
#include "../../native/core/evbridge.h"
#include "../../native/core/mover.h"
#include "check.h"

#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

static int device[2]; /* the bridge's end, Xen's */

static void pend(uint32_t port) { CHECK(send(device[1], &port, sizeof port, 0) == (ssize_t)sizeof port); }

/* How many times the port is unmasked within the time, at most `most`. */
static unsigned unmasked(uint32_t port, unsigned most, int ms)
{
	struct pollfd p = {device[1], POLLIN, 0};
	unsigned count = 0;

	while (count < most && poll(&p, 1, ms) == 1) {
		uint32_t got[256];
		ssize_t n = recv(device[1], got, sizeof got, 0);

		CHECK(n > 0);
		for (size_t i = 0; i < (size_t)n / sizeof *got; i++) {
			CHECK(got[i] == port);
			count++;
		}
	}
	return count;
}

static uint64_t counted(int fd)
{
	struct pollfd p = {fd, POLLIN, 0};
	uint64_t value = 0;

	CHECK(poll(&p, 1, 10000) == 1);
	CHECK(read(fd, &value, sizeof value) == (ssize_t)sizeof value);
	return value;
}

/* An event of port 7 comes to its eventfd and is unmasked; what is written the other way is taken. */
static void carried(int notify, int wait)
{
	const uint64_t one = 1;
	struct pollfd p = {notify, POLLOUT, 0};

	pend(7);
	CHECK(counted(wait) == 1);
	CHECK(unmasked(7, 1, 10000) == 1);
	CHECK(write(notify, &one, sizeof one) == (ssize_t)sizeof one);
	CHECK(poll(&p, 1, 10000) == 1);
}

/* A storm is slowed down, and nothing of it is lost: every event is unmasked in the end. */
static void storm(int wait)
{
	for (unsigned i = 0; i < 4 * XS_EVBRIDGE_BURST; i++) {
		pend(7);
		CHECK(unmasked(7, 1, 10000) == 1);
	}
	CHECK(counted(wait) == 4 * XS_EVBRIDGE_BURST);
}

/* Movers take the bridge over and give it back, whoever of them is freed first. */
static void hosted(void)
{
	int notify = eventfd(0, EFD_NONBLOCK), wait = eventfd(0, EFD_NONBLOCK);
	struct xs_mover *m, *other = xs_mover_new(2);
	struct xs_evbridge *b = xs_evbridge_new(device[0]);

	CHECK(b && other);
	CHECK(!xs_evbridge_add(b, 7, 1, notify, wait));
	for (int round = 0; round < 50; round++) {
		m = xs_mover_new(1);
		CHECK(m);
		CHECK(!xs_evbridge_find(notify).hosted);
		xs_evbridge_host(notify, m);
		xs_evbridge_host(notify, other); /* one at a time */
		CHECK(xs_evbridge_find(notify).hosted);
		CHECK(xs_mover_live(m) == 0 && xs_mover_live(other) == 0);
		carried(notify, wait);
		if (!round)
			storm(wait);
		xs_mover_free(m, 0);
		carried(notify, wait);
	}
	xs_evbridge_host(wait, other); /* nobody's */
	CHECK(!xs_evbridge_find(notify).hosted);
	xs_evbridge_host(notify, other);
	carried(notify, wait);
	xs_evbridge_free(b);
	/* The mover goes on with the next one. */
	b = xs_evbridge_new(device[0]);
	CHECK(b);
	CHECK(!xs_evbridge_add(b, 7, 1, notify, wait));
	xs_evbridge_host(notify, other);
	carried(notify, wait);
	xs_evbridge_free(b);
	xs_mover_free(other, 0);
	close(notify);
	close(wait);
}

int main(void)
{
	struct xs_evbridge *b;
	int notify = eventfd(0, EFD_NONBLOCK), wait = eventfd(0, EFD_NONBLOCK);

	CHECK(!socketpair(AF_UNIX, SOCK_SEQPACKET, 0, device));
	b = xs_evbridge_new(device[0]);
	CHECK(b);

	/* Xen makes a port pending as it binds it: that must not leave it masked. */
	pend(7);
	CHECK(unmasked(7, 1, 10000) == 1);

	CHECK(!xs_evbridge_add(b, 7, 1, notify, wait));
	CHECK(xs_evbridge_add(b, 7, 1, notify, wait) == EEXIST);
	pend(7);
	CHECK(counted(wait) == 1);
	CHECK(unmasked(7, 1, 10000) == 1);

	/* Who writes to the port's eventfd finds the port by it, others find none. */
	CHECK(xs_evbridge_find(notify).evtchn == device[0]);
	CHECK(xs_evbridge_find(notify).port == 7);
	CHECK(xs_evbridge_find(wait).evtchn == -1);

	storm(wait);

	CHECK(!xs_evbridge_remove(b, 7));
	CHECK(xs_evbridge_remove(b, 7) == ENOENT);
	CHECK(xs_evbridge_find(notify).evtchn == -1);
	pend(7);
	CHECK(unmasked(7, 1, 10000) == 1);
	CHECK(!xs_evbridge_add(b, 9, 1, notify, wait));
	xs_evbridge_free(b);
	hosted();
	return 0;
}
