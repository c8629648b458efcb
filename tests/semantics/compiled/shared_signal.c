/* Signals for a process of several threads, one or more of which wait in a blocking connect.
 * argv: VERSION BLACKHOLE-HOST PORT */
#define _GNU_SOURCE
#define PROBE "shared_signal"
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include "say.h"

static char **arguments;
static volatile sig_atomic_t handled;
static volatile pid_t handler_tid;
static sigset_t usr1;

static void on_signal(int number)
{
	(void)number;
	handled = handled + 1;
	handler_tid = (pid_t)syscall(SYS_gettid);
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void pause_ms(long ms)
{
	struct timespec t = {ms / 1000, ms % 1000 * 1000000};

	while (nanosleep(&t, &t) && errno == EINTR)
		;
}

static int connecting(void)
{
	struct sockaddr_storage to;
	socklen_t size = address(arguments, &to);
	int fd = socket(family(arguments), SOCK_STREAM, 0), value;

	value = connect(fd, (struct sockaddr *)&to, size) ? errno : 0;
	close(fd);
	return value;
}

static void *waits(void *arg)
{
	*(int *)arg = connecting();
	return NULL;
}

static void *sends(void *arg)
{
	pthread_sigmask(SIG_BLOCK, &usr1, NULL);
	pause_ms(200);
	*(double *)arg = now();
	kill(getpid(), SIGUSR1);
	return NULL;
}

static void *idles(void *arg)
{
	pthread_sigmask(SIG_BLOCK, &usr1, NULL);
	pause_ms(1000);
	return arg;
}

static const char *soon(double since) { return now() - since < 0.5 ? "yes" : "no"; }

int main(int argc, char **argv)
{
	struct sigaction action = {.sa_handler = on_signal};
	pthread_t a, b;
	double sent = 0;
	int got = -1, status;
	pid_t child;

	if (argc != 4)
		return 2;
	arguments = argv;
	sigemptyset(&usr1);
	sigaddset(&usr1, SIGUSR1);
	sigaction(SIGUSR1, &action, NULL);

	/* The first thread connects; others block the signal. */
	pthread_create(&a, NULL, sends, &sent);
	pthread_create(&b, NULL, idles, NULL);
	got = connecting();
	say("first thread", "%s", strerrorname_np(got));
	say("first thread soon", "%s", soon(sent));
	say("handled by it", "%d %d", handled, handler_tid == getpid());
	pthread_join(a, NULL);
	pthread_join(b, NULL);

	/* Another thread connects; the first blocks the signal. */
	handled = 0;
	pthread_create(&a, NULL, waits, &got);
	pthread_sigmask(SIG_BLOCK, &usr1, NULL);
	sends(&sent);
	pthread_join(a, NULL);
	say("other thread", "%s", strerrorname_np(got));
	say("other thread soon", "%s", soon(sent));
	say("handled by that", "%d %d", handled, handler_tid != getpid());
	pthread_sigmask(SIG_UNBLOCK, &usr1, NULL);

	/* A thread connects and the first one does not: whoever takes the signal, it is handled once and at once. */
	handled = 0;
	pthread_create(&a, NULL, waits, &got);
	pause_ms(200);
	sent = now();
	kill(getpid(), SIGUSR1);
	pause_ms(100);
	say("taken elsewhere", "%d %s", handled, soon(sent));
	pthread_kill(a, SIGUSR1);
	pthread_join(a, NULL);
	say("for the thread", "%s %d", strerrorname_np(got), handled);

	/* A process of two threads stops and goes on while one of them connects. */
	child = fork();
	if (!child) {
		pthread_create(&a, NULL, waits, &got);
		pause_ms(5000);
		_exit(0);
	}
	pause_ms(300);
	sent = now();
	kill(child, SIGSTOP);
	waitpid(child, &status, WUNTRACED);
	say("stopped", "%d %s", WIFSTOPPED(status), soon(sent));
	kill(child, SIGCONT);
	waitpid(child, &status, WCONTINUED);
	say("continued", "%d", WIFCONTINUED(status));
	kill(child, SIGTERM);
	waitpid(child, &status, 0);
	say("ended", "%d", WTERMSIG(status));
	return 0;
}
