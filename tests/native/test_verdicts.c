/* The cache of verdicts: found by destination alone, forgotten by a flush, never mistaken for another's. */
#include "check.h"
#include "verdicts.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>

static struct xs_verdicts *cache;

static struct sockaddr_in four(const char *host, uint16_t port)
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};

	CHECK(inet_pton(AF_INET, host, &a.sin_addr) == 1);
	return a;
}

static struct sockaddr_in6 six(const char *host, uint16_t port, uint32_t scope)
{
	struct sockaddr_in6 a = {.sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_scope_id = scope};

	CHECK(inet_pton(AF_INET6, host, &a.sin6_addr) == 1);
	return a;
}

/* The verdict's number, 0 for none; its errno in *error. */
static uint32_t get(const void *addr, size_t len, int *error)
{
	uint32_t verdict = 4711;

	*error = -1;
	if (!xs_verdicts_get(cache, addr, (uint32_t)len, &verdict, error)) {
		CHECK(verdict == 4711 && *error == -1); /* a miss leaves both alone */
		return 0;
	}
	return verdict;
}

static void by_destination(void)
{
	struct sockaddr_in a = four("192.0.2.1", 80), port = four("192.0.2.1", 81), host = four("192.0.2.2", 80);
	struct sockaddr_in6 b = six("2001:db8::1", 80, 0), scope = six("2001:db8::1", 80, 2), mapped = six("::ffff:192.0.2.1", 80, 0);
	struct sockaddr_in6 start = six("c000:201::", 80, 0); /* begins with the bytes of 192.0.2.1 */
	int error;

	CHECK(!get(&a, sizeof a, &error));
	xs_verdicts_put(cache, (void *)&a, sizeof a, 1, 0);
	CHECK(get(&a, sizeof a, &error) == 1 && error == 0);
	CHECK(!get(&port, sizeof port, &error) && !get(&host, sizeof host, &error));
	CHECK(!get(&mapped, sizeof mapped, &error) && !get(&start, sizeof start, &error));
	xs_verdicts_put(cache, (void *)&b, sizeof b, 2, EACCES);
	CHECK(get(&b, sizeof b, &error) == 2 && error == EACCES);
	CHECK(!get(&scope, sizeof scope, &error));
	CHECK(get(&a, sizeof a, &error) == 1 && error == 0);
	xs_verdicts_put(cache, (void *)&a, sizeof a, 3, EACCES); /* the last one holds */
	CHECK(get(&a, sizeof a, &error) == 3 && error == EACCES);
}

/* What a guest may write into an address without meaning another destination. */
static void what_does_not_matter(void)
{
	uint8_t room[128];
	struct sockaddr_in a = four("198.51.100.1", 80);
	struct sockaddr_in6 b = six("2001:db8::2", 80, 0);
	int error;

	xs_verdicts_put(cache, (void *)&a, sizeof a, 7, 0);
	memset(a.sin_zero, 0xff, sizeof a.sin_zero);
	CHECK(get(&a, sizeof a, &error) == 7);
	memset(room, 0xee, sizeof room);
	memcpy(room, &a, sizeof a);
	CHECK(get(room, sizeof room, &error) == 7);
	xs_verdicts_put(cache, (void *)&b, sizeof b, 8, 0);
	b.sin6_flowinfo = htonl(77);
	CHECK(get(&b, sizeof b, &error) == 8);
}

static void what_is_no_destination(void)
{
	struct sockaddr_in a = four("198.51.100.3", 80);
	struct sockaddr_in6 b = six("2001:db8::3", 80, 0);
	int error;

	for (size_t len = 0; len < sizeof a; len++) {
		xs_verdicts_put(cache, (void *)&a, (uint32_t)len, 9, 0);
		CHECK(!get(&a, len, &error));
	}
	for (size_t len = 0; len < sizeof b; len++) {
		xs_verdicts_put(cache, (void *)&b, (uint32_t)len, 9, 0);
		CHECK(!get(&b, len, &error));
	}
	CHECK(!get(&a, sizeof a, &error) && !get(&b, sizeof b, &error));
	a.sin_family = AF_UNIX;
	xs_verdicts_put(cache, (void *)&a, sizeof a, 9, 0);
	CHECK(!get(&a, sizeof a, &error));
	a.sin_family = AF_UNSPEC;
	xs_verdicts_put(cache, (void *)&a, sizeof a, 9, 0);
	CHECK(!get(&a, sizeof a, &error));
}

/* More destinations than slots: one that is found has its own verdict, and most are found. */
static void collisions(void)
{
	enum { N = 20000 };
	int error, found = 0;

	for (uint32_t i = 1; i <= N; i++) {
		struct sockaddr_in a = four("10.0.0.0", (uint16_t)(i % 7 + 1));

		a.sin_addr.s_addr = htonl(0x0a000000u + i);
		xs_verdicts_put(cache, (void *)&a, sizeof a, i, i % 2 ? EACCES : 0);
		CHECK(get(&a, sizeof a, &error) == i);
	}
	for (uint32_t i = 1; i <= N; i++) {
		struct sockaddr_in a = four("10.0.0.0", (uint16_t)(i % 7 + 1));
		uint32_t verdict;

		a.sin_addr.s_addr = htonl(0x0a000000u + i);
		verdict = get(&a, sizeof a, &error);
		CHECK(!verdict || (verdict == i && error == (i % 2 ? EACCES : 0)));
		found += verdict != 0;
	}
	CHECK(found > 3000 && found < N);
}

static void flushed(void)
{
	struct sockaddr_in a = four("203.0.113.1", 80);
	int error;

	xs_verdicts_put(cache, (void *)&a, sizeof a, 5, 0);
	xs_verdicts_flush(cache);
	CHECK(!get(&a, sizeof a, &error));
	xs_verdicts_put(cache, (void *)&a, sizeof a, 6, 0);
	CHECK(get(&a, sizeof a, &error) == 6);
}

static void *put_and_get(void *arg)
{
	uint32_t mine = (uint32_t)(uintptr_t)arg;

	for (uint32_t i = 0; i < 20000; i++) {
		struct sockaddr_in a = four("10.9.0.0", 1);
		int error;
		uint32_t verdict;

		a.sin_addr.s_addr = htonl(0x0a090000u + i % 64);
		xs_verdicts_put(cache, (void *)&a, sizeof a, mine, (int)mine);
		if (xs_verdicts_get(cache, (void *)&a, sizeof a, &verdict, &error))
			CHECK((int)verdict == error); /* never half of one and half of another */
		if (i % 1000 == 0)
			xs_verdicts_flush(cache);
	}
	return NULL;
}

static void from_several_threads(void)
{
	pthread_t t[3];

	for (uintptr_t i = 0; i < 3; i++)
		CHECK(!pthread_create(&t[i], NULL, put_and_get, (void *)(i + 1)));
	for (int i = 0; i < 3; i++)
		CHECK(!pthread_join(t[i], NULL));
}

int main(void)
{
	cache = xs_verdicts_new();
	CHECK(cache);
	by_destination();
	what_does_not_matter();
	what_is_no_destination();
	collisions();
	flushed();
	from_several_threads();
	xs_verdicts_free(cache);
	return 0;
}
