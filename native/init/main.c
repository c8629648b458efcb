/*
 * xensock-init: makes the guest and starts its program.
 *
 * Theory of operation. Three processes come of it:
 *   helper   stays in the caller's PID namespace but in the guest's user and network namespaces; makes sockets there
 *            for the backend and reports the guest's end. Outside the guest's PID namespace, so the guest cannot see it.
 *   init     PID 1 of the guest: mounts, reaps, ends when the last process is gone.
 *   program  drops what it must not have, installs Landlock and seccomp, hands the listener over, execs.
 * All speak to the backend over one SOCK_SEQPACKET socket; messages are struct msg, descriptors ride along.
 * When the backend goes, the helper sees the end of that socket and kills init, and with it the guest.
 *
 * Usage: xensock-init CONTROL-FD CONFIG-FD
 */
#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

int xs_control;

void say(char type, int a, int b, const int *fds, int nfds)
{
	struct msg m = {.type = type, .a = a, .b = b};
	struct iovec v = {&m, sizeof m};
	union { char room[CMSG_SPACE(2 * sizeof(int))]; struct cmsghdr h; } u;
	struct msghdr h = {.msg_iov = &v, .msg_iovlen = 1};

	if (nfds) {
		struct cmsghdr *c;

		memset(&u, 0, sizeof u);
		h.msg_control = u.room;
		h.msg_controllen = CMSG_SPACE((size_t)nfds * sizeof(int));
		c = CMSG_FIRSTHDR(&h);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN((size_t)nfds * sizeof(int));
		memcpy(CMSG_DATA(c), fds, (size_t)nfds * sizeof(int));
	}
	while (sendmsg(xs_control, &h, MSG_NOSIGNAL) < 0 && errno == EINTR)
		;
}

static void close_from(unsigned first, unsigned last)
{
	if (first <= last)
		syscall(SYS_close_range, first, last, 0);
}

void close_others(int also)
{
	unsigned a = (unsigned)xs_control, b = also < 0 ? a : (unsigned)also;
	unsigned low = a < b ? a : b, high = a < b ? b : a;

	if (low)
		close_from(0, low - 1);
	if (high > low)
		close_from(low + 1, high - 1);
	close_from(high + 1, ~0u);
}

void fail(enum stage stage, int error)
{
	say('F', stage, error, NULL, 0);
	_exit(125);
}

/* A failure that the backend asked for, so that every way out of a poor machine can be tested. */
static void forced(const struct config *c, enum stage stage)
{
	if (c->head.force_stage == stage)
		fail(stage, (int)c->head.force_errno);
}

static void write_file(const char *path, const char *text, enum stage stage)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		fail(stage, errno);
	close(fd);
}

static void make_user(const struct config *c)
{
	char map[64];

	forced(c, S_USERNS);
	if (unshare(CLONE_NEWUSER))
		fail(S_USERNS, errno);
	forced(c, S_UIDMAP);
	/* To itself, not to 0: programs that refuse or trust root see who they really are (user_namespaces(7)). */
	snprintf(map, sizeof map, "%u %u 1", c->head.uid, c->head.uid);
	write_file("/proc/self/uid_map", map, S_UIDMAP);
	write_file("/proc/self/setgroups", "deny", S_UIDMAP);
	snprintf(map, sizeof map, "%u %u 1", c->head.gid, c->head.gid);
	write_file("/proc/self/gid_map", map, S_UIDMAP);
}

/* One request: a socket of the guest's network. The descriptor is the backend's from then on. */
static void give_socket(const struct msg *m)
{
	int fd = socket(m->a, m->b | SOCK_CLOEXEC, m->c);

	if (fd < 0) {
		say('S', errno, 0, NULL, 0);
		return;
	}
	say('S', 0, 0, &fd, 1);
	close(fd);
}

/* Serves the backend until it or the guest is gone. */
static int helper(pid_t init, int pidfd)
{
	struct pollfd p[2] = {{xs_control, POLLIN, 0}, {pidfd, POLLIN, 0}};
	struct msg m;
	ssize_t n;
	int status = 0;

	for (;;) {
		if (poll(p, 2, -1) < 0 && errno != EINTR)
			break;
		if (p[0].revents) {
			n = recv(xs_control, &m, sizeof m, MSG_DONTWAIT);
			if (n == sizeof m && m.type == 'S')
				give_socket(&m);
			else if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
				kill(init, SIGKILL);
			if (n == 0)
				p[0].fd = -1;
		}
		if (p[1].revents) {
			while (waitpid(init, &status, 0) < 0 && errno == EINTR)
				;
			say('D', status, 0, NULL, 0);
			/* The backend may still want sockets' names while it tidies up; it closes when it is done. */
			return 0;
		}
	}
	return 1;
}

int main(int argc, char **argv)
{
	struct config c;
	sigset_t all;
	pid_t pid, group;
	int pidfd;

	if (argc != 3) {
		fprintf(stderr, "xensock-init is started by xensock, not by hand\n");
		return 125;
	}
	xs_control = atoi(argv[1]);
	fcntl(xs_control, F_SETFD, FD_CLOEXEC);
	if (read_config(atoi(argv[2]), &c))
		fail(S_CONFIG, EINVAL);
	group = getpgrp();

	if (c.head.flags & F_USERNS)
		make_user(&c);
	forced(&c, S_NETNS);
	if (unshare(CLONE_NEWNET))
		fail(S_NETNS, errno);
	say('R', 0, 0, NULL, 0);
	/* The backend lays out the guest's network with sockets from here, then says go. */
	for (;;) {
		struct msg m;
		ssize_t n = recv(xs_control, &m, sizeof m, 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n != sizeof m)
			return 125;
		if (m.type == 'S')
			give_socket(&m);
		else
			break;
	}
	forced(&c, S_PIDNS);
	if (unshare(CLONE_NEWPID))
		fail(S_PIDNS, errno);
	/* The program belongs to the shell's job, the helper does not: a process group id of outside has no name inside. */
	if (c.head.group && setpgid(0, (pid_t)c.head.group))
		fail(S_FORK, errno);
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, &c.old_mask);
	forced(&c, S_FORK);
	pid = fork();
	if (pid < 0)
		fail(S_FORK, errno);
	if (!pid)
		run_init(&c);
	if (c.head.group)
		setpgid(0, group);
	pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	if (pidfd < 0)
		fail(S_PIDFD, errno);
	close_others(pidfd);
	return helper(pid, pidfd);
}
