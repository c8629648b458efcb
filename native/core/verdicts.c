#include "verdicts.h"

#include <netinet/in.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define SLOTS 4096 /* direct-mapped: a collision only costs a question */

struct key {
	uint16_t family, port;
	uint32_t scope;
	uint8_t host[16];
};

struct slot {
	struct key key;
	uint32_t verdict;
	int error;
	bool used;
};

struct xs_verdicts {
	pthread_mutex_t lock;
	struct slot slot[SLOTS];
};

struct xs_verdicts *xs_verdicts_new(void)
{
	struct xs_verdicts *v = calloc(1, sizeof *v);

	if (v)
		pthread_mutex_init(&v->lock, NULL);
	return v;
}

void xs_verdicts_free(struct xs_verdicts *v)
{
	pthread_mutex_destroy(&v->lock);
	free(v);
}

/* The flow label and sin_zero do not matter to a verdict; the exact length does not either, once it is long enough. */
static bool make_key(struct key *k, const uint8_t *addr, uint32_t len)
{
	struct sockaddr_in a;
	struct sockaddr_in6 b;

	memset(k, 0, sizeof *k);
	if (len < sizeof(sa_family_t))
		return false;
	memcpy(&k->family, addr, sizeof k->family);
	if (k->family == AF_INET && len >= sizeof a) {
		memcpy(&a, addr, sizeof a);
		k->port = a.sin_port;
		memcpy(k->host, &a.sin_addr, 4);
		return true;
	}
	if (k->family == AF_INET6 && len >= sizeof b) {
		memcpy(&b, addr, sizeof b);
		k->port = b.sin6_port;
		k->scope = b.sin6_scope_id;
		memcpy(k->host, &b.sin6_addr, 16);
		return true;
	}
	return false;
}

static struct slot *find(struct xs_verdicts *v, const struct key *k)
{
	const uint8_t *p = (const uint8_t *)k;
	uint32_t h = 2166136261u; /* FNV-1a */

	for (size_t i = 0; i < sizeof *k; i++)
		h = (h ^ p[i]) * 16777619u;
	return &v->slot[(h ^ (h >> 15)) % SLOTS];
}

void xs_verdicts_put(struct xs_verdicts *v, const uint8_t *addr, uint32_t len, uint32_t verdict, int error)
{
	struct key k;
	struct slot *s;

	if (!make_key(&k, addr, len))
		return;
	pthread_mutex_lock(&v->lock);
	s = find(v, &k);
	s->key = k;
	s->verdict = verdict;
	s->error = error;
	s->used = true;
	pthread_mutex_unlock(&v->lock);
}

bool xs_verdicts_get(struct xs_verdicts *v, const uint8_t *addr, uint32_t len, uint32_t *verdict, int *error)
{
	struct key k;
	struct slot *s;
	bool hit;

	if (!make_key(&k, addr, len))
		return false;
	pthread_mutex_lock(&v->lock);
	s = find(v, &k);
	hit = s->used && !memcmp(&s->key, &k, sizeof k);
	if (hit) {
		*verdict = s->verdict;
		*error = s->error;
	}
	pthread_mutex_unlock(&v->lock);
	return hit;
}

void xs_verdicts_flush(struct xs_verdicts *v)
{
	pthread_mutex_lock(&v->lock);
	for (int i = 0; i < SLOTS; i++)
		v->slot[i].used = false;
	pthread_mutex_unlock(&v->lock);
}
