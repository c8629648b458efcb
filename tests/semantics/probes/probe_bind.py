"""bind, listen and accept: errors, chosen ports, and whether the world really gets through."""

from __future__ import annotations

import ctypes
import json
import os
import socket

from kit import (
    PORTS,
    Far,
    Net,
    both,
    child,
    echo,
    libc,
    main,
    mask,
    outcome,
    poll,
    raw,
    read_all,
    say,
    token,
)


def served(net: Net, listener: socket.socket, far: Far, host: str | None = None) -> None:
    """The world dials this listener; both sides agree on who is who."""
    port = listener.getsockname()[1]
    box = token()
    far.ask(op="dial later", token=box, host=host or net.host, port=port, say="hi")
    say("acceptable", poll(listener, seconds=5), "IN")
    listener.setblocking(False)
    sock, address = listener.accept()
    say("read", read_all(sock).decode(), "hi")
    say("own name", mask(sock.getsockname(), (port, "port")))
    say("accept and getpeername agree", address == sock.getpeername(), True)
    sock.sendall(b"welcome")
    sock.close()
    answer = far.box(box)
    assert isinstance(answer, dict)
    say("they got", answer.get("got"), "welcome")
    seen = [address[0].removeprefix("::ffff:"), address[1]]
    say("true client", answer.get("me") == seen, True)
    say("the name they dialled", answer.get("you") == [net.host, port], True)


@both
def port_zero(net: Net) -> None:
    sock = net.socket()
    say("bind", outcome(sock.bind, (net.any, 0)), "ok")
    host, port = sock.getsockname()[:2]
    say("name", host, net.any)
    say("a port", port >= 1024, True)
    say("listen", outcome(sock.listen, 5), "ok")
    say("same port", sock.getsockname()[1] == port, True)
    served(net, sock, Far())


@both
def own_address(net: Net) -> None:
    sock = net.socket()
    say("bind", outcome(sock.bind, (net.host, 0)), "ok")
    sock.listen()
    say("name", sock.getsockname()[0], net.host)
    served(net, sock, Far())


@both
def listen_without_bind(net: Net) -> None:
    sock = net.socket()
    say("listen", outcome(sock.listen, 5), "ok")
    say("name", mask(sock.getsockname()), f"{net.any} *")
    served(net, sock, Far())


@both
def the_port_of_a_destination(net: Net) -> None:
    """Without SO_REUSEADDR: connections to elsewhere, ended or not, hold none of this host's ports but their own."""
    for service in ("reset", "leave", "echo"):
        used = net.far(service)
        if service != "echo":
            used.sendall(token().encode() + b"\n")
            outcome(read_all, used)
            used.close()
        listener = net.socket()
        if net.version == 6:  # the other version of this probe runs beside it
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        say(f"{service}: bind", outcome(listener.bind, (net.any, PORTS[service])), "ok")
        say(f"{service}: listen", outcome(listener.listen), "ok")
        served(net, listener, Far())
        with net.far("echo") as another:
            say(f"{service}: another", echo(another), "hello")
        if service == "echo":
            say("the one that was there", echo(used), "hello")
        listener.close()


@both
def listen_twice(net: Net) -> None:
    sock = net.listener()
    say("again", outcome(sock.listen, 7), "ok")
    say("negative", raw("listen", sock.fileno(), -1), 0)
    say("SO_ACCEPTCONN", sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN), 1)
    served(net, sock, Far())


@both
def many_clients(net: Net) -> None:
    sock = net.listener()
    far = Far()
    boxes = [token() for _ in range(8)]
    for index, box in enumerate(boxes):
        port = sock.getsockname()[1]
        far.ask(op="dial later", token=box, host=net.host, port=port, say=str(index))
    for _ in boxes:
        conn, _address = sock.accept()
        conn.sendall(b"for " + read_all(conn))
        conn.close()
    answers = [far.box(box) for box in boxes]
    got = [answer["got"] for answer in answers if isinstance(answer, dict)]
    say("each its own", got, [f"for {i}" for i in range(8)])


@both
def closed_is_refused(net: Net) -> None:
    """After close nobody listens there; the port is free again."""
    sock = net.listener()
    port = sock.getsockname()[1]
    sock.close()
    answer = Far().ask(op="dial", host=net.host, port=port)
    say("dial", answer, {"connect": "ECONNREFUSED"})
    again = net.socket()
    say("bind again", outcome(again.bind, (net.any, port)), "ok")
    say("listen again", outcome(again.listen), "ok")
    served(net, again, Far())


@both
def bound_is_not_listening(net: Net) -> None:
    sock = net.socket()
    sock.bind((net.any, 0))
    answer = Far().ask(op="dial", host=net.host, port=sock.getsockname()[1])
    say("dial", answer, {"connect": "ECONNREFUSED"})
    say("accept", outcome(sock.accept), "EINVAL")


@both
def shutdown_listener(net: Net) -> None:
    sock = net.listener()
    say("shutdown", outcome(sock.shutdown, socket.SHUT_RDWR), "ok")
    say("accept", outcome(sock.accept), "EINVAL")
    answer = Far().ask(op="dial", host=net.host, port=sock.getsockname()[1])
    say("dial", answer, {"connect": "ECONNREFUSED"})
    say("listen again", outcome(sock.listen), "ok")
    served(net, sock, Far())


@both
def shut_listener_connects(net: Net) -> None:
    """A listener that was shut down is a socket like any: it connects, from its own port, and listens again."""
    port = 0
    for chosen in (False, True):
        sock = net.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((net.any, port if chosen else 0))
        port = sock.getsockname()[1]
        sock.listen()
        sock.shutdown(socket.SHUT_RDWR)
        say("connect", outcome(sock.connect, (net.peer, PORTS["greet"])), "ok")
        seen = json.loads(read_all(sock))
        say("own name is what the peer sees", seen == list(sock.getsockname()[:2]), True)
        if chosen:
            say("its port", seen[1] == port, True)
        sock.close()
    other = net.socket()
    other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    say("bind again", outcome(other.bind, (net.any, port)), "ok")
    say("listen again", outcome(other.listen), "ok")
    served(net, other, Far())


@both
def bind_errors(net: Net) -> None:
    holder = net.listener()
    port = holder.getsockname()[1]
    other = net.socket()
    say("in use", outcome(other.bind, (net.any, port)), "EADDRINUSE")
    say("in use, own address", outcome(other.bind, (net.host, port)), "EADDRINUSE")
    say("in use, loopback", outcome(other.bind, (net.loop, port)), "EADDRINUSE")
    say("then free", outcome(other.bind, (net.any, 0)), "ok")
    say("double", outcome(other.bind, (net.any, 0)), "EINVAL")
    say("double other address", outcome(other.bind, (net.loop, 0)), "EINVAL")
    fresh = net.socket()
    foreign = "198.51.100.77" if net.version == 4 else "2001:db8:77::77"
    say("foreign", outcome(fresh.bind, (foreign, 0)), "EADDRNOTAVAIL")
    say("the peer's", outcome(fresh.bind, (net.peer, 0)), "EADDRNOTAVAIL")
    say("privileged", outcome(fresh.bind, (net.any, 80)), "EACCES")
    say("privileged loopback", outcome(fresh.bind, (net.loop, 80)), "EACCES")
    say("still unbound", mask(fresh.getsockname()), f"{net.any} 0")
    say("after all", outcome(fresh.bind, (net.any, 0)), "ok")
    connected = net.far("echo")
    say("connected", outcome(connected.bind, (net.any, 0)), "EINVAL")
    say("connected listen", outcome(connected.listen), "EINVAL")
    say("unconnected accept", outcome(net.socket().accept), "EINVAL")


@both
def bind_arguments(net: Net) -> None:
    good = net.raw(net.any, 0)

    def attempt(address: bytes | None, size: int) -> str | int:
        with net.socket() as sock:
            return raw("bind", sock.fileno(), address, size)

    say("length 0", attempt(good, 0), "EINVAL")
    say("length 15", attempt(good, 15), "EINVAL")
    say("length 24", attempt(good + bytes(28), 24))
    say("length 129", attempt(good + bytes(200), 129), "EINVAL")
    say("length -1", attempt(good, -1), "EINVAL")
    say("family 99", attempt(b"\x63\x00" + good[2:], len(good)), "EAFNOSUPPORT")
    say("unspec any", attempt(b"\x00\x00" + good[2:], len(good)))
    say("unspec loopback", attempt(b"\x00\x00" + net.raw(net.loop, 0)[2:], len(good)))
    other = socket.AF_INET6 if net.version == 4 else socket.AF_INET
    say("other family", attempt(int(other).to_bytes(2, "little") + bytes(40), 28))
    say("null", attempt(None, net.size), "EFAULT")
    with net.socket() as sock:
        say("bad pointer", raw("bind", sock.fileno(), ctypes.c_void_p(16), net.size), "EFAULT")
    say("EBADF", raw("bind", 4242, good, len(good)), "EBADF")
    say("listen EBADF", raw("listen", 4242, 1), "EBADF")
    read_end, _ = os.pipe()
    say("ENOTSOCK", raw("bind", read_end, good, len(good)), "ENOTSOCK")
    say("listen ENOTSOCK", raw("listen", read_end, 1), "ENOTSOCK")
    say("accept ENOTSOCK", raw("accept", read_end, None, None), "ENOTSOCK")
    datagram = socket.socket(net.family, socket.SOCK_DGRAM)
    say("listen on UDP", outcome(datagram.listen), "EOPNOTSUPP")


@both
def reuse(net: Net) -> None:
    """SO_REUSEADDR and SO_REUSEPORT within one program."""

    def sock(option: int | None) -> socket.socket:
        made = net.socket()
        if option is not None:
            made.setsockopt(socket.SOL_SOCKET, option, 1)
        return made

    for title, option in (("ADDR", socket.SO_REUSEADDR), ("PORT", socket.SO_REUSEPORT)):
        first, second, third = sock(option), sock(option), sock(None)
        first.bind((net.any, 0))
        port = first.getsockname()[1]
        say(f"{title} both bound", outcome(second.bind, (net.any, port)))
        say(f"{title} without", outcome(third.bind, (net.any, port)), "EADDRINUSE")
        say(f"{title} first listens", outcome(first.listen))
        say(f"{title} second listens", outcome(second.listen))
        late = sock(option)
        say(f"{title} late", outcome(late.bind, (net.any, port)))
        for each in (first, second, third, late):
            each.close()


@both
def reuse_port_shares(net: Net) -> None:
    """Two listeners on one port share the clients: all are served."""
    first = net.socket()
    first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    first.bind((net.any, 0))
    first.listen(16)
    port = first.getsockname()[1]
    second = net.socket()
    second.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    second.bind((net.any, port))
    second.listen(16)
    far = Far()
    boxes = [token() for _ in range(12)]
    for box in boxes:
        far.ask(op="dial later", token=box, host=net.host, port=port)
    import select

    served_by = []
    while len(served_by) < len(boxes):
        for each in select.select([first, second], [], [], 5)[0]:
            conn, _ = each.accept()
            conn.sendall(b"ok")
            conn.close()
            served_by.append(each is first)
    answers = [far.box(box) for box in boxes]
    say("all", [a["got"] for a in answers if isinstance(a, dict)], ["ok"] * 12)


@both
def restart_server(net: Net) -> None:
    """A server that closed first can bind its port again with SO_REUSEADDR (TIME_WAIT)."""
    listener = net.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((net.any, 0))
    listener.listen()
    port = listener.getsockname()[1]
    far = Far()
    box = token()
    far.ask(op="dial later", token=box, host=net.host, port=port, half=False)
    conn, _ = listener.accept()
    conn.close()
    listener.close()
    far.box(box)
    plain = net.socket()
    say("without", outcome(plain.bind, (net.any, port)))
    again = net.socket()
    again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    say("with", outcome(again.bind, (net.any, port)), "ok")
    say("listen", outcome(again.listen), "ok")


@both
def accept_non_blocking(net: Net) -> None:
    listener = net.listener()
    listener.setblocking(False)
    say("nobody", outcome(listener.accept), "EAGAIN")
    say("not ready", poll(listener, seconds=0.05), "-")
    served(net, listener, Far())
    say("nobody left", outcome(listener.accept), "EAGAIN")


@both
def accept4_flags(net: Net) -> None:
    import fcntl

    listener = net.listener()
    far = Far()
    for flags in (0, socket.SOCK_CLOEXEC, socket.SOCK_NONBLOCK, 0o2004000):
        box = token()
        far.ask(op="dial later", token=box, host=net.host, port=listener.getsockname()[1])
        number = raw("accept4", listener.fileno(), None, None, int(flags))
        assert isinstance(number, int), number
        status = fcntl.fcntl(number, fcntl.F_GETFL)
        say(
            f"flags {int(flags):o}",
            [fcntl.fcntl(number, fcntl.F_GETFD), bool(status & os.O_NONBLOCK)],
        )
        os.close(number)
        far.box(box)
    say("bad flags", raw("accept4", listener.fileno(), None, None, 1), "EINVAL")


@both
def accept_address(net: Net) -> None:
    """accept's address argument: truncated, with the true length."""
    listener = net.listener()
    far = Far()
    box = token()
    far.ask(op="dial later", token=box, host=net.host, port=listener.getsockname()[1])
    buffer, size = ctypes.create_string_buffer(64), ctypes.c_int(6)
    number = raw("accept", listener.fileno(), buffer, ctypes.byref(size))
    say("accepted", isinstance(number, int), True)
    say("true length", size.value, net.size)
    say("family", buffer.raw[0], int(net.family))
    say("no more than asked", buffer.raw[6:] == bytes(58), True)
    box = token()
    far.ask(op="dial later", token=box, host=net.host, port=listener.getsockname()[1])
    poll(listener)
    say("negative", raw("accept", listener.fileno(), buffer, ctypes.byref(ctypes.c_int(-1))))
    say("accept twice", libc.getpid() == os.getpid(), True)


@both
def accept_inherits(net: Net) -> None:
    """Options of the listener that Linux hands to accepted sockets."""
    listener = net.socket()
    wanted = [
        ("SO_KEEPALIVE", socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        ("TCP_NODELAY", socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        ("TCP_KEEPIDLE", socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 77),
        ("SO_RCVBUF", socket.SOL_SOCKET, socket.SO_RCVBUF, 60000),
        ("TCP_USER_TIMEOUT", socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 12345),
    ]
    for _, level, option, value in wanted:
        listener.setsockopt(level, option, value)
    listener.bind((net.any, 0))
    listener.listen()
    far = Far()
    box = token()
    far.ask(op="dial later", token=box, host=net.host, port=listener.getsockname()[1])
    conn, _ = listener.accept()
    for title, level, option, _ in wanted:
        say(title, conn.getsockopt(level, option))
    say("SO_ACCEPTCONN", conn.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN), 0)


@both
def accept_after_fork(net: Net) -> None:
    """Workers of a pre-forking server accept from one listener."""
    listener = net.listener()
    far = Far()
    boxes = [token() for _ in range(4)]

    def worker() -> None:
        while True:
            conn, _ = listener.accept()
            text = read_all(conn)
            conn.sendall(b"served " + text)
            conn.close()
            if text == b"stop":
                return

    with child(worker), child(worker):
        for box in boxes:
            port = listener.getsockname()[1]
            far.ask(op="dial later", token=box, host=net.host, port=port, say="hi")
        answers = [far.box(box) for box in boxes]
        for _ in range(2):
            answer = far.ask(op="dial", host=net.host, port=port, say="stop")
            say("stopped", answer.get("got"), "served stop")
    say("served", [a["got"] for a in answers if isinstance(a, dict)], ["served hi"] * 4)


@both
def listener_in_child_only(net: Net) -> None:
    """The parent closes its copy; the child's goes on."""
    listener = net.listener()
    port = listener.getsockname()[1]

    def worker() -> None:
        conn, _ = listener.accept()
        conn.sendall(b"child")
        conn.close()

    with child(worker):
        listener.close()
        answer = Far().ask(op="dial", host=net.host, port=port)
        say("dial", answer.get("got"), "child")
    say("afterwards", Far().ask(op="dial", host=net.host, port=port)["connect"], "ECONNREFUSED")


@both
def dial_itself(net: Net) -> None:
    """A wildcard listener, dialled by the same program over the host's own address."""
    listener = net.listener()
    port = listener.getsockname()[1]
    sock = net.socket()
    say("connect", outcome(sock.connect, (net.host, port)), "ok")
    conn, address = listener.accept()
    say("client", address[0], net.host)
    say("ports agree", address[1] == sock.getsockname()[1], True)
    conn.sendall(b"hello")
    say("read", sock.recv(5).decode(), "hello")


@both
def v6only(net: Net) -> None:
    """An IPv6 wildcard listener takes IPv4 clients unless it says otherwise."""
    if net.version == 4:
        return
    from kit import nets

    ipv4 = [other for other in nets() if other.version == 4]
    for only in (0, 1):
        listener = net.socket()
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
        listener.bind(("::", 0))
        listener.listen()
        port = listener.getsockname()[1]
        for other in ipv4:
            far = Far()
            box = token()
            far.ask(op="dial later", token=box, host=other.host, port=port)
            if only:
                say("only", far.box(box), {"connect": "ECONNREFUSED"})
            else:
                conn, address = listener.accept()
                say("client", mask(address), f"::ffff:{other.peer} *")
                say("own", conn.getsockname()[0], f"::ffff:{other.host}")
                conn.close()
                answer = far.box(box)
                assert isinstance(answer, dict)
                say("dial", answer["connect"], "ok")
        plain = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        say(f"IPv4 next to it, V6ONLY={only}", outcome(plain.bind, ("0.0.0.0", port)))


@both
def backlog(net: Net) -> None:
    """Connections complete before accept; data waits; a client gone early is still accepted."""
    listener = net.listener()
    far = Far()
    port = listener.getsockname()[1]
    answer = far.ask(op="dial", host=net.host, port=port, say="early", reset=False, seconds=0.5)
    say("they waited", answer.get("end", answer.get("got")))
    conn, _ = listener.accept()
    say("data waited", read_all(conn).decode(), "early")


@both
def connect_and_listen_together(net: Net) -> None:
    """A server that is a client too, as a proxy is."""
    listener = net.listener()
    far = Far()
    box = token()
    far.ask(op="dial later", token=box, host=net.host, port=listener.getsockname()[1], say="relay")
    conn, _ = listener.accept()
    upstream = socket.create_connection((net.peer, PORTS["echo"]))
    text = read_all(conn).decode()
    conn.sendall(echo(upstream, text.encode()).encode())
    conn.close()
    answer = far.box(box)
    assert isinstance(answer, dict)
    say("through", answer["got"], "relay")


main()
