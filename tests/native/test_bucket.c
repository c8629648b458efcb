/* Token buckets, by a clock of the test's own. */
#include "bucket.h"
#include "check.h"

#define MINUTE 60000

/* Bytes that a greedy connection gets in a minute, asking whenever it is due; counts how often it asks. */
static uint64_t greedy(struct xs_bucket *b, int way, size_t want, unsigned *asked)
{
	uint64_t now = 1, end = now + MINUTE, got = 0;

	*asked = 0;
	while (now < end) {
		uint64_t due = 0;
		size_t n = xs_bucket_take(b, way, want, now, &due);

		++*asked;
		CHECK(n <= want);
		got += n;
		if (!n) {
			CHECK(due > now);
			now = due;
		}
	}
	return got;
}

static void keeps_its_rate(void)
{
	const uint64_t rates[] = {1, 10, 999, 100000, 12345678, 1000000000000};

	for (size_t i = 0; i < sizeof rates / sizeof rates[0]; i++) {
		struct xs_bucket *b = xs_bucket_new(rates[i]);
		uint64_t burst = rates[i] / 4 > 2048 ? rates[i] / 4 : 2048, whole = rates[i] * 60, got;
		unsigned asked;

		CHECK(b);
		got = greedy(b, 0, (size_t)1 << 40, &asked);
		CHECK(got <= whole + burst && got + rates[i] / 10 + 1 >= whole);
		/* It waits in between: no busy loop. */
		CHECK(asked < 2 * MINUTE + 3000);
		xs_bucket_unref(b);
	}
}

static void each_way_has_its_own(void)
{
	struct xs_bucket *b = xs_bucket_new(8192);
	uint64_t due;

	CHECK(xs_bucket_take(b, 0, 5000, 1, &due) == 2048);
	CHECK(xs_bucket_take(b, 0, 5000, 1, &due) == 0);
	CHECK(xs_bucket_take(b, 1, 5000, 1, &due) == 2048);
	xs_bucket_unref(b);
}

static void what_is_given_back_is_there_again(void)
{
	struct xs_bucket *b = xs_bucket_new(8192);
	uint64_t due;

	CHECK(xs_bucket_take(b, 0, 5000, 1, &due) == 2048);
	xs_bucket_give(b, 0, 2000);
	CHECK(xs_bucket_take(b, 0, 5000, 1, &due) == 2000);
	xs_bucket_give(b, 0, 100000); /* never more than the burst */
	CHECK(xs_bucket_take(b, 0, 5000, 1, &due) == 2048);
	xs_bucket_unref(b);
}

static void odd_clocks_and_rates(void)
{
	struct xs_bucket *b = xs_bucket_new(1000000000000);
	uint64_t due;

	CHECK(!xs_bucket_new(0) && !xs_bucket_new(1000000000001));
	CHECK(xs_bucket_take(b, 0, 1, UINT64_MAX / 2, &due) == 1);
	CHECK(xs_bucket_take(b, 0, 1, 5, &due) == 1); /* backwards */
	CHECK(xs_bucket_take(b, 0, 1, UINT64_MAX, &due) == 1);
	CHECK(xs_bucket_ref(b) == b);
	xs_bucket_unref(b);
	xs_bucket_unref(b);
	CHECK(!xs_bucket_ref(NULL));
	xs_bucket_unref(NULL);
}

int main(void)
{
	keeps_its_rate();
	each_way_has_its_own();
	what_is_given_back_is_there_again();
	odd_clocks_and_rates();
	return 0;
}
