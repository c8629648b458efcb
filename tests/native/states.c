#include "states.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct mark { uint64_t a, b; };
static struct mark *seen;
static size_t room, known;

static struct mark mark_of(const uint8_t *data, size_t length)
{
	struct mark m = {0x9e3779b97f4a7c15u ^ length, 0xc2b2ae3d27d4eb4fu};

	for (size_t i = 0; i < length; i += 8) {
		uint64_t word = 0;

		memcpy(&word, data + i, length - i < 8 ? length - i : 8);
		m.a = (m.a ^ word) * 0xff51afd7ed558ccdu;
		m.a ^= m.a >> 32;
		m.b = (m.b + word) * 0xc4ceb9fe1a85ec53u;
		m.b ^= m.b >> 29;
	}
	m.a += !m.a; /* 0: an empty place of the table */
	return m;
}

static bool insert(struct mark m)
{
	size_t i;

	if (known * 2 >= room) {
		struct mark *old = seen;
		size_t n = room;

		room = room ? room * 2 : 1 << 16;
		seen = calloc(room, sizeof *seen);
		if (!seen) {
			fprintf(stderr, "explorer: no memory\n");
			exit(2);
		}
		known = 0;
		for (i = 0; i < n; i++)
			if (old[i].a)
				insert(old[i]);
		free(old);
	}
	for (i = m.a & (room - 1); seen[i].a; i = (i + 1) & (room - 1))
		if (seen[i].a == m.a && seen[i].b == m.b)
			return false;
	seen[i] = m;
	known++;
	return true;
}

bool states_add(const uint8_t *data, size_t length) { return insert(mark_of(data, length)); }

size_t states_count(void) { return known; }

void states_forget(void)
{
	free(seen);
	seen = NULL;
	room = known = 0;
}
