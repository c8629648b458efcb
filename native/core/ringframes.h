/* How frames move between a ring and a SOCK_SEQPACKET socket; used by ringflow.c. */
#ifndef XS_RINGFRAMES_H
#define XS_RINGFRAMES_H
#include "ringflow.h"

#define XS_FRAME_HEAD 40u
#define XS_FRAME_ALIGN 8u
#define XS_FRAME_INFO 8u /* flag of extension packet-info: the payload begins with struct xs_frame_info (udpframes.h) */
#define XS_FRAME_INFO_SIZE 24u
#define XS_FRAME_MOST (65536u + XS_FRAME_HEAD + XS_FRAME_INFO_SIZE) /* no datagram of IP is longer */

extern const struct xs_ringflow_ops xs_frames_ops;
#endif
