/*
 * Messages that a program in the kernel wrote into a BPF ring buffer (linux/bpf.h, BPF_MAP_TYPE_RINGBUF), taken out.
 * Benchmark rows: audit, audit.here. One thread at a time.
 */
#ifndef XS_ENDRING_H
#define XS_ENDRING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct xs_endring;

/* fd: the map, or what is laid out like it; size: its bytes of data, a power of two. NULL: *error says why. */
struct xs_endring *xs_endring_open(int fd, size_t size, int *error);
void xs_endring_free(struct xs_endring *r);
/* Copies whole messages, one behind the other, up to `room` bytes; how many bytes. 0: there are none now, or the next one
 * is larger than all of `room`: it is skipped. */
size_t xs_endring_read(struct xs_endring *r, uint8_t *into, size_t room);

#endif
