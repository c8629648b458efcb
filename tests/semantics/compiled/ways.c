/* Ways around a guest: what each gives. argv: VERSION HOST REFUSED-PORT */
#define _GNU_SOURCE
#define PROBE "ways"
#include <fcntl.h>
#include <linux/io_uring.h>
#include <net/if.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include "say.h"

#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP 262
#endif

static void one_socket(const char *what, int domain, int type, int protocol)
{
	int fd = socket(domain, type, protocol);

	say(what, "%s", result(fd < 0 ? -1 : 0));
	if (fd >= 0)
		close(fd);
}

int main(int argc, char **argv)
{
	struct sockaddr_storage to;
	socklen_t size = argc == 4 ? address(argv, &to) : 0;
	struct io_uring_params ring = {0};
	int fd, one = 1;

	if (!size)
		return 2;
	one_socket("multipath", family(argv), SOCK_STREAM, IPPROTO_MPTCP);
	one_socket("raw", family(argv), SOCK_RAW, IPPROTO_TCP);
	one_socket("packet", AF_PACKET, SOCK_RAW, 0x300);
	one_socket("vsock", 40, SOCK_STREAM, 0);
	one_socket("xdp", 44, SOCK_RAW, 0);
	one_socket("bluetooth", 31, SOCK_STREAM, 0);
	one_socket("sctp", family(argv), SOCK_STREAM, 132);
	one_socket("smc", 43, SOCK_STREAM, 0);
	one_socket("netfilter", AF_NETLINK, SOCK_RAW, 12);

	fd = socket(family(argv), SOCK_STREAM, 0);
	say("connect", "%s", result(connect(fd, (struct sockaddr *)&to, size)));
	say("fast open", "%s", result(sendto(fd, "x", 1, MSG_FASTOPEN | MSG_NOSIGNAL,
					     (struct sockaddr *)&to, size)));
	struct iovec piece = {.iov_base = "x", .iov_len = 1};
	struct msghdr message = {.msg_name = &to, .msg_namelen = size, .msg_iov = &piece,
				 .msg_iovlen = 1};
	say("fast open by sendmsg", "%s", result(sendmsg(fd, &message, MSG_FASTOPEN | MSG_NOSIGNAL)));
	struct mmsghdr many = {.msg_hdr = message};
	say("fast open by sendmmsg", "%s", result(sendmmsg(fd, &many, 1, MSG_FASTOPEN | MSG_NOSIGNAL)));
	close(fd);

	fd = socket(family(argv), SOCK_STREAM, 0);
	setsockopt(fd, IPPROTO_TCP, 30 /* TCP_FASTOPEN_CONNECT */, &one, sizeof one);
	say("deferred connect", "%s", result(connect(fd, (struct sockaddr *)&to, size)));
	close(fd);

	fd = socket(family(argv), SOCK_STREAM, 0);
	say("bind to a device", "%s", result(setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, "lo", 3)));
	say("mark", "%s", result(setsockopt(fd, SOL_SOCKET, SO_MARK, &one, sizeof one)));
	say("repair", "%s", result(setsockopt(fd, IPPROTO_TCP, TCP_REPAIR, &one, sizeof one)));
	struct ifreq interface = {.ifr_name = "lo"};
	/* The flags it has already: harmless where it is permitted. */
	ioctl(fd, SIOCGIFFLAGS, &interface);
	say("interface flags", "%s", result(ioctl(fd, SIOCSIFFLAGS, &interface)));
	close(fd);

	say("io_uring", "%s", result(syscall(SYS_io_uring_setup, 4, &ring)));
	say("parent's memory", "%s", result(ptrace(PTRACE_ATTACH, 1, NULL, NULL)));
	int handle = (int)syscall(SYS_pidfd_open, 1, 0);
	say("init's descriptors", "%s", result(syscall(SYS_pidfd_getfd, handle, 0, 0)));
	return 0;
}
