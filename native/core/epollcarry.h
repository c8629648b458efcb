/* Registering a socket with a guest's epoll under the descriptor number that it has in the guest. */
#ifndef XS_EPOLLCARRY_H
#define XS_EPOLLCARRY_H

#include <stdint.h>

/*
 * epoll_ctl(2) op (EPOLL_CTL_ADD or EPOLL_CTL_DEL) of sock on the epoll file epfd as number, with these events and data.
 * An epoll entry is named by file and number, so a thread with a descriptor table of its own holds sock at that number
 * for the call. Returns 0 or an errno.
 */
int xs_epoll_carry(int epfd, int op, int sock, int number, uint32_t events, uint64_t data);

#endif
