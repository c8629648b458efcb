#include "init.h"
#include "../core/sys.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

/* Of root's capabilities a guest keeps those that concern files, identities and its own processes (capabilities(7)). */
static const int keep[] = {CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_FSETID, CAP_KILL, CAP_SETGID, CAP_SETUID, CAP_SETPCAP, CAP_LINUX_IMMUTABLE,
			   CAP_NET_BIND_SERVICE, CAP_IPC_LOCK, CAP_IPC_OWNER, CAP_SYS_CHROOT, CAP_SYS_NICE, CAP_SYS_RESOURCE, CAP_LEASE,
			   CAP_AUDIT_WRITE, CAP_SETFCAP};

static int kept(int cap)
{
	for (size_t i = 0; i < sizeof keep / sizeof *keep; i++)
		if (keep[i] == cap)
			return 1;
	return 0;
}

static void drop_caps(const struct config *c)
{
	struct __user_cap_header_struct h = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct d[2];

	forced(c, S_CAPS);
	for (int cap = 0; prctl(PR_CAPBSET_READ, cap) >= 0; cap++)
		if (!kept(cap) && prctl(PR_CAPBSET_DROP, cap))
			fail(S_CAPS, errno);
	prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
	if (syscall(SYS_capget, &h, d))
		fail(S_CAPS, errno);
	for (int cap = 0; cap < 64; cap++) {
		if (kept(cap))
			continue;
		d[cap / 32].permitted &= ~(1u << (cap % 32));
		d[cap / 32].effective &= ~(1u << (cap % 32));
		d[cap / 32].inheritable &= ~(1u << (cap % 32));
	}
	if (syscall(SYS_capset, &h, d))
		fail(S_CAPS, errno);
}

/*
 * Of its user namespace an ordinary user's program holds nothing. That its user is not root there would take care of
 * that, but for a file with capabilities: it would keep those that this process has, in spite of no_new_privs.
 */
static void drop_all_caps(void)
{
	struct __user_cap_header_struct h = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct none[2] = {{0, 0, 0}, {0, 0, 0}};

	prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
	if (syscall(SYS_capset, &h, none))
		fail(S_CAPS, errno);
}

int deny_tcp(void)
{
	struct { uint64_t fs, net; } rules = {0, XS_LANDLOCK_NET_BIND_TCP | XS_LANDLOCK_NET_CONNECT_TCP};
	int fd = (int)syscall(SYS_landlock_create_ruleset, &rules, sizeof rules, 0);

	if (fd < 0 || syscall(SYS_landlock_restrict_self, fd, 0))
		return -1;
	close(fd);
	return 0;
}

static void restrict_tcp(const struct config *c)
{
	forced(c, S_LANDLOCK);
	if (deny_tcp())
		fail(S_LANDLOCK, errno);
}

/* Whether a file of this name is in a directory of PATH, or is a path to one. */
static int somewhere(const char *name)
{
	const char *path = getenv("PATH"), *end;
	char whole[4096];

	if (strchr(name, '/'))
		return !access(name, F_OK);
	for (; path && *path; path = *end ? end + 1 : end) {
		end = strchrnul(path, ':');
		if (snprintf(whole, sizeof whole, "%.*s/%s", (int)(end - path), path, name) < (int)sizeof whole && !access(whole, F_OK))
			return 1;
	}
	return 0;
}

static int install(const struct sock_fprog *prog, unsigned long flags)
{
	return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER | flags, prog);
}

int install_filter(const struct sock_fprog *prog, int *killable)
{
	int fd = install(prog, XS_WAIT_KILLABLE_RECV);

	*killable = fd >= 0;
	return *killable || errno != EINVAL ? fd : install(prog, 0);
}

void run_program(const struct config *c)
{
	struct sock_fprog prog = {(unsigned short)c->head.filter_len, c->filter};
	int fds[3], error, killable;

	if (c->head.flags & F_DROP_CAPS)
		drop_caps(c);
	else
		drop_all_caps();
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		fail(S_SECCOMP, errno);
	if (c->head.flags & F_LANDLOCK)
		restrict_tcp(c);
	forced(c, S_PIDFD);
	fds[1] = (int)syscall(SYS_pidfd_open, getpid(), 0);
	if (fds[1] < 0)
		fail(S_PIDFD, errno);
	forced(c, S_SECCOMP);
	fds[0] = install_filter(&prog, &killable);
	if (fds[0] < 0)
		fail(S_SECCOMP, errno);
	fds[2] = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fds[2] < 0)
		fail(S_PROC, errno);
	say('L', killable, 0, fds, 3);
	for (int i = 0; i < 3; i++)
		close(fds[i]);
	/* A trapped call returns once the supervisor serves: the program then starts into a finished world. */
	listen(-1, 0);
	sigprocmask(SIG_SETMASK, &c->old_mask, NULL);
	execvp(c->argv[0], c->argv);
	error = errno;
	/* execvp(3) says EACCES also where it only could not look into a directory of PATH. */
	if (error == EACCES && !somewhere(c->argv[0]))
		error = ENOENT;
	say('X', error, 0, NULL, 0);
	_exit(error == ENOENT ? 127 : 126);
}
