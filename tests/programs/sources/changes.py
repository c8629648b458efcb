"""A program that lives through changes of the host's network; commands on stdin, a line back each.

get HOST [PORT]          how the web server there sees us, or the error's name
open NAME HOST PORT      a connection that stays
say NAME TEXT SECONDS    TEXT to its echo and back; the answer, "silence" or the error's name
option NAME MILLIS       TCP_USER_TIMEOUT of it (tcp(7))
close NAME
serve HOST PORT          answer connections from now on with the client's address
"""

import errno
import socket
import sys
import threading

kept: dict[str, socket.socket] = {}
PROMPT = 3.0


def named(error: OSError) -> str:
    if isinstance(error, TimeoutError) and error.errno is None:
        return "silence"
    return errno.errorcode.get(error.errno or 0, repr(error))


def get(host: str, port: str = "80") -> str:
    with socket.create_connection((host, int(port)), timeout=PROMPT) as sock:
        sock.sendall(b"GET /address HTTP/1.0\r\n\r\n")
        with sock.makefile() as file:
            return file.read().split("\n")[-2]


def keep(name: str, host: str, port: str, millis: str = "0") -> str:
    sock = kept[name] = socket.socket()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(millis))
    sock.settimeout(PROMPT)
    sock.connect((host, int(port)))
    return "open"


def say(name: str, text: str, seconds: str) -> str:
    sock = kept[name]
    sock.settimeout(float(seconds))
    sock.sendall(text.encode())
    back = b""
    while len(back) < len(text):
        part = sock.recv(len(text) - len(back))
        if not part:
            return "end"
        back += part
    return back.decode()


def option(name: str, millis: str) -> str:
    kept[name].setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(millis))
    return "set"


def close(name: str) -> str:
    kept.pop(name).close()
    return "closed"


def serve(host: str, port: str) -> str:
    listener = socket.create_server((host if host != "any" else "", int(port)))

    def work() -> None:
        while True:
            sock, client = listener.accept()
            with sock:
                sock.sendall(client[0].encode() + b"\n")

    threading.Thread(target=work, daemon=True).start()
    return "serving"


VERBS = {"get": get, "open": keep, "say": say, "option": option, "close": close, "serve": serve}
for line in sys.stdin:
    verb, *words = line.split()
    try:
        print(VERBS[verb](*words), flush=True)
    except OSError as error:
        print(named(error), flush=True)
