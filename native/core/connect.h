/* Starting connect() on a file whose O_NONBLOCK belongs to somebody else. */
#ifndef XS_CONNECT_H
#define XS_CONNECT_H

#include <sys/socket.h>

/* Signal that ends a blocking call of one of our threads; its handler does nothing. */
int xs_wake_signal(void);
/* Install the handler once for the process; 0 or an errno. */
int xs_wake_install(void);

/*
 * connect(2) that waits at most about wait_us microseconds, whatever the file's O_NONBLOCK says, and leaves the
 * socket in the state that an interrupted or non-blocking connect leaves it in.
 * Returns 0, EINPROGRESS (under way), or the errno of connect(2).
 */
int xs_connect_start(int fd, const struct sockaddr *sa, socklen_t len, unsigned wait_us);
/*
 * connect(2) on a TCP socket that connects, is connected or listens: its state is what answers, the address is not looked
 * at. Who shares the file may take it apart meanwhile (shutdown(2)), so the address is one where nobody can be: that is
 * ENETUNREACH then, and never a connection that nobody has judged. Waits as xs_connect_start.
 */
int xs_connect_join(int fd, unsigned wait_us);

#endif
