/*
 * Theory of operation: connections under way are in a table by SO_COOKIE (open addressing, at most half full). A connection
 * may have ended before its beginning is told here, so the last ends of strangers are remembered: a ring of them, and
 * chains by cookie to find one. A kind counts its connections, and its place is given anew after the last.
 */
#include "ledger.h"

#include <errno.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/tcp.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define STRANGERS 16384u
#define CHAINS 16384u
#define OF_ONE 8u
#define FIRST_TABLE 1024u

struct kind {
	char *text;
	uint32_t end[XS_PARTS]; /* of each part, in text */
	uint32_t live;
	bool dropped;
};

struct stranger {
	uint64_t cookie; /* 0: none, or it was asked for */
	uint64_t lost_ns; /* of the last of this socket's ends that had to go before this one */
	struct xs_counts counts;
	uint32_t next;
};

struct xs_ledger {
	struct xs_begun *table;
	size_t places, live;
	struct kind *kinds;
	uint32_t nkinds, room;
	uint32_t *spare, spares; /* numbers of kinds that went */
	struct stranger *strangers;
	uint32_t chain[CHAINS], at; /* indexes from 1 on; the next place of the ring */
	uint8_t heeded[65536 / 8];
	struct xs_lines lines;
};

static size_t hash(uint64_t cookie) { return (size_t)((cookie * 0x9E3779B97F4A7C15ull) >> 32); }

struct xs_ledger *xs_ledger_new(void)
{
	struct xs_ledger *l = calloc(1, sizeof *l);

	if (!l)
		return NULL;
	l->places = FIRST_TABLE;
	l->table = calloc(l->places, sizeof *l->table);
	l->strangers = calloc(STRANGERS, sizeof *l->strangers);
	if (!l->table || !l->strangers) {
		xs_ledger_free(l);
		return NULL;
	}
	return l;
}

void xs_ledger_free(struct xs_ledger *l)
{
	for (uint32_t i = 0; i < l->nkinds; i++)
		free(l->kinds[i].text);
	free(l->lines.at);
	free(l->kinds);
	free(l->spare);
	free(l->strangers);
	free(l->table);
	free(l);
}

struct xs_lines xs_ledger_lines(struct xs_ledger *l)
{
	struct xs_lines taken = {.at = l->lines.at, .room = l->lines.room};

	memset(&l->lines, 0, sizeof l->lines);
	return taken;
}

void xs_ledger_give(struct xs_ledger *l, struct xs_lines *lines)
{
	if (l->lines.at)
		free(lines->at);
	else
		l->lines = *lines;
}

/* --- kinds */

static bool room_for_kinds(struct xs_ledger *l)
{
	uint32_t room = l->room ? 2 * l->room : 64;
	struct kind *kinds;
	uint32_t *spare;

	if (l->nkinds < l->room)
		return true;
	kinds = realloc(l->kinds, room * sizeof *kinds);
	if (kinds)
		l->kinds = kinds;
	spare = realloc(l->spare, room * sizeof *spare);
	if (spare)
		l->spare = spare;
	if (!kinds || !spare)
		return false;
	l->room = room;
	return true;
}

uint32_t xs_ledger_kind(struct xs_ledger *l, const struct xs_text parts[XS_PARTS])
{
	struct kind made;
	size_t size = 0;
	uint32_t number;

	memset(&made, 0, sizeof made);
	if (!l->spares && !room_for_kinds(l))
		return XS_NO_KIND;
	for (int i = 0; i < XS_PARTS; i++) {
		size += parts[i].size;
		made.end[i] = (uint32_t)size;
	}
	made.text = size < UINT32_MAX ? malloc(size + 1) : NULL;
	if (!made.text)
		return XS_NO_KIND;
	for (int i = 0; i < XS_PARTS; i++)
		memcpy(made.text + made.end[i] - parts[i].size, parts[i].at, parts[i].size);
	number = l->spares ? l->spare[--l->spares] : l->nkinds++;
	l->kinds[number] = made;
	return number;
}

static void let_go(struct xs_ledger *l, uint32_t kind)
{
	struct kind *k = &l->kinds[kind];

	if (!k->dropped || k->live || !k->text)
		return;
	free(k->text);
	k->text = NULL;
	l->spare[l->spares++] = kind;
}

void xs_ledger_drop(struct xs_ledger *l, uint32_t kind)
{
	if (kind >= l->nkinds || !l->kinds[kind].text)
		return;
	l->kinds[kind].dropped = true;
	let_go(l, kind);
}

void xs_ledger_done(struct xs_ledger *l, uint32_t kind)
{
	if (kind >= l->nkinds || !l->kinds[kind].live)
		return;
	l->kinds[kind].live--;
	let_go(l, kind);
}

/* --- lines */

/* The next constant part of a line; `part` counts them. */
static void put_part(struct xs_lines *out, const struct kind *k, int *part)
{
	uint32_t from = *part ? k->end[*part - 1] : 0;

	xs_put(out, k->text + from, k->end[*part] - from);
	++*part;
}

static size_t most_of(const struct kind *k) { return k->end[XS_PARTS - 1] + (size_t)XS_PARTS * 2 * XS_NUMBER; }

void xs_ledger_call(struct xs_ledger *l, struct xs_lines *out, const struct xs_event *ev, uint32_t kind, int64_t user,
		    uint64_t epoch_ns)
{
	const struct kind *k = &l->kinds[kind];
	int part = 0;

	if (kind >= l->nkinds || !k->text)
		return;
	if (!xs_lines_room(out, most_of(k)))
		return;
	put_part(out, k, &part);
	xs_put_seconds(out, epoch_ns + ev->start_ns);
	put_part(out, k, &part);
	xs_put_number(out, ev->tid, 1);
	put_part(out, k, &part);
	xs_put_seconds(out, ev->took_ns);
	put_part(out, k, &part);
	xs_put_signed(out, user);
	put_part(out, k, &part);
	xs_put_number(out, ev->args[0], 1);
	put_part(out, k, &part);
	out->count++;
}

void xs_ledger_end(struct xs_ledger *l, struct xs_lines *out, const struct xs_begun *b, const struct xs_counts *c, uint64_t now_ns)
{
	const struct kind *k = &l->kinds[b->kind];
	int part = XS_CALL_PARTS;

	if (!xs_lines_room(out, most_of(k))) {
		xs_ledger_done(l, b->kind);
		return;
	}
	put_part(out, k, &part);
	if (c->ended_ns)
		now_ns = c->ended_ns;
	xs_put_seconds(out, now_ns);
	put_part(out, k, &part);
	xs_put_number(out, b->tid, 1);
	put_part(out, k, &part);
	xs_put_signed(out, c->error ? -1 : 0);
	put_part(out, k, &part);
	xs_put_signed(out, c->error);
	put_part(out, k, &part);
	xs_put_seconds(out, now_ns > b->time_ns ? now_ns - b->time_ns : 0);
	put_part(out, k, &part);
	xs_put_signed(out, b->user);
	put_part(out, k, &part);
	xs_put_number(out, b->cookie, 1);
	for (int i = 0; i < 2; i++) {
		put_part(out, k, &part);
		if (c->counted)
			xs_put_number(out, i ? c->received : c->sent, 1);
		else
			xs_put(out, "null", 4);
	}
	put_part(out, k, &part);
	out->count++;
	xs_ledger_done(l, b->kind);
}

/* --- connections under way */

static size_t place_of(const struct xs_ledger *l, uint64_t cookie)
{
	size_t i = hash(cookie) & (l->places - 1);

	while (l->table[i].cookie && l->table[i].cookie != cookie)
		i = (i + 1) & (l->places - 1);
	return i;
}

static bool grow(struct xs_ledger *l)
{
	struct xs_begun *old = l->table;
	size_t places = l->places;

	if (2 * (l->live + 1) <= places)
		return true;
	l->table = calloc(2 * places, sizeof *l->table);
	if (!l->table) {
		l->table = old;
		return false;
	}
	l->places = 2 * places;
	for (size_t i = 0; i < places; i++)
		if (old[i].cookie)
			l->table[place_of(l, old[i].cookie)] = old[i];
	free(old);
	return true;
}

static void remove_at(struct xs_ledger *l, size_t hole)
{
	size_t mask = l->places - 1, i = hole;

	/* Those behind it that would not be found across a hole move up. */
	for (;;) {
		size_t home;

		i = (i + 1) & mask;
		if (!l->table[i].cookie)
			break;
		home = hash(l->table[i].cookie) & mask;
		if (((i - home) & mask) < ((i - hole) & mask))
			continue;
		l->table[hole] = l->table[i];
		hole = i;
	}
	l->table[hole].cookie = 0;
	l->live--;
}

static uint32_t *chain_of(struct xs_ledger *l, uint64_t cookie) { return &l->chain[hash(cookie) & (CHAINS - 1)]; }

static bool before(const struct xs_counts *c, uint64_t time_ns) { return c->ended_ns && c->ended_ns < time_ns; }

/* The first end of that socket which was not before that time, or that it had to go. */
static bool recall(struct xs_ledger *l, uint64_t cookie, uint64_t time_ns, struct xs_counts *c)
{
	uint32_t *found = NULL;
	uint64_t lost_ns = 0;
	struct stranger *s;

	/* The latest is found first. */
	for (uint32_t *link = chain_of(l, cookie); *link; link = &s->next) {
		s = &l->strangers[*link - 1];
		if (s->cookie != cookie)
			continue;
		lost_ns = s->lost_ns > lost_ns ? s->lost_ns : lost_ns;
		if (!before(&s->counts, time_ns))
			found = link;
	}
	if (lost_ns && lost_ns >= time_ns) {
		memset(c, 0, sizeof *c);
		return true;
	}
	if (!found)
		return false;
	s = &l->strangers[*found - 1];
	*c = s->counts;
	s->cookie = 0;
	*found = s->next;
	return true;
}

static void forget(struct xs_ledger *l, struct stranger *s)
{
	uint32_t *link = chain_of(l, s->cookie);

	while (&l->strangers[*link - 1] != s)
		link = &l->strangers[*link - 1].next;
	s->cookie = 0;
	*link = s->next;
}

/* Of one socket, which may end thousands of times, only the last few: chains stay short. When the last one was that had to
 * go. */
static uint64_t make_room(struct xs_ledger *l, uint64_t cookie)
{
	struct stranger *oldest = NULL;
	uint64_t lost_ns = 0;
	unsigned n = 0;

	for (uint32_t at = *chain_of(l, cookie); at; at = l->strangers[at - 1].next) {
		struct stranger *s = &l->strangers[at - 1];

		if (s->cookie == cookie) {
			oldest = s;
			lost_ns = s->lost_ns > lost_ns ? s->lost_ns : lost_ns;
			n++;
		}
	}
	if (n == OF_ONE) {
		if (oldest->counts.ended_ns > lost_ns)
			lost_ns = oldest->counts.ended_ns;
		forget(l, oldest);
	}
	return lost_ns;
}

static void remember(struct xs_ledger *l, uint64_t cookie, const struct xs_counts *c)
{
	struct stranger *s = &l->strangers[l->at];
	uint32_t *chain = chain_of(l, cookie);
	uint64_t lost_ns = make_room(l, cookie);

	if (s->cookie)
		forget(l, s);
	s->cookie = cookie;
	s->lost_ns = lost_ns;
	s->counts = *c;
	s->next = *chain;
	*chain = ++l->at;
	if (l->at == STRANGERS)
		l->at = 0;
}

bool xs_ledger_begin(struct xs_ledger *l, const struct xs_begun *b, size_t most, struct xs_counts *c)
{
	bool ended;
	size_t i;

	if (!b->cookie)
		return false;
	i = place_of(l, b->cookie);
	if (l->table[i].cookie || l->live >= most)
		return false;
	ended = recall(l, b->cookie, b->time_ns, c);
	if (!ended) {
		if (!grow(l))
			return false;
		l->table[place_of(l, b->cookie)] = *b;
		l->live++;
	}
	if (b->kind != XS_NO_KIND)
		l->kinds[b->kind].live++;
	return ended;
}

bool xs_ledger_take(struct xs_ledger *l, uint64_t cookie, struct xs_begun *b)
{
	size_t i = place_of(l, cookie);

	if (!cookie || !l->table[i].cookie)
		return false;
	*b = l->table[i];
	remove_at(l, i);
	return true;
}

bool xs_ledger_each(const struct xs_ledger *l, size_t *at, struct xs_begun *b)
{
	while (*at < l->places) {
		*b = l->table[(*at)++];
		if (b->cookie)
			return true;
	}
	return false;
}

size_t xs_ledger_live(const struct xs_ledger *l) { return l->live; }

void xs_ledger_heed(struct xs_ledger *l, uint16_t port, bool on)
{
	uint8_t bit = (uint8_t)(1u << port % 8);

	if (on)
		l->heeded[port / 8] |= bit;
	else
		l->heeded[port / 8] &= (uint8_t)~bit;
}

void xs_ledger_clear(struct xs_ledger *l)
{
	for (size_t i = 0; i < l->places; i++) {
		if (l->table[i].cookie)
			xs_ledger_done(l, l->table[i].kind);
		l->table[i].cookie = 0;
	}
	l->live = 0;
	for (uint32_t i = 0; i < STRANGERS; i++)
		l->strangers[i].cookie = 0;
	memset(l->chain, 0, sizeof l->chain);
}

/* --- what the kernel tells */

/* As tcpinfo.counted() of a connection that the guest made. */
static void count(struct xs_counts *c, const uint8_t *info, size_t size)
{
	struct tcp_info t;
	uint64_t acked;

	memset(c, 0, sizeof *c);
	if (size < offsetof(struct tcp_info, tcpi_bytes_retrans) + sizeof t.tcpi_bytes_retrans)
		return;
	memset(&t, 0, sizeof t);
	memcpy(&t, info, size < sizeof t ? size : sizeof t);
	c->counted = true;
	acked = t.tcpi_bytes_acked;
	if (!acked) {
		c->error = ENOTCONN;
		return;
	}
	c->sent = t.tcpi_bytes_sent - t.tcpi_bytes_retrans;
	c->received = t.tcpi_bytes_received;
	if (acked - 1 <= c->sent) /* the SYN is one of them */
		c->error = ECONNRESET;
	else if (c->received)
		c->received--; /* the other end's FIN */
}

static void read_counts(struct xs_counts *c, const uint8_t *message, size_t size, uint64_t epoch_ns)
{
	size_t at = NLMSG_HDRLEN + NLMSG_ALIGN(sizeof(struct inet_diag_msg));
	uint64_t ended = 0;
	struct nlattr a;

	memset(c, 0, sizeof *c);
	while (at + sizeof a <= size) {
		memcpy(&a, message + at, sizeof a);
		if (a.nla_len < sizeof a || a.nla_len > size - at)
			break;
		if (a.nla_type == INET_DIAG_INFO)
			count(c, message + at + sizeof a, a.nla_len - sizeof a);
		else if (a.nla_type == XS_ENDED_TYPE && a.nla_len >= sizeof a + sizeof ended)
			memcpy(&ended, message + at + sizeof a, sizeof ended);
		at += NLA_ALIGN(a.nla_len);
	}
	c->ended_ns = ended ? epoch_ns + ended : 0;
}

static bool read_about(struct inet_diag_msg *m, uint64_t *cookie, const uint8_t *message, size_t size)
{
	if (size < NLMSG_HDRLEN + sizeof *m)
		return false;
	memcpy(m, message + NLMSG_HDRLEN, sizeof *m);
	*cookie = (uint64_t)m->id.idiag_cookie[1] << 32 | m->id.idiag_cookie[0];
	return true;
}

void xs_ledger_stranger(struct xs_ledger *l, const uint8_t *message, size_t size, uint64_t epoch_ns)
{
	struct inet_diag_msg m;
	struct xs_counts c;
	uint64_t cookie;

	if (!read_about(&m, &cookie, message, size) || !cookie)
		return;
	read_counts(&c, message, size, epoch_ns);
	remember(l, cookie, &c);
}

enum xs_about xs_ledger_heard(struct xs_ledger *l, const uint8_t *message, size_t size, uint64_t epoch_ns, struct xs_begun *b,
			      struct xs_counts *c)
{
	struct inet_diag_msg m;
	uint64_t cookie;
	uint16_t port;
	size_t i;

	if (!read_about(&m, &cookie, message, size))
		return XS_ABOUT_NOTHING;
	i = place_of(l, cookie);
	if (cookie && l->table[i].cookie) {
		read_counts(c, message, size, epoch_ns);
		if (before(c, l->table[i].time_ns)) {
			remember(l, cookie, c);
			return XS_ABOUT_STRANGER;
		}
		*b = l->table[i];
		remove_at(l, i);
		return b->kind == XS_NO_KIND ? XS_ABOUT_OTHER : XS_ABOUT_BEGUN;
	}
	port = (uint16_t)((m.id.idiag_sport & 0xFF) << 8 | m.id.idiag_sport >> 8);
	if (l->heeded[port / 8] & 1u << port % 8)
		return XS_ABOUT_OTHER;
	xs_ledger_stranger(l, message, size, epoch_ns);
	return XS_ABOUT_STRANGER;
}
