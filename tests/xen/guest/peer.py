"""The far end of what the probes do: servers on an address, one port a kind. peer.py ADDRESS [SECONDS]"""

import contextlib
import errno
import hashlib
import select
import socket
import sys
import threading

ECHO, SINK, SOURCE, ENDLESS, DEAF, LAST = 7001, 7002, 7003, 7004, 7005, 7006
SIZE = 16 << 20


def block(number):
    """64 KiB that depend on their place."""
    return hashlib.sha256(b"%d" % number).digest() * 2048


def echo(sock):
    while data := sock.recv(65536):
        sock.sendall(data)


def sink(sock):
    """Says what came, once its end came."""
    digest, size = hashlib.sha256(), 0
    while data := sock.recv(1 << 20):
        digest.update(data)
        size += len(data)
    line = b"%d %s\n" % (size, digest.hexdigest().encode())
    sys.stdout.write("sink " + line.decode())
    sys.stdout.flush()
    with contextlib.suppress(OSError):  # whoever closed its whole socket does not hear it
        sock.sendall(line)


def source(sock):
    for number in range(SIZE >> 16):
        sock.sendall(block(number))


def endless(sock):
    """Says that much came, and how it ended."""
    size = 0
    try:
        while data := sock.recv(1 << 16):
            if size < 1 << 20 <= size + len(data):
                print("flowing", flush=True)
            size += len(data)
        print("endless ended", flush=True)
    except OSError as error:
        print("endless ended", errno.errorcode[error.errno], flush=True)


def deaf(sock):
    """Takes nothing, until the other end is gone."""
    poll = select.poll()
    poll.register(sock, 0)  # POLLHUP and POLLERR come unasked
    poll.poll(60_000)


def last(sock):
    """A few bytes, and with them, in one segment, the end."""
    sock.send(b"all of it", socket.MSG_MORE)
    sock.shutdown(socket.SHUT_WR)
    deaf(sock)


def serve(address, port, what):
    listener = socket.create_server((address, port), backlog=64)

    def one(sock):
        with sock:
            try:
                what(sock)
            except OSError as error:
                print(what.__name__, error, flush=True)

    while True:
        threading.Thread(target=one, args=(listener.accept()[0],), daemon=True).start()


if __name__ == "__main__":
    for port, what in (
        (ECHO, echo),
        (SINK, sink),
        (SOURCE, source),
        (ENDLESS, endless),
        (DEAF, deaf),
        (LAST, last),
    ):
        threading.Thread(target=serve, args=(sys.argv[1], port, what), daemon=True).start()
    print("peer ready", flush=True)
    threading.Event().wait(float(sys.argv[2]) if len(sys.argv) > 2 else None)
