/* See behalf.h. */
#include "behalf.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define LONGEST 512 /* struct group_source_req has 264 bytes */

static bool is_tcp(int domain, int type) { return (domain == AF_INET || domain == AF_INET6) && type == SOCK_STREAM; }

bool xs_behalf_does(int nr, int domain, int type) { return nr == SYS_setsockopt || (nr == SYS_listen && !is_tcp(domain, type)); }

/* Effective user and group of a thread (proc(5), status). */
static int ids_of(uint32_t tid, unsigned *uid, unsigned *gid)
{
	char path[40], text[2048];
	const char *u, *g;
	ssize_t n;
	int fd;

	snprintf(path, sizeof path, "/proc/%u/status", tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	n = read(fd, text, sizeof text - 1);
	close(fd);
	if (n <= 0)
		return -1;
	text[n] = 0;
	u = strstr(text, "\nUid:");
	g = strstr(text, "\nGid:");
	return u && g && sscanf(u + 5, "%*u %u", uid) == 1 && sscanf(g + 5, "%*u %u", gid) == 1 ? 0 : -1;
}

/*
 * Who connects to a Unix listener is told the ids of the one who called listen(2) (SO_PEERCRED, unix(7)), so root takes
 * on the caller's for that moment. The system calls change this thread alone, libc's functions would change all; real and
 * saved ids stay, which lets it be itself again.
 */
static int listen_as(uint32_t tid, int fd, int backlog)
{
	unsigned uid, gid;
	int error;

	if (geteuid())
		return listen(fd, backlog) ? errno : 0;
	if (ids_of(tid, &uid, &gid))
		return ESRCH;
	if (syscall(SYS_setresgid, -1, gid, -1) || syscall(SYS_setresuid, -1, uid, -1))
		error = EPERM;
	else
		error = listen(fd, backlog) ? errno : 0;
	/* Root again, whoever it was: its real id allows that. */
	if (syscall(SYS_setresuid, -1, 0, -1) || syscall(SYS_setresgid, -1, getgid(), -1))
		error = EPERM;
	return error;
}

int xs_behalf_do(const struct seccomp_notif *n, int fd, int domain, int type)
{
	char value[LONGEST];
	struct iovec here, there;
	int length = (int)n->data.args[4];

	if (n->data.nr == SYS_listen)
		return listen_as(n->pid, fd, (int)n->data.args[1]);
	/* Some ways to join a group work on TCP sockets, too, and a socket of the host's would join for the host. */
	if (is_tcp(domain, type))
		return EPROTO;
	if (length < 0 || length > LONGEST)
		return EINVAL;
	here = (struct iovec){value, (size_t)length};
	there = (struct iovec){(void *)(uintptr_t)n->data.args[3], (size_t)length};
	if (length && process_vm_readv((pid_t)n->pid, &here, 1, &there, 1, 0) != length)
		return EFAULT;
	return setsockopt(fd, (int)n->data.args[1], (int)n->data.args[2], value, (socklen_t)length) ? errno : 0;
}
