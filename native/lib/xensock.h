/* libxensock: socket calls of a guest, carried out by a XenSock backend over shared memory.
 *
 * Functions are named and behave as those of sockets(7) that they stand for, and set errno. Bytes go
 * between the caller's buffer and the ring in the caller's own thread: the library has no threads.
 * All functions may be called from several threads at once, also on one socket. What they return as a
 * socket is a descriptor number of this process, so it is equal to no other one; only the functions
 * here know what it is, and xensock_close() is what closes it. It does not survive fork(2): a child
 * attaches by itself. No call raises SIGPIPE.
 *
 * Beside the errors of the call that a function stands for, any of them may set
 *   EBADF         not a socket of this library, or closed meanwhile
 *   ENETDOWN      the attachment has ended (xensock_reason() tells why)
 *   ECONNRESET    the same, on an established connection
 *   EOPNOTSUPP    the backend offers version 1 of the protocol only, or not this extension
 *   EPROTO        the backend broke the protocol
 */
#ifndef XENSOCK_H
#define XENSOCK_H
#include <poll.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>
#ifdef __cplusplus
extern "C" {
#endif

#define XENSOCK_VERSION_MAJOR 0
#define XENSOCK_VERSION_MINOR 1

/* An attachment to one backend. */
struct xensock;

#define XENSOCK_V1 1u /* ask for no extension: PV Calls version 1 exactly */

/* Attaches to the backend at `url` (`local:PATH`); NULL: what the environment variable XENSOCK says.
 * `name` is what the backend shall call this guest in its records; NULL: the program's own name.
 * Waits until the backend is connected, at most 10 s. NULL and errno: EINVAL (not such a URL), ETIMEDOUT,
 * EPROTO, EACCES (not let in), ECONNRESET, those of connect(2) on a unix socket, ENOMEM, EMFILE. */
struct xensock *xensock_attach(const char *url, const char *name, unsigned flags);

/* Closes all sockets of the attachment that are still open, waits until their bytes are with the
 * backend (at most 5 s), and ends it. No other call may use it or its sockets any more. */
void xensock_detach(struct xensock *x);

/* Why the attachment has ended, as a line of text; NULL while it lives. For NULL: why the calling thread's last
 * xensock_attach() failed, where the backend said so. */
const char *xensock_reason(struct xensock *x);

/* Whether an extension of this name ("shutdown", "names", …) is in use. */
int xensock_feature(struct xensock *x, const char *name);

/* socket(2): domain AF_INET, or AF_INET6 with the extension ipv6; type SOCK_STREAM, with SOCK_NONBLOCK
 * if wanted (SOCK_CLOEXEC is understood and always so); protocol 0 or IPPROTO_TCP. */
int xensock_socket(struct xensock *x, int domain, int type, int protocol);

int xensock_connect(int s, const struct sockaddr *address, socklen_t length);
int xensock_bind(int s, const struct sockaddr *address, socklen_t length);
int xensock_listen(int s, int backlog);

/* accept4(2); `flags`: SOCK_NONBLOCK, SOCK_CLOEXEC. Without the extension names the peer's address is
 * unknown: *length becomes 0. */
int xensock_accept(int s, struct sockaddr *address, socklen_t *length, int flags);

/* `flags`: MSG_DONTWAIT, MSG_NOSIGNAL, MSG_MORE for sending; MSG_DONTWAIT, MSG_PEEK, MSG_WAITALL,
 * MSG_TRUNC for receiving; MSG_OOB for both with the extension urgent. Another one: EOPNOTSUPP. */
ssize_t xensock_send(int s, const void *data, size_t size, int flags);
ssize_t xensock_recv(int s, void *data, size_t size, int flags);
ssize_t xensock_sendv(int s, const struct iovec *parts, int count, int flags);
ssize_t xensock_recvv(int s, const struct iovec *parts, int count, int flags);

/* sockatmark(3): whether the next byte is the urgent one. */
int xensock_sockatmark(int s);

/* Without the extension shutdown only SHUT_RD, which is our own affair, is possible. */
int xensock_shutdown(int s, int how);

int xensock_getsockname(int s, struct sockaddr *address, socklen_t *length);
int xensock_getpeername(int s, struct sockaddr *address, socklen_t *length);

/* Options of our own: SO_RCVTIMEO, SO_SNDTIMEO, SO_SNDBUF and SO_RCVBUF before connect and listen (the
 * size of the ring, both ways alike), SO_TYPE, SO_DOMAIN, SO_PROTOCOL, SO_ACCEPTCONN, SO_ERROR, with the
 * extension urgent SO_OOBINLINE. All others are the backend's, by the extension options. */
int xensock_setsockopt(int s, int level, int name, const void *value, socklen_t length);
int xensock_getsockopt(int s, int level, int name, void *value, socklen_t *length);

/* Whether calls wait. Returns what held before; -1 and errno. */
int xensock_set_nonblocking(int s, int on);

/* poll(2); sockets of this library and ordinary descriptors may be mixed. */
int xensock_poll(struct pollfd *fds, nfds_t count, int timeout);

/* For programs that have an event loop of their own: asks for an event. Returns what of `events` is true
 * now, as poll(2) would; if that is nothing, the descriptor `s` itself becomes readable in poll(2) and
 * epoll(7) once it may be otherwise, and the next xensock_arm() empties it. -1 and errno. */
int xensock_arm(int s, short events);

/* Such a loop watches this descriptor, too, and calls xensock_dispatch() when it is readable: answers to
 * accept and connect come this way. */
int xensock_fileno(struct xensock *x);
void xensock_dispatch(struct xensock *x);

/* What was sent before is still delivered. With an SO_LINGER of 0 seconds: reset. */
int xensock_close(int s);

#ifdef __cplusplus
}
#endif
#endif
