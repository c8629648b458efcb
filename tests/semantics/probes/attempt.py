"""Try one thing after another and print what came of it: the isolation tests' hands.

    python3 attempt.py connect HOST PORT [read|nonblocking]     listen HOST PORT [reuseport]
                       serve HOST PORT [TEXT]   resolve NAME    unix PATH     each      (from stdin)

One line of JSON per attempt. `listen` and `serve` hold their socket until standard input ends;
`each` takes attempts as lines from standard input, for as long as it lasts.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time

from kit import name, outcome, pending, poll, read_all


def family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def connect(host: str, port: str, how: str = "") -> object:
    kind = family(host) if host.replace(".", "").isdigit() or ":" in host else socket.AF_INET
    with socket.socket(kind, socket.SOCK_STREAM) as sock:
        if how == "nonblocking":
            sock.setblocking(False)
            first = outcome(sock.connect, (host, int(port)))
            return [first, poll(sock, 4), pending(sock)] if first == "EINPROGRESS" else first
        # Long enough for every answer of the world, short enough for a test.
        sock.settimeout(8)
        result = outcome(sock.connect, (host, int(port)))
        return read_all(sock).decode() if how == "read" and result == "ok" else result


def listener(host: str, port: str, how: str = "") -> socket.socket:
    sock = socket.socket(family(host), socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # an earlier test used the port
    if how == "reuseport":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind((host, int(port)))
    sock.listen()
    return sock


def listen(host: str, port: str, how: str = "") -> object:
    try:
        sock = listener(host, port, how)
    except OSError as error:
        return name(error.errno or 0)
    say("ok")
    sys.stdin.read()
    sock.close()
    return "closed"


def serve(host: str, port: str, text: str = "served") -> object:
    sock = listener(host, port)
    say("ok")
    while True:
        ready, _, _ = select.select([sock, sys.stdin], [], [])
        if sys.stdin in ready:
            return "closed"
        conn, _ = sock.accept()
        with conn:
            conn.sendall(text.encode())


def resolve(host: str) -> object:
    started = time.monotonic()
    try:
        found: object = sorted({e[4][0] for e in socket.getaddrinfo(host, None)})
    except socket.gaierror as error:
        found = {socket.EAI_NONAME: "NONAME", socket.EAI_AGAIN: "AGAIN"}.get(
            error.errno or 0, f"gai {error.errno}"
        )
    return found if time.monotonic() - started < 1 else [found, "slow"]


def unix(path: str) -> object:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        return outcome(sock.connect, "\0" + path[1:] if path.startswith("@") else path)


def each() -> object:
    for line in sys.stdin:
        words = line.split()
        say(ACTIONS[words[0]](*words[1:]))
    return "end"


ACTIONS = {f.__name__: f for f in (connect, listen, serve, resolve, unix, each)}


def say(what: object) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    say(ACTIONS[sys.argv[1]](*sys.argv[2:]))
