/*
 * xensock-init container FD B E I P A -- PROGRAM ARG...: the first step of every process that an OCI runtime starts in a container.
 *
 * B to A are the bounding, effective, inheritable, permitted and ambient capabilities that the engine gave, in hexadecimal.
 * FD is a connection to the backend that xensock-runtime opened and the runtime preserved (--preserve-fds); the terms wait
 * in it. The runtime has set up everything else: namespaces, user, the engine's own seccomp profile. On top of that come
 * a Landlock domain and our filter, whose listener goes to the backend; then the capabilities that were lent for this
 * are given back and the program is executed. They also keep the container's other processes from tracing this one
 * (ptrace(2): they lack CAP_SYS_ADMIN) before it is confined.
 */
#include "init.h"
#include "../core/sys.h"

#include <errno.h>
#include <linux/capability.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum set { BOUNDING, EFFECTIVE, INHERITABLE, PERMITTED, AMBIENT, SETS };

/* What the backend sends in a memfd: this, then the instructions of the filter. */
struct terms {
	uint32_t magic, flags, filter_len, reserved;
};

#define TERMS_MAGIC 0x58534332u

_Noreturn static void refuse(const char *what, int error)
{
	dprintf(2, "xensock: %s%s%s\n", what, error ? ": " : "", error ? strerror(error) : "");
	_exit(125);
}

static int receive(int from, void *data, size_t size, size_t *got)
{
	union { char room[CMSG_SPACE(sizeof(int))]; struct cmsghdr h; } u;
	struct iovec v = {data, size};
	struct msghdr h = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = u.room, .msg_controllen = sizeof u.room};
	struct cmsghdr *c;
	ssize_t n;
	int fd = -1;

	do
		n = recvmsg(from, &h, MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n <= 0)
		refuse("the backend is gone", n < 0 ? errno : 0);
	c = CMSG_FIRSTHDR(&h);
	if (c && c->cmsg_type == SCM_RIGHTS && c->cmsg_len == CMSG_LEN(sizeof fd))
		memcpy(&fd, CMSG_DATA(c), sizeof fd);
	*got = (size_t)n;
	return fd;
}

static struct sock_filter *read_terms(int from, struct terms *t)
{
	struct sock_filter *filter;
	struct msg m;
	size_t got;
	int fd = receive(from, &m, sizeof m, &got);

	if (fd < 0 || got != sizeof m || m.type != 'T' || pread(fd, t, sizeof *t, 0) != sizeof *t || t->magic != TERMS_MAGIC || t->filter_len > 4096)
		refuse("the backend sent no terms; are it and xensock-init of one version?", 0);
	filter = calloc(t->filter_len + 1, sizeof *filter);
	if (!filter || pread(fd, filter, t->filter_len * sizeof *filter, sizeof *t) != (ssize_t)(t->filter_len * sizeof *filter))
		refuse("cannot read the filter", errno);
	close(fd);
	return filter;
}

static void get_caps(struct __user_cap_data_struct d[2])
{
	struct __user_cap_header_struct h = {_LINUX_CAPABILITY_VERSION_3, 0};

	if (syscall(SYS_capget, &h, d))
		refuse("cannot read the capabilities", errno);
}

static int can(int cap)
{
	struct __user_cap_data_struct d[2];

	get_caps(d);
	return d[cap / 32].effective >> (cap % 32) & 1;
}

/* As the engine gave them; execve(2) computes the program's from these (capabilities(7)). */
static void restore_caps(const uint64_t caps[SETS])
{
	struct __user_cap_header_struct h = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct d[2];
	int has;

	for (int cap = 0; (has = prctl(PR_CAPBSET_READ, cap)) >= 0; cap++)
		if (has && !(caps[BOUNDING] >> cap & 1) && prctl(PR_CAPBSET_DROP, cap))
			refuse("cannot give capabilities back", errno);
	if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))
		refuse("cannot give ambient capabilities back", errno);
	get_caps(d);
	for (int i = 0; i < 2; i++) {
		d[i].permitted &= (uint32_t)((caps[PERMITTED] | caps[AMBIENT]) >> (32 * i));
		d[i].effective &= (uint32_t)((caps[EFFECTIVE] | caps[AMBIENT]) >> (32 * i));
		d[i].inheritable = (uint32_t)(caps[INHERITABLE] >> (32 * i)) & (d[i].permitted | d[i].inheritable);
	}
	if (syscall(SYS_capset, &h, d))
		refuse("cannot give capabilities back", errno);
	for (int cap = 0; cap < 64; cap++)
		if ((caps[AMBIENT] & caps[INHERITABLE] & caps[PERMITTED]) >> cap & 1 && prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0))
			refuse("cannot restore ambient capabilities", errno);
}

static int confine(const struct terms *t, struct sock_filter *filter, int *killable)
{
	struct sock_fprog prog = {(unsigned short)t->filter_len, filter};
	int fd;

	/* With CAP_SYS_ADMIN neither needs no_new_privs, which would take sudo(8) and the like from the container. */
	if (!can(CAP_SYS_ADMIN) && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		refuse("cannot set no_new_privs", errno);
	if (t->flags & F_LANDLOCK && deny_tcp())
		refuse("cannot restrict bind and connect by Landlock (does the engine's seccomp profile allow landlock_restrict_self?)", errno);
	fd = install_filter(&prog, killable);
	if (fd < 0)
		refuse(errno == EBUSY ? "the engine's seccomp profile has a listener of its own; a process can have only one (seccomp(2))" :
					"cannot install the seccomp filter (does the engine's profile allow seccomp(2)?)",
		       errno);
	return fd;
}

int run_container(int argc, char **argv)
{
	struct sock_filter *filter;
	struct terms t;
	struct { struct msg m; char text[1024]; } answer;
	uint64_t caps[SETS];
	size_t got;
	int listener, killable, error, fd = atoi(argv[2]);

	if (argc < 5 + SETS || strcmp(argv[3 + SETS], "--"))
		refuse("started by xensock-runtime, not by hand", 0);
	for (int i = 0; i < SETS; i++)
		caps[i] = strtoull(argv[3 + i], NULL, 16);
	argv += 4 + SETS;
	xs_control = fd;
	filter = read_terms(xs_control, &t);
	listener = confine(&t, filter, &killable);
	say('L', killable, 0, &listener, 1);
	close(listener);
	memset(&answer, 0, sizeof answer);
	receive(xs_control, &answer, sizeof answer - 1, &got);
	if (answer.m.type != 'G')
		refuse(answer.m.type == 'N' && got > sizeof answer.m ? answer.text : "the backend refused", 0);
	close(xs_control);
	restore_caps(caps);
	free(filter);
	execvp(argv[0], argv);
	error = errno;
	dprintf(2, "xensock: %s: %s\n", argv[0], strerror(error));
	return error == ENOENT ? 127 : 126;
}
