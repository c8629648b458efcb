/* See lines.h. */
#include "lines.h"

#include <stdlib.h>
#include <string.h>

bool xs_lines_room(struct xs_lines *out, size_t size)
{
	size_t room = out->room ? out->room : 16384;
	char *at;

	if (out->failed)
		return false;
	while (room - out->used < size)
		room *= 2;
	if (room == out->room)
		return true;
	at = realloc(out->at, room);
	out->failed = !at;
	if (at) {
		out->at = at;
		out->room = room;
	}
	return at != NULL;
}

void xs_put_number(struct xs_lines *out, uint64_t value, int least)
{
	char digits[XS_NUMBER];
	int n = 0;

	for (; value || n < least; value /= 10)
		digits[XS_NUMBER - ++n] = (char)('0' + value % 10);
	xs_put(out, digits + XS_NUMBER - n, (size_t)n);
}

void xs_put_signed(struct xs_lines *out, int64_t value)
{
	if (value < 0)
		xs_put(out, "-", 1);
	xs_put_number(out, value < 0 ? -(uint64_t)value : (uint64_t)value, 1);
}

void xs_put_seconds(struct xs_lines *out, uint64_t ns)
{
	xs_put_number(out, ns / 1000000000u, 1);
	xs_put(out, ".", 1);
	xs_put_number(out, ns % 1000000000u, 9);
}

void xs_lines_number(struct xs_lines *out, const char *lines, size_t size, const char *head, size_t headsize, uint64_t *seq)
{
	while (size) {
		const char *end = memchr(lines, '\n', size);
		size_t line = end ? (size_t)(end - lines) + 1 : size;

		if (!xs_lines_room(out, headsize + XS_NUMBER + line))
			return;
		xs_put(out, head, headsize);
		xs_put_number(out, (*seq)++, 1);
		xs_put(out, ",", 1);
		xs_put(out, lines, line);
		out->count++;
		lines += line;
		size -= line;
	}
}
