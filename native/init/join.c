/*
 * xensock-init join CONTROL-FD MAKER-FD NETNS-FD: makes sockets in a network namespace that somebody else made.
 *
 * An OCI runtime makes the namespaces of a container; this process goes into its network namespace (and the user namespace
 * that owns it, where that is not ours) and nowhere else, so that the container cannot see it. It ends with the backend.
 */
#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/nsfs.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

static void enter(int netns, struct config *c)
{
	struct stat own, owner;
	int fd = ioctl(netns, NS_GET_USERNS);

	if (fd < 0 || fstat(fd, &owner) || stat("/proc/self/ns/user", &own))
		fail(S_USERNS, errno);
	if (owner.st_ino != own.st_ino) {
		if (setns(fd, CLONE_NEWUSER))
			fail(S_USERNS, errno);
		c->head.flags |= F_USERNS;
	}
	close(fd);
	if (setns(netns, CLONE_NEWNET))
		fail(S_NETNS, errno);
	close(netns);
}

/* Engines switch IPv6 off where they have no use for it; then no card can have an address of it. */
static void switch_ipv6_on(void)
{
	static const char *const files[] = {"/proc/sys/net/ipv6/conf/all/disable_ipv6", "/proc/sys/net/ipv6/conf/default/disable_ipv6"};

	for (int i = 0; i < 2; i++) {
		int fd = open(files[i], O_WRONLY | O_CLOEXEC);

		if (fd < 0)
			continue; /* a kernel without IPv6 */
		if (write(fd, "0", 1) < 0)
			fail(S_PROC, errno);
		close(fd);
	}
}

int run_join(char **argv)
{
	static struct config c;

	prctl(PR_SET_NAME, "xensock-join");
	xs_control = atoi(argv[2]);
	xs_maker = atoi(argv[3]);
	fcntl(xs_control, F_SETFD, FD_CLOEXEC);
	fcntl(xs_maker, F_SETFD, FD_CLOEXEC);
	note_settings(&c);
	enter(atoi(argv[4]), &c);
	c.head.gid = getegid();
	switch_ipv6_on();
	tune(&c);
	let_ping(&c);
	close_others(xs_maker, -1);
	say('R', 0, 0, NULL, 0);
	return serve_sockets();
}
