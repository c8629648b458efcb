/*
 * Theory of operation: a blocking connect() that is interrupted by a signal without SA_RESTART returns EINTR and goes
 * on in the kernel (connect(2)). A timer that signals this thread alone therefore turns a blocking connect into a
 * bounded one without touching O_NONBLOCK, which the guest shares and would see. The timer repeats, because its first
 * signal may arrive before the thread is asleep.
 */
#include "connect.h"

#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

int xs_wake_signal(void) { return SIGRTMAX - 3; }

static void on_wake(int sig) { (void)sig; }

int xs_wake_install(void)
{
	struct sigaction sa;

	memset(&sa, 0, sizeof sa);
	sa.sa_handler = on_wake;
	return sigaction(xs_wake_signal(), &sa, NULL) ? errno : 0;
}

static pthread_key_t timer_key;
static pthread_once_t timer_once = PTHREAD_ONCE_INIT;
static int timer_key_error;

static void drop_timer(void *p) { timer_delete((timer_t)((char *)p - 1)); }

static void make_key(void)
{
	timer_key_error = pthread_key_create(&timer_key, drop_timer);
	if (!timer_key_error)
		timer_key_error = xs_wake_install();
}

/* One timer a thread, kept for the thread's life. Stored plus one: the first timer's id may be a null pointer. */
static int my_timer(timer_t *out)
{
	void *have;
	struct sigevent ev;

	pthread_once(&timer_once, make_key);
	if (timer_key_error)
		return timer_key_error;
	have = pthread_getspecific(timer_key);
	if (have) {
		*out = (timer_t)((char *)have - 1);
		return 0;
	}
	memset(&ev, 0, sizeof ev);
	ev.sigev_notify = SIGEV_THREAD_ID;
	ev.sigev_signo = xs_wake_signal();
	ev.sigev_notify_thread_id = (int)syscall(SYS_gettid);
	if (timer_create(CLOCK_MONOTONIC, &ev, out))
		return errno;
	pthread_setspecific(timer_key, (char *)*out + 1);
	return 0;
}

int xs_connect_start(int fd, const struct sockaddr *sa, socklen_t len, unsigned wait_us)
{
	struct itimerspec on = {.it_interval = {0, 1000000}, .it_value = {0, (long)wait_us * 1000L}};
	struct itimerspec off;
	sigset_t wake, old;
	timer_t timer;
	int error;

	memset(&off, 0, sizeof off);
	error = my_timer(&timer);
	if (error)
		return error;
	sigemptyset(&wake);
	sigaddset(&wake, xs_wake_signal());
	pthread_sigmask(SIG_UNBLOCK, &wake, &old);
	timer_settime(timer, 0, &on, NULL);
	error = connect(fd, sa, len) ? errno : 0;
	timer_settime(timer, 0, &off, NULL);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	/* EINTR: sent and waiting. EALREADY on a blocking file cannot be: the kernel waits instead. */
	return error == EINTR ? EINPROGRESS : error;
}

int xs_connect_join(int fd, unsigned wait_us)
{
	union { struct sockaddr any; struct sockaddr_in four; struct sockaddr_in6 six; } to;
	socklen_t size = sizeof to.four, l = sizeof(int);
	int domain = AF_INET;

	memset(&to, 0, sizeof to);
	getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &l);
	if (domain == AF_INET6) { /* no TCP to groups of hosts: tcp_v6_connect, tcp_v4_connect */
		to.six.sin6_family = AF_INET6;
		memset(&to.six.sin6_addr, 0xff, sizeof to.six.sin6_addr);
		size = sizeof to.six;
	} else {
		to.four.sin_family = AF_INET;
		to.four.sin_addr.s_addr = htonl(INADDR_BROADCAST);
	}
	return xs_connect_start(fd, &to.any, size, wait_us);
}
