"""One socket with many holders: dup, fork, exec, descriptors passed over unix sockets."""

from __future__ import annotations

import array
import fcntl
import os
import select
import socket
import subprocess
import sys
import threading

from kit import (
    PORTS,
    Far,
    Net,
    both,
    child,
    echo,
    events,
    main,
    mask,
    outcome,
    pending,
    places,
    poll,
    raw,
    raw_connect,
    read_all,
    say,
    token,
    wait_for,
)


@both
def duplicates(net: Net) -> None:
    """dup, dup2 and F_DUPFD before connect: every number is the connected socket."""
    for place, where in places(net):
        sock = net.socket()
        one = socket.socket(fileno=os.dup(sock.fileno()))
        two = socket.socket(fileno=os.dup2(sock.fileno(), 200))
        three = socket.socket(fileno=fcntl.fcntl(sock, fcntl.F_DUPFD, 300))
        say(f"{place} connect", outcome(sock.connect, where), "ok")
        for index, copy in enumerate((one, two, three)):
            say(f"{place} copy {index}", outcome(echo, copy), "hello")
            say(f"{place} peer {index}", mask(outcome(copy.getpeername), (where[1], "port")))
            say(f"{place} again {index}", outcome(copy.connect, where), "EISCONN")
        sock.close()
        say(f"{place} first closed", outcome(echo, one), "hello")
        late = socket.socket(fileno=os.dup(one.fileno()))
        one.close()
        two.close()
        three.close()
        say(f"{place} late copy", outcome(echo, late), "hello")


@both
def connect_by_copy(net: Net) -> None:
    """connect on the copy; the original is connected. Bind on one, listen on another."""
    for place, where in places(net):
        sock = net.socket()
        with socket.socket(fileno=os.dup(sock.fileno())) as copy:
            say(f"{place} connect", outcome(copy.connect, where), "ok")
        say(f"{place} original", outcome(echo, sock), "hello")
    for host in (net.any, net.loop):
        sock = net.socket()
        copy = socket.socket(fileno=os.dup(sock.fileno()))
        say(f"bind {host}", outcome(copy.bind, (host, 0)), "ok")
        say(f"same name {host}", sock.getsockname() == copy.getsockname(), True)
        say(f"listen {host}", outcome(sock.listen), "ok")
        copy_listens = outcome(copy.getsockopt, socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        say(f"copy listens {host}", copy_listens, 1)


@both
def child_connects(net: Net) -> None:
    """fork, the child connects, the parent polls, then both talk."""
    for place, where in places(net):
        for flags in (0, socket.SOCK_NONBLOCK):
            title = f"{place} {'non-' if flags else ''}blocking"
            sock = net.socket(flags)
            say(f"{title} before", poll(sock), "OUT|HUP")
            done_read, done_write = os.pipe()

            def body(
                sock: socket.socket = sock, where: object = where, done: int = done_write
            ) -> None:
                outcome(sock.connect, where)
                os.write(done, b"x")

            with child(body):
                os.read(done_read, 1)
                say(f"{title} events", poll(sock, 4), "OUT")
                wait_for(lambda sock=sock: outcome(sock.getpeername) != "ENOTCONN")
                say(f"{title} SO_ERROR", pending(sock), "ok")
            sock.setblocking(True)
            say(f"{title} echo", outcome(echo, sock), "hello")
            say(f"{title} again", outcome(sock.connect, where), "ok" if flags else "EISCONN")
            say(f"{title} and again", outcome(sock.connect, where), "EISCONN")


@both
def parent_connects(net: Net) -> None:
    """The child holds a socket that its parent connects, and talks over it."""
    for place, where in places(net):
        sock = net.socket()
        go_read, go_write = os.pipe()

        def body(place: str = place, sock: socket.socket = sock, go: int = go_read) -> None:
            os.read(go, 1)
            say(f"{place} child", outcome(echo, sock, b"child"), "child")

        with child(body):
            say(f"{place} connect", outcome(sock.connect, where), "ok")
            os.write(go_write, b"x")
        say(f"{place} parent", outcome(echo, sock, b"parent"), "parent")


@both
def close_in_one(net: Net) -> None:
    """close in one of two processes; the peer sees the end when both have."""
    far, box = Far(), token()
    sock = net.far("watch")
    sock.sendall(box.encode() + b"\n")
    with child(lambda: sock.close()):
        pass
    say("send", outcome(sock.send, b"after"), 5)
    sock.close()
    answer = far.box(box)
    assert isinstance(answer, dict)
    say("they got", [answer["count"], answer["end"]], [5, "eof"])


@both
def shutdown_in_one(net: Net) -> None:
    """shutdown in one of two processes ends it for both."""
    sock = net.far("sink")
    with child(lambda: sock.shutdown(socket.SHUT_WR)):
        pass
    say("send", outcome(sock.send, b"x", socket.MSG_NOSIGNAL), "EPIPE")
    say("answer", len(read_all(sock)) > 0, True)


def hand_over(channel: socket.socket, sock: socket.socket) -> None:
    channel.sendmsg(
        [b"f"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [sock.fileno()]))]
    )


def take(channel: socket.socket) -> socket.socket:
    _, ancillary, _, _ = channel.recvmsg(1, socket.CMSG_SPACE(4))
    return socket.socket(fileno=array.array("i", ancillary[0][2])[0])


@both
def passed_before_connect(net: Net) -> None:
    """SCM_RIGHTS of a fresh socket; the receiver connects."""
    for place, where in places(net):
        ours, theirs = socket.socketpair()

        def body(place: str = place, where: object = where, theirs: socket.socket = theirs) -> None:
            sock = take(theirs)
            say(f"{place} connect", outcome(sock.connect, where), "ok")
            say(f"{place} echo", outcome(echo, sock), "hello")

        with child(body):
            sock = net.socket()
            hand_over(ours, sock)
            sock.close()


@both
def passed_and_kept(net: Net) -> None:
    """SCM_RIGHTS of a fresh socket; the sender keeps a copy; one connects, the other uses it."""
    for place, where in places(net):
        ours, theirs = socket.socketpair()
        sock = net.socket()
        hand_over(ours, sock)
        say(f"{place} connect", outcome(sock.connect, where), "ok")
        received = take(theirs)
        say(f"{place} in flight meanwhile", outcome(echo, received), "hello")
        again = net.socket()
        hand_over(ours, again)
        received = take(theirs)
        say(f"{place} connect received", outcome(received.connect, where), "ok")
        say(f"{place} the sender's", outcome(echo, again), "hello")


@both
def passed_after_connect(net: Net) -> None:
    for place, where in places(net):
        ours, theirs = socket.socketpair()

        def body(place: str = place, theirs: socket.socket = theirs) -> None:
            sock = take(theirs)
            say(f"{place} echo", outcome(echo, sock), "hello")
            say(f"{place} peer", mask(sock.getpeername()))

        with child(body):
            sock = net.socket()
            sock.connect(where)
            hand_over(ours, sock)
            sock.close()


@both
def listener_passed(net: Net) -> None:
    """A listener handed over (as by a graceful restart) serves on."""
    ours, theirs = socket.socketpair()

    def body() -> None:
        listener = take(theirs)
        conn, _ = listener.accept()
        conn.sendall(b"new holder")
        conn.close()

    with child(body):
        listener = net.listener()
        port = listener.getsockname()[1]
        hand_over(ours, listener)
        listener.close()
        answer = Far().ask(op="dial", host=net.host, port=port)
        say("dial", answer.get("got"), "new holder")


@both
def listen_by_child(net: Net) -> None:
    """Bound by the parent, listened to and accepted from by the child."""
    for host in (net.any, net.loop):
        sock = net.socket()
        sock.bind((host, 0))
        ready_read, ready_write = os.pipe()

        def body(sock: socket.socket = sock, ready: int = ready_write) -> None:
            sock.listen()
            os.write(ready, b"x")
            conn, _ = sock.accept()
            conn.sendall(b"child")
            conn.close()

        with child(body):
            os.read(ready_read, 1)
            client = socket.create_connection((net.loop, sock.getsockname()[1]))
            say(f"{host} read", read_all(client).decode(), "child")
            client.close()


@both
def bound_by_child(net: Net) -> None:
    """A helper binds (as authbind does), its parent listens and serves."""
    for host in (net.any, net.loop):
        sock = net.socket()
        with child(lambda sock=sock, host=host: sock.bind((host, 0))):  # type: ignore[misc]
            pass
        name = sock.getsockname()
        say(f"{host} bound", [name[0], name[1] != 0], [host, True])
        say(f"{host} bound again", outcome(sock.bind, (host, 0)), "EINVAL")
        say(f"{host} listen", outcome(sock.listen), "ok")
        say(f"{host} same name", sock.getsockname() == name, True)
        client = net.socket()
        say(f"{host} connect", outcome(client.connect, (net.loop, name[1])), "ok")
        conn, address = sock.accept()
        say(f"{host} address", address == client.getsockname(), True)
        conn.sendall(b"parent")
        conn.close()
        say(f"{host} read", read_all(client).decode(), "parent")
        client.close()
        sock.close()


@both
def bound_by_child_to_connect(net: Net) -> None:
    """A client whose name a child chose."""
    for place, where in places(net):
        host = net.loop if place == "loopback" else net.any
        sock = net.socket()
        with child(lambda sock=sock, host=host: sock.bind((host, 0))):  # type: ignore[misc]
            pass
        port = sock.getsockname()[1]
        say(f"{place} connect", outcome(sock.connect, where), "ok")
        say(f"{place} port", sock.getsockname()[1] == port, True)
        say(f"{place} echo", outcome(echo, sock), "hello")


CHECK = """
import socket, sys
number, place = int(sys.argv[1]), sys.argv[2]
try:
    sock = socket.socket(fileno=number)
except OSError as error:
    print(place, "gone", error.errno)
else:
    sock.sendall(b"exec")
    print(place, sock.recv(4).decode(), sock.type == socket.SOCK_STREAM)
"""


@both
def inherited_by_exec(net: Net) -> None:
    """Connected sockets pass exec; close-on-exec ones do not, also after a connect to loopback."""
    for place, where in places(net):
        for inherit in (True, False):
            sock = net.socket()
            sock.set_inheritable(inherit)
            sock.connect(where)
            done = subprocess.run(
                [sys.executable, "-c", CHECK, str(sock.fileno()), place],
                close_fds=False,
                capture_output=True,
                text=True,
                check=False,
            )
            say(f"{place} inherit={inherit}", done.stdout.strip())


@both
def connected_by_exec(net: Net) -> None:
    """A socket made before exec is connected after it (as inetd and shells do)."""
    script = (
        "import socket,sys\ns=socket.socket(fileno=0)\n"
        "s.connect((sys.argv[1],int(sys.argv[2])))\ns.sendall(b'exec')\nprint(s.recv(4).decode())"
    )
    for place, where in places(net):
        sock = net.socket()
        done = subprocess.run(
            [sys.executable, "-c", script, where[0], str(where[1])],
            stdin=sock,
            capture_output=True,
            text=True,
            check=False,
        )
        say(place, done.stdout.strip() or done.stderr[-200:], "exec")
        say(f"{place} ours too", outcome(echo, sock), "hello")


@both
def threads_share(net: Net) -> None:
    """One thread writes, one reads, one looks at names."""
    sock = net.far("echo")
    content = b"t" * 300_000
    names = set()
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            names.add(sock.getpeername()[:2])

    writer = threading.Thread(target=sock.sendall, args=(content,))
    looker = threading.Thread(target=look)
    looker.start()
    writer.start()
    data = b""
    while len(data) < len(content):
        data += sock.recv(65536)
    stop.set()
    writer.join()
    looker.join()
    say("same", data == content, True)
    say("one name", len(names), 1)


@both
def thread_with_own_table(net: Net) -> None:
    """A thread with a descriptor table of its own (unshare CLONE_FILES): its numbers count."""
    ours = net.socket()
    results: list[object] = []

    def work() -> None:
        results.append(raw("unshare", 0x400))
        number = ours.fileno()
        os.close(number)
        sock = net.socket()
        results.append(sock.fileno() == number)
        results.append(outcome(sock.connect, (net.peer, PORTS["echo"])))
        results.append(outcome(echo, sock))
        listener = net.listener()
        client = net.socket()
        results.append(outcome(client.connect, (net.loop, listener.getsockname()[1])))
        for each in (sock, listener, client):
            each.close()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    say("thread", results, [0, True, "ok", "hello", "ok"])
    say("ours untouched", outcome(ours.getpeername), "ENOTCONN")
    say("ours", outcome(ours.connect, (net.peer, PORTS["greet"])), "ok")


@both
def close_in_another_thread(net: Net) -> None:
    """A number closed and used again by one thread while another connects (no mix-up)."""
    far = Far()
    port = far.blackhole(net)
    sock = net.socket()
    number = sock.fileno()
    results: list[object] = []
    where = net.raw(net.peer, port)
    thread = threading.Thread(target=lambda: results.append(raw_connect(sock, where)))
    thread.start()
    thread.join(0.2)
    other = net.far("echo")
    os.dup2(other.fileno(), number)
    far.open(port)
    thread.join(10)
    say("connect", results)
    say("the number", echo(socket.socket(fileno=number)), "hello")
    say("the other", echo(other), "hello")


@both
def vfork_and_spawn(net: Net) -> None:
    """posix_spawn (CLONE_VFORK) of a program that connects, from a program that is connecting."""
    far = Far()
    port = far.blackhole(net)
    pending_socket = net.socket(socket.SOCK_NONBLOCK)
    outcome(pending_socket.connect, (net.peer, port))
    script = (
        "import socket,sys\ns=socket.create_connection((sys.argv[1],int(sys.argv[2])))\n"
        "s.sendall(b'x')\nsys.exit(0 if s.recv(1)==b'x' else 1)"
    )
    argv = [sys.executable, "-c", script, net.peer, str(PORTS["echo"])]
    pid = os.posix_spawn(sys.executable, argv, os.environ)
    say("spawned", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), 0)
    far.open(port)
    say("pending one", poll(pending_socket), "OUT")


@both
def exec_while_pending(net: Net) -> None:
    """A connect begun before exec completes after it."""
    far = Far()
    port = far.blackhole(net)
    sock = net.socket(socket.SOCK_NONBLOCK)
    sock.set_inheritable(True)
    outcome(sock.connect, (net.peer, port))
    script = (
        "import select,socket,sys\ns=socket.socket(fileno=int(sys.argv[1]))\n"
        "p=select.poll();p.register(s,4);p.poll(10000)\n"
        "s.setblocking(True);s.sendall(b'y');print(s.recv(1).decode())"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(sock.fileno())],
        close_fds=False,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        sock.close()
        far.open(port)
        out, _ = process.communicate(timeout=20)
    say("read", out.strip(), "y")


@both
def epoll_shared(net: Net) -> None:
    """An epoll descriptor shared over fork sees the connect the child made."""
    for place, where in places(net):
        sock = net.socket()
        epoll = select.epoll()
        epoll.register(sock, select.EPOLLIN)
        say(f"{place} before", [events(mask) for _, mask in epoll.poll(0)], ["HUP"])

        def body(sock: socket.socket = sock, where: object = where) -> None:
            sock.connect(where)
            sock.sendall(b"x")

        with child(body):
            wait_for(lambda sock=sock: outcome(sock.getpeername) != "ENOTCONN")
            found = epoll.poll(5)
        say(f"{place} after", [[n == sock.fileno(), events(mask)] for n, mask in found])
        say(f"{place} read", outcome(sock.recv, 1, socket.MSG_DONTWAIT), "x")


main()
