"""Interface requests from a guest: its own devices, whatever network the socket is of, and never a byte too many."""

from __future__ import annotations

import pytest

import guestkit

IFCONF = """
libc = ctypes.CDLL(None, use_errno=True)
SIOCGIFCONF = 0x8912

def ifconf(fd, length, room, null=False):
    buffer = (ctypes.c_ubyte * 4096)(*([0xEE] * 4096))
    pointer = 0 if null else ctypes.addressof(buffer)
    asked = ctypes.create_string_buffer(struct.pack("=i4xQ", length, pointer), 16)
    if libc.ioctl(fd, SIOCGIFCONF, asked):
        return errno.errorcode[ctypes.get_errno()]
    used = struct.unpack_from("=i", asked.raw)[0]
    written = bytes(buffer)
    return used, all(b == 0xEE for b in written[max(room, 0):])
"""


@pytest.mark.parametrize("path", guestkit.paths())
@pytest.mark.parametrize("kind", ["SOCK_STREAM", "SOCK_DGRAM"])
def test_the_guests_devices(path: str, kind: str) -> None:
    said, _ = guestkit.run(
        f"""
        sock = socket.socket(socket.AF_INET, socket.{kind})
        def ask(request, name):
            return fcntl.ioctl(sock, request, struct.pack("16s24x", name))
        said(socket.inet_ntoa(ask(0x8915, b"lo")[20:24]))  # SIOCGIFADDR
        said(socket.inet_ntoa(ask(0x8915, b"eth0")[20:24]))
        said(bool(struct.unpack_from("=h", ask(0x8913, b"eth0"), 16)[0] & 1))  # IFF_UP
        said(struct.unpack_from("=i", ask(0x8933, b"lo"), 16)[0])
        said(error_of(ask, 0x8915, b"none0"))
        said(error_of(ask, 0x8914, b"lo"))  # SIOCSIFFLAGS
        said(error_of(ask, 0x8946, b"lo"))  # SIOCETHTOOL
        said(error_of(fcntl.ioctl, sock, 0x8915, 0))
        said(error_of(fcntl.ioctl, sock, 0x8912, 8))
        said(sorted(name for _, name in socket.if_nameindex()))
        """,
        datapath=path,
    )
    assert said == [
        "127.0.0.1",
        "192.0.0.8",
        True,
        1,
        "ENODEV",
        "EPERM",
        "ENOTSUP",  # the same number as EOPNOTSUPP
        "EFAULT",
        "EFAULT",
        ["eth0", "lo", "xs0"],
    ]


@pytest.mark.parametrize("path", guestkit.paths())
def test_lists_of_every_length_as_the_kernel_gives_them(path: str) -> None:
    script = (
        IFCONF
        + """
asked = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
for length in (-2**31, -1, 0, 1, 39, 40, 41, 79, 80, 81, 1000, 4096):
    said(ifconf(asked.fileno(), length, length))
for length in (0, 40, 1000, -1):
    said(ifconf(asked.fileno(), length, 0, null=True))
"""
    )
    said, _ = guestkit.run(script, datapath=path)
    # lo and eth0 have addresses: two entries of 40 bytes, whole ones only, nothing beyond the room (netdevice(7)).
    lengths = (-(2**31), -1, 0, 1, 39, 40, 41, 79, 80, 81, 1000, 4096)
    assert said[: len(lengths)] == [[min(max(n, 0) // 40, 2) * 40, True] for n in lengths]
    # Without a buffer: how much there is.
    assert said[len(lengths) :] == [[80, True]] * 4


def test_an_ioctl_that_is_not_about_interfaces_is_the_kernels() -> None:
    said, _ = guestkit.run(
        """
        one, two = socket.socketpair()
        two.send(b"1234")
        room = bytearray(4)
        fcntl.ioctl(one, 0x541B, room)  # FIONREAD
        said(struct.unpack("=i", room)[0])
        reader, _ = os.pipe()
        said(error_of(fcntl.ioctl, reader, 0x8912, bytes(16)))
        """
    )
    assert said == [4, "ENOTTY"]
