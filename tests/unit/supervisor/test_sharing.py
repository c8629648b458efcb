"""A socket that several processes of a guest hold is connected for all of them, also within the guest."""

from __future__ import annotations

import socket

import pytest

import guestkit

# A child that holds the socket too, and does something with it when told.
HELD = """
def held(body):
    go, ready = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(ready)
        os.read(go, 1)
        body()
        os._exit(0)
    os.close(go)
    def then():
        os.close(ready)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return then

def echo(server):
    peer, name = server.accept()
    def serve():
        while data := peer.recv(65536):
            peer.sendall(data)
        peer.close()
    import threading
    thread = threading.Thread(target=serve)
    thread.start()
    return name, thread

def talk(sock, text):
    sock.sendall(text)
    return sock.recv(100).decode()
"""


def run(script: str, **options: object) -> list[object]:
    return guestkit.run(HELD + script, datapath="direct", **options)[0]


@pytest.mark.parametrize(("family", "host"), [("INET", "127.0.0.1"), ("INET6", "::1")])
def test_every_holder_has_the_connection_and_its_names(family: str, host: str) -> None:
    with socket.socket(getattr(socket, f"AF_{family}")) as probe:
        probe.bind((host, 0))
        port = probe.getsockname()[1]  # free on the host too: else its name would be another
    said = run(f"""
server = listener("{host}", {port}, family=socket.AF_{family})
sock = socket.socket(socket.AF_{family})
then = held(lambda: said(talk(sock, b"child")))
said(error_of(sock.connect, server.getsockname()))
name, thread = echo(server)
said(sock.getpeername() == server.getsockname())
said(sock.getsockname() == name)
said(talk(sock, b"parent"))
said(then())
said(error_of(sock.connect, server.getsockname()))
sock.shutdown(socket.SHUT_WR)
said(sock.recv(1).decode())
thread.join()
""")
    assert said == ["", True, True, "parent", "child", 0, "EISCONN", ""]


def test_a_port_that_the_host_uses() -> None:
    with socket.create_server(("127.0.0.1", 0)) as host:
        said = run(f"""
server = listener("127.0.0.1", {host.getsockname()[1]})
sock = socket.socket()
then = held(lambda: said(talk(sock, b"child")))
said(error_of(sock.connect, server.getsockname()))
echo(server)
said(sock.getpeername()[0])
said(then())
sock.close()
""")
        assert said == ["", "127.0.0.1", "child", 0]
        host.settimeout(0.1)
        with pytest.raises(TimeoutError):
            host.accept()


def test_refused_for_all() -> None:
    said = run("""
gone = listener()
where = gone.getsockname()
gone.close()
sock = socket.socket()
then = held(lambda: said(error_of(sock.getpeername)))
said(error_of(sock.connect, where))
said(then())
server = listener()
then = held(lambda: said(talk(sock, b"later")))
said(error_of(sock.connect, server.getsockname()))
echo(server)
said(then())
sock.close()
""")
    assert said == ["ECONNREFUSED", "ENOTCONN", 0, "", "later", 0]


def test_one_that_does_not_wait_and_one_under_way() -> None:
    said = run("""
import array
server = listener()
ours, theirs = socket.socketpair()
sock = socket.socket(type=socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
socket.send_fds(ours, [b"x"], [sock.fileno()])
said(error_of(sock.connect, server.getsockname()) in ("", "EINPROGRESS"))
echo(server)
poll = select.poll()
poll.register(sock, select.POLLOUT)
said([event for _, event in poll.poll(5000)])
said(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
sock.close()
_, fds, _, _ = socket.recv_fds(theirs, 1, 1)
received = socket.socket(fileno=fds[0])
received.setblocking(True)
said(talk(received, b"received"))
received.close()
""")
    assert said == [True, [4], 0, "received"]


def test_a_bound_one_keeps_its_port() -> None:
    said = run("""
server = listener()
sock = socket.socket()
sock.bind(("0.0.0.0", 0))
port = sock.getsockname()[1]
then = held(lambda: said(sock.getsockname()[1] == port))
said(error_of(sock.connect, server.getsockname()))
name, _ = echo(server)
said(name[1] == port)
said(then())
sock.close()
""")
    assert said == ["", True, True, 0]


def test_a_listener_whose_queue_is_full() -> None:
    """The connection cannot be there before it is: the calling process goes on alone (docs, differences)."""
    said = run("""
server = socket.socket()
server.bind(("127.0.0.1", 0))
server.listen(0)
filling = [socket.socket(type=socket.SOCK_STREAM | socket.SOCK_NONBLOCK) for _ in range(4)]
for each in filling:
    error_of(each.connect, server.getsockname())
sock = socket.socket(type=socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
then = held(lambda: None)
said(error_of(sock.connect, server.getsockname()))
said(then())
""")
    assert said == ["EINPROGRESS", 0]


@pytest.mark.parametrize(("family", "host"), [("INET", "127.0.0.1"), ("INET6", "::1")])
def test_bound_by_one_and_listening_in_another(family: str, host: str) -> None:
    said = run(f"""
def network(sock):
    return sock.getsockopt(socket.SOL_SOCKET, 71, 8).hex()

here = socket.socket(socket.AF_{family}, socket.SOCK_DGRAM)  # always the guest's own
sock = socket.socket(socket.AF_{family})
then = held(lambda: sock.bind(("{host}", 0)))
said(then())
name = sock.getsockname()
said([name[0], name[1] != 0])
sock.listen()
said(network(sock) == network(here))  # never the host's loopback
said(sock.getsockname() == name)
client = socket.socket(socket.AF_{family})
said(error_of(client.connect, name))
said(sock.accept()[1] == client.getsockname())
""")
    assert said == [0, [host, True], True, True, "", True]


def test_a_port_taken_in_the_guest_cannot_be_bound() -> None:
    said = run("""
server = listener()
where = server.getsockname()
sock = socket.socket()
then = held(lambda: said(error_of(sock.bind, where)))
said(then())
then = held(lambda: said(error_of(sock.bind, ("127.0.0.1", 0))))
said(then())
taken = socket.socket()
said(error_of(taken.bind, sock.getsockname()))
taken.listen()
said(error_of(sock.listen))
""")
    # What a bound socket holds that several have, another may bind: the first to listen has it (docs, differences).
    assert said == ["EADDRINUSE", 0, "", 0, "", "EADDRINUSE"]


def test_a_port_taken_on_the_host() -> None:
    """Then only the process that binds has the bound socket (docs, differences)."""
    with socket.create_server(("127.0.0.1", 0)) as host:
        where = host.getsockname()
        said = run(f"""
sock = socket.socket()
def body():
    said(error_of(sock.bind, {where!r}))
    said(list(sock.getsockname()))
    sock.listen()
    said(error_of(socket.socket().connect, {where!r}))
then = held(body)
said(then())
said(sock.getsockname()[1])
""")
        assert said == ["", list(where), "", 0, 0]
