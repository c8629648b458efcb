"""Network namespaces for tests: sockets made inside, without a name on the system and without root.

A helper process unshares (for ordinary users with a user namespace of their own), sets addresses and
routes with ip(8), and passes sockets over SCM_RIGHTS. The namespace goes when its last socket does.
"""

from __future__ import annotations

import array
import ctypes
import os
import shutil
import socket
import struct
import subprocess
import sys

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000

# As the launcher lays it out: a veth pair with both ends inside, and every address local.
GUEST = """\
link set lo up
link add v0 type veth peer name v1
link set v0 up
link set v1 up
addr add 10.0.2.100/32 dev v0
addr add fd00::2/128 dev v0 nodad
route add local default dev lo src 10.0.2.100
route add local ::/0 dev lo src fd00::2
"""
# A host on 192.0.2.0/24 whose neighbours never answer, and which notices that after 50 ms.
HOST = """\
link set lo up
link add h0 type veth peer name h1
link set h0 up
link set h1 up
addr add 192.0.2.1/24 dev h0
addr add 2001:db8::1/64 dev h0 nodad
ntable change name arp_cache dev h0 retrans 50 mcast_probes 1
ntable change name ndisc_cache dev h0 retrans 50 mcast_probes 1
route add unreachable 198.51.100.0/24
"""


class Namespace:
    def __init__(self, setup: str) -> None:
        self._link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._link.settimeout(20)
        with theirs:
            self._helper = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()]
            )
        self._link.send(setup.encode())
        said = self._link.recv(4096)
        if said != b"ready":
            self.close()
            raise RuntimeError(said.decode() or "the namespace's helper ended")

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        self._link.send(struct.pack("iii", family, kind, protocol))
        data, ancillary, _, _ = self._link.recvmsg(4, socket.CMSG_SPACE(4))
        (error,) = struct.unpack("i", data)
        if error:
            raise OSError(error, os.strerror(error))
        return socket.socket(fileno=struct.unpack("i", ancillary[0][2])[0])

    def ip(self, commands: str) -> None:
        self._link.send(b"ip" + commands.encode())
        said = self._link.recv(4096)
        if said != b"ready":
            raise RuntimeError(said.decode())

    def close(self) -> None:
        self._link.close()
        self._helper.wait(20)


def missing() -> str:
    """Why namespaces cannot be made here, or nothing."""
    if not shutil.which("ip"):
        return "ip(8) is missing"
    try:
        Namespace("link set lo up\n").close()
    except RuntimeError as e:
        return str(e)
    return ""


def _ip(commands: str) -> bytes:
    done = subprocess.run(
        ["ip", "-batch", "-"], input=commands, text=True, capture_output=True, check=False
    )
    return b"ready" if done.returncode == 0 else done.stderr.encode() or b"ip failed"


def _serve(link: socket.socket) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.geteuid(), os.getegid()
    setup = link.recv(65536).decode()
    if libc.unshare(CLONE_NEWNET | (CLONE_NEWUSER if uid else 0)):
        link.send(f"unshare: {os.strerror(ctypes.get_errno())}".encode())
        return
    if uid:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"0 {uid} 1"),
            ("gid_map", f"0 {gid} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    link.send(_ip(setup))
    while request := link.recv(65536):
        if request[:2] == b"ip" and len(request) != 12:
            link.send(_ip(request[2:].decode()))
            continue
        try:
            made = socket.socket(*struct.unpack("iii", request))
        except OSError as e:
            link.send(struct.pack("i", e.errno or 1))
            continue
        with made:
            rights = array.array("i", [made.fileno()])
            link.sendmsg([bytes(4)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as inherited:
        _serve(inherited)
