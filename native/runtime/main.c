/*
 * xensock-runtime: an OCI runtime that puts a container's socket calls through a XenSock backend.
 *
 * Stands before runc or crun and takes their place for an engine. On create, run and exec it tells the backend, which
 * answers with the description of the process to start: its program is preceded by xensock-init, and the connection to
 * the backend is left open for that as one more preserved descriptor. Nothing else of the container is changed, and
 * everything else is passed on as it came. Without the backend no container starts.
 */
#include "runtime.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define ABOVE 100 /* where descriptors of ours are in nobody's way */

void exec_runtime(const struct order *o)
{
	static const char *const known[] = {"runc", "crun", NULL}, *const where[] = {"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin", NULL};
	char path[PATH_MAX], **argv = o->out;

	if (o->runtime && *o->runtime) {
		argv[0] = (char *)(uintptr_t)o->runtime;
		execvp(o->runtime, argv);
		give_up(o, "cannot execute %s: %s", o->runtime, strerror(errno));
	}
	for (int r = 0; known[r]; r++)
		for (int w = 0; where[w]; w++) {
			snprintf(path, sizeof path, "%s/%s", where[w], known[r]);
			argv[0] = path;
			execv(path, argv);
		}
	give_up(o, "neither runc nor crun is installed (name another runtime with --xensock-runtime=PATH)");
}

/* Descriptors that systemd handed to this process (sd_listen_fds(3)): the runtime puts them first. */
static int inherited(void)
{
	const char *pid = getenv("LISTEN_PID"), *count = getenv("LISTEN_FDS");

	return pid && count && atoi(pid) == getpid() ? atoi(count) : 0;
}

static void copy(const struct order *o, int from, int to)
{
	char room[65536];
	ssize_t n, w;

	while ((n = pread(from, room, sizeof room, lseek(to, 0, SEEK_CUR))) > 0)
		for (char *at = room; n > 0; at += w, n -= w)
			if ((w = write(to, at, (size_t)n)) < 0)
				give_up(o, "cannot write the container's description: %s", strerror(errno));
	if (n < 0)
		give_up(o, "cannot read the container's description: %s", strerror(errno));
}

/* In the place of the engine's, at once and whole: runc reads no other. */
static void replace(const struct order *o, const char *path, int old, int new)
{
	char beside[PATH_MAX + 32];
	struct stat st;
	int fd;

	snprintf(beside, sizeof beside, "%s.xensock-%d", path, (int)getpid());
	fd = fstat(old, &st) ? -1 : open(beside, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0 || fchmod(fd, st.st_mode & 07777))
		give_up(o, "cannot write %s: %s", beside, strerror(errno));
	copy(o, new, fd);
	if (close(fd) || rename(beside, path))
		give_up(o, "cannot replace %s: %s", path, strerror(errno));
}

/* Descriptors 0 to 2 exist, so that nothing of ours is mistaken for one of them. */
static void fill_stdio(void)
{
	int fd;

	while ((fd = open("/dev/null", O_RDWR)) >= 0 && fd < 3)
		;
	if (fd >= 0)
		close(fd);
}

/* The file with what is to be started. */
static void description(const struct order *o, char *path, size_t size)
{
	const char *name = o->process ? o->process : o->config ? o->config : "config.json";

	/* crun takes --config as it is; config.json is the bundle's. */
	if (o->process || o->config)
		snprintf(path, size, "%s", name);
	else
		snprintf(path, size, "%s/%s", o->bundle, name);
}

static void mediate(struct order *o)
{
	char path[PATH_MAX], count[16], process[32];
	int backend, old, new, fd = 3 + inherited() + o->preserved;

	description(o, path, sizeof path);
	old = open(path, O_RDONLY | O_CLOEXEC);
	if (old < 0)
		give_up(o, "cannot read %s: %s", path, strerror(errno));
	backend = fcntl(call_backend(o), F_DUPFD_CLOEXEC, ABOVE);
	new = fcntl(ask_backend(o, backend, old, fd), o->process ? F_DUPFD : F_DUPFD_CLOEXEC, ABOVE);
	if (o->process) {
		snprintf(process, sizeof process, "/proc/self/fd/%d", new);
		pass_option(o, "--process", process);
	} else {
		replace(o, path, old, new);
	}
	snprintf(count, sizeof count, "%d", o->preserved + 1);
	pass_option(o, "--preserve-fds", count);
	if (backend < 0 || new < 0 || dup2(backend, fd) < 0)
		give_up(o, "no descriptor is left: %s", strerror(errno));
	exec_runtime(o);
}

int main(int argc, char **argv)
{
	struct order o;

	fill_stdio();
	parse_order(&o, argc, argv);
	if (!strcmp(o.name, "restore"))
		give_up(&o, "a checkpointed container cannot be restored: its filter's listener is gone");
	if (!strcmp(o.name, "exec") && o.id && !o.process)
		give_up(&o, "exec needs --process FILE, as engines give it");
	if (mediated(&o) && o.id)
		mediate(&o);
	exec_runtime(&o);
}
