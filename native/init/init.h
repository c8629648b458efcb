/* Shared by the parts of the launcher; the numbers are the backend's too (xensock/supervisor/launch.py). */
#ifndef XS_INIT_H
#define XS_INIT_H

#include <linux/filter.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>

/* Where it failed: reported with an errno, explained by `xensock doctor`. */
enum stage {
	S_CONFIG = 1, S_USERNS, S_UIDMAP, S_NETNS, S_PIDNS, S_FORK, S_PIDFD, S_MOUNTNS, S_PROC, S_SYSFS, S_HIDE, S_CAPS, S_LANDLOCK, S_SECCOMP
};

enum flag { F_USERNS = 1, F_LANDLOCK = 2, F_DROP_CAPS = 4, F_PING = 8 };

struct head {
	uint32_t magic, flags, uid, gid, group, force_stage, force_errno, filter_len, hide_count, arg_count;
};

/* head, filter_len instructions, then hide_count and arg_count strings, each ended by a NUL. */
struct config {
	struct head head;
	struct sock_filter *filter;
	char **hide;
	char **argv;
	sigset_t old_mask;
	char syn_retries[8]; /* the host's net.ipv4.tcp_syn_retries */
};

/*
 * To the backend: F stage errno; R network namespace is there; L (+ listener, pidfd of the program);
 * X errno of exec; T, E wait status of the program that stopped or goes on, and that ended; D wait status of init.
 * From the backend: G go. On the maker socket: S domain type protocol, answered by S errno (+ socket).
 */
struct msg {
	int32_t type, a, b, c;
};

#define CONFIG_MAGIC 0x58534331u

extern int xs_control, xs_maker;

void say(char type, int a, int b, const int *fds, int nfds);
_Noreturn void fail(enum stage stage, int error);
/* Fails at this stage if the backend asked for it (XENSOCK_TEST_FAIL). */
void forced(const struct config *c, enum stage stage);
/* Closes every descriptor but the control socket and two more (-1: none). */
void close_others(int a, int b);
int read_config(int fd, struct config *c);
_Noreturn void run_init(const struct config *c);
/* Mounts of the guest: fresh /proc and /sys, the host's control sockets covered. */
void make_mounts(const struct config *c);
_Noreturn void run_program(const struct config *c);

/* Settings of the network namespace that this process is in. */
void note_settings(struct config *c);
void tune(const struct config *c);
void let_ping(const struct config *c);
/* Make sockets for the backend until it is gone. */
int serve_sockets(void);

/* A Landlock domain that handles TCP bind and connect and allows none; the backend does them (landlock(7)). -1 and errno. */
int deny_tcp(void);
/* The listener of a filter, and whether only fatal signals end the wait for an answer; -1 and errno. */
int install_filter(const struct sock_fprog *prog, int *killable);
int run_container(int argc, char **argv);
int run_join(char **argv);

#endif
