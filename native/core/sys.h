/* What older headers lack: system call numbers, ioctls and flags, each with the kernel that brought it. */
#ifndef XS_SYS_H
#define XS_SYS_H

#include <linux/audit.h>
#include <linux/seccomp.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#ifndef SYS_pidfd_getfd
#define SYS_pidfd_getfd 438
#endif
#ifndef SYS_landlock_create_ruleset
#define SYS_landlock_create_ruleset 444
#define SYS_landlock_restrict_self 446
#endif
#ifndef SYS_open_tree
#define SYS_open_tree 428
#define SYS_move_mount 429
#endif
#ifndef PIDFD_THREAD /* Linux 6.9 */
#define PIDFD_THREAD 0200
#endif
#ifndef SECCOMP_ADDFD_FLAG_SEND /* Linux 5.14 */
#define SECCOMP_ADDFD_FLAG_SEND (1UL << 1)
#endif
#ifndef SECCOMP_IOCTL_NOTIF_SET_FLAGS /* Linux 6.6 */
#define SECCOMP_IOCTL_NOTIF_SET_FLAGS SECCOMP_IOW(4, __u64)
#endif
#define XS_SYNC_WAKE_UP 1UL
#define XS_WAIT_KILLABLE_RECV (1UL << 5) /* SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, Linux 5.19 */
#ifndef SO_NETNS_COOKIE /* Linux 5.14 */
#define SO_NETNS_COOKIE 71
#endif
#ifndef SO_COOKIE
#define SO_COOKIE 57
#endif
/* Landlock ABI 4 (Linux 6.7); ABI 6 (6.12) adds the scopes. */
#define XS_LANDLOCK_NET_BIND_TCP (1ULL << 0)
#define XS_LANDLOCK_NET_CONNECT_TCP (1ULL << 1)

#if defined(__x86_64__)
#define XS_AUDIT_ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define XS_AUDIT_ARCH AUDIT_ARCH_AARCH64
#else
#error "XenSock knows x86-64 and AArch64"
#endif

#endif
