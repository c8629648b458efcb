/* A backend for tests of libxensock, in a thread: what it does depends on the port that is connected to.
 *
 *    7 echoes   9 refuses   10 answers when told 'c'   13 sends "hello" and ends   14 sends "bye" and resets
 *   15 reads nothing until told 'r', then throws away
 *
 * told() says what to do: 'a' answer the oldest ACCEPT (an echo), 'c' answer what waits for port 10, 'g' goodbye,
 * 'd' disappear, 'b' break the protocol, 'r' read, 'm' be mute (take no more commands), 'l' listen again. It checks that at
 * most 24 calls are parked, and that so many sockets were `expected` to be released before one is made.
 */
#ifndef SCRIPTED_BACKEND_H
#define SCRIPTED_BACKEND_H
#include "check.h"
#include "cmdring.h"
#include "dataring.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { SOCKETS = 256, REGIONS = 64, PORTS = 600, CALLS = 64 };
struct fake_socket {
	uint64_t id;
	bool used, listening, mapped, ended;
	int behaviour;
	struct xs_dataring ring;
	uint32_t port;
	uint8_t own[28];
	uint8_t option[36];
	uint32_t option_length;
};
struct fake {
	char path[108];
	const char *_Atomic features; /* "names shutdown …" or "" */
	unsigned ring_order;
	int listener, sock, told[2];
	pthread_t thread;
	struct { uint8_t *memory; uint32_t first, pages; } region[REGIONS];
	struct { int wake, wait; } port[PORTS];
	struct xs_cmdback ring;
	uint32_t ring_port, ring_ref;
	bool events;
	_Atomic bool reading, refuses;
	struct fake_socket socket[SOCKETS];
	uint8_t parked[CALLS][64];
	int parks;
	_Atomic int most;
	_Atomic int closes, released, sockets, expected;
	_Atomic bool mute;
};

static uint32_t word(const uint8_t *slot, size_t at)
{
	uint32_t w;

	memcpy(&w, slot + at, 4);
	return w;
}

static void store_send(struct fake *b, uint32_t type, const char *payload, size_t size)
{
	uint32_t head[4] = {type, (uint32_t)size, 1, 0};
	struct iovec parts[2] = {{head, 16}, {(void *)(uintptr_t)payload, size}};

	CHECK(sendmsg(b->sock, &(struct msghdr){.msg_iov = parts, .msg_iovlen = 2}, MSG_NOSIGNAL) > 0 || errno == EPIPE);
}

static void nodes_send(struct fake *b, int state, bool all)
{
	char text[1024];
	size_t n = (size_t)sprintf(text, "state%c%d", 0, state) + 1;

	if (all) {
		char names[256], *rest = names, *name;

		n += (size_t)sprintf(text + n, "versions%c1%cmax-page-order%c9%cfunction-calls%c1", 0, 0, 0, 0, 0) + 1;
		if (b->ring_order)
			n += (size_t)sprintf(text + n, "max-ring-page-order%c%u", 0, b->ring_order) + 1;
		snprintf(names, sizeof names, "%s", b->features);
		while ((name = strtok_r(rest, " ", &rest)))
			n += (size_t)sprintf(text + n, "feature-%s%c1", name, 0) + 1;
	}
	store_send(b, 17, text, n);
}

static void *pages(struct fake *b, uint32_t ref)
{
	for (int i = 0; i < REGIONS; i++)
		if (b->region[i].memory && ref - b->region[i].first < b->region[i].pages)
			return b->region[i].memory + (size_t)(ref - b->region[i].first) * XS_PAGE;
	CHECK(!"a granted page");
	return NULL;
}

static void on_write(struct fake *b, const char *at, const char *end)
{
	while (at < end) {
		const char *value = at + strlen(at) + 1;

		if (!strcmp(at, "ring-ref") || !strcmp(at, "ring-ref0"))
			b->ring_ref = (uint32_t)atoi(value);
		if (!strcmp(at, "port"))
			b->ring_port = (uint32_t)atoi(value);
		if (!strcmp(at, "ring-page-order"))
			CHECK((unsigned)atoi(value) == b->ring_order);
		if (!strcmp(at, "request-data-events"))
			b->events = true;
		if (!strcmp(at, "state") && *value == '1')
			nodes_send(b, 2, true);
		if (!strcmp(at, "state") && *value == '3') {
			CHECK(!xs_cmdback_init(&b->ring, pages(b, b->ring_ref), (size_t)XS_PAGE << b->ring_order));
			nodes_send(b, 4, false);
		}
		if (!strcmp(at, "state") && *value == '5')
			nodes_send(b, 5, false);
		at = value + strlen(value) + 1;
	}
}

/* False at the end of the connection. */
static bool on_store(struct fake *b)
{
	char packet[65536], control[CMSG_SPACE(2 * sizeof(int))];
	struct iovec part = {packet, sizeof packet};
	struct msghdr m = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
	ssize_t n = recvmsg(b->sock, &m, MSG_CMSG_CLOEXEC);
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);
	uint32_t head[4];
	int fds[2];

	if (n <= 0)
		return false;
	memcpy(head, packet, 16);
	CHECK(head[1] == n - 16);
	if (c)
		memcpy(fds, CMSG_DATA(c), c->cmsg_len - CMSG_LEN(0));
	switch (head[0]) {
	case 1:
		if (b->refuses) {
			store_send(b, 18, "nobody is let in", 16);
			return false;
		}
		store_send(b, 16, "", 0);
		break;
	case 2:
		for (int i = 0; i < REGIONS; i++)
			if (!b->region[i].memory) {
				CHECK(fcntl(fds[0], F_GET_SEALS) == (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL));
				b->region[i].memory = mmap(NULL, (size_t)head[3] * XS_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fds[0], 0);
				b->region[i].first = head[2];
				b->region[i].pages = head[3];
				CHECK(b->region[i].memory != MAP_FAILED);
				break;
			}
		close(fds[0]);
		break;
	case 3:
		CHECK(head[2] < PORTS && !b->port[head[2]].wait);
		b->port[head[2]].wait = fds[0];
		b->port[head[2]].wake = fds[1];
		break;
	case 4:
		close(b->port[head[2]].wait);
		close(b->port[head[2]].wake);
		b->port[head[2]].wait = 0;
		break;
	case 5:
		on_write(b, packet + 16, packet + n);
		break;
	default:
		CHECK(!"a message of a frontend");
	}
	return true;
}

static void answer(struct fake *b, const uint8_t *request, int ret, const void *body, uint32_t length)
{
	uint8_t slot[64] = {0};

	memcpy(slot, request, 8);
	memcpy(slot + 8, &ret, 4);
	memcpy(slot + 16, request + 8, 8);
	memcpy(slot + 24, &length, 4);
	if (length)
		memcpy(slot + 28, body, length);
	xs_cmdback_put(&b->ring, slot);
	if (xs_cmdback_push(&b->ring))
		eventfd_write(b->port[b->ring_port].wake, 1);
}

static struct fake_socket *find(struct fake *b, uint64_t id)
{
	for (int i = 0; i < SOCKETS; i++)
		if (b->socket[i].used && b->socket[i].id == id)
			return &b->socket[i];
	return NULL;
}

static struct fake_socket *make(struct fake *b, uint64_t id)
{
	CHECK(!find(b, id));
	for (int i = 0; i < SOCKETS; i++)
		if (!b->socket[i].used) {
			b->socket[i] = (struct fake_socket){.id = id, .used = true};
			b->sockets++;
			return &b->socket[i];
		}
	CHECK(!"room for a socket");
	return NULL;
}

static void tell(struct fake *b, struct fake_socket *s)
{
	eventfd_write(b->port[s->port].wake, 1);
}

static void map(struct fake *b, struct fake_socket *s, uint32_t ref, uint32_t port)
{
	struct xs_indexes *page = pages(b, ref);
	uint32_t order = page->ring_order;

	CHECK(order >= 1 && order <= 9 && page->ref[0] == ref + 1 && page->ref[(1u << order) - 1] == ref + (1u << order));
	CHECK(!xs_dataring_init(&s->ring, page, pages(b, page->ref[0]), (size_t)XS_PAGE << order, XS_BACK, b->events));
	s->port = port;
	s->mapped = true;
}

static void say(struct fake *b, struct fake_socket *s, const char *text, int error)
{
	xs_copy_in(&s->ring.tx, 0, text, (uint32_t)strlen(text));
	xs_advance(&s->ring.tx, (uint32_t)strlen(text));
	if (error)
		xs_dataring_fail(&s->ring, error, error == -ENOTCONN ? 0 : error);
	s->ended = error;
	tell(b, s);
}

static void conclude(struct fake *b, struct fake_socket *s, const uint8_t *q)
{
	bool async = word(q, 48) & 1 && strstr(b->features, "async-connect");
	int refused = s->behaviour == 9 ? -ECONNREFUSED : 0;

	if (!async) {
		if (!refused)
			map(b, s, word(q, 52), word(q, 56));
		answer(b, q, refused, s->own, strstr(b->features, "names") && !refused ? 16 : 0);
	} else if (refused) {
		xs_dataring_fail(&s->ring, refused, refused);
	} else {
		xs_store_release(&s->ring.page->status, 1);
	}
	if (refused && !async)
		return;
	if (s->behaviour == 13)
		say(b, s, "hello", -ENOTCONN);
	else if (s->behaviour == 14)
		say(b, s, "bye", -ECONNRESET);
	else
		tell(b, s);
}

static void park(struct fake *b, const uint8_t *q)
{
	CHECK(b->parks < CALLS);
	memcpy(b->parked[b->parks++], q, 64);
	if (b->parks > b->most)
		b->most = b->parks;
	CHECK(b->most <= 24);
}

/* Takes the oldest parked call of a kind (and of a socket, if any) out. */
static bool unpark(struct fake *b, uint32_t cmd, uint64_t id, uint8_t q[64])
{
	for (int i = 0; i < b->parks; i++)
		if (word(b->parked[i], 4) == cmd && (!id || !memcmp(b->parked[i] + 8, &id, 8))) {
			memcpy(q, b->parked[i], 64);
			memmove(b->parked[i], b->parked[i + 1], (size_t)(--b->parks - i) * 64);
			return true;
		}
	return false;
}

static void command(struct fake *b, const uint8_t *q)
{
	uint32_t cmd = word(q, 4);
	struct fake_socket *s;
	uint8_t other[64];
	uint64_t id;

	memcpy(&id, q + 8, 8);
	s = cmd ? find(b, id) : make(b, id);
	if (!s) {
		answer(b, q, -EBADF, NULL, 0);
		return;
	}
	switch (cmd) {
	case 0:
		CHECK(b->released >= b->expected);
		answer(b, q, word(q, 16) == AF_INET && word(q, 20) == SOCK_STREAM ? 0 : -524, NULL, 0);
		return;
	case 1:
		s->behaviour = q[18] << 8 | q[19];
		if (word(q, 48) & 1 && strstr(b->features, "async-connect")) {
			map(b, s, word(q, 52), word(q, 56));
			answer(b, q, -EINPROGRESS, NULL, 0);
		}
		if (s->behaviour == 10)
			park(b, q);
		else
			conclude(b, s, q);
		return;
	case 2:
	case 260:
		CHECK((cmd == 260) == (strstr(b->features, "close") != NULL));
		b->closes += cmd == 260;
		b->released++;
		/* v1: what was not read by now is lost, so the frontend has waited. */
		if (s->mapped && cmd == 2 && !s->ended)
			CHECK(!xs_readable(&s->ring.rx));
		s->used = false;
		b->sockets--;
		while (unpark(b, 5, id, other))
			answer(b, other, -EINVAL, NULL, 0);
		answer(b, q, 0, NULL, 0);
		return;
	case 3:
		memcpy(s->own, q + 16, 28);
		if (s->own[2] == 0xff) {
			answer(b, q, -EADDRINUSE, NULL, 0);
			return;
		}
		if (!s->own[2] && !s->own[3])
			s->own[2] = 0x30; /* a port of our choice */
		answer(b, q, 0, s->own, strstr(b->features, "names") ? 16 : 0);
		return;
	case 4:
		s->listening = true;
		answer(b, q, 0, NULL, 0);
		return;
	case 5:
		CHECK(s->listening);
		park(b, q);
		return;
	case 256:
		if (word(q, 16)) {
			s->ended = true; /* the echo ends when it has read all */
			tell(b, s);
		}
		answer(b, q, 0, NULL, 0);
		return;
	case 257:
		answer(b, q, 0, s->own, 16);
		return;
	case 258:
		s->option_length = word(q, 24);
		memcpy(s->option, q + 28, 36);
		answer(b, q, word(q, 20) == SO_MARK ? -ENOPROTOOPT : 0, NULL, 0);
		return;
	case 259:
		answer(b, q, 0, s->option, s->option_length);
		return;
	default:
		answer(b, q, -524, NULL, 0);
	}
}

static void pump(struct fake *b, struct fake_socket *s)
{
	bool told = false, more = true;

	while (more) {
		uint32_t n, room;
		const uint8_t *from = xs_peek(&s->ring.rx, &n);
		uint8_t *to = xs_reserve(&s->ring.tx, &room);

		if (s->behaviour != 7)
			room = s->behaviour != 15 || b->reading ? n : 0;
		n = n < room ? n : room;
		if (s->behaviour == 7) {
			memcpy(to, from, n);
			told |= xs_advance(&s->ring.tx, n);
		}
		told |= xs_advance(&s->ring.rx, n);
		if (!n) {
			if (s->behaviour == 15 && !b->reading)
				more = false;
			else if (s->behaviour == 7 && xs_readable(&s->ring.rx))
				more = xs_tx_arm(&s->ring.tx, 1);
			else
				more = xs_rx_arm(&s->ring.rx); /* bytes that came just now must not be left */
			if (s->ended && !xs_readable(&s->ring.rx) && !s->ring.in_error) {
				xs_dataring_fail(&s->ring, -ENOTCONN, 0);
				told = true;
			}
		}
	}
	if (told)
		tell(b, s);
}

static bool on_told(struct fake *b)
{
	uint8_t q[64];
	uint64_t id;
	char what;

	CHECK(read(b->told[0], &what, 1) == 1);
	switch (what) {
	case 'a': {
		struct fake_socket *s;

		if (!unpark(b, 5, 0, q)) {
			CHECK(write(b->told[1], "a", 1) == 1); /* not yet: once more */
			return true;
		}
		memcpy(&id, q + 16, 8);
		s = make(b, id);
		s->behaviour = 7;
		map(b, s, word(q, 24), word(q, 28));
		memcpy(s->own, (uint8_t[]){2, 0, 0x12, 0x34, 192, 0, 2, 9}, 8);
		answer(b, q, 0, s->own, strstr(b->features, "names") ? 16 : 0);
		return true;
	}
	case 'c':
		while (unpark(b, 1, 0, q)) {
			memcpy(&id, q + 8, 8);
			if (find(b, id))
				conclude(b, find(b, id), q);
			else if (!(word(q, 48) & 1 && strstr(b->features, "async-connect")))
				answer(b, q, -ECONNABORTED, NULL, 0);
		}
		return true;
	case 'g':
		store_send(b, 18, "enough", 6);
		return false;
	case 'b':
		xs_store_release(&b->ring.page->rsp_prod, b->ring.rsp_prod + 1000);
		eventfd_write(b->port[b->ring_port].wake, 1);
		return true;
	case 'r':
		b->reading = true;
		return true;
	case 'm':
	case 'l':
		b->mute = what == 'm';
		return true;
	default:
		return false;
	}
}

static void *serve(void *arg)
{
	struct fake *b = arg;
	bool alive = true;

	b->sock = accept4(b->listener, NULL, NULL, SOCK_CLOEXEC);
	CHECK(b->sock >= 0);
	while (alive) {
		struct pollfd fds[3 + SOCKETS] = {{b->sock, POLLIN, 0}, {b->told[0], POLLIN, 0}, {-1, POLLIN, 0}};
		uint8_t q[64];
		int n = 3;
		eventfd_t count;

		if (b->ring.page && !b->mute) {
			fds[2].fd = b->port[b->ring_port].wait;
			do
				while (alive && xs_cmdback_take(&b->ring, q) > 0) {
					/* The pages and the port that it names were told before. */
					while (alive && poll(&(struct pollfd){b->sock, POLLIN, 0}, 1, 0) > 0)
						alive = on_store(b);
					if (alive)
						command(b, q);
				}
			while (alive && xs_cmdback_arm(&b->ring));
		}
		for (int i = 0; i < SOCKETS; i++)
			if (b->socket[i].used && b->socket[i].mapped) {
				pump(b, &b->socket[i]);
				fds[n++] = (struct pollfd){b->port[b->socket[i].port].wait, POLLIN, 0};
			}
		CHECK(poll(fds, (nfds_t)n, 30000) > 0);
		for (int i = 2; i < n; i++)
			if (fds[i].revents)
				eventfd_read(fds[i].fd, &count);
		if (fds[0].revents)
			alive = on_store(b);
		if (alive && fds[1].revents)
			alive = on_told(b);
	}
	close(b->sock);
	for (int i = 0; i < REGIONS; i++)
		if (b->region[i].memory)
			munmap(b->region[i].memory, (size_t)b->region[i].pages * XS_PAGE);
	for (int i = 0; i < PORTS; i++)
		if (b->port[i].wait) {
			close(b->port[i].wait);
			close(b->port[i].wake);
		}
	return NULL;
}

static struct fake *fake_start(const char *features, unsigned ring_order)
{
	struct fake *b = calloc(1, sizeof *b);
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	static int number;

	b->features = features;
	b->ring_order = ring_order;
	snprintf(b->path, sizeof b->path, "/tmp/xs-test-%d-%d", getpid(), number++);
	memcpy(a.sun_path, b->path, sizeof b->path);
	b->listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	CHECK(!bind(b->listener, (struct sockaddr *)&a, sizeof a) && !listen(b->listener, 4) && !pipe2(b->told, O_CLOEXEC));
	CHECK(!pthread_create(&b->thread, NULL, serve, b));
	return b;
}

static void told(struct fake *b, char what)
{
	CHECK(write(b->told[1], &what, 1) == 1);
}

static void fake_end(struct fake *b)
{
	pthread_join(b->thread, NULL);
	close(b->listener);
	close(b->told[0]);
	close(b->told[1]);
	unlink(b->path);
	free(b);
}
#endif
