/* The audit log's lines, and which connections are under way: what is found, what is forgotten, what the kernel's words mean. */
#include "check.h"
#include "ledger.h"

#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/tcp.h>
#include <stdlib.h>

static const char *const words[XS_PARTS] = {"c[", "|", "|", "|", "|", "]\n", "e[", "|", "|", "|", "|", "|", "|", "|", "|", "]\n"};

static uint32_t kind(struct xs_ledger *l, const char *first)
{
	struct xs_text parts[XS_PARTS];

	for (int i = 0; i < XS_PARTS; i++)
		parts[i] = (struct xs_text){words[i], strlen(words[i])};
	parts[0] = (struct xs_text){first, strlen(first)};
	return xs_ledger_kind(l, parts);
}

static bool said(const struct xs_lines *out, const char *text)
{
	return !out->failed && out->used == strlen(text) && !memcmp(out->at, text, out->used);
}

/* A message about the socket with this cookie and local port; acked 0 bytes and more: with counters, else none. */
static size_t message(uint8_t *at, uint64_t cookie, uint16_t port, int64_t acked, uint64_t sent, uint64_t received)
{
	struct inet_diag_msg m;
	struct tcp_info t;
	struct nlattr a = {sizeof a + 5, INET_DIAG_MEMINFO}; /* one that is of no interest, of an odd length */
	size_t size = NLMSG_HDRLEN + sizeof m;

	memset(at, 0, 1024);
	memset(&m, 0, sizeof m);
	memset(&t, 0, sizeof t);
	m.id.idiag_cookie[0] = (uint32_t)cookie;
	m.id.idiag_cookie[1] = (uint32_t)(cookie >> 32);
	m.id.idiag_sport = (uint16_t)(port << 8 | port >> 8);
	memcpy(at + NLMSG_HDRLEN, &m, sizeof m);
	memcpy(at + size, &a, sizeof a);
	size += NLA_ALIGN(a.nla_len);
	if (acked < 0)
		return size;
	a = (struct nlattr){(uint16_t)(sizeof a + sizeof t), INET_DIAG_INFO};
	t.tcpi_bytes_acked = (uint64_t)acked;
	t.tcpi_bytes_sent = sent + 7;
	t.tcpi_bytes_retrans = 7;
	t.tcpi_bytes_received = received;
	memcpy(at + size, &a, sizeof a);
	memcpy(at + size + sizeof a, &t, sizeof t);
	return size + sizeof a + sizeof t;
}

static void lines(void)
{
	struct xs_ledger *l = xs_ledger_new();
	struct xs_begun b = {9, 1500000000ull, 1000, kind(l, "c["), 7};
	struct xs_counts c = {10, 20, 0, true, 0}, unknown = {0, 0, ECONNRESET, false, 0}, known = {10, 20, 0, true, 2000000007};
	static const char want[] = "#99,e[3.000000000|7|0|0|1.500000000|1000|9|10|20]\n"
				   "#100,e[1.000000000|7|-1|104|0.000000000|1000|9|null|null]\n";
	struct xs_lines out;
	struct xs_event ev;
	char numbered[sizeof want];

	memset(&out, 0, sizeof out);
	memset(&ev, 0, sizeof ev);
	ev.tid = 7;
	ev.args[0] = UINT64_MAX;
	ev.start_ns = 500000001;
	ev.took_ns = 43000;
	xs_ledger_call(l, &out, &ev, b.kind, -1, 1000000000);
	CHECK(said(&out, "c[1.500000001|7|0.000043000|-1|18446744073709551615]\n"));
	out.used = 0;
	xs_ledger_end(l, &out, &b, &c, 3000000000ull);
	CHECK(said(&out, "e[3.000000000|7|0|0|1.500000000|1000|9|10|20]\n"));
	xs_ledger_end(l, &out, &b, &unknown, 1000000000ull); /* a clock that was set back */
	CHECK(out.count == 3);
	CHECK(xs_lines_numbered(out.at, out.used, 1, 99) == sizeof want - 1);
	xs_lines_number(numbered, out.at, out.used, "#", 1, 99);
	CHECK(!memcmp(numbered, want, sizeof want - 1));
	out.used = 0;
	xs_ledger_end(l, &out, &b, &known, 3000000000ull); /* told later than it was */
	CHECK(said(&out, "e[2.000000007|7|0|0|0.500000007|1000|9|10|20]\n"));
	out.used = out.count = 0;
	for (int i = 0; i < 10000; i++)
		xs_ledger_call(l, &out, &ev, b.kind, -1, 1000000000);
	xs_ledger_drop(l, b.kind);
	xs_ledger_call(l, &out, &ev, b.kind, -1, 1000000000); /* of a kind that is gone */
	CHECK(out.count == 10000 && out.used == 10000 * strlen("c[1.500000001|7|0.000043000|-1|18446744073709551615]\n"));
	free(out.at);
	xs_ledger_free(l);
}

/* Numbers of every length, and lines without an end. */
static void numbers(void)
{
	char at[256], want[64];
	uint64_t value = 0;

	for (int digits = 0; digits < 20; digits++, value = 10 * value + (uint64_t)(digits % 9 + 1)) {
		for (uint64_t number = value ? value - 1 : 0; number < value + 2; number++) {
			size_t size = (size_t)snprintf(want, sizeof want, "<%llu,ab\n<%llu,c", (unsigned long long)number,
						       (unsigned long long)number + 1);

			CHECK(xs_lines_numbered("ab\nc", 4, 1, number) == size);
			xs_lines_number(at, "ab\nc", 4, "<", 1, number);
			CHECK(!memcmp(at, want, size));
		}
	}
}

static void told(struct xs_ledger *l, int64_t acked, uint64_t sent, uint64_t received, const struct xs_counts *want)
{
	struct xs_begun b = {4711, 1, 0, kind(l, "c["), 7}, found;
	struct xs_counts c;
	uint8_t at[1024];
	size_t size = message(at, 4711, 80, acked, sent, received);

	CHECK(!xs_ledger_begin(l, &b, 10, &c));
	CHECK(xs_ledger_heard(l, at, size, 0, &found, &c) == XS_ABOUT_BEGUN);
	CHECK(found.kind == b.kind && found.tid == 7);
	CHECK(c.counted == want->counted && c.sent == want->sent && c.received == want->received && c.error == want->error);
	CHECK(!xs_ledger_live(l));
	xs_ledger_done(l, b.kind);
	xs_ledger_drop(l, b.kind);
}

/* What tcpinfo.counted() says of the same. */
static void counts(void)
{
	struct xs_ledger *l = xs_ledger_new();
	uint8_t at[1024];
	struct xs_begun b;
	struct xs_counts c;
	size_t size;

	told(l, 1002, 1000, 51, &(struct xs_counts){1000, 50, 0, true, 0});
	told(l, 1001, 1000, 50, &(struct xs_counts){1000, 50, ECONNRESET, true, 0});
	told(l, 0, 1000, 50, &(struct xs_counts){0, 0, ENOTCONN, true, 0});
	told(l, 3, 1, 0, &(struct xs_counts){1, 0, 0, true, 0});
	told(l, -1, 0, 0, &(struct xs_counts){0, 0, 0, false, 0});
	size = message(at, 5, 80, 1, 0, 0);
	CHECK(xs_ledger_heard(l, at, 16, 0, &b, &c) == XS_ABOUT_NOTHING);
	/* Attributes that are longer than the message. */
	for (size_t cut = size - 1; cut >= NLMSG_HDRLEN + sizeof(struct inet_diag_msg); cut--)
		CHECK(xs_ledger_heard(l, at, cut, 0, &b, &c) == XS_ABOUT_STRANGER);
	xs_ledger_free(l);
}

/* A message that says when. */
static size_t ended(uint8_t *at, uint64_t cookie, uint64_t sent, uint64_t moment)
{
	struct nlattr a = {sizeof a + sizeof moment, XS_ENDED_TYPE};
	size_t size = message(at, cookie, 80, (int64_t)sent + 2, sent, 0);

	memcpy(at + size, &a, sizeof a);
	memcpy(at + size + sizeof a, &moment, sizeof moment);
	return size + sizeof a + sizeof moment;
}

/* A socket that connects again and again: each end is that of the connection before it. */
static void again(void)
{
	struct xs_ledger *l = xs_ledger_new();
	struct xs_begun first = {5, 1100, 0, XS_NO_KIND, 1}, second = {5, 1200, 0, XS_NO_KIND, 2}, third = {5, 1300, 0, XS_NO_KIND, 3}, b;
	struct xs_counts c;
	uint8_t at[1024];

	/* Those of earlier attempts of which nobody tells. */
	CHECK(xs_ledger_heard(l, at, ended(at, 5, 1, 50), 1000, &b, &c) == XS_ABOUT_STRANGER);
	CHECK(!xs_ledger_begin(l, &first, 10, &c) && xs_ledger_live(l) == 1);
	CHECK(xs_ledger_heard(l, at, ended(at, 5, 2, 60), 1000, &b, &c) == XS_ABOUT_STRANGER && xs_ledger_live(l) == 1);
	CHECK(xs_ledger_heard(l, at, ended(at, 5, 3, 150), 1000, &b, &c) == XS_ABOUT_OTHER && b.tid == 1);
	CHECK(c.sent == 3 && c.ended_ns == 1150);
	/* Told of too late: the second and the third one, in their order. */
	CHECK(xs_ledger_heard(l, at, ended(at, 5, 4, 250), 1000, &b, &c) == XS_ABOUT_STRANGER);
	CHECK(xs_ledger_heard(l, at, ended(at, 5, 5, 350), 1000, &b, &c) == XS_ABOUT_STRANGER);
	CHECK(xs_ledger_begin(l, &second, 10, &c) && c.sent == 4);
	CHECK(xs_ledger_begin(l, &third, 10, &c) && c.sent == 5 && c.ended_ns == 1350);
	CHECK(!xs_ledger_begin(l, &third, 10, &c));
	/* Many of one socket: the last eight stay. */
	xs_ledger_clear(l);
	for (uint64_t i = 1; i <= 3 * 16384; i++)
		CHECK(xs_ledger_heard(l, at, ended(at, 5, i, i), 1000, &b, &c) == XS_ABOUT_STRANGER);
	first.time_ns = 0;
	CHECK(xs_ledger_begin(l, &first, 10, &c) && !c.counted); /* its own had to go */
	first.time_ns = 1000 + 3 * 16384 - 8;
	CHECK(xs_ledger_begin(l, &first, 10, &c) && !c.counted);
	for (uint64_t i = 3 * 16384 - 7; i <= 3 * 16384; i++) {
		first.time_ns = 1000 + i;
		CHECK(xs_ledger_begin(l, &first, 10, &c) && c.counted && c.sent == i);
	}
	CHECK(!xs_ledger_begin(l, &first, 10, &c));
	xs_ledger_free(l);
}

static void others(void)
{
	struct xs_ledger *l = xs_ledger_new();
	struct xs_begun b = {5, 0, 0, XS_NO_KIND, 0}, found;
	struct xs_counts c;
	uint8_t at[1024];
	size_t size = message(at, 5, 8080, 3, 1, 0);

	CHECK(!xs_ledger_begin(l, &b, 10, &c));
	CHECK(xs_ledger_heard(l, at, size, 0, &found, &c) == XS_ABOUT_OTHER);
	CHECK(xs_ledger_heard(l, at, size, 0, &found, &c) == XS_ABOUT_STRANGER);
	xs_ledger_heed(l, 8080, true);
	CHECK(xs_ledger_heard(l, at, size, 0, &found, &c) == XS_ABOUT_OTHER);
	size = message(at, 6, 8081, 3, 1, 0);
	CHECK(xs_ledger_heard(l, at, size, 0, &found, &c) == XS_ABOUT_STRANGER);
	xs_ledger_heed(l, 8080, false);
	size = message(at, 7, 8080, 3, 1, 0);
	CHECK(xs_ledger_heard(l, at, size, 0, &found, &c) == XS_ABOUT_STRANGER);
	xs_ledger_free(l);
}

/* Ends that come before their beginnings; the oldest of many is forgotten. */
static void strangers(void)
{
	struct xs_ledger *l = xs_ledger_new();
	uint32_t number = kind(l, "c[");
	struct xs_begun b = {0, 0, 0, number, 0}, found;
	struct xs_counts c;
	uint8_t at[1024];

	for (uint64_t i = 1; i <= 20000; i++)
		CHECK(xs_ledger_heard(l, at, message(at, i << 20, 80, 3, i, 0), 0, &found, &c) == XS_ABOUT_STRANGER);
	for (uint64_t i = 20000; i > 20000 - 16384; i--) {
		b.cookie = i << 20;
		CHECK(xs_ledger_begin(l, &b, 10, &c) && c.sent == i);
		xs_ledger_done(l, number);
		if (i % 2)
			CHECK(!xs_ledger_begin(l, &b, 10, &c) && xs_ledger_take(l, b.cookie, &found)); /* it was asked for */
	}
	b.cookie = (20000ull - 16384) << 20;
	CHECK(!xs_ledger_begin(l, &b, 10, &c) && xs_ledger_live(l) == 1);
	xs_ledger_clear(l);
	CHECK(!xs_ledger_live(l));
	b.cookie = 0;
	CHECK(!xs_ledger_begin(l, &b, 10, &c) && !xs_ledger_live(l) && !xs_ledger_take(l, 0, &found));
	xs_ledger_free(l);
}

/* Against a plain array, in an order that makes chains of the table and holes in them. */
static void table(void)
{
	enum { N = 3000 };
	struct xs_ledger *l = xs_ledger_new();
	bool there[N] = {false};
	size_t live = 0, at = 0;
	struct xs_begun b, found;
	struct xs_counts c;
	uint32_t state = 1;

	for (int i = 0; i < 200000; i++) {
		uint32_t which;

		state = state * 1664525u + 1013904223u;
		which = (state >> 8) % N;
		b = (struct xs_begun){which + 1, which, 0, XS_NO_KIND, 0};
		if (state >> 31) {
			CHECK(!xs_ledger_begin(l, &b, N - 100, &c));
			if (!there[which] && live < N - 100) {
				there[which] = true;
				live++;
			}
		} else {
			CHECK(xs_ledger_take(l, which + 1, &found) == there[which]);
			if (there[which])
				CHECK(found.time_ns == which);
			live -= there[which];
			there[which] = false;
		}
		CHECK(xs_ledger_live(l) == live);
	}
	while (xs_ledger_each(l, &at, &found)) {
		CHECK(there[found.cookie - 1]);
		live--;
	}
	CHECK(!live);
	xs_ledger_free(l);
}

/* A kind's place is another's only after its last connection was recorded. */
static void kinds(void)
{
	struct xs_ledger *l = xs_ledger_new();
	uint32_t first = kind(l, "1["), second;
	struct xs_begun b = {5, 0, 0, first, 0}, found;
	struct xs_counts c;
	struct xs_lines out;

	memset(&out, 0, sizeof out);
	CHECK(!xs_ledger_begin(l, &b, 10, &c));
	xs_ledger_drop(l, first);
	second = kind(l, "2[");
	CHECK(second != first);
	CHECK(xs_ledger_take(l, 5, &found));
	CHECK(kind(l, "3[") != first);
	memset(&c, 0, sizeof c);
	xs_ledger_end(l, &out, &found, &c, 0);
	CHECK(out.used && out.at[0] == 'e');
	CHECK(kind(l, "4[") == first);
	xs_ledger_drop(l, second);
	xs_ledger_drop(l, second);
	CHECK(kind(l, "5[") == second);
	for (int i = 0; i < 1000; i++)
		CHECK(kind(l, "n[") != XS_NO_KIND);
	free(out.at);
	xs_ledger_free(l);
}

int main(void)
{
	lines();
	numbers();
	counts();
	again();
	others();
	strangers();
	table();
	kinds();
	return 0;
}
