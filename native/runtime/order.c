/* The command line of an OCI runtime, as runc(8) and crun(1) know it and engines use it. */
#include "runtime.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Options whose value may be the next word. */
static const char *const global_valued[] = {"log", "log-format", "root", "criu", "rootless", "cgroup-manager", "xensock-backend", "xensock-runtime", NULL};
static const char *const valued[] = {"bundle", "b", "console-socket", "pid-file", "preserve-fds", "config", "f", "process", "p", "cwd", "env", "e", "user", "u",
				     "additional-gids", "g", "process-label", "apparmor", "cap", "c", "cgroup", NULL};

static int listed(const char *const *list, const char *name, size_t length)
{
	for (; *list; list++)
		if (strlen(*list) == length && !strncmp(*list, name, length))
			return 1;
	return 0;
}

/* The name of an option and its value; *i moves on to the word that holds it. NULL: this word is none. */
static const char *option(const struct order *o, int *i, const char *const *list, size_t *length, const char **value)
{
	const char *word = o->argv[*i], *equal;

	if (word[0] != '-' || !word[1])
		return NULL;
	word += word[1] == '-' ? 2 : 1;
	equal = strchr(word, '=');
	*length = equal ? (size_t)(equal - word) : strlen(word);
	*value = equal ? equal + 1 : NULL;
	if (!equal && listed(list, word, *length) && *i + 1 < o->argc)
		*value = o->argv[++*i];
	return word;
}

static int is(const char *word, size_t length, const char *name) { return strlen(name) == length && !strncmp(word, name, length); }

int mediated(const struct order *o) { return !strcmp(o->name, "create") || !strcmp(o->name, "run") || !strcmp(o->name, "exec"); }

static void pass(struct order *o, int from, int to)
{
	while (from <= to)
		o->out[o->words++] = o->argv[from++];
}

void pass_option(struct order *o, const char *name, const char *value)
{
	memmove(o->out + o->command + 2, o->out + o->command, sizeof *o->out * (size_t)(o->words - o->command + 1));
	o->out[o->command] = (char *)(uintptr_t)name;
	o->out[o->command + 1] = (char *)(uintptr_t)value;
	o->words += 2;
}

/* An option before the command. Returns whether it is ours, and not the runtime's. */
static int global(struct order *o, const char *word, size_t length, const char *value)
{
	if (is(word, length, "log"))
		o->log = value;
	else if (is(word, length, "xensock-backend"))
		o->backend = value;
	else if (is(word, length, "xensock-runtime"))
		o->runtime = value;
	return length > 8 && !strncmp(word, "xensock-", 8);
}

/* An option of create, run or exec. Returns whether another will stand for it. */
static int local(struct order *o, const char *word, size_t length, const char *value)
{
	if (!value || !mediated(o))
		return 0;
	if (is(word, length, "bundle") || is(word, length, "b"))
		o->bundle = value;
	else if (is(word, length, "config") || is(word, length, "f"))
		o->config = value;
	else if (!strcmp(o->name, "exec") && (is(word, length, "process") || is(word, length, "p")))
		return o->process = value, 1;
	else if (is(word, length, "preserve-fds"))
		return o->preserved = atoi(value), 1;
	return 0;
}

void parse_order(struct order *o, int argc, char **argv)
{
	const char *word, *value;
	size_t length;
	int i, first;

	memset(o, 0, sizeof *o);
	o->argc = argc;
	o->argv = argv;
	o->name = "";
	o->bundle = ".";
	o->backend = getenv("XENSOCK_CONTAINERS");
	o->runtime = getenv("XENSOCK_OCI_RUNTIME");
	o->out = calloc((size_t)argc + 8, sizeof *o->out);
	if (!o->out)
		give_up(o, "no memory");
	pass(o, 0, 0);
	for (i = 1; i < argc && !o->command; i++) {
		first = i;
		word = option(o, &i, global_valued, &length, &value);
		if (!word)
			o->name = argv[i];
		if (!word || !global(o, word, length, value))
			pass(o, first, i);
		if (!word)
			o->command = o->words;
	}
	for (; i < argc && !o->id; i++) {
		first = i;
		if (strcmp(argv[i], "--") && (word = option(o, &i, valued, &length, &value))) {
			if (!local(o, word, length, value))
				pass(o, first, i);
			continue;
		}
		i += !strcmp(argv[i], "--") && i + 1 < argc;
		o->id = argv[i];
		pass(o, first, i);
	}
	pass(o, i, argc - 1);
}

/* As a JSON string; what is no plain text becomes a question mark. */
static void put_json(FILE *f, const char *text)
{
	putc('"', f);
	for (; *text; text++) {
		if (*text == '"' || *text == '\\')
			putc('\\', f);
		putc((unsigned char)*text < 0x20 ? '?' : *text, f);
	}
	putc('"', f);
}

void give_up(const struct order *o, const char *format, ...)
{
	char text[2048], now[40] = "";
	time_t t = time(NULL);
	va_list args;
	FILE *f;

	va_start(args, format);
	vsnprintf(text, sizeof text, format, args);
	va_end(args);
	fprintf(stderr, "%s%s\n", strncmp(text, "xensock", 7) ? "xensock-runtime: " : "", text);
	if (o->log && (f = fopen(o->log, "ae"))) {
		strftime(now, sizeof now, "%Y-%m-%dT%H:%M:%SZ", gmtime(&t));
		fputs("{\"level\":\"error\",\"msg\":", f);
		put_json(f, text);
		fprintf(f, ",\"time\":\"%s\"}\n", now);
		fclose(f);
	}
	exit(1);
}
