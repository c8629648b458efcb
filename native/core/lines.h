/* Lines of the audit log as they are made: text in memory that grows. Benchmark rows: audit, audit.here. */
#ifndef XS_LINES_H
#define XS_LINES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define XS_NUMBER 24 /* characters of the longest number and a point */

/* Whole lines, from their "kind" on, or numbered. `failed`: there was no memory for some. */
struct xs_lines {
	char *at;
	size_t used, room;
	unsigned count;
	bool failed;
};

/* Whether there is room for so much more, which the others below take without asking. */
bool xs_lines_room(struct xs_lines *out, size_t size);
static inline void xs_put(struct xs_lines *out, const char *at, size_t size)
{
	memcpy(out->at + out->used, at, size);
	out->used += size;
}

/* With so many digits at least; XS_NUMBER is the most. */
void xs_put_number(struct xs_lines *out, uint64_t value, int least);
void xs_put_signed(struct xs_lines *out, int64_t value);
void xs_put_seconds(struct xs_lines *out, uint64_t ns);
/* Each line behind `head`, its number from `seq` on, and a comma; how many bytes that is is asked for first. */
size_t xs_lines_numbered(const char *lines, size_t size, size_t headsize, uint64_t seq);
void xs_lines_number(char *into, const char *lines, size_t size, const char *head, size_t headsize, uint64_t seq);

#endif
