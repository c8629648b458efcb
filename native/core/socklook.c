/* See socklook.h. */
#include "socklook.h"

#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

size_t xs_on_the_way(int fd)
{
	struct tcp_info info;
	socklen_t len = sizeof info;
	int queued = 0;

	if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len) == 0 && info.tcpi_state == TCP_CLOSE)
		return 0;
	return ioctl(fd, SIOCOUTQ, &queued) == 0 ? (size_t)queued : 0;
}

enum xs_leaving xs_look_leaving(int fd, bool tcp)
{
	struct pollfd p = {fd, POLLRDHUP, 0};

	if (poll(&p, 1, 0) <= 0)
		return XS_STAYS;
	if (p.revents & (POLLHUP | POLLERR))
		return XS_LEFT;
	return tcp ? XS_HALF_LEFT : XS_STAYS;
}

bool xs_at_mark(int fd)
{
	int mark = 0;

	return ioctl(fd, SIOCATMARK, &mark) == 0 && mark;
}

enum xs_coming xs_look_coming(int fd)
{
	int queued = 0;

	/* In this order: what is first in a queue that has something stays first, whatever comes meanwhile. */
	if (ioctl(fd, SIOCINQ, &queued) == 0 && queued == 0)
		return XS_COMES_NOTHING;
	return xs_at_mark(fd) ? XS_COMES_URGENT : XS_COMES_PLAIN;
}
