"""Readiness: poll, select and epoll registered before and after connect and bind."""

from __future__ import annotations

import asyncio
import os
import select
import selectors
import socket

from kit import (
    PORTS,
    Far,
    Net,
    both,
    echo,
    events,
    main,
    outcome,
    pending,
    places,
    poll,
    say,
    token,
    wait_for,
)

IN, OUT, ET, ONESHOT, RDHUP = (
    select.EPOLLIN,
    select.EPOLLOUT,
    select.EPOLLET,
    select.EPOLLONESHOT,
    select.EPOLLRDHUP,
)


def seen(epoll: select.epoll, seconds: float = 5) -> list[str]:
    return [events(mask) for _, mask in epoll.poll(seconds)]


@both
def level_triggered(net: Net) -> None:
    for place, where in places(net):
        sock = net.socket(socket.SOCK_NONBLOCK)
        epoll = select.epoll()
        epoll.register(sock, IN | OUT | RDHUP)
        say(f"{place} fresh", seen(epoll), ["OUT|HUP"])
        outcome(sock.connect, where)
        poll(sock, 4)
        say(f"{place} connected", seen(epoll), ["OUT"])
        say(f"{place} SO_ERROR", pending(sock), "ok")
        say(f"{place} again", seen(epoll), ["OUT"])
        sock.send(b"abc")
        poll(sock, 1)
        say(f"{place} data", seen(epoll), ["IN|OUT"])
        epoll.modify(sock, IN)
        say(f"{place} modified", seen(epoll), ["IN"])
        sock.recv(3)
        say(f"{place} drained", seen(epoll, 0.05), [])
        epoll.unregister(sock)
        sock.send(b"abc")
        poll(sock, 1)
        say(f"{place} unregistered", seen(epoll, 0.05), [])


@both
def edge_triggered(net: Net) -> None:
    for place, where in places(net):
        sock = net.socket(socket.SOCK_NONBLOCK)
        epoll = select.epoll()
        epoll.register(sock, IN | OUT | RDHUP | ET)
        say(f"{place} fresh", seen(epoll), ["OUT|HUP"])
        say(f"{place} once", seen(epoll, 0.05), [])
        outcome(sock.connect, where)
        poll(sock, 4)
        say(f"{place} connected", seen(epoll), ["OUT"])
        say(f"{place} once more", seen(epoll, 0.05), [])
        sock.send(b"abc")
        wait_for(lambda sock=sock: outcome(sock.recv, 9, socket.MSG_PEEK) == "abc")
        say(f"{place} data", seen(epoll), ["IN|OUT"])
        say(f"{place} not again", seen(epoll, 0.05), [])
        sock.shutdown(socket.SHUT_WR)
        poll(sock, 0x2000)
        say(f"{place} end", seen(epoll)[-1], "IN|OUT|HUP|RDHUP")


@both
def one_shot(net: Net) -> None:
    for place, where in places(net):
        sock = net.socket(socket.SOCK_NONBLOCK)
        epoll = select.epoll()
        epoll.register(sock, OUT | ONESHOT)
        say(f"{place} fresh", seen(epoll), ["OUT|HUP"])
        outcome(sock.connect, where)
        poll(sock, 4)
        say(f"{place} disarmed", seen(epoll, 0.05), [])
        epoll.modify(sock, OUT | ONESHOT)
        say(f"{place} armed", seen(epoll), ["OUT"])
        say(f"{place} disarmed again", seen(epoll, 0.05), [])
        epoll.modify(sock, IN | ONESHOT)
        sock.send(b"a")
        say(f"{place} data", seen(epoll), ["IN"])


@both
def registered_after(net: Net) -> None:
    far = Far()
    for place, where in places(net):
        sock = net.socket(socket.SOCK_NONBLOCK)
        outcome(sock.connect, where)
        epoll = select.epoll()
        epoll.register(sock, OUT)
        say(f"{place} connected", seen(epoll), ["OUT"])
    port = far.blackhole(net)
    sock = net.socket(socket.SOCK_NONBLOCK)
    epoll = select.epoll()
    epoll.register(sock, OUT | IN | ET)
    seen(epoll)
    outcome(sock.connect, (net.peer, port))
    say("pending", seen(epoll, 0.05), [])
    far.open(port)
    say("completed", seen(epoll), ["OUT"])
    refused = net.socket(socket.SOCK_NONBLOCK)
    epoll = select.epoll()
    epoll.register(refused, OUT | IN)
    outcome(refused.connect, (net.peer, PORTS["closed"]))
    poll(refused, 1)
    say("refused", seen(epoll))


@both
def registered_twice(net: Net) -> None:
    """Two epolls, nested epoll, and two numbers of one socket in one epoll."""
    for place, where in places(net):
        sock = net.socket(socket.SOCK_NONBLOCK)
        copy = os.dup(sock.fileno())
        one, two, outer = select.epoll(), select.epoll(), select.epoll()
        one.register(sock, IN)
        one.register(copy, OUT)
        two.register(sock, OUT | ET)
        outer.register(one.fileno(), IN)
        seen(two)
        outcome(sock.connect, where)
        poll(sock, 4)
        say(f"{place} one", seen(one), ["OUT"])
        say(f"{place} two", seen(two), ["OUT"])
        sock.send(b"x")
        poll(sock, 1)
        say(f"{place} both numbers", sorted(seen(one)), ["IN", "OUT"])
        say(f"{place} nested", seen(outer), ["IN"])
        say(f"{place} register again", outcome(one.register, sock, IN), "EEXIST")
        one.unregister(copy)
        say(f"{place} one left", seen(one), ["IN"])
        os.close(copy)
        number = sock.fileno()
        sock.close()
        say(f"{place} closed", seen(one, 0.05), [])
        say(f"{place} number gone", outcome(one.modify, number, IN), "EBADF")


@both
def waiting_in_epoll(net: Net) -> None:
    """A thread already waits in epoll_wait when another connects."""
    import threading

    for place, where in places(net):
        sock = net.socket()
        epoll = select.epoll()
        epoll.register(sock, IN)
        seen(epoll)
        result: list[list[str]] = []

        def wait(epoll: select.epoll = epoll, result: list[list[str]] = result) -> None:
            while (found := seen(epoll, 10)) == ["HUP"]:
                pass
            result.append(found)

        thread = threading.Thread(target=wait)
        thread.start()
        sock.connect(where)
        sock.sendall(b"x")
        thread.join(15)
        say(f"{place} woken", result, [["IN"]])


@both
def with_select(net: Net) -> None:
    for place, where in places(net):
        sock = net.socket(socket.SOCK_NONBLOCK)
        found = select.select([sock], [sock], [sock], 0)
        say(f"{place} fresh", [len(each) for each in found], [1, 1, 0])
        outcome(sock.connect, where)
        found = select.select([], [sock], [], 5)
        say(f"{place} writable", len(found[1]), 1)
        say(f"{place} not readable", len(select.select([sock], [], [], 0)[0]), 0)
        sock.send(b"x")
        say(f"{place} readable", len(select.select([sock], [], [], 5)[0]), 1)
    refused = net.socket(socket.SOCK_NONBLOCK)
    outcome(refused.connect, (net.peer, PORTS["closed"]))
    found = select.select([refused], [refused], [refused], 5)
    wait_for(lambda: select.select([refused], [], [], 0)[0])
    found = select.select([refused], [refused], [refused], 5)
    say("refused", [len(each) for each in found])


@both
def listener_events(net: Net) -> None:
    """epoll on a socket that is bound and listens later, wildcard and loopback."""
    for host in (net.any, net.loop):
        for trigger in (0, ET):
            sock = net.socket(socket.SOCK_NONBLOCK)
            epoll = select.epoll()
            epoll.register(sock, IN | trigger)
            say(f"{host} {trigger != 0} fresh", seen(epoll), ["HUP"])
            sock.bind((host, 0))
            sock.listen()
            poll(sock, seconds=0)
            client = net.socket()
            client.connect((net.loop, sock.getsockname()[1]))
            say(f"{host} {trigger != 0} client", seen(epoll), ["IN"])
            conn, _ = sock.accept()
            say(f"{host} {trigger != 0} nobody else", seen(epoll, 0.05), [])
            conn.close()
            client.close()


@both
def served_by_epoll(net: Net) -> None:
    """A little epoll server on a wildcard port; the world is its client."""
    listener = net.listener()
    listener.setblocking(False)
    far = Far()
    boxes = [token() for _ in range(6)]
    for box in boxes:
        port = listener.getsockname()[1]
        far.ask(op="dial later", token=box, host=net.host, port=port, say="ping")
    epoll = select.epoll()
    epoll.register(listener, IN)
    open_sockets: dict[int, socket.socket] = {}
    done = 0
    while done < len(boxes):
        for number, _ in epoll.poll(10):
            if number == listener.fileno():
                conn, _address = listener.accept()
                conn.setblocking(False)
                open_sockets[conn.fileno()] = conn
                epoll.register(conn, IN | ET)
            elif data := open_sockets[number].recv(100):
                open_sockets[number].send(data.upper())
                open_sockets.pop(number).close()
                done += 1
    answers = [far.box(box) for box in boxes]
    say("served", [a["got"] for a in answers if isinstance(a, dict)], ["PING"] * 6)


@both
def selectors_module(net: Net) -> None:
    with selectors.DefaultSelector() as selector:
        for _, where in places(net):
            sock = net.socket(socket.SOCK_NONBLOCK)
            selector.register(sock, selectors.EVENT_WRITE, where)
            outcome(sock.connect, where)
        done = 0
        while done < 2:
            for key, _ in selector.select(5):
                sock = key.fileobj  # type: ignore[assignment]
                if outcome(sock.getpeername) == "ENOTCONN":
                    continue
                selector.unregister(sock)
                sock.setblocking(True)
                say(f"echo {done}", echo(sock), "hello")
                done += 1


@both
def asyncio_streams(net: Net) -> None:
    async def client(where: tuple[str, int], text: bytes) -> str:
        reader, writer = await asyncio.open_connection(*where)
        writer.write(text)
        await writer.drain()
        data = await reader.readexactly(len(text))
        writer.close()
        await writer.wait_closed()
        return data.decode()

    async def talk() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readexactly(4))
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(serve, net.any, 0)
        port = server.sockets[0].getsockname()[1]
        everywhere = [(net.peer, PORTS["echo"]), (net.loop, port), (net.host, port)] * 5
        calls = [client(where, b"ab%02d" % i) for i, where in enumerate(everywhere)]
        answers = await asyncio.gather(*calls)
        say("all", answers, [f"ab{i:02}" for i in range(15)])
        refused = 0
        try:
            await asyncio.open_connection(net.peer, PORTS["closed"])
        except ConnectionRefusedError:
            refused = 1
        say("refused", refused, 1)
        server.close()
        await server.wait_closed()

    asyncio.run(talk())


main()
