/* Epoll entries made and removed under a descriptor number that this process uses otherwise, or not at all. */
#include "check.h"
#include "epollcarry.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static int ep;

struct entry {
	int found;
	unsigned events;
	unsigned long long data;
};

/* The entry under a number as proc(5) shows it. */
static struct entry entry(int epfd, int number)
{
	struct entry e = {0, 0, 0};
	char path[64], line[256];
	FILE *f;

	snprintf(path, sizeof path, "/proc/self/fdinfo/%d", epfd);
	f = fopen(path, "re");
	CHECK(f);
	while (fgets(line, sizeof line, f)) {
		int tfd;
		unsigned events;
		unsigned long long data;

		if (sscanf(line, "tfd: %d events: %x data: %llx", &tfd, &events, &data) == 3 && tfd == number) {
			e.found++;
			e.events = events;
			e.data = data;
		}
	}
	fclose(f);
	return e;
}

static int open_files(void)
{
	DIR *d = opendir("/proc/self/fd");
	int n = 0;

	CHECK(d);
	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

static void pair(int s[2]) { CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, s)); }

static void free_number(void)
{
	int s[2], before = open_files() + 2;
	struct epoll_event e;
	struct entry shown;

	pair(s);
	CHECK(xs_epoll_carry(ep, EPOLL_CTL_ADD, s[0], 777, EPOLLIN | EPOLLET, 0x1122334455667788u) == 0);
	CHECK(fcntl(777, F_GETFD) < 0 && open_files() == before); /* nothing of it in this table */
	shown = entry(ep, 777);
	CHECK(shown.found == 1 && shown.data == 0x1122334455667788u && (shown.events & (EPOLLIN | EPOLLET)) == (EPOLLIN | EPOLLET));
	CHECK(epoll_wait(ep, &e, 1, 0) == 0);
	CHECK(write(s[1], "x", 1) == 1);
	CHECK(epoll_wait(ep, &e, 1, 1000) == 1 && e.events == EPOLLIN && e.data.u64 == 0x1122334455667788u);
	CHECK(xs_epoll_carry(ep, EPOLL_CTL_ADD, s[0], 777, EPOLLIN, 1) == EEXIST);
	CHECK(xs_epoll_carry(ep, EPOLL_CTL_DEL, s[0], 778, 0, 0) == ENOENT);
	CHECK(xs_epoll_carry(ep, EPOLL_CTL_DEL, s[0], 777, 0, 0) == 0);
	CHECK(!entry(ep, 777).found && epoll_wait(ep, &e, 1, 0) == 0);
	close(s[0]);
	close(s[1]);
}

/* The number is something else here, even the epoll descriptor or the socket itself. */
static void taken_number(void)
{
	int s[2];
	char c;
	struct epoll_event e;

	pair(s);
	for (int round = 0; round < 3; round++) {
		int number = (int[]){s[1], ep, s[0]}[round];

		CHECK(xs_epoll_carry(ep, EPOLL_CTL_ADD, s[0], number, EPOLLIN, 99) == 0);
		CHECK(entry(ep, number).found == 1);
		CHECK(write(s[1], "y", 1) == 1); /* s[1] is here what it was */
		CHECK(epoll_wait(ep, &e, 1, 1000) == 1 && e.data.u64 == 99);
		CHECK(read(s[0], &c, 1) == 1 && c == 'y');
		CHECK(xs_epoll_carry(ep, EPOLL_CTL_DEL, s[0], number, 0, 0) == 0);
		CHECK(!entry(ep, number).found);
	}
	close(s[0]);
	close(s[1]);
}

/* As in a guest: another process registered its descriptor; here the socket has another number. */
static void of_another_process(void)
{
	int s[2], other[2], status, number;
	struct epoll_event e;
	pid_t pid;

	pair(s);
	pair(other);
	number = s[0];
	pid = fork();
	CHECK(pid >= 0);
	if (!pid) {
		e.events = EPOLLOUT | EPOLLONESHOT;
		e.data.u64 = 5;
		_exit(epoll_ctl(ep, EPOLL_CTL_ADD, number, &e) ? 1 : 0);
	}
	CHECK(waitpid(pid, &status, 0) == pid && status == 0);
	CHECK(dup2(s[0], 600) == 600);
	close(s[0]);
	CHECK(xs_epoll_carry(ep, EPOLL_CTL_ADD, other[0], number, EPOLLOUT | EPOLLONESHOT, 5) == 0); /* two files, one number */
	CHECK(entry(ep, number).found == 2);
	CHECK(xs_epoll_carry(ep, EPOLL_CTL_DEL, 600, number, 0, 0) == 0);
	CHECK(entry(ep, number).found == 1);
	CHECK(epoll_wait(ep, &e, 1, 0) == 1 && e.events == EPOLLOUT && e.data.u64 == 5);
	CHECK(epoll_wait(ep, &e, 1, 0) == 0); /* EPOLLONESHOT came along */
	close(600);
	close(s[1]);
	close(other[0]);
	close(other[1]);
}

static void errors(void)
{
	int s[2], p[2];

	pair(s);
	CHECK(!pipe(p));
	CHECK(xs_epoll_carry(-1, EPOLL_CTL_ADD, s[0], 700, EPOLLIN, 0) == EBADF);
	CHECK(xs_epoll_carry(ep, EPOLL_CTL_ADD, -1, 700, EPOLLIN, 0) == EBADF);
	CHECK(xs_epoll_carry(ep, EPOLL_CTL_ADD, s[0], -5, EPOLLIN, 0) == EBADF);
	CHECK(xs_epoll_carry(p[0], EPOLL_CTL_ADD, s[0], 700, EPOLLIN, 0) == EINVAL);
	close(s[0]);
	close(s[1]);
	close(p[0]);
	close(p[1]);
}

int main(void)
{
	ep = epoll_create1(EPOLL_CLOEXEC);
	CHECK(ep >= 0);
	free_number();
	taken_number();
	of_another_process();
	errors();
	close(ep);
	return 0;
}
