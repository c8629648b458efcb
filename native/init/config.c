#include "init.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char **take_strings(char **at, const char *end, uint32_t n)
{
	char **list = calloc((size_t)n + 1, sizeof *list);

	for (uint32_t i = 0; list && i < n; i++) {
		char *stop = memchr(*at, 0, (size_t)(end - *at));

		if (!stop)
			return NULL;
		list[i] = *at;
		*at = stop + 1;
	}
	return list;
}

int read_config(int fd, struct config *c)
{
	struct stat st;
	size_t filter, got = 0;
	char *text, *at, *end;

	memset(c, 0, sizeof *c);
	if (fstat(fd, &st) || st.st_size < (off_t)sizeof c->head)
		return -1;
	text = malloc((size_t)st.st_size);
	if (!text)
		return -1;
	while (got < (size_t)st.st_size) {
		ssize_t n = pread(fd, text + got, (size_t)st.st_size - got, (off_t)got);

		if (n <= 0)
			return -1;
		got += (size_t)n;
	}
	close(fd);
	memcpy(&c->head, text, sizeof c->head);
	end = text + got;
	filter = (size_t)c->head.filter_len * sizeof *c->filter;
	if (c->head.magic != CONFIG_MAGIC || c->head.filter_len > 4096 || filter > got - sizeof c->head)
		return -1;
	c->filter = malloc(filter ? filter : 1);
	if (!c->filter)
		return -1;
	memcpy(c->filter, text + sizeof c->head, filter);
	at = text + sizeof c->head + filter;
	c->hide = take_strings(&at, end, c->head.hide_count);
	c->argv = take_strings(&at, end, c->head.arg_count);
	return c->hide && c->argv && c->argv[0] ? 0 : -1;
}
