"""Signals in the middle of blocking calls: EINTR, SA_RESTART, Ctrl-C, and who carries on."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time

from kit import Far, Net, both, child, echo, main, outcome, poll, raw, raw_connect, say, set_timeval


def ticks(restart: bool, first: float = 0.15, then: float = 0.0) -> list[int]:
    """SIGALRM after `first` seconds; the list grows by one per signal."""
    seen: list[int] = []
    signal.signal(signal.SIGALRM, lambda number, _frame: seen.append(number))
    signal.siginterrupt(signal.SIGALRM, not restart)
    signal.setitimer(signal.ITIMER_REAL, first, then)
    return seen


@both
def connect_eintr(net: Net) -> None:
    far = Far()
    port = far.blackhole(net)
    where = net.raw(net.peer, port)
    sock = net.socket()
    seen = ticks(restart=False)
    say("connect", raw_connect(sock, where), "EINTR")
    say("handler ran", len(seen), 1)
    say("still trying", poll(sock, seconds=0.05), "-")
    seen = ticks(restart=False)
    say("again", raw_connect(sock, where), "EINTR")
    say("handler ran again", len(seen), 1)
    far.open(port)
    say("writable", poll(sock), "OUT")
    say("third", raw_connect(sock, where), 0)
    say("fourth", raw_connect(sock, where), "EISCONN")
    say("echo", echo(sock), "hello")


@both
def connect_eintr_goes_on(net: Net) -> None:
    """A connect issued again after EINTR waits for the attempt under way."""
    far = Far()
    port = far.blackhole(net)
    where = net.raw(net.peer, port)
    sock = net.socket()
    ticks(restart=False)
    say("connect", raw_connect(sock, where), "EINTR")
    far.open(port)
    say("again", raw_connect(sock, where), 0)
    say("echo", echo(sock), "hello")


@both
def connect_restart(net: Net) -> None:
    """SA_RESTART: the handler runs, often, and connect goes on as if nothing was."""
    far = Far()
    port = far.blackhole(net)
    seen = ticks(restart=True, first=0.1, then=0.1)
    timer = threading.Timer(0.5, lambda: far.open(port))
    timer.start()
    sock = net.socket()
    say("connect", raw_connect(sock, net.raw(net.peer, port)), 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    say("handler ran", len(seen) >= 1, True)
    say("again", raw_connect(sock, net.raw(net.peer, port)), "EISCONN")
    say("echo", echo(sock), "hello")


@both
def connect_restart_with_timeout(net: Net) -> None:
    """With SO_SNDTIMEO set, Linux gives EINTR even under SA_RESTART (signal(7))."""
    far = Far()
    where = net.raw(net.peer, far.blackhole(net))
    sock = net.socket()
    set_timeval(sock, socket.SO_SNDTIMEO, 30)
    ticks(restart=True)
    say("connect", raw_connect(sock, where), "EINTR")


@both
def connect_restart_refused(net: Net) -> None:
    """Signals rain while a connect is refused."""
    from kit import PORTS

    ticks(restart=True, first=0.001, then=0.001)
    results = set()
    for _ in range(50):
        with net.socket() as sock:
            results.add(raw_connect(sock, net.raw(net.peer, PORTS["closed"])))
    signal.setitimer(signal.ITIMER_REAL, 0)
    say("results", sorted(map(str, results)), ["ECONNREFUSED"])


@both
def connect_in_the_rain(net: Net) -> None:
    """Signals every millisecond: each connect succeeds, and each socket works."""
    from kit import PORTS

    ticks(restart=True, first=0.001, then=0.001)
    results = set()
    for turn in range(100):
        with net.socket() as sock:
            results.add(raw_connect(sock, net.raw(net.peer, PORTS["echo"])))
            results.add(echo(sock, str(turn).encode()) == str(turn))
    signal.setitimer(signal.ITIMER_REAL, 0)
    say("results", sorted(map(str, results)), ["0", "True"])


@both
def bind_in_the_rain(net: Net) -> None:
    """bind and listen are never interrupted, nor done twice."""
    ticks(restart=False, first=0.001, then=0.001)
    results = set()
    for _ in range(100):
        with net.socket() as sock:
            address = net.raw(net.any, 0)
            results.add(raw("bind", sock.fileno(), address, len(address)))
            results.add(raw("listen", sock.fileno(), 5))
    signal.setitimer(signal.ITIMER_REAL, 0)
    say("results", sorted(map(str, results)), ["0"])


@both
def socket_in_the_rain(net: Net) -> None:
    """socket() neither fails nor leaks a descriptor."""
    ticks(restart=False, first=0.001, then=0.001)
    before = len(os.listdir("/proc/self/fd"))
    results = set()
    for _ in range(300):
        number = raw("socket", int(net.family), int(socket.SOCK_STREAM), 0)
        results.add(isinstance(number, int))
        if isinstance(number, int):
            os.close(number)
    signal.setitimer(signal.ITIMER_REAL, 0)
    say("results", sorted(results), [True])
    say("leaked", len(os.listdir("/proc/self/fd")) - before, 0)


@both
def control_c(net: Net) -> None:
    """SIGINT in a blocking connect is a KeyboardInterrupt at once."""
    far = Far()
    port = far.blackhole(net)
    sock = net.socket()
    me = os.getpid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Timer(0.2, os.kill, (me, signal.SIGINT)).start()
    started = time.monotonic()
    try:
        sock.connect((net.peer, port))
        said = "connected"
    except KeyboardInterrupt:
        said = "KeyboardInterrupt"
    say("connect", said, "KeyboardInterrupt")
    say("at once", time.monotonic() - started < 5, True)
    say("socket usable", outcome(sock.getpeername), "ENOTCONN")


@both
def killed_while_connecting(net: Net) -> None:
    """A process in a blocking connect dies of SIGKILL and SIGTERM at once."""
    far = Far()
    port = far.blackhole(net)
    for number in (signal.SIGTERM, signal.SIGKILL):
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            net.socket().connect((net.peer, port))
            os._exit(0)
        time.sleep(0.15)
        os.kill(pid, number)
        started = time.monotonic()
        _, status = os.waitpid(pid, 0)
        say(f"{number.name} ended it", os.WTERMSIG(status), int(number))
        say(f"{number.name} at once", time.monotonic() - started < 5, True)


@both
def stopped_while_connecting(net: Net) -> None:
    """SIGSTOP and SIGCONT in a blocking connect: it goes on (signal(7): connect restarts)."""
    far = Far()
    port = far.blackhole(net)

    def body() -> None:
        sock = net.socket()
        say("connect", raw_connect(sock, net.raw(net.peer, port)), 0)
        say("echo", echo(sock), "hello")

    with child(body) as pid:
        time.sleep(0.15)
        os.kill(pid, signal.SIGSTOP)
        os.waitpid(pid, os.WUNTRACED)
        time.sleep(0.05)
        os.kill(pid, signal.SIGCONT)
        far.open(port)


@both
def other_calls_eintr(net: Net) -> None:
    """accept, recv, send and poll; with and without a timeout and SA_RESTART."""
    listener = net.listener()
    ticks(restart=False)
    say("accept", raw("accept", listener.fileno(), None, None), "EINTR")
    sock = net.far("echo")
    ticks(restart=False)
    say("recv", raw("recv", sock.fileno(), bytes(8), 8, 0), "EINTR")
    set_timeval(sock, socket.SO_RCVTIMEO, 0.1)
    say("recv with timeout", raw("recv", sock.fileno(), bytes(8), 8, 0), "EAGAIN")
    set_timeval(sock, socket.SO_RCVTIMEO, 5)
    ticks(restart=True)
    say("recv with timeout, restart", raw("recv", sock.fileno(), bytes(8), 8, 0), "EINTR")
    set_timeval(listener, socket.SO_RCVTIMEO, 0.1)
    say("accept with timeout", raw("accept", listener.fileno(), None, None), "EAGAIN")
    set_timeval(sock, socket.SO_RCVTIMEO, 0)
    seen = ticks(restart=True, first=0.1, then=0.1)
    threading.Timer(0.35, sock.sendall, (b"late",)).start()
    say("recv restarted", raw("recv", sock.fileno(), bytes(8), 8, 0), 4)
    signal.setitimer(signal.ITIMER_REAL, 0)
    say("handler ran", len(seen) >= 1, True)


@both
def default_ignored(net: Net) -> None:
    """A signal that is ignored by default (SIGWINCH, SIGCHLD) does not disturb a connect."""
    far = Far()
    port = far.blackhole(net)
    stop = threading.Event()

    def storm() -> None:
        while not stop.is_set():
            os.kill(os.getpid(), signal.SIGWINCH)
            stop.wait(0.02)

    thread = threading.Thread(target=storm)
    thread.start()
    threading.Timer(0.4, lambda: far.open(port)).start()
    sock = net.socket()
    say("connect", raw_connect(sock, net.raw(net.peer, port)), 0)
    stop.set()
    thread.join()
    say("echo", echo(sock), "hello")


@both
def timeout_storm(net: Net) -> None:
    """Attempts cut short by alarms leave nothing behind that spoils later ones."""
    from kit import PORTS

    far = Far()
    port = far.blackhole(net)
    for _ in range(10):
        ticks(restart=False, first=0.02)
        with net.socket() as sock:
            raw_connect(sock, net.raw(net.peer, port))
    with contextlib.closing(net.socket()) as sock:
        say("connect", outcome(sock.connect, (net.peer, PORTS["echo"])), "ok")
        say("echo", echo(sock), "hello")


main()
