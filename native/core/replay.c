/*
 * What a predecessor received and did not answer, done again. Most calls can simply be repeated: listen(2) may come twice,
 * what failed fails again. Three cannot, once they have been carried out: bind(2) gives EINVAL for a socket that has a
 * port, connect(2) EALREADY or EISCONN, and a second socket would be one too many. So the state of the caller's socket at
 * receipt is in the journal, and what differs from it now is this call's doing; and of a socket that is handed out, the
 * inode is, by which it is found among the caller's descriptors.
 */
#include "connect.h"
#include "super_parts.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define START_WAIT_US 100

static uint32_t has_port(int fd)
{
	union { struct sockaddr any; struct sockaddr_in four; struct sockaddr_in6 six; } at;
	socklen_t l = sizeof at;

	memset(&at, 0, sizeof at);
	if (getsockname(fd, &at.any, &l))
		return 0;
	return at.any.sa_family == AF_INET6 ? at.six.sin6_port : at.four.sin_port;
}

static uint32_t begun(int fd)
{
	uint8_t info[8] = {TCP_CLOSE};
	socklen_t l = sizeof info;

	return !getsockopt(fd, IPPROTO_TCP, TCP_INFO, info, &l) && info[0] != TCP_CLOSE;
}

static void finish_connect(struct xs_super *s, const struct xs_event *ev)
{
	int error;

	if (fcntl(ev->fd, F_GETFL) & O_NONBLOCK) {
		error = xs_connect_join(ev->fd, START_WAIT_US);
		error = error == EALREADY ? EINPROGRESS : error;
	} else {
		error = xs_connect_join(ev->fd, START_WAIT_US);
		if (error == EINPROGRESS) {
			xs_super_await(s, ev->id, ev->tid, ev->fd, ev->addr, ev->addrlen, 0, ev->start_ns);
			return;
		}
	}
	close(ev->fd);
	xs_super_answer(s, ev->id, 0, error == EISCONN ? 0 : error, false);
}

bool xs_again(struct xs_super *s, const struct xs_event *ev)
{
	bool connects = ev->nr == SYS_connect && ev->type == SOCK_STREAM;
	uint32_t now;

	if ((!connects && ev->nr != SYS_bind) || (ev->domain != AF_INET && ev->domain != AF_INET6))
		return false;
	now = connects ? begun(ev->fd) : has_port(ev->fd);
	if (!s->entry->seen) {
		s->entry->before = now;
		s->entry->seen = 1;
		return false;
	}
	if (!now || s->entry->before)
		return false;
	if (connects) {
		finish_connect(s, ev);
	} else {
		close(ev->fd);
		xs_super_answer(s, ev->id, 0, 0, false);
	}
	return true;
}

uint32_t xs_inode_of(int fd)
{
	struct stat st;

	return fstat(fd, &st) ? 0 : (uint32_t)st.st_ino;
}

int xs_installed(uint32_t tid, uint32_t inode)
{
	char path[40], name[32], link[32];
	struct dirent *e;
	int found = -1;
	ssize_t n;
	DIR *d;

	snprintf(path, sizeof path, "/proc/%u/fd", tid);
	snprintf(name, sizeof name, "socket:[%u]", inode);
	d = inode ? opendir(path) : NULL;
	while (d && found < 0 && (e = readdir(d))) {
		n = readlinkat(dirfd(d), e->d_name, link, sizeof link - 1);
		if (n <= 0)
			continue;
		link[n] = 0;
		if (!strcmp(link, name))
			found = atoi(e->d_name);
	}
	if (d)
		closedir(d);
	return found;
}

void xs_replay(struct xs_super *s)
{
	struct seccomp_notif call;
	uint64_t after = 0;

	while ((s->entry = xs_journal_after(s->journal, after)) && !xs_flag_get(&s->stop)) {
		call = s->entry->call;
		after = call.id;
		if (xs_super_valid(s, call.id))
			xs_look_at(s, &call);
		else
			xs_journal_done(s->journal, call.id);
	}
}
