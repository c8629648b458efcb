/*
 * xensock-init: makes the guest and starts its program.
 *
 * Theory of operation. Three processes come of it:
 *   helper   stays in the caller's PID namespace but in the guest's user and network namespaces; makes sockets there
 *            for the backend and reports the guest's end. Outside the guest's PID namespace, so the guest cannot see it.
 *   init     PID 1 of the guest: mounts, reaps, ends when the last process is gone.
 *   program  drops what it must not have, installs Landlock and seccomp, hands the listener over, execs.
 * All speak to the backend over one SOCK_SEQPACKET socket; messages are struct msg, descriptors ride along. Sockets are
 * asked for over a second one.
 * When the backend goes, the helper sees the end of that socket and kills init, and with it the guest.
 *
 * Usage: xensock-init CONTROL-FD MAKER-FD CONFIG-FD
 * Containers, which others make: see container.c and join.c.
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
int xs_maker; /* requests for sockets, apart from the events so that no answer is mistaken */

static void tell(int to, char type, int a, int b, const int *fds, int nfds)
{
	struct msg m = {.type = type, .a = a, .b = b};
	struct iovec v = {&m, sizeof m};
	union { char room[CMSG_SPACE(3 * sizeof(int))]; struct cmsghdr h; } u;
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
	while (sendmsg(to, &h, MSG_NOSIGNAL) < 0 && errno == EINTR)
		;
}

void say(char type, int a, int b, const int *fds, int nfds) { tell(xs_control, type, a, b, fds, nfds); }

static void close_from(unsigned first, unsigned last)
{
	if (first <= last)
		syscall(SYS_close_range, first, last, 0);
}

/* Every descriptor but the control socket and two more (-1: none). */
void close_others(int a, int b)
{
	unsigned keep[3] = {(unsigned)xs_control, (unsigned)a, (unsigned)b}, from = 0;

	for (int i = 0; i < 3; i++) /* ascending; -1 is the largest */
		for (int j = i + 1; j < 3; j++)
			if (keep[j] < keep[i]) {
				unsigned t = keep[i];

				keep[i] = keep[j];
				keep[j] = t;
			}
	for (int i = 0; i < 3 && keep[i] != ~0u; i++) {
		if (keep[i])
			close_from(from, keep[i] - 1);
		from = keep[i] + 1;
	}
	close_from(from, ~0u);
}

void fail(enum stage stage, int error)
{
	say('F', stage, error, NULL, 0);
	_exit(125);
}

/* A failure that the backend asked for, so that every way out of a poor machine can be tested. */
void forced(const struct config *c, enum stage stage)
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
static void give_socket(void)
{
	struct msg m;
	int fd;

	if (recv(xs_maker, &m, sizeof m, MSG_DONTWAIT) != sizeof m)
		return;
	fd = socket(m.a, m.b | SOCK_CLOEXEC, m.c);
	tell(xs_maker, 'S', fd < 0 ? errno : 0, 0, &fd, fd >= 0);
	if (fd >= 0)
		close(fd);
}

int serve_sockets(void)
{
	struct pollfd p[2] = {{xs_control, POLLIN, 0}, {xs_maker, POLLIN, 0}};

	for (;;) {
		if (poll(p, 2, -1) < 0 && errno != EINTR)
			return 1;
		if (p[1].revents & POLLIN)
			give_socket();
		if (p[0].revents)
			return 0;
	}
}

static pid_t start_init(struct config *c, int *pidfd)
{
	pid_t pid, group = getpgrp();
	sigset_t all;

	forced(c, S_PIDNS);
	if (unshare(CLONE_NEWPID))
		fail(S_PIDNS, errno);
	/* The program belongs to the shell's job, the helper does not: a process group id of outside has no name inside. */
	if (c->head.group && setpgid(0, (pid_t)c->head.group))
		fail(S_FORK, errno);
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, &c->old_mask);
	forced(c, S_FORK);
	pid = fork();
	if (pid < 0)
		fail(S_FORK, errno);
	if (!pid) {
		close(xs_maker);
		run_init(c);
	}
	if (c->head.group)
		setpgid(0, group);
	*pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	if (*pidfd < 0)
		fail(S_PIDFD, errno);
	return pid;
}

/* Serves the backend until it or the guest is gone. */
static int helper(struct config *c)
{
	struct pollfd p[3] = {{xs_control, POLLIN, 0}, {xs_maker, POLLIN, 0}, {-1, POLLIN, 0}};
	struct msg m;
	ssize_t n;
	pid_t init = 0;
	int status = 0;

	for (;;) {
		if (poll(p, 3, -1) < 0 && errno != EINTR)
			return 1;
		if (p[1].revents & POLLIN)
			give_socket();
		if (p[2].revents) {
			while (waitpid(init, &status, 0) < 0 && errno == EINTR)
				;
			say('D', status, 0, NULL, 0);
			return 0;
		}
		if (!p[0].revents)
			continue;
		n = recv(xs_control, &m, sizeof m, MSG_DONTWAIT);
		if (n == sizeof m && m.type == 'G' && !init) {
			init = start_init(c, &p[2].fd);
			close_others(xs_maker, p[2].fd);
		} else if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
			if (!init)
				return 125;
			kill(init, SIGKILL);
			p[0].fd = -1;
		}
	}
}

void note_settings(struct config *c)
{
	int fd = open("/proc/sys/net/ipv4/tcp_syn_retries", O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return;
	if (read(fd, c->syn_retries, sizeof c->syn_retries - 1) < 0)
		c->syn_retries[0] = 0;
	close(fd);
}

int main(int argc, char **argv)
{
	struct config c;

	if (argc > 2 && !strcmp(argv[1], "container"))
		return run_container(argc, argv);
	if (argc == 5 && !strcmp(argv[1], "join"))
		return run_join(argv);
	if (argc != 4) {
		fprintf(stderr, "xensock-init is started by xensock, not by hand\n");
		return 125;
	}
	xs_control = atoi(argv[1]);
	xs_maker = atoi(argv[2]);
	fcntl(xs_control, F_SETFD, FD_CLOEXEC);
	fcntl(xs_maker, F_SETFD, FD_CLOEXEC);
	if (read_config(atoi(argv[3]), &c))
		fail(S_CONFIG, EINVAL);
	if (c.head.flags & F_USERNS)
		make_user(&c);
	note_settings(&c);
	forced(&c, S_CONFIG);
	forced(&c, S_NETNS);
	if (unshare(CLONE_NEWNET))
		fail(S_NETNS, errno);
	/* The backend lays out the guest's network with sockets from here, then says go. */
	say('R', 0, 0, NULL, 0);
	return helper(&c);
}
