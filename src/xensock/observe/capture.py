"""Packets of a guest's network, in the pcap format that tcpdump(8) and Wireshark read.

Theory of operation: a packet(7) socket of the guest's network namespace has a ring of blocks in common with the
kernel (TPACKET_V3, Documentation/networking/packet_mmap.rst), since a receive buffer holds a few large packets only.
A thread writes each full block to the file. Loopback, where relayed connections are, shows a packet when it leaves and
when it arrives: the filter keeps the second. The card is a pair of devices; its far end, which is ours, is left out.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import select
import socket
import struct
import threading
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Callable

# <linux/if_packet.h>, <linux/filter.h>, <linux/if_arp.h>
SOL_PACKET = 263
PACKET_RX_RING, PACKET_STATISTICS, PACKET_VERSION = 5, 6, 10
TPACKET_V3 = 2
ANY_PROTOCOL = socket.htons(3)  # ETH_P_ALL
SO_ATTACH_FILTER = 26
SIOCGIFNAME = 0x8910
BLOCK, BLOCKS, FRAME = 1 << 20, 16, 1 << 11
RETIRE_MS = 20  # a block that is not full is handed over after this
STATUS_USER = 1
REQUEST = struct.Struct("=7I")
BLOCK_HEAD = struct.Struct("=3I")  # struct tpacket_hdr_v1: status, packets, offset of the first
BLOCK_STATUS = 8  # where that begins in struct tpacket_block_desc
PACKET = struct.Struct(
    "=6IH"
)  # struct tpacket3_hdr: next, seconds, ns, captured, length, status, mac
LINK = 48  # where struct sockaddr_ll is behind it
IFINDEX = struct.Struct("=i")

# pcap with nanoseconds (draft-ietf-opsawg-pcap): magic, version 2.4, zone, accuracy, longest packet, Ethernet.
HEADER = struct.pack("=IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 262144, 1)
RECORD = struct.Struct("=4I")

# ld hatype; jne ARPHRD_LOOPBACK, keep; ld pkttype; jeq PACKET_OUTGOING, drop; keep: ret all; drop: ret 0
ONCE = b"".join(
    struct.pack("=HBBI", *instruction)
    for instruction in (
        (0x20, 0, 0, 0xFFFFF000 + 28),
        (0x15, 0, 2, 772),
        (0x20, 0, 0, 0xFFFFF000 + 4),
        (0x15, 1, 0, 4),
        (0x06, 0, 0, 0xFFFFFFFF),
        (0x06, 0, 0, 0),
    )
)


class Capture:
    """Writes what passes, from now on, until `close`.

    `sock`: a raw packet(7) socket of the network, of protocol ANY_PROTOCOL, taken over. `file`: binary, taken over too.
    `without`: a device that is left out. `warn` is told, from the thread, what was lost and why.
    Raises OSError: ENOMEM without memory for the ring.
    """

    def __init__(
        self, sock: socket.socket, file: BinaryIO, without: str, warn: Callable[[str], None]
    ) -> None:
        self._sock, self._file, self._without, self._warn = sock, file, without, warn
        self._devices: dict[int, str] = {}
        self._broken = False
        program = ctypes.create_string_buffer(ONCE, len(ONCE))
        attach = struct.pack("@HP", len(ONCE) // 8, ctypes.addressof(program))
        try:
            sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, attach)
            sock.setsockopt(SOL_PACKET, PACKET_VERSION, TPACKET_V3)
            ring = REQUEST.pack(BLOCK, BLOCKS, FRAME, BLOCK // FRAME * BLOCKS, RETIRE_MS, 0, 0)
            sock.setsockopt(SOL_PACKET, PACKET_RX_RING, ring)
            self._ring = mmap.mmap(sock.fileno(), BLOCK * BLOCKS)
        except BaseException:
            sock.close()
            file.close()
            raise
        self._try(lambda: file.write(HEADER))
        self._end, self._told = socket.socketpair()
        self._thread = threading.Thread(target=self._work, name="capture", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write what has passed until now, and stop. Says how many packets were lost, if any were."""
        self._told.close()
        self._thread.join()
        self._end.close()
        _, drops, _ = struct.unpack("=3I", self._sock.getsockopt(SOL_PACKET, PACKET_STATISTICS, 12))
        self._ring.close()
        self._sock.close()
        if drops:
            self._warn(
                f"the capture lacks {drops} packets: they came faster than they were written"
            )

    def _work(self) -> None:
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        poll.register(self._end, select.POLLIN)
        at, ending = 0, False
        while True:
            # Before each block: what the kernel wrote before it let go of one is seen after its call.
            ready = {fd for fd, _ in poll.poll(3 * RETIRE_MS if ending else None)}
            if self._end.fileno() in ready:
                poll.unregister(self._end)
                ending = True
            if self._sock.fileno() in ready:
                at = self._take(at)
            elif ending and not ready:
                break
        self._try(self._file.close)

    def _take(self, at: int) -> int:
        """Write this block if it is ours, give it back, and say which is next."""
        base = at * BLOCK
        status, packets, offset = BLOCK_HEAD.unpack_from(self._ring, base + BLOCK_STATUS)
        if not status & STATUS_USER:
            return at
        place, out = base + offset, bytearray()
        for _ in range(packets):
            following, seconds, ns, captured, length, _, mac = PACKET.unpack_from(self._ring, place)
            (device,) = IFINDEX.unpack_from(self._ring, place + LINK + 4)
            if self._name(device) != self._without:
                out += RECORD.pack(seconds, ns, captured, length)
                out += self._ring[place + mac : place + mac + captured]
            place += following
        struct.pack_into("=I", self._ring, base + BLOCK_STATUS, 0)
        self._try(lambda: self._file.write(out))
        self._try(self._file.flush)
        return (at + 1) % BLOCKS

    def _try(self, write: Callable[[], object]) -> None:
        """A file that takes no more ends the capture, not the guest."""
        if self._broken:
            return
        try:
            write()
        except OSError as error:
            self._broken = True
            self._warn(f"the capture ends here: {error.strerror}")

    def _name(self, device: int) -> str:
        if device not in self._devices:
            request = struct.pack("=16si20x", b"", device)
            try:
                name = fcntl.ioctl(self._sock.fileno(), SIOCGIFNAME, request)[:16]
            except OSError:
                return ""  # gone again
            self._devices[device] = name.rstrip(b"\0").decode(errors="replace")
        return self._devices[device]
