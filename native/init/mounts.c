#include "init.h"
#include "../core/sys.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef OPEN_TREE_CLONE
#define OPEN_TREE_CLONE 1
#endif
#ifndef MOVE_MOUNT_F_EMPTY_PATH
#define MOVE_MOUNT_F_EMPTY_PATH 4
#endif
#ifndef AT_RECURSIVE
#define AT_RECURSIVE 0x8000
#endif

#define PLAIN (MS_NOSUID | MS_NODEV | MS_NOEXEC)

/* A fresh sysfs shows only the guest's network devices. Where the kernel forbids one, an empty directory shows none. */
static void make_sys(const struct config *c)
{
	/* Control groups live below /sys and are not about the network: runtimes size their heaps by them. To read only: who may
	 * write there can stop and kill processes outside, the backend among them (cgroup.freeze, cgroup.kill). */
	struct { uint64_t set, clear, propagation, userns; } readonly = {MS_RDONLY, 0, 0, 0};
	int groups = (int)syscall(SYS_open_tree, AT_FDCWD, "/sys/fs/cgroup", OPEN_TREE_CLONE | AT_RECURSIVE | O_CLOEXEC);

	forced(c, S_SYSFS);
	if (mount("sysfs", "/sys", "sysfs", PLAIN, NULL) && mount("tmpfs", "/sys", "tmpfs", PLAIN, "size=64k,mode=755"))
		fail(S_SYSFS, errno);
	if (groups < 0)
		return;
	if (syscall(SYS_mount_setattr, groups, "", AT_EMPTY_PATH | AT_RECURSIVE, &readonly, sizeof readonly)) {
		close(groups);
		return;
	}
	mkdir("/sys/fs", 0755);
	mkdir("/sys/fs/cgroup", 0755);
	/* Best effort: without it a program sees no control groups, as on a machine that has none. */
	syscall(SYS_move_mount, groups, "", AT_FDCWD, "/sys/fs/cgroup", MOVE_MOUNT_F_EMPTY_PATH);
	close(groups);
}

static void read_only(const char *path)
{
	if (access(path, F_OK))
		return;
	if (mount(path, path, NULL, MS_BIND | MS_REC, NULL) || mount(NULL, path, NULL, MS_BIND | MS_REMOUNT | MS_RDONLY | PLAIN, NULL))
		fail(S_PROC, errno);
}

/* A path that could lead to somebody who acts for the guest. Gone or unreachable already is as good. */
static void hide(const char *path)
{
	struct stat st;

	if (stat(path, &st))
		return;
	if (S_ISDIR(st.st_mode) ? mount("tmpfs", path, "tmpfs", PLAIN, "size=4k,mode=555") : mount("/dev/null", path, NULL, MS_BIND, NULL))
		if (errno != ENOENT && errno != EACCES)
			fail(S_HIDE, errno);
}

/* Settings of TCP that a fresh network namespace does not take over from its host. */
void tune(const struct config *c)
{
	int fd = open("/proc/sys/net/ipv4/tcp_syn_retries", O_WRONLY | O_CLOEXEC);

	/* The guest's own SYN timer ends together with the host's; without it only the wait differs. */
	if (fd >= 0) {
		if (c->syn_retries[0] && write(fd, c->syn_retries, strlen(c->syn_retries)) < 0)
			fail(S_PROC, errno);
		close(fd);
	}
	/* A client that uses its port again within a minute keeps it in what accept(2) says. */
	fd = open("/proc/sys/net/ipv4/tcp_tw_reuse", O_WRONLY | O_CLOEXEC);
	if (fd >= 0) {
		if (write(fd, "1", 1) < 0)
			fail(S_PROC, errno);
		close(fd);
	}
}

/* Ping sockets (icmp(7)): for every group that there is, which in a user namespace of ours is one. */
void let_ping(const struct config *c)
{
	char range[32] = "0 2147483647";
	int fd = open("/proc/sys/net/ipv4/ping_group_range", O_WRONLY | O_CLOEXEC);

	if (c->head.flags & F_USERNS)
		snprintf(range, sizeof range, "%u %u", c->head.gid, c->head.gid);
	if (fd < 0)
		return;
	if (write(fd, range, strlen(range)) < 0) {
		/* Root of a user namespace that does not have all groups (a rootless container): its own, then. */
		if (errno != EINVAL)
			fail(S_PROC, errno);
		snprintf(range, sizeof range, "%u %u", (unsigned)getegid(), (unsigned)getegid());
		if (write(fd, range, strlen(range)) < 0)
			fail(S_PROC, errno);
	}
	close(fd);
}

void make_mounts(const struct config *c)
{
	forced(c, S_MOUNTNS);
	/* Slave: what the host mounts later appears here, never the other way round. */
	if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL))
		fail(S_MOUNTNS, errno);
	forced(c, S_HIDE);
	for (char **p = c->hide; *p; p++)
		hide(*p);
	forced(c, S_PROC);
	if (mount("proc", "/proc", "proc", PLAIN, NULL))
		fail(S_PROC, errno);
	tune(c);
	if (c->head.flags & F_PING)
		let_ping(c);
	make_sys(c);
	if (c->head.flags & F_DROP_CAPS) {
		/* Files with capabilities that root lacks here (ping) could not be executed at all (capabilities(7)): no_new_privs
		 * keeps them from giving any, so they may as well have none. Before Linux 5.12 they stay as they are. */
		struct { uint64_t set, clear, propagation, userns; } nosuid = {MS_NOSUID, 0, 0, 0};

		syscall(SYS_mount_setattr, AT_FDCWD, "/", AT_RECURSIVE, &nosuid, sizeof nosuid);
		/* uid 0 may write kernel settings without any capability; some of them run programs outside (core(5)). */
		read_only("/proc/sys");
		read_only("/proc/sysrq-trigger");
		read_only("/proc/irq");
		read_only("/proc/bus");
		read_only("/sys");
	}
}
