/* A ring of frames (extension datagrams) and a SOCK_SEQPACKET pair, role FRONT: each packet is a frame.
 * The program writes the header too: what of it the backend would take for a breach is put right here, and a packet
 * that is no frame is thrown away. */
#include "ringframes.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#define LOOKS 16 /* see ringflow.c */

struct head {
	uint32_t len, flags, addr_len;
	uint8_t addr[28];
};
_Static_assert(sizeof(struct head) == XS_FRAME_HEAD, "a frame's header has 40 bytes");

static uint32_t padded(uint32_t n)
{
	return (n + XS_FRAME_ALIGN - 1) & ~(XS_FRAME_ALIGN - 1);
}

/* The first frame of the ring: its size with padding, 0 without one, or a broken one (*broken). */
static uint32_t first(const struct xs_half *rx, struct head *h, bool *broken)
{
	uint32_t n = xs_readable(rx);

	*broken = false;
	if (!n)
		return 0;
	*broken = true;
	if (n < sizeof *h)
		return 0;
	xs_copy_out(rx, 0, h, sizeof *h);
	if (h->len > n - sizeof *h || padded((uint32_t)sizeof *h + h->len) > n || h->addr_len > sizeof h->addr)
		return 0;
	*broken = false;
	return padded((uint32_t)sizeof *h + h->len);
}

static bool frames_down(struct xs_ringflow *f)
{
	struct xs_half *rx = &f->wire.ring.rx;
	uint64_t before = xs_count_get(&f->task.bytes[0]);
	int looks = 0;

	while (f->wire.attached && f->sock.fd >= 0 && !f->shut && !f->error) {
		int over = xs_wire_errno(xs_error(rx));
		struct head h;
		bool broken;
		uint32_t size = first(rx, &h, &broken), one, two;
		struct iovec part[3];
		struct msghdr m = {.msg_iov = part};

		if (broken || (!size && over)) {
			xs_ringflow_over(f, broken ? EPROTO : over);
			break;
		}
		if (!size) {
			if (!xs_rx_arm(rx))
				break;
			if (++looks == LOOKS)
				return true;
			continue;
		}
		if (!f->deaf) {
			if (!f->writable)
				break;
			if (xs_count_get(&f->task.bytes[0]) - before >= XS_TASK_BUDGET)
				return true;
			one = xs_contiguous(rx, sizeof h, size - (uint32_t)sizeof h);
			two = size - (uint32_t)sizeof h - one;
			part[0] = (struct iovec){&h, sizeof h};
			part[1] = (struct iovec){xs_at(rx, sizeof h), one};
			part[2] = (struct iovec){rx->data, two};
			m.msg_iovlen = two ? 3 : 2;
			if (sendmsg(f->sock.fd, &m, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0)
				xs_count_add(&f->task.bytes[0], h.len);
			else if (errno != EMSGSIZE && errno != ENOBUFS) { /* those lose this one, as datagrams may be lost */
				if (!xs_ringflow_unsent(f, errno))
					break;
				continue;
			}
		}
		xs_wire_advance(&f->wire, rx, size);
	}
	return false;
}

/* Puts a packet of n bytes right. Returns its size as a frame, 0 when it is none. */
static uint32_t put_right(const struct xs_half *tx, uint32_t n)
{
	static const char zeros[XS_FRAME_ALIGN];
	struct head h;
	uint32_t size;

	if (n < sizeof h)
		return 0;
	xs_copy_out(tx, 0, &h, sizeof h);
	if (h.len > n - sizeof h || h.addr_len > sizeof h.addr)
		return 0;
	h.flags &= XS_FRAME_INFO; /* without the extension the other side ignores it */
	if (h.flags && h.len < XS_FRAME_INFO_SIZE)
		return 0;
	size = (uint32_t)sizeof h + h.len;
	xs_copy_in(tx, 0, &h, sizeof h);
	xs_copy_in(tx, size, zeros, padded(size) - size);
	return padded(size);
}

static bool frames_up(struct xs_ringflow *f)
{
	struct xs_half *tx = &f->wire.ring.tx;
	uint32_t most = tx->size < XS_FRAME_MOST ? tx->size : XS_FRAME_MOST;
	uint64_t before = xs_count_get(&f->task.bytes[1]);
	int looks = 0;

	while (f->wire.attached && f->sock.fd >= 0 && !f->eof && f->readable) {
		struct iovec part[2];
		struct msghdr m = {.msg_iov = part};
		uint32_t size;
		ssize_t k;

		if (xs_error(tx)) {
			xs_ringflow_refuse(f);
			break;
		}
		if (xs_count_get(&f->task.bytes[1]) - before >= XS_TASK_BUDGET)
			return true;
		/* A packet is taken whole or not at all, so there must be room for any. */
		if (xs_room(tx) < most) {
			if (!xs_tx_arm(tx, most))
				break;
			if (++looks == LOOKS)
				return true;
			continue;
		}
		m.msg_iovlen = (size_t)xs_chunks(tx, most, part);
		k = recvmsg(f->sock.fd, &m, MSG_DONTWAIT);
		size = k > 0 && !(m.msg_flags & MSG_TRUNC) ? put_right(tx, (uint32_t)k) : 0;
		if (size) {
			xs_count_add(&f->task.bytes[1], size - XS_FRAME_HEAD);
			xs_wire_advance(&f->wire, tx, size);
		} else if (k == 0 && f->hup) {
			xs_ringflow_ended(f);
		} else if (k < 0 && errno == EAGAIN) {
			f->readable = false;
		} else if (k < 0 && errno != EINTR) {
			xs_ringflow_dead(f, errno);
		} else if (++looks == LOOKS) {
			/* No frame; or empty: a packet with others behind it, or the end, whose event is coming. */
			return true;
		}
	}
	return false;
}

const struct xs_ringflow_ops xs_frames_ops = {frames_down, frames_up};
