/* What a mover's task asks its stream socket, without changing anything. */
#ifndef XS_SOCKLOOK_H
#define XS_SOCKLOOK_H
#include "mover.h"

/* Bytes that its peer does not have yet. A dead socket keeps its queue, but sends no more. */
size_t xs_on_the_way(int fd);

/* Whether the program at the other end has gone. */
enum xs_leaving xs_look_leaving(int fd, bool tcp);

/* Whether the next byte is the urgent one. */
bool xs_at_mark(int fd);

/* What comes next, of a socket with SO_OOBINLINE: a read takes bytes up to the urgent one and stops there, but begins with
 * it as with any other. So who asks first knows which one it is. */
enum xs_coming {
	XS_COMES_NOTHING, /* or the end, or an error: a look (MSG_PEEK) tells, as a read could meet an urgent byte */
	XS_COMES_PLAIN,
	XS_COMES_URGENT, /* one byte */
};
enum xs_coming xs_look_coming(int fd);

#endif
