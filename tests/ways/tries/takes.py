"""Takes of the host what it can get, and says how much that was."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections import Counter


def taken(make, most: int) -> tuple[list, str]:
    """As many as can be had, and the error of the first that could not."""
    held = []
    while len(held) < most:
        try:
            held.append(make())
        except OSError as error:
            return held, errno.errorcode[error.errno or 0]
    return held, ""


def sockets(processes: str, each: str) -> dict:
    """In several processes (0: as many as it takes for so many in all), then once more after they have ended."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    count, most = int(processes), int(each)
    if not count:
        count = -(-most // min(hard - 64, 25_000))
        most = -(-most // count)
    rounds = []
    for _ in range(2):
        rounds.append(_in_processes(count, most))
        time.sleep(0.3)  # a limit that was reached is looked at again some time later
    (made, error), (again, _) = rounds
    return {"made": made, "error": error, "again": again}


def _in_processes(count: int, most: int) -> tuple[int, str]:
    children = []
    for _ in range(count):
        told_read, told = os.pipe()
        go, go_write = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(go_write)
            held, error = taken(socket.socket, most)
            os.write(told, f"{len(held)} {error}".encode())
            os.read(go, 1)
            os._exit(0)
        os.close(told)
        os.close(go)
        children.append((pid, told_read, go_write))
        # One after the other, each holding what it has.
        made = os.read(told_read, 100).decode().split()
        children[-1] = (pid, int(made[0]), go_write, made[1] if len(made) > 1 else "")
        os.close(told_read)
    for _, _, go_write, _ in children:  # all first: later children have the earlier ones', too
        os.close(go_write)
    for pid, _, _, _ in children:
        os.waitpid(pid, 0)
    return sum(child[1] for child in children), next((c[3] for c in children if c[3]), "")


def _port(kind: int = socket.SOCK_STREAM) -> socket.socket:
    made = socket.socket(socket.AF_INET, kind)
    try:
        made.bind(("0.0.0.0", 0))
    except OSError:
        made.close()
        raise
    return made


def ports(most: str) -> dict:
    held, error = taken(_port, int(most))
    made = len(held)
    for each in held:
        each.close()
    return {"made": made, "error": error, "again": len(taken(_port, int(most))[0])}


def datagram_ports(most: str) -> dict:
    """And again, once what is closed has come free, which is known a moment later."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    held, error = taken(lambda: _port(socket.SOCK_DGRAM), int(most))
    made = len(held)
    for each in held:
        each.close()
    again: list[socket.socket] = []
    deadline = time.monotonic() + 20
    while len(again) < made and time.monotonic() < deadline:
        again += taken(lambda: _port(socket.SOCK_DGRAM), made - len(again))[0]
    return {"made": made, "error": error, "again": len(again)}


def datagram_flows(host: str, port: str, count: str) -> dict:
    """A datagram to each of so many ports; then one that is answered, whose flow there was before them."""
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.2)
        got = []

        def ask(word: bytes) -> None:
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline:
                sock.sendto(word, (host, int(port)))
                with contextlib.suppress(OSError):
                    got.append(sock.recv(100).decode())
                    return

        ask(b"before")
        for other in range(10_000, 10_000 + int(count)):
            with contextlib.suppress(OSError):
                sock.sendto(b"x", (host, other))
        ask(b"after")
    return {"got": got}


def waiting(host: str, count: str) -> dict:
    """Threads that connect to where nobody answers; those that are refused say so."""
    errors: list[str] = []

    def connect() -> None:
        try:
            socket.socket().connect((host, 9))
        except OSError as error:
            errors.append(errno.errorcode[error.errno or 0])

    held = [threading.Thread(target=connect, daemon=True) for _ in range(int(count))]
    for each in held:
        each.start()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and len(errors) < int(count) - 20:
        time.sleep(0.01)
    time.sleep(0.2)
    return {**Counter(errors), "waiting": sum(each.is_alive() for each in held)}


def connections(host: str, port: str, most: str) -> dict:
    held, error = taken(lambda: socket.create_connection((host, int(port)), 10), int(most))
    return {"made": len(held), "error": error}


def calls(count: str) -> dict:
    """Connects to where nobody listens, as fast as they are answered."""
    begin = time.monotonic()
    sock = socket.socket()
    for _ in range(int(count)):
        with contextlib.suppress(OSError):
            sock.connect(("169.254.1.1", 9))
    return {"calls_a_second": int(count) / (time.monotonic() - begin)}


def flood(host: str, port: str) -> dict:
    """For ever, in six processes."""
    for _ in range(5):
        if not os.fork():
            break
    while True:
        with contextlib.suppress(OSError), socket.socket() as sock:
            sock.connect((host, int(port)))


def hoard(most: str) -> dict:
    """For ever: so many sockets held at once, and let go."""
    while True:
        sockets("0", most)


def forks(host: str, port: str) -> dict:
    """For ever: processes that fork, each child connecting."""
    for _ in range(3):
        if not os.fork():
            break
    _fork_for_ever(host, int(port))
    return {}


def bomb(silent: str, host: str, port: str, limit: str) -> dict:
    """Processes, as many as can be had, that all connect to where nobody answers; then some that fork for ever, each
    child connecting to where it is refused. Says how many of the first were refused, and what it reaches itself."""
    told, tell = os.pipe()
    children: list[int] = []
    why = ""
    while not why:
        try:
            pid = os.fork()
        except OSError as error:
            why = errno.errorcode[error.errno or 0]
            break
        if not pid:
            _wait_for(silent, tell)
        children.append(pid)
    said = ""
    while said.count("\n") < len(children) - int(limit):
        said += os.read(told, 65536).decode()
    for pid in children[-ROOM:]:  # room for others
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    for _ in range(ROOM // 4):
        if not os.fork():
            _fork_for_ever("127.0.0.1", 9)
    errors = Counter(said.split()[::2])
    print(json.dumps({"made": len(children), "fork": why, **errors}), flush=True)
    sys.stdin.readline()
    for pid in {*children[:-ROOM]} - {int(each) for each in said.split()[1::2]}:
        os.kill(pid, 9)  # so that its connect is over
        os.waitpid(pid, 0)
    deadline = time.monotonic() + 30
    while True:
        try:
            return reach(host, port)
        except BlockingIOError:  # that is known a moment later
            if time.monotonic() > deadline:
                raise


ROOM = 24


def _wait_for(silent: str, tell: int) -> None:
    try:
        socket.socket().connect((silent, 9))
    except OSError as error:
        os.write(tell, f"{errno.errorcode[error.errno or 0]} {os.getpid()}\n".encode())
    while True:
        signal.pause()


def _fork_for_ever(host: str, port: int) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        with contextlib.suppress(OSError):
            if not os.fork():
                socket.socket().connect_ex((host, port))
                os._exit(0)


def modest(host: str, port: str, seconds: str) -> dict:
    """A connection, a word, a pause."""
    count, begin = 0, time.monotonic()
    while time.monotonic() - begin < float(seconds):
        with socket.create_connection((host, int(port)), 10) as sock:
            assert sock.recv(10)
        count += 1
        time.sleep(0.05)
    return {"rate": count / (time.monotonic() - begin)}


def reach(host: str, port: str) -> dict:
    with socket.create_connection((host, int(port)), 10) as sock:
        sock.sendall(b"x")
        return {"got": sock.recv(1).decode()}


CALLS = (
    *(
        sockets,
        ports,
        datagram_ports,
        datagram_flows,
        waiting,
        connections,
        calls,
        flood,
        hoard,
        forks,
        bomb,
        modest,
    ),
    reach,
)
result = {call.__name__: call for call in CALLS}[sys.argv[1]](*sys.argv[2:])
print(json.dumps(result), flush=True)
os._exit(0)
