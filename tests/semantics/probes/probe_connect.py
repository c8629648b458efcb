"""Connecting to the world: blocking, non-blocking, refused, unanswered, unreachable, malformed."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import socket
import threading
import time

from kit import (
    PORTS,
    SITE,
    Far,
    Net,
    both,
    echo,
    main,
    mask,
    outcome,
    pending,
    poll,
    probe,
    raw,
    raw_connect,
    read_all,
    say,
    set_timeval,
    wait_for,
)


@both
def blocking(net: Net) -> None:
    sock = net.socket()
    number = sock.fileno()
    say("connect", outcome(sock.connect, (net.peer, PORTS["echo"])), "ok")
    say("descriptor unchanged", sock.fileno() == number, True)
    say("echo", echo(sock), "hello")
    say("peer", mask(sock.getpeername(), (PORTS["echo"], "echo")), f"{net.peer} echo")
    say("again", outcome(sock.connect, (net.peer, PORTS["echo"])), "EISCONN")
    say("elsewhere", outcome(sock.connect, (net.peer, PORTS["greet"])), "EISCONN")
    say("still", echo(sock, b"still"), "still")


@both
def names(net: Net) -> None:
    """The local name is the one the peer sees."""
    sock = net.far("greet")
    host, port = json.loads(read_all(sock))
    say("own address", sock.getsockname()[0], net.host)
    say("own name is what the peer sees", [host, port] == list(sock.getsockname()[:2]), True)
    fresh = net.socket()
    say("fresh name", mask(fresh.getsockname()))
    say("fresh peer", outcome(fresh.getpeername), "ENOTCONN")


@both
def non_blocking(net: Net) -> None:
    far = Far()
    port = far.blackhole(net)
    sock = net.socket(socket.SOCK_NONBLOCK)
    say("first", outcome(sock.connect, (net.peer, port)), "EINPROGRESS")
    say("second", outcome(sock.connect, (net.peer, port)), "EALREADY")
    say("not writable", poll(sock, seconds=0.05), "-")
    say("no peer yet", outcome(sock.getpeername), "ENOTCONN")
    say("has a name", mask(sock.getsockname()))
    say("recv", outcome(sock.recv, 1), "EAGAIN")
    say("send", outcome(sock.send, b"x"), "EAGAIN")
    far.open(port)
    say("writable", poll(sock), "OUT")
    say("SO_ERROR", pending(sock), "ok")
    say("peer", mask(sock.getpeername(), (port, "port")), f"{net.peer} port")
    say("third", outcome(sock.connect, (net.peer, port)), "ok")
    say("fourth", outcome(sock.connect, (net.peer, port)), "EISCONN")
    sock.setblocking(True)
    say("echo", echo(sock), "hello")


@both
def non_blocking_quick(net: Net) -> None:
    """A peer that answers at once; EINPROGRESS all the same."""
    sock = net.socket()
    sock.setblocking(False)
    say("first", outcome(sock.connect, (net.peer, PORTS["echo"])), "EINPROGRESS")
    say("writable", poll(sock), "OUT")
    say("SO_ERROR", pending(sock), "ok")
    say("second", outcome(sock.connect, (net.peer, PORTS["echo"])), "ok")
    say("third", outcome(sock.connect, (net.peer, PORTS["echo"])), "EISCONN")
    say("O_NONBLOCK kept", bool(fcntl.fcntl(sock, fcntl.F_GETFL) & os.O_NONBLOCK), True)


@both
def refused(net: Net) -> None:
    sock = net.socket()
    say("connect", outcome(sock.connect, (net.peer, PORTS["closed"])), "ECONNREFUSED")
    say("SO_ERROR", pending(sock), "ok")
    say("events", poll(sock))
    say("recv", outcome(sock.recv, 1), "ENOTCONN")
    say("again", outcome(sock.connect, (net.peer, PORTS["closed"])), "ECONNREFUSED")
    say("then elsewhere", outcome(sock.connect, (net.peer, PORTS["echo"])), "ok")
    say("echo", echo(sock), "hello")


@both
def refused_non_blocking(net: Net) -> None:
    sock = net.socket(socket.SOCK_NONBLOCK)
    say("connect", outcome(sock.connect, (net.peer, PORTS["closed"])), "EINPROGRESS")
    say("events", poll(sock))
    say("SO_ERROR", pending(sock), "ECONNREFUSED")
    say("SO_ERROR again", pending(sock), "ok")
    say("events after", poll(sock))
    other = net.socket(socket.SOCK_NONBLOCK)
    outcome(other.connect, (net.peer, PORTS["closed"]))
    poll(other)
    say("second connect", outcome(other.connect, (net.peer, PORTS["closed"])), "ECONNREFUSED")
    say("third connect", outcome(other.connect, (net.peer, PORTS["closed"])), "EINPROGRESS")
    poll(other)
    say("recv", outcome(other.recv, 1), "ECONNREFUSED")
    say("recv again", outcome(other.recv, 1))
    say("fourth connect", outcome(other.connect, (net.peer, PORTS["closed"])), "ECONNABORTED")
    other.setblocking(True)
    say("fifth connect", outcome(other.connect, (net.peer, PORTS["greet"])), "ok")
    seen = json.loads(read_all(other))
    say("own name is what the peer sees", seen == list(other.getsockname()[:2]), True)


@both
def close_while_pending(net: Net) -> None:
    far = Far()
    port = far.blackhole(net)
    for _ in range(5):
        sock = net.socket(socket.SOCK_NONBLOCK)
        outcome(sock.connect, (net.peer, port))
        number = sock.fileno()
        sock.close()
    again = net.socket()
    say("number reused", again.fileno() == number, True)
    say("connect", outcome(again.connect, (net.peer, PORTS["echo"])), "ok")
    say("echo", echo(again), "hello")
    far.open(port)
    say("not disturbed", echo(again, b"fine"), "fine")


@both
def shutdown_while_pending(net: Net) -> None:
    far = Far()
    sock = net.socket(socket.SOCK_NONBLOCK)
    outcome(sock.connect, (net.peer, far.blackhole(net)))
    say("shutdown", outcome(sock.shutdown, socket.SHUT_RDWR))
    say("events", poll(sock, seconds=0.2))
    say("SO_ERROR", pending(sock))


@both
def shutdown_wakes_connect(net: Net) -> None:
    """Another thread's shutdown ends a blocking connect."""
    far = Far()
    sock = net.socket()
    result: list[object] = []
    where = (net.peer, far.blackhole(net))
    thread = threading.Thread(target=lambda: result.append(outcome(sock.connect, where)))
    thread.start()
    thread.join(0.2)
    say("still connecting", thread.is_alive(), True)
    say("shutdown", outcome(sock.shutdown, socket.SHUT_RDWR))
    thread.join(10)
    say("connect", result)


@both
def unanswered_timeout(net: Net) -> None:
    """SO_SNDTIMEO bounds connect: EINPROGRESS, and it goes on in the background."""
    far = Far()
    port = far.blackhole(net)
    sock = net.socket()
    set_timeval(sock, socket.SO_SNDTIMEO, 0.2)
    where = net.raw(net.peer, port)
    say("connect", raw_connect(sock, where), "EINPROGRESS")
    say("second", raw_connect(sock, where), "EALREADY")
    far.open(port)
    say("writable", poll(sock), "OUT")
    say("third", raw_connect(sock, where), 0)
    say("fourth", raw_connect(sock, where), "EISCONN")
    say("echo", echo(sock), "hello")


@both
def user_timeout(net: Net) -> None:
    """TCP_USER_TIMEOUT ends an unanswered connect with ETIMEDOUT."""
    far = Far()
    sock = net.socket()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 500)
    say("connect", outcome(sock.connect, (net.peer, far.blackhole(net))), "ETIMEDOUT")
    say("then", outcome(sock.connect, (net.peer, PORTS["echo"])), "ok")
    say("echo", echo(sock), "hello")


@both
def syn_count(net: Net) -> None:
    """TCP_SYNCNT 1 gives up by itself, non-blocking too."""
    far = Far()
    sock = net.socket(socket.SOCK_NONBLOCK)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, 1)
    outcome(sock.connect, (net.peer, far.blackhole(net)))
    say("events", poll(sock))
    say("SO_ERROR", pending(sock), "ETIMEDOUT")


@both
def python_timeout(net: Net) -> None:
    far = Far()
    sock = net.socket()
    sock.settimeout(0.2)
    say("connect", outcome(sock.connect, (net.peer, far.blackhole(net))), "TimeoutError")


@both
def nowhere(net: Net) -> None:
    """Routes that end in an error; a second try gives the same."""
    for want, address in sorted(net.nowhere.items()):
        for kind, flags in (("blocking", 0), ("non-blocking", socket.SOCK_NONBLOCK)):
            sock = net.socket(flags)
            say(f"{kind} {want}", outcome(sock.connect, (address, 80)), want)
            say(f"{kind} {want} again", outcome(sock.connect, (address, 80)), want)
            say(f"{kind} {want} pending", pending(sock), "ok")
            say(f"{kind} {want} then", outcome(sock.connect, (net.peer, PORTS["echo"])))


@both
def unreachable_by_icmp(net: Net) -> None:
    """A router on the way says that there is no such host."""
    if not (address := SITE.get(f"unreachable{net.version}")):
        return
    sock = net.socket()
    say("blocking", outcome(sock.connect, (address, 80)), "EHOSTUNREACH")
    say("then", outcome(sock.connect, (net.peer, PORTS["echo"])), "ok")
    sock = net.socket(socket.SOCK_NONBLOCK)
    say("non-blocking", outcome(sock.connect, (address, 80)), "EINPROGRESS")
    # The error wakes the poller just before the socket is closed.
    say("events", wait_for(lambda: poll(sock) == "IN|OUT|ERR|HUP|RDHUP"), True)
    say("SO_ERROR", pending(sock), "EHOSTUNREACH")


@both
def blackhole_delays_nobody(net: Net) -> None:
    """One thread waits for a SYN's answer; all other calls go on."""
    far = Far()
    port = far.blackhole(net)
    order: list[str] = []
    started = threading.Event()

    def slow() -> None:
        sock = net.socket()
        started.set()
        say("slow connect", outcome(sock.connect, (net.peer, port)), "ok")
        order.append("slow connect")

    threads = [threading.Thread(target=slow)]
    threads[0].start()
    started.wait()
    threads[0].join(0.2)
    for index in range(10):
        sock = net.socket()
        outcome(sock.connect, (net.peer, PORTS["echo"]))
        echo(sock)
        sock.close()
        listener = net.listener()
        listener.close()
        order.append(f"quick {index}")
    order.append("open")
    far.open(port)
    threads[0].join(20)
    say("order", order, [*(f"quick {i}" for i in range(10)), "open", "slow connect"])


@both
def many_blackholes_delay_nobody(net: Net) -> None:
    """Forty waiting connects, more than any pool of workers."""
    far = Far()
    port = far.blackhole(net)
    waiting = []
    started = threading.Barrier(41)

    def slow() -> None:
        sock = net.socket()
        waiting.append(sock)
        started.wait()
        outcome(sock.connect, (net.peer, port))

    for _ in range(40):
        threading.Thread(target=slow, daemon=True).start()
    started.wait()
    sock = net.far("echo")
    say("echo", echo(sock), "hello")
    say("nobody connected", [outcome(s.getpeername) for s in waiting], ["ENOTCONN"] * 40)


@both
def threads_at_once(net: Net) -> None:
    done = []

    def work(index: int) -> None:
        for turn in range(5):
            with net.far("echo") as sock:
                done.append(echo(sock, f"{index}-{turn}".encode()) == f"{index}-{turn}")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    say("all", [len(done), all(done)], [80, True])


def asleep(thread: int | None) -> bool:
    """Whether a thread waits in the kernel (proc(5), stat)."""
    try:
        with open(f"/proc/self/task/{thread}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] in "SD"
    except OSError:
        return False


@both
def same_socket_two_threads(net: Net) -> None:
    """Both threads connect one socket: one does, the other learns of it."""
    far = Far()
    port = far.blackhole(net)
    sock = net.socket()
    results: list[str] = []

    def work() -> None:
        results.append(str(raw_connect(sock, net.raw(net.peer, port))))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    # On a busy machine the second may take its time; it is to come while the first one waits.
    deadline = time.monotonic() + 10
    while not all(asleep(thread.native_id) for thread in threads) and time.monotonic() < deadline:
        time.sleep(0.01)
    threads[0].join(0.2)
    far.open(port)
    for thread in threads:
        thread.join()
    say("results", sorted(results))
    say("echo", echo(sock), "hello")


@both
def bad_addresses(net: Net) -> None:
    good = net.raw(net.peer, PORTS["echo"])
    wrong = b"\x63\x00" + good[2:]
    unspec = b"\x00\x00" + good[2:]
    other = socket.AF_INET if net.version == 6 else socket.AF_INET6

    def attempt(address: bytes, size: int | None = None) -> str | int:
        with net.socket() as sock:
            return raw_connect(sock, address, size)

    say("length 0", attempt(good, 0))
    say("length 1", attempt(good, 1))
    say("length 8", attempt(good, 8))
    say("length 15", attempt(good, 15), "EINVAL")
    say("length 24", attempt(good + bytes(28), 24))
    say("length 128", attempt(good + bytes(128), 128))
    say("length 129", attempt(good + bytes(200), 129), "EINVAL")
    say("length -1", attempt(good, -1), "EINVAL")
    say("family 99", attempt(wrong), "EAFNOSUPPORT")
    say("unspec", attempt(unspec))
    say("other family", attempt(int(other).to_bytes(2, "little") + good[2:] + bytes(28)))
    say("unix", attempt(b"\x01\x00/tmp/x" + bytes(30)))
    with net.socket() as sock:
        number = sock.fileno()
        say("null", raw("connect", number, None, net.size), "EFAULT")
        say("bad pointer", raw("connect", number, ctypes.c_void_p(16), net.size), "EFAULT")
        say("null, no length", raw("connect", number, None, 0))
        say("port 0", outcome(sock.connect, (net.peer, 0)), "ECONNREFUSED")
    say("EBADF", raw("connect", 4242, good, len(good)), "EBADF")
    say("EBADF before EFAULT", raw("connect", 4242, ctypes.c_void_p(16), len(good)), "EBADF")
    read_end, _ = os.pipe()
    say("ENOTSOCK", raw("connect", read_end, good, len(good)), "ENOTSOCK")
    say("ENOTSOCK file", raw("connect", os.open("/", os.O_RDONLY), good, len(good)), "ENOTSOCK")
    say("EBADF for O_PATH", raw("connect", os.open("/", os.O_PATH), good, len(good)), "EBADF")


@both
def unspec_disconnects(net: Net) -> None:
    """connect to AF_UNSPEC dissolves the association; the socket can be used again."""
    sock = net.far("echo")
    say("echo", echo(sock), "hello")
    say("unspec", raw_connect(sock, bytes(16)), 0)
    say("peer", outcome(sock.getpeername), "ENOTCONN")
    say("connect", outcome(sock.connect, (net.peer, PORTS["echo"])), "ok")
    say("echo again", echo(sock), "hello")
    far = Far()
    sock = net.socket(socket.SOCK_NONBLOCK)
    outcome(sock.connect, (net.peer, far.blackhole(net)))
    say("unspec while pending", raw_connect(sock, bytes(16)), 0)
    say("events", poll(sock))
    say("and elsewhere", outcome(sock.connect, (net.peer, PORTS["echo"])), "EINPROGRESS")
    say("writable", poll(sock), "OUT")


@both
def bound_first(net: Net) -> None:
    """A client that chooses its own port, and its own address."""
    for host in (net.any, net.host):
        sock = net.socket()
        sock.bind((host, 0))
        port = sock.getsockname()[1]
        say("bound", mask(sock.getsockname()))
        sock.connect((net.peer, PORTS["greet"]))
        say("name", mask(sock.getsockname(), (port, "chosen")), f"{net.host} chosen")
        say("seen", json.loads(read_all(sock)) == [net.host, port], True)


@both
def bound_keeps_its_port(net: Net) -> None:
    """Refused, dissolved, and elsewhere: the port that a client chose stays its own."""
    chosen = net.socket()
    chosen.bind((net.any, 0))
    port = chosen.getsockname()[1]
    chosen.close()
    sock = net.socket()
    sock.bind((net.any, port))
    say("refused", outcome(sock.connect, (net.peer, PORTS["closed"])), "ECONNREFUSED")
    say("kept", sock.getsockname()[1] == port, True)
    say("elsewhere", outcome(sock.connect, (net.peer, PORTS["greet"])), "ok")
    say("seen", json.loads(read_all(sock)) == [net.host, port], True)


@both
def listening_cannot_connect(net: Net) -> None:
    sock = net.listener()
    say("connect", outcome(sock.connect, (net.peer, PORTS["echo"])), "EISCONN")
    say("still listening", sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN), 1)


@probe
def mapped() -> None:
    """IPv4 by way of an IPv6 socket."""
    net = nets_by_version(4)
    sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    say("connect", outcome(sock.connect, (f"::ffff:{net.peer}", PORTS["greet"])), "ok")
    host, port = json.loads(read_all(sock))
    say("seen", host, net.host)
    say("name", mask(sock.getsockname(), (port, "seen")), f"::ffff:{net.host} seen")
    say("peer", sock.getpeername()[0], f"::ffff:{net.peer}")
    only = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    only.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    say("V6ONLY", outcome(only.connect, (f"::ffff:{net.peer}", PORTS["echo"])), "ENETUNREACH")
    say("refused", outcome(only.connect, ("::1", 1)), "ECONNREFUSED")


def nets_by_version(version: int) -> Net:
    from kit import nets

    return next(net for net in nets() if net.version == version)


@both
def sigpipe_untouched(net: Net) -> None:
    """Connecting changes no signal disposition and leaves no signal pending."""
    before = [signal.getsignal(n) for n in (signal.SIGPIPE, signal.SIGCHLD, signal.SIGUSR1)]
    net.far("echo").close()
    after = [signal.getsignal(n) for n in (signal.SIGPIPE, signal.SIGCHLD, signal.SIGUSR1)]
    say("same", before == after, True)
    say("pending", sorted(signal.sigpending()), [])


@both
def socket_arguments(net: Net) -> None:
    """socket() itself, with odd types and protocols."""
    for title, kind, protocol in [
        ("protocol 6", socket.SOCK_STREAM, 6),
        ("udp protocol", socket.SOCK_STREAM, 17),
        ("protocol 300", socket.SOCK_STREAM, 300),
        ("protocol -1", socket.SOCK_STREAM, -1),
        ("type 77", 77, 0),
        ("type 0", 0, 0),
        ("datagram with tcp", socket.SOCK_DGRAM, 6),
        ("seqpacket", socket.SOCK_SEQPACKET, 0),
        ("bad flag", socket.SOCK_STREAM | 0o10, 0),
    ]:
        number = raw("socket", int(net.family), int(kind), protocol)
        if isinstance(number, int):
            os.close(number)
            number = "ok"
        say(title, number)
    say("raw", raw("socket", int(net.family), int(socket.SOCK_RAW), 1), "EPERM")
    with net.socket() as sock:
        for option in ("SO_TYPE", "SO_DOMAIN", "SO_PROTOCOL", "SO_ACCEPTCONN"):
            say(option, sock.getsockopt(socket.SOL_SOCKET, getattr(socket, option)))
    with net.socket(socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as sock:
        say("flags", fcntl.fcntl(sock, fcntl.F_GETFL) & os.O_NONBLOCK != 0, True)
        say("cloexec", fcntl.fcntl(sock, fcntl.F_GETFD), fcntl.FD_CLOEXEC)
    number = raw("socket", int(net.family), int(socket.SOCK_STREAM), 0)
    assert isinstance(number, int)
    say("no flags", fcntl.fcntl(number, fcntl.F_GETFL) & os.O_NONBLOCK != 0, False)
    say("no cloexec", fcntl.fcntl(number, fcntl.F_GETFD), 0)
    os.close(number)
    free = os.open("/", os.O_RDONLY)
    os.close(free)
    say("lowest descriptor", raw("socket", int(net.family), int(socket.SOCK_STREAM), 0) == free)


@both
def descriptor_limit(net: Net) -> None:
    """EMFILE when the table is full; fine again after a close."""
    import resource

    resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
    held = []
    error: object = "none"
    for _ in range(40):
        try:
            held.append(net.socket())
        except OSError as failure:
            error = failure.errno
            break
    say("EMFILE", error, 24)
    say("highest", max(sock.fileno() for sock in held), 31)
    held.pop().close()
    with net.socket() as sock:
        say("connect", outcome(sock.connect, (net.peer, PORTS["echo"])), "ok")


@both
def nowhere_python_create(net: Net) -> None:
    """socket.create_connection, which tries every address."""
    refused = outcome(socket.create_connection, (net.peer, PORTS["closed"]), 5)
    say("refused", refused, "ECONNREFUSED")


main()
