/* See behalf.h. */
#include "behalf.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define LONGEST 512 /* struct group_source_req has 264 bytes */

static bool is_tcp(int domain, int type) { return (domain == AF_INET || domain == AF_INET6) && type == SOCK_STREAM; }

/* Groups that a datagram socket joins are for whoever decides. */
static bool judged(int domain, int type) { return (domain == AF_INET || domain == AF_INET6) && type == SOCK_DGRAM; }

bool xs_behalf_does(int nr, int domain, int type)
{
	return (nr == SYS_setsockopt && !judged(domain, type)) || (nr == SYS_listen && domain != AF_UNIX && !is_tcp(domain, type));
}

int xs_behalf_do(const struct seccomp_notif *n, int fd, int domain, int type)
{
	char value[LONGEST];
	struct iovec here, there;
	int length = (int)n->data.args[4];

	if (n->data.nr == SYS_listen)
		return listen(fd, (int)n->data.args[1]) ? errno : 0;
	/* Some ways to join a group work on TCP sockets, too, and a socket of the host's would join for the host. */
	if (is_tcp(domain, type))
		return n->data.args[1] == IPPROTO_IP && n->data.args[2] == IP_MULTICAST_IF ? EINVAL : EPROTO;
	if (length < 0 || length > LONGEST)
		return EINVAL;
	here = (struct iovec){value, (size_t)length};
	there = (struct iovec){(void *)(uintptr_t)n->data.args[3], (size_t)length};
	if (length && process_vm_readv((pid_t)n->pid, &here, 1, &there, 1, 0) != length)
		return EFAULT;
	return setsockopt(fd, (int)n->data.args[1], (int)n->data.args[2], value, (socklen_t)length) ? errno : 0;
}
