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

/* Two digits a division. */
void xs_put_number(struct xs_lines *out, uint64_t value, int least)
{
	static const char pairs[] = "0001020304050607080910111213141516171819202122232425262728293031323334353637383940414243444546474849"
				    "5051525354555657585960616263646566676869707172737475767778798081828384858687888990919293949596979899";
	char digits[XS_NUMBER];
	int n = 0;

	for (; value > 9; value /= 100, n += 2)
		memcpy(digits + XS_NUMBER - n - 2, pairs + 2 * (value % 100), 2);
	for (; value || n < least; value = 0)
		digits[XS_NUMBER - ++n] = (char)('0' + value);
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

static size_t line_of(const char *lines, size_t size)
{
	const char *end = memchr(lines, '\n', size);

	return end ? (size_t)(end - lines) + 1 : size;
}

size_t xs_lines_numbered(const char *lines, size_t size, size_t headsize, uint64_t seq)
{
	size_t all = size, digits = 1, line;
	uint64_t more = 10; /* the first number with more digits */

	for (; size; lines += line, size -= line, seq++) {
		line = line_of(lines, size);
		for (; more && seq >= more; digits++)
			more = more > UINT64_MAX / 10 ? 0 : 10 * more;
		all += headsize + digits + 1;
	}
	return all;
}

void xs_lines_number(char *into, const char *lines, size_t size, const char *head, size_t headsize, uint64_t seq)
{
	struct xs_lines out = {.at = into};
	size_t line;

	for (; size; lines += line, size -= line) {
		line = line_of(lines, size);
		xs_put(&out, head, headsize);
		xs_put_number(&out, seq++, 1);
		xs_put(&out, ",", 1);
		xs_put(&out, lines, line);
	}
}
