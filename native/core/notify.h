/* Adding to an eventfd that somebody else holds too. */
#ifndef XS_NOTIFY_H
#define XS_NOTIFY_H

/*
 * Adds 1 to the eventfd, or less when it is full. Never blocks, whatever the file's O_NONBLOCK says: another domain
 * holds the same open file and may clear the flag and fill the counter at any time. What is no eventfd is left alone.
 */
void xs_notify(int fd);

#endif
