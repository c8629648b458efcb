"""A socket that changes its network keeps what the program gave it: descriptors, options, epoll entries, its port."""

from __future__ import annotations

import guestkit

# Direct: sockets are the host's until the guest turns to its own loopback.
EPOLL = """
libc = ctypes.CDLL(None, use_errno=True)

class Entry(ctypes.Structure):
    _pack_ = 1 if os.uname().machine == "x86_64" else 8
    _fields_ = [("events", ctypes.c_uint32), ("data", ctypes.c_uint64)]

def ctl(ep, op, fd, events=0, data=0):
    if libc.epoll_ctl(ep, op, fd, ctypes.byref(Entry(events, data))):
        raise OSError(ctypes.get_errno(), "epoll_ctl")

def wait(ep, timeout=5000):
    got = (Entry * 16)()
    n = libc.epoll_wait(ep, got, 16, timeout)
    return sorted([e.events, e.data] for e in got[:n])

def network(fd):
    with socket.socket(fileno=os.dup(fd)) as sock:
        return sock.getsockopt(socket.SOL_SOCKET, 71, 8).hex()

here = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)  # always the guest's own
"""


def run(script: str) -> list[object]:
    return guestkit.run(EPOLL + script, datapath="direct")[0]


def test_every_descriptor_of_the_socket_changes_network_and_keeps_its_flag() -> None:
    said = run("""
server = listener()
sock = socket.socket()
copies = [sock.fileno(), os.dup(sock.fileno()), os.dup2(sock.fileno(), 400), fcntl.fcntl(sock, fcntl.F_DUPFD, 900)]
for fd, inheritable in zip(copies, (False, True, True, False)):
    os.set_inheritable(fd, inheritable)
bystander = socket.socket()
said([network(fd) == network(here.fileno()) for fd in (*copies, bystander.fileno(), server.fileno())])
sock.connect(server.getsockname())
said([network(fd) == network(here.fileno()) for fd in (*copies, bystander.fileno(), server.fileno())])
said([os.get_inheritable(fd) for fd in copies])
said(len({os.fstat(fd).st_ino for fd in copies}))
os.write(copies[3], b"by a copy")
said(server.accept()[0].recv(100).decode())
""")
    assert said == [
        [False] * 5 + [True],
        [True] * 4 + [False, True],
        [False, True, True, False],
        1,
        "by a copy",
    ]


def test_epoll_entries_keep_events_and_data() -> None:
    said = run("""
server = listener()
sock = socket.socket()
copy = os.dup(sock.fileno())
one, two, other = (select.epoll() for _ in range(3))
pipe, pipe_end = os.pipe()
ctl(one.fileno(), 1, pipe, select.EPOLLIN, 11)
ctl(one.fileno(), 1, sock.fileno(), select.EPOLLIN, 0x1122334455667788)
ctl(one.fileno(), 1, copy, select.EPOLLOUT | select.EPOLLONESHOT, 2**64 - 1)
ctl(two.fileno(), 1, sock.fileno(), select.EPOLLIN | select.EPOLLET | select.EPOLLRDHUP, 5)
ctl(other.fileno(), 1, pipe, select.EPOLLIN, 6)
sock.connect(server.getsockname())
far, _ = server.accept()
said(wait(one.fileno()))
said(wait(one.fileno(), 0))  # one shot
said(wait(two.fileno(), 0))
far.sendall(b"x")
said(wait(one.fileno()))
said(wait(two.fileno()))
said(wait(two.fileno(), 0))  # edge triggered
far.close()
said(wait(two.fileno()))
said(wait(other.fileno(), 0))
ctl(one.fileno(), 2, sock.fileno())
ctl(one.fileno(), 2, copy)
said(error_of(ctl, one.fileno(), 2, sock.fileno()))
said(wait(one.fileno(), 0))
""")
    into, out, hup = 1, 4, 0x2000
    assert said == [
        [[out, 2**64 - 1]],
        [],
        [],
        [[into, 0x1122334455667788]],
        [[into, 5]],
        [],
        [[into | hup, 5]],
        [],
        "ENOENT",
        [],
    ]


def test_an_epoll_of_many_others_is_left_alone() -> None:
    said = run("""
server = listener()
ep = select.epoll()
pipes = [os.pipe() for _ in range(100)]
for i, (reader, _) in enumerate(pipes):
    ctl(ep.fileno(), 1, reader, select.EPOLLIN, i)
sock = socket.socket()
ctl(ep.fileno(), 1, sock.fileno(), select.EPOLLOUT, 1000)
sock.connect(server.getsockname())
os.write(pipes[42][1], b"x")
said(wait(ep.fileno()))
""")
    assert said == [[[1, 42], [4, 1000]]]


def test_a_port_of_its_own_stays_with_it() -> None:
    said = run("""
server = listener()
sock = socket.socket()
sock.bind(("", 0))
port = sock.getsockname()[1]
said(network(sock.fileno()) == network(here.fileno()))
sock.connect(server.getsockname())
said(network(sock.fileno()) == network(here.fileno()))
said(sock.getsockname() == ("127.0.0.1", port))
said(server.accept()[1] == ("127.0.0.1", port))
""")
    assert said == [False, True, True, True]


def test_options_and_modes_stay() -> None:
    said = run("""
server = listener()
sock = socket.socket()
wishes = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), (socket.SOL_SOCKET, socket.SO_REUSEADDR, 1),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 77),
    (socket.IPPROTO_IP, socket.IP_TOS, 16), (socket.SOL_SOCKET, socket.SO_RCVBUF, 50000),
]
for level, name, value in wishes:
    sock.setsockopt(level, name, value)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("=qq", 3, 0))
before = [sock.getsockopt(level, name) for level, name, _ in wishes]
fcntl.fcntl(sock, fcntl.F_SETFL, os.O_NONBLOCK)
said(error_of(sock.connect, server.getsockname()))
select.select([], [sock], [])
said([sock.getsockopt(level, name) for level, name, _ in wishes] == before)
said(struct.unpack("=qq", sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16)))
said(bool(fcntl.fcntl(sock, fcntl.F_GETFL) & os.O_NONBLOCK))
""")
    assert said == ["EINPROGRESS", True, [3, 0], True]


def test_a_listener_on_loopback_keeps_its_copies_and_pollers() -> None:
    said = run("""
server = socket.socket()
copy = os.dup(server.fileno())
ep = select.epoll()
ctl(ep.fileno(), 1, copy, select.EPOLLIN, 9)
server.bind(("127.0.0.1", 0))
server.listen()
client = socket.create_connection(server.getsockname())
said(wait(ep.fileno()))
with socket.socket(fileno=copy) as same:
    said(same.accept()[1] == client.getsockname())
""")
    assert said == [[[1, 9]], True]


def test_ipv6_and_its_mapped_addresses() -> None:
    said = run("""
server = listener()
sock = socket.socket(socket.AF_INET6)
sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
copy = os.dup(sock.fileno())
sock.connect(("::ffff:127.0.0.1", server.getsockname()[1]))
os.write(copy, b"mapped")
said(server.accept()[0].recv(10).decode())
""")
    assert said == ["mapped"]


def test_a_refused_attempt_does_not_hold_the_socket_to_its_port() -> None:
    script = """
for first, then in (("127.0.0.1", ""), ("127.0.0.1", "127.0.0.1")):
    sock = socket.socket()
    said(error_of(sock.connect, (first, 9)))
    said(error_of(sock.bind, (then, 0)))
    said(error_of(sock.bind, (then, 0)))
    said(error_of(sock.listen))
"""
    assert run(script) == ["ECONNREFUSED", "", "EINVAL", ""] * 2
