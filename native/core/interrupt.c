/*
 * Theory of operation. A signal natively ends connect(2) when the kernel has marked the thread as having one pending
 * (signal_pending(), sched/signal.h). That mark is not shown anywhere, but proc(5) shows the queues it comes from:
 *
 *   - a signal queued for the thread itself and not blocked by it: marked;
 *   - one queued for the process and not blocked: marked if this is the only thread; else the kernel has marked one of
 *     those that could take it (complete_signal), and we cannot see which. A thread that waits in a notification does
 *     not take it; any other does so at once. So if it is still there a moment later, it is for one that waits;
 *   - another thread of the process has stopped: all were marked before (do_signal_stop).
 *
 * Signals that are ignored are not queued. A thread that is asked for signals without being marked would see
 * ERESTARTSYS as errno 512, so in the unclear case it is marked by ptrace(2): PTRACE_INTERRUPT stops it on its way out,
 * after the call and before it looks for signals; it is let go at once.
 */
#include "interrupt.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define LOOK_AT 8 /* threads asked whether they have stopped; more than one that does not tell is rare */
#define GOING_NS 40000000ull /* an answer is good for */

static bool slurp(const char *path, char *text, size_t room)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return false;
	n = read(fd, text, room - 1);
	close(fd);
	if (n <= 0)
		return false;
	text[n] = 0;
	return true;
}

static uint64_t field(const char *text, const char *name, int base)
{
	const char *at = strstr(text, name);

	return at ? strtoull(at + strlen(name), NULL, base) : 0;
}

/* Whether some other thread of the process has stopped (signal(7), SIGSTOP and SIGTSTP). */
static bool stopping(uint32_t tid, unsigned tgid)
{
	char path[320], text[1024], *state;
	struct dirent *d;
	bool found = false;
	DIR *dir;

	snprintf(path, sizeof path, "/proc/%u/task", tgid);
	dir = opendir(path);
	for (int n = 0; dir && !found && n < LOOK_AT && (d = readdir(dir));) {
		if (!isdigit((unsigned char)*d->d_name) || strtoul(d->d_name, NULL, 10) == tid)
			continue;
		n++;
		snprintf(path, sizeof path, "/proc/%u/task/%s/stat", tgid, d->d_name);
		/* The name before the state may contain anything, ")" included. */
		state = slurp(path, text, sizeof text) ? strrchr(text, ')') : NULL;
		found = state && state[1] == ' ' && state[2] == 'T';
	}
	if (dir)
		closedir(dir);
	return found;
}

enum xs_signal xs_signalled(uint32_t tid, uint64_t now_ns, struct xs_going *known, bool *leader)
{
	char path[40], text[4096];
	uint64_t blocked;
	unsigned tgid;

	*leader = false;
	snprintf(path, sizeof path, "/proc/%u/status", tid);
	if (!slurp(path, text, sizeof text))
		return XS_NO_SIGNAL;
	blocked = field(text, "\nSigBlk:", 16);
	tgid = (unsigned)field(text, "\nTgid:", 10);
	*leader = tgid == tid;
	if (field(text, "\nSigPnd:", 16) & ~blocked)
		return XS_SIGNALLED;
	if (field(text, "\nThreads:", 10) <= 1)
		return field(text, "\nShdPnd:", 16) & ~blocked ? XS_SIGNALLED : XS_NO_SIGNAL;
	if (field(text, "\nShdPnd:", 16) & ~blocked)
		return XS_SHARED;
	if (known->tgid == tgid && now_ns < known->until_ns)
		return XS_NO_SIGNAL;
	if (stopping(tid, tgid))
		return XS_SIGNALLED;
	known->tgid = tgid;
	known->until_ns = now_ns + GOING_NS;
	return XS_NO_SIGNAL;
}

bool xs_nudge(uint32_t tid)
{
	if (ptrace(PTRACE_SEIZE, (pid_t)tid, NULL, NULL))
		return false;
	if (!ptrace(PTRACE_INTERRUPT, (pid_t)tid, NULL, NULL))
		return true;
	ptrace(PTRACE_DETACH, (pid_t)tid, NULL, NULL); /* it died just now */
	return false;
}

void xs_nudged(uint32_t tid)
{
	struct timespec tick = {0, 20000};
	int status;

	/* Not by waiting for the stop: whoever embeds us may call wait(2) for any child and take that news. */
	while (ptrace(PTRACE_DETACH, (pid_t)tid, NULL, NULL)) {
		pid_t got = waitpid((pid_t)tid, &status, __WALL | WNOHANG);

		if ((got < 0 && errno != EINTR) || (got > 0 && !WIFSTOPPED(status)))
			return; /* killed, and nobody's tracee any more */
		nanosleep(&tick, NULL);
		if (tick.tv_nsec < 10000000) /* it is not let run: frozen (cgroups(7)), say */
			tick.tv_nsec *= 2;
	}
}
