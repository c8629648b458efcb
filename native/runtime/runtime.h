/* Parts of xensock-runtime; see main.c. */
#ifndef XS_RUNTIME_H
#define XS_RUNTIME_H

/* What the engine asked of an OCI runtime: RUNTIME [GLOBAL OPTION]... COMMAND [OPTION]... ID [ARG]... */
struct order {
	int argc;
	char **argv;
	char **out; /* what is passed on: the same without options that are ours or stand for others */
	int words;  /* in there */
	int command;	     /* index in there after the command's name, 0: none */
	const char *name;    /* of the command, "" if there is none */
	const char *id;	     /* of the container */
	const char *bundle;  /* directory of config.json */
	const char *config;  /* crun: its name, if not config.json */
	const char *process; /* file of exec's process.json */
	int preserved;	     /* --preserve-fds */
	const char *log;     /* where the engine reads errors */
	const char *backend; /* ours: the backend's socket */
	const char *runtime; /* ours: the runtime that is in front of */
};

void parse_order(struct order *o, int argc, char **argv);
/* Whether the command starts a process in a container. */
int mediated(const struct order *o);
/* One more option of the command, with its value; at most three. */
void pass_option(struct order *o, const char *name, const char *value);
/* Says it on stderr and in the engine's log, and ends with status 1. */
_Noreturn void give_up(const struct order *o, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* A connection to the backend. */
int call_backend(const struct order *o);
/* Hands the description over and returns a descriptor of the one to use; `fd` is what the connection is in the container. */
int ask_backend(const struct order *o, int backend, int description, int fd);
/* Replaces this process. */
_Noreturn void exec_runtime(const struct order *o);

#endif
