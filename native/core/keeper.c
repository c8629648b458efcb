/* See keeper.h. What runs in the process uses system calls alone: other threads may have held locks at the clone. */
#include "keeper.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <unistd.h>

#define FD_MOST (1 << 20) /* fs.nr_open, unless somebody has raised that */

struct answer {
	int pid;
	char there[XS_KEPT_MOST];
};

static pid_t owner; /* who started it */

/* Close what ends with the owner. */
static void close_some(void)
{
	struct rlimit most = {0, 0};

	getrlimit(RLIMIT_NOFILE, &most);
	for (int fd = 0; (rlim_t)fd < most.rlim_cur && fd < FD_MOST; fd++) {
		struct timeval t;
		socklen_t len = sizeof t;

		if (!getsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &t, &len) && t.tv_sec == XS_ENDS_WITH_S)
			close(fd);
	}
}

/* The signal of the owner's end (PR_SET_PDEATHSIG), or anybody's. */
static void signalled(int number)
{
	int before = errno;

	(void)number;
	if (getppid() != owner)
		close_some();
	errno = before;
}

static void answer(int sock, int first, int *asked, size_t count)
{
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(XS_KEPT_MOST * sizeof(int))];
	} control;
	struct answer a = {.pid = getpid()};
	struct iovec part = {&a, sizeof a.pid + count};
	struct msghdr m = {.msg_iov = &part, .msg_iovlen = 1};
	int found[XS_KEPT_MOST];
	size_t n = 0;
	sigset_t end, before;

	/* What is found must be there until it is sent: signalled() closes. */
	sigemptyset(&end);
	sigaddset(&end, SIGUSR1);
	sigprocmask(SIG_BLOCK, &end, &before);
	for (size_t i = 0; i < count; i++) {
		if (asked[i] == -1)
			asked[i] = first;
		a.there[i] = asked[i] >= 0 && fcntl(asked[i], F_GETFD) >= 0;
		if (a.there[i])
			found[n++] = asked[i];
	}
	if (n) {
		control.head = (struct cmsghdr){.cmsg_len = CMSG_LEN(n * sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
		memcpy(CMSG_DATA(&control.head), found, n * sizeof(int));
		m.msg_control = &control;
		m.msg_controllen = CMSG_SPACE(n * sizeof(int));
	}
	while (sendmsg(sock, &m, MSG_NOSIGNAL) < 0 && errno == EINTR)
		;
	sigprocmask(SIG_SETMASK, &before, NULL);
}

static _Noreturn void keep(int sock, int first)
{
	int asked[XS_KEPT_MOST];
	ssize_t n;

	setsid(); /* signals to the group are for the others */
	prctl(PR_SET_NAME, "xs-keeper");
	prctl(PR_SET_PDEATHSIG, SIGUSR1);
	signalled(SIGUSR1); /* it may have ended before that */
	while ((n = recv(sock, asked, sizeof asked, 0)) > 0 || (n < 0 && errno == EINTR))
		if (n > 0)
			answer(sock, first, asked, (size_t)n / sizeof asked[0]);
	_exit(0);
}

pid_t xs_keeper_start(int sock, int first)
{
	static const int ended_by[] = {SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR2, SIGALRM};
	struct sigaction at_end = {.sa_handler = signalled};
	sigset_t all, none, before;
	pid_t pid;

	owner = getpid();
	sigfillset(&all);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &all, &before);
	pid = (pid_t)syscall(SYS_clone, (unsigned long)CLONE_FILES, 0ul, 0ul, 0ul, 0ul);
	if (!pid) {
		for (size_t i = 0; i < sizeof ended_by / sizeof ended_by[0]; i++)
			signal(ended_by[i], SIG_IGN);
		sigaction(SIGUSR1, &at_end, NULL);
		sigprocmask(SIG_SETMASK, &none, NULL);
		keep(sock, first);
	}
	sigprocmask(SIG_SETMASK, &before, NULL);
	return pid;
}
