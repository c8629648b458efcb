/* Requests and their responses, which come in any order: req_id is a place in a table.
 *
 * There is no thread that reads responses. Whoever waits for one, or happens to look, takes all that
 * are there, and wakes those whose answers they are.
 */
#include "internal.h"

#include <errno.h>
#include <string.h>

#define INDEX_BITS 8

int xs_errno(int32_t ret)
{
	if (ret >= 0)
		return 0;
	if (ret == XS_WIRE_ENOTSUP)
		return EOPNOTSUPP;
	return ret < -4095 ? EIO : -ret;
}

static void release(struct xensock *x, struct xs_pending *p)
{
	p->owner = XS_FREE;
	p->generation++;
	if (p->parked)
		x->parked--;
	p->parked = false;
	p->call = NULL;
	p->sock = NULL;
	p->next_free = x->free_pending;
	x->free_pending = (uint32_t)(p - x->pending);
}

static void settle(struct xensock *x, struct xs_pending *p, const struct xs_response *r, int error, int but)
{
	enum xs_owner owner = p->owner;
	struct xs_call *call = p->call;
	struct xs_sock *s = p->sock;

	release(x, p);
	if (owner == XS_CALL) {
		call->response = *r;
		call->error = error;
		call->done = true;
		if (call->kick != but)
			xs_kick(call->kick);
		return;
	}
	if (owner == XS_SOCK_CONNECT)
		xs_connected(s, r, error);
	else if (owner == XS_SOCK_ACCEPT)
		xs_accepted(s, r, error);
	xs_put_locked(s);
}

static struct xs_pending *pending_of(struct xensock *x, const struct xs_response *r)
{
	uint32_t i = r->req_id & ((1u << INDEX_BITS) - 1);
	struct xs_pending *p = &x->pending[i];

	if (i >= x->slots || p->owner == XS_FREE || (p->generation & 0xffffffu) != r->req_id >> INDEX_BITS)
		return NULL;
	return p->cmd == r->cmd && p->id == r->id ? p : NULL;
}

void xs_responses(struct xensock *x, int but)
{
	bool some = false;

	if (x->dead)
		return;
	do {
		struct xs_response r;
		struct xs_pending *p = NULL;
		int n = xs_cmdfront_pop(&x->ring, &r);

		if (n > 0)
			p = pending_of(x, &r);
		if (n && !p) {
			xs_die(x, "the backend broke the protocol: a response to nothing");
			return;
		}
		if (!n)
			continue;
		some = true;
		settle(x, p, &r, xs_errno(r.ret), but);
	} while (!x->dead && xs_cmdfront_arm(&x->ring));
	if (!some)
		return;
	x->mute = false;
	xs_doomed(x);
	xs_next_accept(x);
	/* Those who found the ring or the parked calls full. */
	xs_source_kick(&x->source, but);
}

void xs_abandon(struct xensock *x)
{
	static const struct xs_response none;

	for (uint32_t i = 0; x->pending && i < x->slots; i++)
		if (x->pending[i].owner != XS_FREE)
			settle(x, &x->pending[i], &none, ENETDOWN, -1);
	for (struct xs_sock *s = x->socks; s; s = s->next)
		xs_sock_news(s);
	xs_source_kick(&x->source, -1);
}

int xs_request_send(struct xensock *x, struct xs_request *q, enum xs_owner owner, struct xs_call *call, struct xs_sock *sock)
{
	bool parked = q->cmd == XS_ACCEPT || (q->cmd == XS_CONNECT && !(q->connect.flags & XS_ASYNC));
	struct xs_pending *p;

	if (x->dead)
		return ENETDOWN;
	if (parked && x->parked >= (q->cmd == XS_ACCEPT ? XS_PARKED_ACCEPT : XS_PARKED_MAX))
		return EAGAIN;
	if (!xs_cmdfront_free(&x->ring) || x->free_pending == x->slots)
		return EAGAIN;
	if (x->doomed && owner != XS_SOCK_CLOSE) /* what is closed makes room first */
		return EAGAIN;
	p = &x->pending[x->free_pending];
	q->req_id = x->free_pending | p->generation << INDEX_BITS;
	x->free_pending = p->next_free;
	p->owner = owner;
	p->cmd = q->cmd;
	p->id = q->id;
	p->parked = parked;
	p->call = call;
	p->sock = sock;
	if (parked)
		x->parked++;
	if (sock)
		atomic_fetch_add(&sock->refs, 1);
	xs_cmdfront_put(&x->ring, q);
	if (xs_cmdfront_push(&x->ring))
		xs_kick(x->event->notify);
	return 0;
}

int xs_request_wait(struct xensock *x, struct xs_request *q, enum xs_owner owner, struct xs_call *call, struct xs_sock *sock)
{
	int error, kick = xs_kick_fd();

	if (kick < 0)
		return errno;
	xs_responses(x, kick);
	while ((error = xs_request_send(x, q, owner, call, sock)) == EAGAIN) {
		struct xs_waiting w;

		xs_wait_begin(&w, &x->source);
		pthread_mutex_unlock(&x->lock);
		xs_sleep(x, NULL, true, XS_NEVER);
		xs_wait_end(&w);
		pthread_mutex_lock(&x->lock);
	}
	return error;
}

int xs_command(struct xensock *x, struct xs_request *q, struct xs_response *r)
{
	struct xs_call call = {.kick = xs_kick_fd()};
	int error;

	if (call.kick < 0)
		return errno;
	pthread_mutex_lock(&x->lock);
	error = xs_request_wait(x, q, XS_CALL, &call, NULL);
	while (!error && !call.done) {
		pthread_mutex_unlock(&x->lock);
		xs_sleep(x, NULL, true, XS_NEVER);
		pthread_mutex_lock(&x->lock);
		if (!call.done)
			xs_responses(x, call.kick);
	}
	pthread_mutex_unlock(&x->lock);
	if (error)
		return error;
	*r = call.response;
	return call.error;
}
