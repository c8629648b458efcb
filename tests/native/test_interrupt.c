/* A vfork(2) parent waits as a caller in a notification does: only a fatal signal ends it. */
#include "check.h"
#include "interrupt.h"

#include <dirent.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int go[2];

static void ignore(int number) { (void)number; }

static void *sleeps(void *arg)
{
	sigset_t all;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, NULL);
	for (;;)
		pause();
	return arg;
}

/* A child that waits in vfork until `go` says so; it has a handler for SIGUSR1 and blocks SIGUSR2. */
static pid_t waiting(int threads)
{
	pid_t pid = fork();

	if (!pid) {
		struct sigaction action = {.sa_handler = ignore};
		sigset_t blocked;
		pthread_t t;
		char byte;

		sigaction(SIGUSR1, &action, NULL);
		sigaction(SIGUSR2, &action, NULL);
		sigemptyset(&blocked);
		sigaddset(&blocked, SIGUSR2);
		sigprocmask(SIG_SETMASK, &blocked, NULL);
		if (threads > 1)
			pthread_create(&t, NULL, sleeps, NULL);
		if (!vfork()) {
			if (read(go[0], &byte, 1) < 0)
				_exit(1);
			_exit(0);
		}
		_exit(0);
	}
	return pid;
}

static bool in_vfork(pid_t pid)
{
	char path[64], text[64] = "";
	FILE *f;

	snprintf(path, sizeof path, "/proc/%d/stat", pid);
	f = fopen(path, "r");
	if (f && !fscanf(f, "%*d (%*[^)]) %63s", text))
		text[0] = 0;
	if (f)
		fclose(f);
	return text[0] == 'D';
}

static void settle(pid_t pid)
{
	const struct timespec tick = {0, 1000000};

	for (int i = 0; i < 5000 && !in_vfork(pid); i++)
		nanosleep(&tick, NULL);
	CHECK(in_vfork(pid));
}

static enum xs_signal look(pid_t pid)
{
	struct xs_going going = {0, 0};
	bool leader;
	enum xs_signal found = xs_signalled((uint32_t)pid, 1, &going, &leader);

	CHECK(leader);
	return found;
}

static void end(pid_t pid, int status)
{
	int got;

	CHECK(write(go[1], "x", 1) == 1);
	CHECK(waitpid(pid, &got, 0) == pid);
	CHECK(got == status);
}

static void one_thread(void)
{
	pid_t pid = waiting(1);

	settle(pid);
	CHECK(look(pid) == XS_NO_SIGNAL);
	kill(pid, SIGUSR2); /* blocked */
	kill(pid, SIGWINCH); /* ignored by default */
	CHECK(look(pid) == XS_NO_SIGNAL);
	kill(pid, SIGUSR1);
	CHECK(look(pid) == XS_SIGNALLED);
	end(pid, 0);
}

static void two_threads(void)
{
	pid_t pid = waiting(2);

	settle(pid);
	CHECK(look(pid) == XS_NO_SIGNAL);
	kill(pid, SIGUSR1);
	CHECK(look(pid) == XS_SHARED);
	syscall(SYS_tgkill, pid, pid, SIGUSR1);
	CHECK(look(pid) == XS_SIGNALLED);
	end(pid, 0);
}

static pid_t other(pid_t pid)
{
	char path[64];
	struct dirent *d;
	pid_t found = 0;
	DIR *dir;

	snprintf(path, sizeof path, "/proc/%d/task", pid);
	dir = opendir(path);
	CHECK(dir);
	while ((d = readdir(dir)))
		if (*d->d_name != '.' && atoi(d->d_name) != pid)
			found = atoi(d->d_name);
	closedir(dir);
	return found;
}

static void stops(void)
{
	const struct timespec tick = {0, 1000000};
	pid_t pid = waiting(2);
	enum xs_signal found = XS_NO_SIGNAL;

	settle(pid);
	syscall(SYS_tgkill, pid, other(pid), SIGSTOP); /* taken there, and every thread is told */
	for (int i = 0; i < 5000 && found != XS_SIGNALLED; i++) {
		nanosleep(&tick, NULL);
		found = look(pid);
	}
	CHECK(found == XS_SIGNALLED);
	kill(pid, SIGCONT);
	end(pid, 0);
}

static void nudged(void)
{
	pid_t pid = waiting(2);

	settle(pid);
	CHECK(xs_nudge((uint32_t)pid));
	CHECK(write(go[1], "x", 1) == 1); /* its wait ends: it stops, and goes on when let go */
	xs_nudged((uint32_t)pid);
	CHECK(waitpid(pid, NULL, 0) == pid);

	pid = waiting(2);
	settle(pid);
	CHECK(xs_nudge((uint32_t)pid));
	kill(pid, SIGKILL);
	xs_nudged((uint32_t)pid);
	CHECK(waitpid(pid, NULL, 0) < 0); /* reaped already: here the tracer is the parent */
	CHECK(write(go[1], "x", 1) == 1);
	CHECK(!xs_nudge((uint32_t)pid));
}

int main(void)
{
	CHECK(!pipe(go));
	one_thread();
	two_threads();
	stops();
	nudged();
	return 0;
}
