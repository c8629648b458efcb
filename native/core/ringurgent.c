/* See ringurgent.h. */
#include "ringurgent.h"

#include "socklook.h"

#include <errno.h>

ssize_t xs_urgent_send(int fd, const struct msghdr *m, int flags)
{
	ssize_t k = sendmsg(fd, m, flags);

	return k < 0 && errno == EOPNOTSUPP && flags & MSG_OOB ? 1 : k;
}

ssize_t xs_urgent_receive(struct xs_wire *l, int fd, uint32_t room, bool *drained)
{
	struct xs_half *tx = &l->ring.tx;
	enum xs_coming comes = l->out.words ? xs_look_coming(fd) : XS_COMES_PLAIN;
	struct iovec chunk[2];
	struct msghdr m = {.msg_iov = chunk};
	ssize_t k;

	m.msg_iovlen = (size_t)xs_chunks(tx, comes == XS_COMES_URGENT ? 1 : room, chunk);
	k = recvmsg(fd, &m, MSG_DONTWAIT | (comes == XS_COMES_NOTHING ? MSG_PEEK : 0));
	if (comes == XS_COMES_URGENT && k == 1)
		xs_urgent_announce(&l->out, tx, 0);
	if (comes == XS_COMES_NOTHING && k > 0) {
		errno = EINTR; /* it came just now */
		return -1;
	}
	/* A read stops before an urgent byte. */
	*drained = k > 0 && k < (ssize_t)room && comes == XS_COMES_PLAIN && !(l->out.words && xs_at_mark(fd));
	return k;
}
