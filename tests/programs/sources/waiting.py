"""Connections to a host that never answers: `waiting.py ADDRESS`."""

import errno
import os
import signal
import socket
import sys
import threading
import time

far = (sys.argv[1], 80)
ran: list[int] = []


class Raised(Exception):
    pass


def raising(*_: object) -> None:
    raise Raised


def attempt(timeout: float | None) -> str:
    with socket.socket() as sock:
        sock.settimeout(timeout)
        try:
            sock.connect(far)
        except Raised:
            return "handler raised"
        except TimeoutError:
            return "timed out"
        return "connected"


def tick(*_: object) -> None:
    ran.append(1)
    if len(ran) == 3:
        os.kill(os.getpid(), signal.SIGUSR1)


# A handler that returns does not end a blocking connect; one that raises does.
signal.signal(signal.SIGALRM, tick)
signal.signal(signal.SIGUSR1, raising)
signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
ended = attempt(None)
signal.setitimer(signal.ITIMER_REAL, 0)
print("handler ran" if len(ran) >= 3 else f"handler ran {len(ran)} times")
print(ended)

start = time.monotonic()
print(attempt(0.3) if time.monotonic() - start < 3 else "late")

with socket.socket() as sock:
    sock.setblocking(False)
    codes = [errno.errorcode.get(sock.connect_ex(far), "connected") for _ in range(2)]
print(" then ".join(codes))

# While one thread waits, another opens and closes sockets.
signal.signal(signal.SIGUSR1, signal.SIG_DFL)
waiter = threading.Thread(target=attempt, args=(1.0,))
waiter.start()
start = time.monotonic()
for _ in range(50):
    socket.socket().close()
print("other threads went on" if time.monotonic() - start < 0.9 else "others had to wait")
waiter.join()
