"""What every pair of frontend and backend must do. Prints a line for each check: NAME ok, or NAME failed: WHY.

probe.py ADDRESS LISTEN_PORT: peer.py serves at ADDRESS, where somebody connects to LISTEN_PORT, sends a line and
expects its echo. The kernel's command line may say only=CHECK,CHECK or skip=CHECK. The sockets are Python's own: over
PV Calls they come by whichever way this was started.
"""

import contextlib
import errno
import hashlib
import os
import re
import select
import socket
import sys
import threading
import time
from pathlib import Path

from peer import ECHO, ENDLESS, LAST, SINK, SIZE, SOURCE, block

ADDRESS, PORT = sys.argv[1], int(sys.argv[2])


def connected(port):
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.connect((ADDRESS, port))
    return sock


def exactly(sock, size):
    data = bytearray()
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            raise OSError(f"the end after {len(data)} of {size} bytes")
        data += more
    return bytes(data)


def refused():
    """A connection that the policy refuses, and one to a port that nobody listens at."""
    found = []
    for port in (7999, 7998):
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.connect((ADDRESS, port))
            found.append("connected")
        except OSError as error:
            found.append(errno.errorcode.get(error.errno, str(error.errno)))
        sock.close()
    return " ".join(found)


def connect():
    connected(ECHO).close()


def echo():
    with connected(ECHO) as sock:
        sock.sendall(b"over the border")
        assert exactly(sock, 15) == b"over the border"
        start = time.monotonic()
        for _ in range(200):
            sock.sendall(b"x" * 64)
            exactly(sock, 64)
        return f"{(time.monotonic() - start) * 5:.3f} ms"


def stalls():
    """How many echoes come before one does not. Only of those who are asked: whoever has no fault shows none."""
    with connected(ECHO) as sock:
        sock.settimeout(20)
        for number in range(50):
            sock.sendall(b"x" * 64)
            try:
                exactly(sock, 64)
            except TimeoutError:
                return f"after {number}"
            # What is told of taking an echo reaches the backend alone, not together with the next bytes.
            time.sleep(0.2)
    return "never"


def last():
    """The end of a stream that comes with its last bytes."""
    with connected(LAST) as sock:
        assert exactly(sock, 9) == b"all of it"
        sock.settimeout(20)
        try:
            assert not sock.recv(1)
        except TimeoutError:
            return "no end"
    return "end"


def lacks():
    """What version 1 has not: how each fails with XenSock's frontend."""
    if not os.environ.get("INSTALL"):
        return ""  # Linux's has an AF_INET alone
    tries = {
        "ipv6": lambda: socket.socket(socket.AF_INET6, socket.SOCK_STREAM).close(),
        "udp": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close(),
        "option": lambda: sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        "name": lambda: sock.getpeername(),
        "shutdown": lambda: sock.shutdown(socket.SHUT_WR),
    }
    found = []
    with connected(ECHO) as sock:
        for name, what in tries.items():
            try:
                what()
                found.append(f"{name}:0")
            except OSError as error:
                found.append(f"{name}:{errno.errorcode.get(error.errno, str(error.errno))}")
    return " ".join(found)


def upload():
    """16 MiB and their sum; the end of the stream is the close of the socket where there is no half-close."""
    with connected(SINK) as sock:
        digest = hashlib.sha256()
        start = time.monotonic()
        for number in range(SIZE >> 16):
            sock.sendall(block(number))
            digest.update(block(number))
        try:
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            return f"no half-close; sent {digest.hexdigest()}"
        line = b""
        while not line.endswith(b"\n"):
            line += sock.recv(200)
        assert line.split() == [b"%d" % SIZE, digest.hexdigest().encode()], line
        return f"{SIZE / (time.monotonic() - start) / 1e6:.1f} MB/s"


def download():
    with connected(SOURCE) as sock:
        digest, wanted, size = hashlib.sha256(), hashlib.sha256(), 0
        for number in range(SIZE >> 16):
            wanted.update(block(number))
        start = time.monotonic()
        while size < SIZE and (data := sock.recv(1 << 17)):
            digest.update(data)
            size += len(data)
        rate = f"{SIZE / (time.monotonic() - start) / 1e6:.1f} MB/s"
        assert (size, digest.digest()) == (SIZE, wanted.digest()), size
        sock.settimeout(20)
        try:
            assert not sock.recv(1)
        except TimeoutError:
            return f"{rate}, but no end"
        return rate


def listen():
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind(("0.0.0.0", PORT))
    listener.listen(4)
    print("listening", flush=True)
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    assert poll.poll(60_000), "nobody came"
    sock, _ = listener.accept()
    data = exactly(sock, 6)
    sock.sendall(data)
    sock.close()
    listener.close()
    return data.decode().strip()


def in_use():
    """A port that the backend's host uses."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        try:
            sock.bind((ADDRESS, ECHO))
            sock.listen(1)
            return "bound"
        except OSError as error:
            return errno.errorcode.get(error.errno, str(error.errno))


def in_flight():
    """Close with data on its way: all of it arrives, the peer says so."""
    with connected(SINK) as sock:
        for number in range(8):
            sock.sendall(block(number))
    return "closed"


def many():
    """Twenty at once, each by its own thread."""
    failed = []

    def one(number):
        try:
            with connected(ECHO) as sock:
                for _ in range(10):
                    sock.sendall(b"%06d" % number)
                    assert exactly(sock, 6) == b"%06d" % number
        except (OSError, AssertionError) as error:
            failed.append(str(error))

    threads = [threading.Thread(target=one, args=(n,)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed


def attach_anew():
    """Take the device again, once a backend serves it."""
    if os.environ.get("INSTALL"):
        import xensock

        xensock.attach(os.environ["XENSOCK"])
        return
    sys.path.insert(0, "/opt/xensock")
    from xensock.transport.xen_store import Store

    driver = Path("/sys/bus/xen/drivers/pvcalls")
    with contextlib.suppress(OSError):
        (driver / "unbind").write_text("pvcalls-0")
    # Linux's frontend does not begin with Initialising, and takes a backend that is Closed still for the end.
    store = Store()
    try:
        front = f"{store.path_of(store.own_domain())}/device/pvcalls/0"
        back = store.read(f"{front}/backend")
        store.write(front, {"state": "1"})
        for _ in range(100):
            if store.read(f"{back}/state") == "2":
                break
            time.sleep(0.1)
        else:
            raise OSError(errno.EAGAIN, f"the backend is in state {store.read(f'{back}/state')}")
    finally:
        store.close()
    with contextlib.suppress(OSError):
        (driver / "bind").write_text("pvcalls-0")
    if not (driver / "pvcalls-0").exists():
        raise OSError(errno.EAGAIN, "not bound")


def restarted():
    """The backend ends, and another begins: what was connected ends, what is new works."""
    sock = connected(ECHO)
    sock.sendall(b"before")
    assert exactly(sock, 6) == b"before"
    if not os.environ.get("INSTALL"):
        sock.close()  # Linux's frontend does not end what was connected
    print("backend-may-end", flush=True)
    print("backend-may-begin", flush=True)
    ended = ""
    if os.environ.get("INSTALL"):
        # Nobody tells that a process was killed; the next backend ends what it finds.
        try:
            ended = repr(sock.recv(1))
        except OSError as error:
            ended = errno.errorcode.get(error.errno, str(error))
        sock.close()
    deadline = time.monotonic() + 80
    while True:
        try:
            attach_anew()
            with connected(ECHO) as again:
                again.sendall(b"after")
                assert exactly(again, 5) == b"after"
                return ended
        except OSError as error:
            if time.monotonic() > deadline:
                raise
            print("+", error, flush=True)
            time.sleep(1)


def destroyed():
    """Sends until the domain is destroyed."""
    sock = connected(ENDLESS)
    print("destroy-me", flush=True)
    while True:
        sock.sendall(bytes(1 << 16))


ALL = (
    connect,
    echo,
    upload,
    download,
    last,
    refused,
    listen,
    in_use,
    lacks,
    in_flight,
    many,
    restarted,
    destroyed,
)

if __name__ == "__main__":
    if os.environ.get("INSTALL"):
        import xensock

        xensock.install()
    asked = dict(re.findall(r"(\w+)=(\S+)", Path("/proc/cmdline").read_text()))
    only = asked.get("only", ",".join(check.__name__ for check in ALL)).split(",")
    for check in (*ALL, stalls):
        if check.__name__ not in only or check.__name__ == asked.get("skip"):
            continue
        try:
            said = check()
        except Exception as error:
            print(check.__name__, "failed:", type(error).__name__, error, flush=True)
        else:
            print(check.__name__, "ok", said or "", flush=True)
