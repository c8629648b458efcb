#include "udpflows.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BUCKETS 4096u

struct xs_flows {
	struct xs_port port[XS_UDP_PORTS];
	struct xs_port *by_port[BUCKETS];
	struct xs_flow *by_flow[BUCKETS];
	struct xs_flow *oldest, *newest;
	size_t ports, flows, waiting;
	uint32_t seed;
};

struct xs_flows *xs_flows_new(void)
{
	struct xs_flows *t = calloc(1, sizeof *t);

	if (t && getentropy(&t->seed, sizeof t->seed)) {
		free(t);
		return NULL;
	}
	return t;
}

void xs_flows_free(struct xs_flows *t)
{
	while (t->oldest)
		xs_flow_drop(t, t->oldest);
	for (size_t i = 0; i < XS_UDP_PORTS; i++)
		if (t->port[i].used)
			xs_port_drop(t, t->port + i);
	free(t);
}

static struct xs_port **port_bucket(struct xs_flows *t, uint8_t proto, uint16_t gport) { return t->by_port + ((gport ^ proto << 9) & (BUCKETS - 1)); }

/* A guest chooses what goes in: the seed keeps it from filling one bucket. */
static struct xs_flow **flow_bucket(struct xs_flows *t, uint8_t proto, uint16_t gport, const uint8_t remote[16], uint16_t rport)
{
	uint32_t h = t->seed ^ proto, w;

	for (int i = 0; i < 16; i += 4) {
		memcpy(&w, remote + i, 4);
		h = (h ^ w) * 0x9e3779b1u;
		h ^= h >> 15;
	}
	h = (h ^ ((uint32_t)gport << 16 | rport)) * 0x85ebca6bu;
	return t->by_flow + ((h ^ h >> 13) & (BUCKETS - 1));
}

static bool any(const uint8_t a[16])
{
	static const uint8_t zero[16];

	return xs_is4(a) ? !memcmp(a + 12, zero, 4) : !memcmp(a, zero, 16);
}

struct xs_port *xs_port_add(struct xs_flows *t, uint8_t proto, const uint8_t addr[16], uint16_t gport, bool dual, uint8_t via)
{
	struct xs_port *p = NULL, *idle = NULL, **at = port_bucket(t, proto, gport);
	uint32_t generation;

	for (size_t i = 0; i < XS_UDP_PORTS && !p; i++) {
		struct xs_port *c = t->port + i;

		if (!c->used)
			p = c;
		else if (c->automatic && (!idle || c->last < idle->last))
			idle = c;
	}
	if (!p && idle) {
		xs_port_drop(t, idle);
		p = idle;
	}
	if (!p)
		return NULL;
	generation = p->generation;
	memset(p, 0, sizeof *p);
	p->generation = generation;
	p->used = true;
	p->proto = proto;
	p->gport = gport;
	p->dual = dual;
	p->via = via;
	p->wild = any(addr);
	memcpy(p->addr, addr, 16);
	p->fd = p->discover = -1;
	p->next = *at;
	*at = p;
	t->ports++;
	return p;
}

struct xs_port *xs_port_for(struct xs_flows *t, uint8_t proto, const uint8_t src[16], uint16_t gport, uint8_t via)
{
	struct xs_port *family = NULL, *group = NULL, *dual = NULL;

	for (struct xs_port *p = *port_bucket(t, proto, gport); p; p = p->next) {
		if (p->gport != gport || p->proto != proto || p->via != via)
			continue;
		if (!memcmp(p->addr, src, 16))
			return p;
		if (p->wild && xs_is4(p->addr) == xs_is4(src))
			family = p;
		else if (xs_is_group(p->addr) && xs_is4(p->addr) == xs_is4(src))
			group = p;
		else if (p->wild && p->dual)
			dual = p;
	}
	return family ? family : group ? group : dual;
}

bool xs_port_shown(const struct xs_flows *t, uint16_t hport)
{
	for (size_t i = 0; i < XS_UDP_PORTS; i++)
		if (t->port[i].used && !t->port[i].via && t->port[i].proto == XS_UDP && t->port[i].hport == hport)
			return true;
	return false;
}

struct xs_port *xs_port_exact(struct xs_flows *t, uint8_t proto, const uint8_t addr[16], uint16_t gport, uint8_t via)
{
	for (struct xs_port *p = *port_bucket(t, proto, gport); p; p = p->next)
		if (p->gport == gport && p->proto == proto && p->via == via && !memcmp(p->addr, addr, 16))
			return p;
	return NULL;
}

struct xs_port *xs_port_automatic(struct xs_flows *t, uint8_t proto, const uint8_t addr[16], uint16_t gport)
{
	for (struct xs_port *p = *port_bucket(t, proto, gport); p; p = p->next)
		if (p->gport == gport && p->proto == proto && p->automatic && xs_is4(p->addr) == xs_is4(addr))
			return p;
	return NULL;
}

struct xs_port *xs_port_at(struct xs_flows *t, uint32_t slot, uint32_t generation)
{
	struct xs_port *p = slot < XS_UDP_PORTS ? t->port + slot : NULL;

	return p && p->used && p->generation == generation ? p : NULL;
}

uint32_t xs_port_slot(const struct xs_flows *t, const struct xs_port *p) { return (uint32_t)(p - t->port); }

void xs_port_drop(struct xs_flows *t, struct xs_port *p)
{
	struct xs_port **at = port_bucket(t, p->proto, p->gport);

	while (*at != p)
		at = &(*at)->next;
	*at = p->next;
	if (p->fd >= 0)
		close(p->fd);
	p->fd = -1;
	p->used = false;
	p->generation++;
	t->ports--;
}

struct xs_flow *xs_flow_find(struct xs_flows *t, uint8_t proto, uint16_t gport, const uint8_t remote[16], uint16_t rport)
{
	for (struct xs_flow *f = *flow_bucket(t, proto, gport, remote, rport); f; f = f->next)
		if (f->gport == gport && f->rport == rport && f->proto == proto && !memcmp(f->remote, remote, 16))
			return f;
	return NULL;
}

static void unlink_age(struct xs_flows *t, struct xs_flow *f)
{
	*(f->older ? &f->older->newer : &t->oldest) = f->newer;
	*(f->newer ? &f->newer->older : &t->newest) = f->older;
}

static void link_newest(struct xs_flows *t, struct xs_flow *f)
{
	f->older = t->newest;
	f->newer = NULL;
	*(t->newest ? &t->newest->newer : &t->oldest) = f;
	t->newest = f;
}

struct xs_flow *xs_flow_add(struct xs_flows *t, uint8_t proto, uint16_t gport, const uint8_t remote[16], uint16_t rport, uint64_t now)
{
	struct xs_flow *f, **at;

	if (t->flows >= XS_UDP_FLOWS)
		xs_flow_drop(t, t->oldest);
	f = calloc(1, sizeof *f);
	if (!f)
		return NULL;
	f->proto = proto;
	f->gport = gport;
	f->rport = rport;
	memcpy(f->remote, remote, 16);
	f->last = now;
	f->tail = &f->head;
	at = flow_bucket(t, proto, gport, remote, rport);
	f->next = *at;
	*at = f;
	link_newest(t, f);
	t->flows++;
	return f;
}

void xs_flow_touch(struct xs_flows *t, struct xs_flow *f, uint64_t now)
{
	f->last = now;
	if (t->newest != f) {
		unlink_age(t, f);
		link_newest(t, f);
	}
}

void xs_flow_drop(struct xs_flows *t, struct xs_flow *f)
{
	struct xs_flow **at = flow_bucket(t, f->proto, f->gport, f->remote, f->rport);
	struct xs_waiting *w;

	while (*at != f)
		at = &(*at)->next;
	*at = f->next;
	unlink_age(t, f);
	while ((w = xs_flow_unwait(t, f)))
		free(w);
	free(f);
	t->flows--;
}

void xs_flow_wait(struct xs_flows *t, struct xs_flow *f, const struct xs_datagram *d, uint16_t gso)
{
	struct xs_waiting *w;
	size_t size = sizeof *w + d->len;

	if (f->waiting >= XS_UDP_WAITING_EACH || t->waiting + size > XS_UDP_WAITING || !(w = malloc(size)))
		return;
	w->next = NULL;
	w->d = *d;
	w->gso = gso;
	memcpy(w->bytes, d->data, d->len);
	w->d.data = w->bytes;
	*f->tail = w;
	f->tail = &w->next;
	f->waiting++;
	t->waiting += size;
}

struct xs_waiting *xs_flow_unwait(struct xs_flows *t, struct xs_flow *f)
{
	struct xs_waiting *w = f->head;

	if (!w)
		return NULL;
	f->head = w->next;
	if (!f->head)
		f->tail = &f->head;
	f->waiting--;
	t->waiting -= sizeof *w + w->d.len;
	return w;
}

void xs_flows_sweep(struct xs_flows *t, uint64_t now, uint64_t unreplied, uint64_t replied)
{
	struct xs_flow *f = t->oldest, *newer;

	/* From the oldest on; once one was used more recently than the shorter time, so were the others. */
	for (; f && now - f->last >= unreplied; f = newer) {
		newer = f->newer;
		if (!f->replied || now - f->last >= replied)
			xs_flow_drop(t, f);
	}
	for (size_t i = 0; i < XS_UDP_PORTS && t->ports; i++) {
		struct xs_port *p = t->port + i;

		if (p->used && p->automatic && now - p->last >= replied)
			xs_port_drop(t, p);
	}
}

void xs_flows_doubt(struct xs_flows *t)
{
	for (struct xs_flow *f = t->oldest; f; f = f->newer)
		f->stale = true;
}

size_t xs_flows_count(const struct xs_flows *t) { return t->flows; }
size_t xs_ports_count(const struct xs_flows *t) { return t->ports; }
