"""The program's own loopback, its unix sockets, UDP next to it, and the names of all that."""

from __future__ import annotations

import array
import os
import signal
import socket
import struct
import tempfile
import threading

from kit import (
    PORTS,
    Far,
    Net,
    both,
    child,
    echo,
    main,
    mask,
    outcome,
    pending,
    poll,
    probe,
    read_all,
    say,
    token,
)


def exchange(listener: socket.socket, client: socket.socket) -> list[object]:
    """Accept, compare names, talk both ways."""
    conn, address = listener.accept()
    seen: list[object] = [
        mask(address),
        address[1] == client.getsockname()[1],
        conn.getsockname()[0],
        conn.getsockname()[1] == client.getpeername()[1],
    ]
    conn.sendall(b"to client")
    client.sendall(b"to server")
    conn.shutdown(socket.SHUT_WR)
    client.shutdown(socket.SHUT_WR)
    return [*seen, read_all(client).decode(), read_all(conn).decode()]


@both
def own_listener(net: Net) -> None:
    listener = net.listener(net.loop)
    port = listener.getsockname()[1]
    say("name", mask(listener.getsockname(), (port, "port")), f"{net.loop} port")
    for flags in (0, socket.SOCK_NONBLOCK):
        sock = net.socket(flags)
        say("connect", outcome(sock.connect, (net.loop, port)), "EINPROGRESS" if flags else "ok")
        say("writable", poll(sock, 4), "OUT")
        say("SO_ERROR", pending(sock), "ok")
        say("peer", mask(sock.getpeername(), (port, "port")), f"{net.loop} port")
        sock.setblocking(True)
        say("own", sock.getsockname()[0], net.loop)
        say("talk", exchange(listener, sock))
        say("again", outcome(sock.connect, (net.loop, port)))


@both
def wildcard_listener(net: Net) -> None:
    """A listener the world can reach is reached over loopback as well, with loopback names."""
    listener = net.listener()
    port = listener.getsockname()[1]
    sock = net.socket()
    say("connect", outcome(sock.connect, (net.loop, port)), "ok")
    say("peer", mask(sock.getpeername(), (port, "port")), f"{net.loop} port")
    say("own", sock.getsockname()[0], net.loop)
    say("talk", exchange(listener, sock))
    sock = net.socket()
    say("by wildcard", outcome(sock.connect, (net.any, port)), "ok")
    say("peer by wildcard", mask(sock.getpeername(), (port, "port")), f"{net.loop} port")
    say("talk by wildcard", exchange(listener, sock))
    if net.version == 4:
        sock = net.socket()
        say("by 127.0.0.9", outcome(sock.connect, ("127.0.0.9", port)), "ok")
        say("peer by 127.0.0.9", sock.getpeername()[0], "127.0.0.9")
        say("talk by 127.0.0.9", exchange(listener, sock))
    far, box = Far(), token()
    far.ask(op="dial later", token=box, host=net.host, port=port)
    conn, address = listener.accept()
    say("the world too", address[0], net.peer)
    conn.close()
    far.box(box)


@both
def wildcard_dual(net: Net) -> None:
    """An IPv6 wildcard listener, dialled at 127.0.0.1 and at ::1."""
    if net.version == 4:
        return
    listener = net.listener("::")
    port = listener.getsockname()[1]
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        sock = socket.socket(family, socket.SOCK_STREAM)
        say(f"connect {host}", outcome(sock.connect, (host, port)), "ok")
        say(f"talk {host}", exchange(listener, sock))
    mapped = net.socket()
    say("mapped", outcome(mapped.connect, ("::ffff:127.0.0.1", port)), "ok")
    say("talk mapped", exchange(listener, mapped))


@both
def nobody_there(net: Net) -> None:
    holder = net.socket()
    holder.bind((net.loop, 0))
    port = holder.getsockname()[1]
    sock = net.socket()
    say("refused", outcome(sock.connect, (net.loop, port)), "ECONNREFUSED")
    say("refused again", outcome(sock.connect, (net.loop, port)), "ECONNREFUSED")
    say("elsewhere", outcome(sock.connect, (net.peer, PORTS["echo"])), "ok")
    say("echo", echo(sock), "hello")
    sock = net.socket(socket.SOCK_NONBLOCK)
    say("non-blocking", outcome(sock.connect, (net.loop, port)), "EINPROGRESS")
    say("events", poll(sock, 1))
    say("SO_ERROR", pending(sock), "ECONNREFUSED")
    holder.listen()
    say("once more", outcome(sock.connect, (net.loop, port)))
    say("now", outcome(sock.connect, (net.loop, port)), "EINPROGRESS")
    say("writable", poll(sock, 4), "OUT")


@both
def world_first(net: Net) -> None:
    """A refused attempt in the world, then loopback, with the same socket."""
    listener = net.listener(net.loop)
    sock = net.socket()
    outcome(sock.connect, (net.peer, PORTS["closed"]))
    say("loopback", outcome(sock.connect, listener.getsockname()), "ok")
    say("talk", exchange(listener, sock))


@both
def bound_client(net: Net) -> None:
    """A client bound to loopback, or to the wildcard, before it connects."""
    listener = net.listener(net.loop)
    for host in (net.loop, net.any):
        sock = net.socket()
        sock.bind((host, 0))
        port = sock.getsockname()[1]
        say(f"connect {host}", outcome(sock.connect, listener.getsockname()), "ok")
        say(f"name {host}", mask(sock.getsockname(), (port, "chosen")), f"{net.loop} chosen")
        say(f"talk {host}", exchange(listener, sock))
    if net.version == 6:
        return  # the kernel sends that SYN from ::1, and nobody answers
    sock = net.socket()
    sock.bind((net.loop, 0))
    say("loopback to the world", outcome(sock.connect, (net.peer, PORTS["echo"])))


@both
def same_port(net: Net) -> None:
    """Loopback and wildcard share one table of ports."""
    first = net.listener(net.loop)
    port = first.getsockname()[1]
    say("wildcard after loopback", outcome(net.socket().bind, (net.any, port)), "EADDRINUSE")
    say("host after loopback", outcome(net.socket().bind, (net.host, port)), "ok")
    second = net.listener()
    port = second.getsockname()[1]
    say("loopback after wildcard", outcome(net.socket().bind, (net.loop, port)), "EADDRINUSE")
    second.close()
    say("after close", outcome(net.socket().bind, (net.loop, port)), "ok")


@both
def fork_server(net: Net) -> None:
    """multiprocessing's way: parent listens on loopback, children connect."""
    listener = net.listener(net.loop)

    def body() -> None:
        sock = socket.create_connection(listener.getsockname()[:2])
        sock.sendall(b"from child")
        sock.close()

    with child(body), child(body):
        for _ in range(2):
            conn, _ = listener.accept()
            say("read", read_all(conn).decode(), "from child")


@both
def loopback_throughput(net: Net) -> None:
    listener = net.listener(net.loop)
    client = net.socket()
    client.connect(listener.getsockname())
    conn, _ = listener.accept()
    content = os.urandom(1 << 20) * 4
    thread = threading.Thread(target=lambda: (conn.sendall(content), conn.close()))
    thread.start()
    say("same", read_all(client) == content, True)
    thread.join()


@both
def loopback_backlog(net: Net) -> None:
    """Fifty clients before the first accept; a closed listener resets what nobody accepted."""
    listener = net.listener(net.loop, backlog=64)
    clients = []
    for _ in range(50):
        sock = net.socket()
        sock.connect(listener.getsockname())
        clients.append(sock)
    for _ in range(49):
        listener.accept()[0].close()
    listener.close()
    ends = [outcome(sock.recv, 1) for sock in clients]
    say("ends", ends, [""] * 49 + ["ECONNRESET"])


@both
def datagrams(net: Net) -> None:
    """UDP on loopback."""
    server = socket.socket(net.family, socket.SOCK_DGRAM)
    server.bind((net.loop, 0))
    port = server.getsockname()[1]
    client = socket.socket(net.family, socket.SOCK_DGRAM)
    say("sendto", outcome(client.sendto, b"ping", (net.loop, port)), 4)
    data, address = server.recvfrom(100)
    say("received", [data.decode(), address[0]], ["ping", net.loop])
    server.sendto(b"pong", address)
    say("answer", client.recvfrom(100)[0].decode(), "pong")
    client.connect((net.loop, port))
    say("connected", mask(client.getpeername(), (port, "port")), f"{net.loop} port")
    client.send(b"again")
    say("again", server.recv(100).decode(), "again")
    say("truncated", [client.send(b"longer"), len(server.recv(3))], [6, 3])
    server.close()
    outcome(client.send, b"nobody")
    say("refused", outcome(client.recv, 1), "ECONNREFUSED")
    say("unbound peer", outcome(socket.socket(net.family, socket.SOCK_DGRAM).send, b"x"))
    wildcard = socket.socket(net.family, socket.SOCK_DGRAM)
    wildcard.bind((net.any, 0))
    client = socket.socket(net.family, socket.SOCK_DGRAM)
    client.sendto(b"wild", (net.loop, wildcard.getsockname()[1]))
    say("wildcard", wildcard.recvfrom(10)[0].decode(), "wild")
    say("in use", outcome(client.bind, (net.loop, wildcard.getsockname()[1])))


@probe
def names() -> None:
    for host, family in [
        ("localhost", socket.AF_INET),
        ("127.0.0.1", 0),
        ("::1", 0),
        ("0.0.0.0", 0),
        ("127.1", 0),
    ]:
        try:
            found = socket.getaddrinfo(host, 80, family, socket.SOCK_STREAM)
        except socket.gaierror as error:
            say(host, f"gai {error.errno}")
            continue
        say(host, sorted({entry[4][0] for entry in found}))
    say("nobody", outcome(socket.getaddrinfo, None, 80, 0, 0, 0, 99999999))
    listing = socket.getaddrinfo(None, 80, 0, socket.SOCK_STREAM, 0, socket.AI_PASSIVE)
    say("passive", sorted(entry[4][0] for entry in listing))
    say("numeric", outcome(socket.getnameinfo, ("127.0.0.1", 80), 3))
    say("reverse", outcome(socket.getnameinfo, ("127.0.0.1", 80), socket.NI_NUMERICSERV))
    say("service", outcome(socket.getservbyname, "http"))


@both
def by_name(net: Net) -> None:
    """localhost as programs use it."""
    listener = socket.create_server(("localhost", 0), family=socket.AF_INET)
    sock = socket.create_connection(("localhost", listener.getsockname()[1]))
    say("talk", exchange(listener, sock))
    sock.close()


# --- unix sockets --------------------------------------------------------------------------------


def credentials(sock: socket.socket) -> list[object]:
    pid, uid, gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return [pid == os.getpid(), uid == os.getuid(), gid == os.getgid()]


@probe
def unix_stream() -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "s")
        for title, address in (("path", path), ("abstract", "\0probe-" + token())):
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            early = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            say(
                f"{title} early",
                outcome(early.connect, address),
                "ENOENT" if title == "path" else "ECONNREFUSED",
            )
            say(f"{title} bind", outcome(listener.bind, address), "ok")
            say(f"{title} refused", outcome(early.connect, address), "ECONNREFUSED")
            say(f"{title} listen", outcome(listener.listen), "ok")
            say(f"{title} connect", outcome(early.connect, address), "ok")
            conn, _ = listener.accept()
            say(f"{title} credentials", credentials(conn), [True, True, True])
            early.sendall(b"unix")
            say(f"{title} read", conn.recv(10).decode(), "unix")
            say(f"{title} again", outcome(early.connect, address), "EISCONN")
            other = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            say(f"{title} in use", outcome(other.bind, address), "EADDRINUSE")


@probe
def unix_datagram() -> None:
    address = "\0probe-" + token()
    server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    server.bind(address)
    client = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    say("sendto", outcome(client.sendto, b"one", address), 3)
    say("connect", outcome(client.connect, address), "ok")
    say("send", outcome(client.send, b"two"), 3)
    say("read", [server.recv(10).decode(), server.recv(10).decode()], ["one", "two"])
    packets = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    packets[0].send(b"whole")
    say("seqpacket", packets[1].recv(3).decode(), "who")


@probe
def unix_pair() -> None:
    ours, theirs = socket.socketpair()
    say("credentials", credentials(ours), [True, True, True])
    read_end, write_end = os.pipe()
    ours.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [write_end]))])
    _, ancillary, _, _ = theirs.recvmsg(1, socket.CMSG_SPACE(4))
    number = array.array("i", ancillary[0][2])[0]
    os.write(number, b"through")
    say("passed", os.read(read_end, 10).decode(), "through")
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    ours.send(b"y")
    _, ancillary, _, _ = theirs.recvmsg(1, 100)
    say("who", struct.unpack("3i", ancillary[0][2])[1] == os.getuid(), True)
    ours.close()
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    say("write", outcome(theirs.send, b"x"), "EPIPE")
    say("read", theirs.recv(1).decode(), "")


@probe
def unix_autobind() -> None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    say("bind", outcome(sock.bind, b""), "ok")
    name = sock.getsockname()
    say("abstract", [name[0], len(name)], [0, 6])
    say("internet address", outcome(lambda: sock.connect("\0no-such-name")), "ECONNREFUSED")


main()
