"""A guest over rings with listeners, at which whatever comes is sent back: `echoes.py URL LISTENERS`.

Says its ports in one line, and how many connections there were once its standard input ends.
"""

import contextlib
import resource
import selectors
import sys

from xensock.client import sockets
from xensock.client.attachment import open_link

HOST = "127.0.0.1"
MOST = 1 << 16


def main() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    link = open_link(sys.argv[1], "echoes")
    selector = selectors.DefaultSelector()
    ports = []
    for _ in range(int(sys.argv[2])):
        sock = sockets.socket(link=link)
        sock.bind((HOST, 0))
        sock.listen(64)
        sock.setblocking(False)
        ports.append(sock.getsockname()[1])
        selector.register(sock, selectors.EVENT_READ, "listener")
    print(*ports, flush=True)
    selector.register(sys.stdin, selectors.EVENT_READ, "end")
    count = 0
    while True:
        for key, _ in selector.select():
            sock = key.fileobj
            if key.data == "end":
                print(count, flush=True)
                return
            if key.data == "listener":
                with contextlib.suppress(BlockingIOError):
                    end, _ = sock.accept()
                    end.setblocking(True)
                    selector.register(end, selectors.EVENT_READ, "connection")
                    count += 1
            elif data := sock.recv(MOST):
                sock.sendall(data)
            else:
                selector.unregister(sock)
                sock.close()


main()
