"""Runs in a container: echoes on many listeners, makes calls all the while, and says how they went.

LISTENERS ECHO-ADDRESS ECHO-PORT. It says the listeners' ports, and then takes commands, a line each, by two pipes in
/talk, which are no backend's business. Every answer is a line of JSON.
"""

from __future__ import annotations

import json
import os
import resource
import select
import socket
import sys
import threading
import time
from pathlib import Path

CALLERS = 4
BLOCK = 2048


def received(sock: socket.socket, count: int) -> bytes:
    """So many bytes. Raises OSError; EOFError with an end before that."""
    got = b""
    while len(got) < count:
        more = sock.recv(count - len(got))
        if not more:
            raise EOFError(f"after {len(got)} of {count} bytes")
        got += more
    return got


def echo(listeners: list[socket.socket]) -> None:
    """Send back to every client of the listeners what it sends, in one thread."""
    waits = select.epoll()
    known = {each.fileno(): each for each in listeners}
    listening = set(known)
    for fd in known:
        waits.register(fd, select.EPOLLIN)
    while True:
        for fd, _ in waits.poll():
            if fd in listening:
                client, _ = known[fd].accept()
                known[client.fileno()] = client
                waits.register(client.fileno(), select.EPOLLIN)
                continue
            try:
                data = known[fd].recv(65536)
                if data:
                    known[fd].sendall(data)
            except OSError:
                data = b""
            if not data:
                waits.unregister(fd)
                known.pop(fd).close()


class Callers:
    """Threads that connect, exchange a block and check it, bind and listen, over and over."""

    def __init__(self, server: tuple[str, int]) -> None:
        self._server = server
        self.done = [0] * CALLERS
        self.wrong: list[str] = []
        for number in range(CALLERS):
            threading.Thread(target=self._call, args=(number,), daemon=True).start()

    def _call(self, number: int) -> None:
        while True:
            try:
                self._once()
            except (OSError, EOFError, AssertionError) as error:
                self.wrong.append(repr(error))
            self.done[number] += 1

    def _once(self) -> None:
        with socket.create_connection(self._server) as sock:
            block = os.urandom(BLOCK)
            sock.sendall(block)
            assert received(sock, BLOCK) == block
        with socket.socket() as sock:
            sock.bind(("", 0))
            sock.listen()
            port = sock.getsockname()[1]
            assert port
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
                other.bind(("", 0))


class Ends:
    """Connections to the server that are open, and when and how each ends."""

    def __init__(self, server: tuple[str, int], count: int) -> None:
        self.found: list[tuple[float, str]] = []
        socks = [socket.create_connection(server) for _ in range(count)]
        for each in socks:
            each.sendall(b"x")
            received(each, 1)
        for each in socks:
            threading.Thread(target=self._wait, args=(each,), daemon=True).start()

    def _wait(self, sock: socket.socket) -> None:
        try:
            how = "more" if sock.recv(1) else "end"
        except OSError as error:
            how = type(error).__name__
        self.found.append((time.monotonic(), how))
        sock.close()


def attempts(made: list[socket.socket], server: tuple[str, int]) -> dict[str, object]:
    """Every way to the server that there is: the errno of each, 0 where it led there.

    `made`: three TCP sockets and one for datagrams, from before.
    """
    first, second, third, datagrams = made
    ways = {
        "socket": lambda: socket.socket().close(),
        "connect": lambda: first.connect(server),
        "fast open": lambda: second.sendto(b"x", socket.MSG_FASTOPEN, server),
        "listen": lambda: third.listen(),
        "send": lambda: datagrams.sendto(b"x", server),
        "new": lambda: socket.create_connection(server).close(),
    }
    found: dict[str, object] = {}
    for name, way in ways.items():
        try:
            way()
            found[name] = 0
        except OSError as error:
            found[name] = error.errno
    return found


def prepared() -> list[socket.socket]:
    kinds = [socket.SOCK_STREAM] * 3 + [socket.SOCK_DGRAM]
    return [socket.socket(socket.AF_INET, kind) for kind in kinds]


def main(listeners: int, address: str, port: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    server = (address, port)
    made = [socket.create_server(("", 0), backlog=128) for _ in range(listeners)]
    threading.Thread(target=echo, args=(made,), daemon=True).start()
    callers: Callers | None = None
    ends: Ends | None = None
    ready: list[socket.socket] = []
    answer: object = [each.getsockname()[1] for each in made]
    with Path("/talk/commands").open() as commands, Path("/talk/answers").open("w") as answers:
        while True:
            print(json.dumps(answer), file=answers, flush=True)
            words = commands.readline().split()
            match words:
                case ["call"]:
                    callers = Callers(server)
                    answer = None
                case ["progress"] if callers is not None:
                    answer = {"done": callers.done, "wrong": callers.wrong}
                case ["open", count]:
                    ends = Ends(server, int(count))
                    answer = None
                case ["ends"] if ends is not None:
                    answer = ends.found
                case ["prepare"]:
                    ready = prepared()
                    answer = None
                case ["attempt", where, which]:
                    answer = attempts(ready, (where, int(which)))
                case _:
                    return


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
