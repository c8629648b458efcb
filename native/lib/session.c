/* Attaching and detaching: the handshake of PV Calls over the store (docs/reference/pvcalls.md). */
#include "internal.h"

#include <errno.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { INITIALISING = 1, INIT_WAIT = 2, INITIALISED = 3, CONNECTED = 4, CLOSING = 5, CLOSED = 6 };
#define HANDSHAKE_NS ((uint64_t)10000000000u)
#define DETACH_NS ((uint64_t)5000000000u)
#define GOODBYE_NS ((uint64_t)1000000000u)

static _Thread_local char refusal[200]; /* why this thread's last xensock_attach() failed */

/* Nodes of one transaction: key, NUL, value, NUL, … */
struct nodes {
	char text[1024];
	size_t length;
};

__attribute__((format(printf, 3, 4))) static void put(struct nodes *n, const char *key, const char *format, ...)
{
	size_t room = sizeof n->text - n->length;
	va_list args;
	int size;

	n->length += (size_t)snprintf(n->text + n->length, room, "%s", key) + 1;
	room = sizeof n->text - n->length;
	va_start(args, format);
	size = vsnprintf(n->text + n->length, room, format, args);
	va_end(args);
	n->length += (size_t)size + 1;
}

static bool write_nodes(struct xensock *x, const struct nodes *n)
{
	return xs_store_send(x, XS_WRITE, 0, 0, n->text, n->length, NULL, 0);
}

static bool write_state(struct xensock *x, int state)
{
	struct nodes n = {.length = 0};

	put(&n, "state", "%d", state);
	return write_nodes(x, &n);
}

/* Waits until the backend's state is at least `state`. */
static bool await(struct xensock *x, unsigned state, uint64_t deadline)
{
	while (!x->dead && x->backend_state < state) {
		struct pollfd p = {x->fd, POLLIN, 0};

		xs_store_receive(x);
		if (x->dead || x->backend_state >= state)
			break;
		if (!xs_poll_until(&p, 1, deadline) && errno != EINTR)
			return false;
	}
	return !x->dead;
}

static int failure(const struct xensock *x)
{
	if (!strncmp(x->reason, "the backend says", 16))
		return EACCES;
	return strstr(x->reason, "protocol") || strstr(x->reason, "version") ? EPROTO : ECONNRESET;
}

static bool start_ring(struct xensock *x, unsigned flags)
{
	uint32_t order = x->max_ring_order < XS_CMD_ORDER_MAX ? x->max_ring_order : XS_CMD_ORDER_MAX, ref;
	struct nodes n = {.length = 0};
	char key[32];
	uint8_t *pages;

	if (flags & XENSOCK_V1) {
		x->announced = 0;
		order = 0;
	}
	pages = xs_pages_take(x, 1u << order, &ref);
	x->event = pages ? xs_event_take(x) : NULL;
	if (!x->event)
		return false;
	xs_cmdring_clear(pages, (size_t)XS_PAGE << order);
	xs_cmdfront_init(&x->ring, pages, (size_t)XS_PAGE << order);
	x->slots = x->ring.slots;
	x->pending = calloc(x->slots, sizeof *x->pending);
	if (!x->pending)
		return false;
	for (uint32_t i = 0; i < x->slots; i++)
		x->pending[i].next_free = i + 1;
	x->source.fd = x->event->wait;
	put(&n, "version", "1");
	if (order) {
		put(&n, "ring-page-order", "%u", order);
		for (uint32_t i = 0; i < 1u << order; i++) {
			snprintf(key, sizeof key, "ring-ref%u", i);
			put(&n, key, "%u", ref + i);
		}
	} else {
		put(&n, "ring-ref", "%u", ref);
	}
	put(&n, "port", "%u", x->event->port);
	x->features = x->announced;
	for (unsigned i = 0; xs_feature_names[i]; i++)
		if (x->features & 1u << i) {
			snprintf(key, sizeof key, "request-%s", xs_feature_names[i]);
			put(&n, key, "1");
		}
	put(&n, "state", "%d", INITIALISED);
	return write_nodes(x, &n);
}

static bool shake_hands(struct xensock *x, const char *name, unsigned flags)
{
	uint64_t deadline = xs_clock() + HANDSHAKE_NS;
	size_t length = strlen(name);

	if (!xs_store_send(x, XS_HELLO, 1, 0, name, length < 64 ? length : 64, NULL, 0) || !write_state(x, INITIALISING))
		return false;
	if (!await(x, INIT_WAIT, deadline))
		return false;
	if (!x->versions || !x->calls || x->max_order < 1) {
		errno = EPROTO;
		return false;
	}
	return start_ring(x, flags) && await(x, CONNECTED, deadline) && x->backend_state == CONNECTED && write_state(x, CONNECTED);
}

static void destroy(struct xensock *x)
{
	if (x->event) {
		close(x->event->notify);
		close(x->event->wait);
		free(x->event);
	}
	xs_pages_free(x);
	xs_source_end(&x->source);
	pthread_mutex_destroy(&x->lock);
	close(x->fd);
	free(x->pending);
	free(x);
}

struct xensock *xensock_attach(const char *url, const char *name, unsigned flags)
{
	struct xensock *x;
	int fd, error;
	cpu_set_t mine;

	*refusal = 0;
	if (!url)
		url = getenv("XENSOCK");
	if (!url || strncmp(url, "local:", 6) || flags & ~XENSOCK_V1) {
		errno = EINVAL;
		return NULL;
	}
	if (!name || !*name)
		name = program_invocation_short_name;
	fd = xs_store_connect(url + 6);
	if (fd < 0)
		return NULL;
	x = calloc(1, sizeof *x);
	if (!x) {
		close(fd);
		errno = ENOMEM;
		return NULL;
	}
	x->fd = fd;
	x->next_ref = x->next_port = 1;
	x->wanting_tail = &x->wanting;
	x->doomed_tail = &x->doomed;
	pthread_mutex_init(&x->lock, NULL);
	xs_source_init(&x->source, -1);
	x->spins = sched_getaffinity(0, sizeof mine, &mine) == 0 && CPU_COUNT(&mine) > 1;
	if (shake_hands(x, *name ? name : "guest", flags))
		return x;
	error = x->dead ? failure(x) : errno;
	snprintf(refusal, sizeof refusal, "%s", x->dead ? x->reason : "");
	destroy(x);
	errno = error;
	return NULL;
}

/* Waits until the backend has answered what was closed. */
static void settle(struct xensock *x)
{
	uint64_t deadline = xs_clock() + DETACH_NS;

	pthread_mutex_lock(&x->lock);
	for (;;) {
		bool busy;

		xs_responses(x, -1);
		busy = x->doomed;
		for (uint32_t i = 0; i < x->slots; i++)
			busy |= x->pending[i].owner == XS_SOCK_CLOSE;
		if (!busy || x->dead)
			break;
		pthread_mutex_unlock(&x->lock);
		if (!xs_sleep(x, NULL, true, deadline) && errno == ETIMEDOUT)
			deadline = XS_NOW;
		pthread_mutex_lock(&x->lock);
		if (deadline == XS_NOW)
			break;
	}
	pthread_mutex_unlock(&x->lock);
}

void xensock_detach(struct xensock *x)
{
	if (!x)
		return;
	for (;;) {
		int fd = -1;

		pthread_mutex_lock(&x->lock);
		for (struct xs_sock *s = x->socks; s && fd < 0; s = s->next)
			if (!s->closed)
				fd = s->fd;
		pthread_mutex_unlock(&x->lock);
		if (fd < 0 || xensock_close(fd))
			break;
	}
	settle(x);
	pthread_mutex_lock(&x->lock);
	if (!x->dead && write_state(x, CLOSING) && await(x, CLOSING, xs_clock() + GOODBYE_NS))
		write_state(x, CLOSED);
	xs_die(x, "detached");
	pthread_mutex_unlock(&x->lock);
	while (x->socks) /* connections that came and nobody accepted */
		xs_put(x->socks);
	destroy(x);
}

const char *xensock_reason(struct xensock *x)
{
	if (!x)
		return *refusal ? refusal : NULL;
	return x->dead ? x->reason : NULL;
}

int xensock_feature(struct xensock *x, const char *name)
{
	for (unsigned i = 0; xs_feature_names[i]; i++)
		if (!strcmp(name, xs_feature_names[i]))
			return (x->features & 1u << i) != 0;
	return 0;
}

int xensock_fileno(struct xensock *x)
{
	return x->source.fd;
}

void xensock_dispatch(struct xensock *x)
{
	pthread_mutex_lock(&x->lock);
	xs_store_receive(x);
	pthread_mutex_unlock(&x->lock);
	if (!x->dead)
		xs_sleep(x, NULL, true, XS_NOW);
}
