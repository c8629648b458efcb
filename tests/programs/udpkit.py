"""What the tests of programs that use UDP have in common."""

import socket

from world.namespaces import eventually

GROUP = {4: "239.1.2.3", 6: "ff05::4711"}
KIND = {4: socket.AF_INET, 6: socket.AF_INET6}


def bound(place):
    """UDP ports that something in this namespace is bound to."""

    def read():
        found = set()
        for name in ("udp", "udp6"):
            with open(f"/proc/thread-self/net/{name}") as file:
                lines = file.readlines()[1:]
            found |= {int(line.split()[1].rpartition(":")[2], 16) for line in lines}
        return found

    return place.inside(read)


def serving(place, port):
    """Wait until the port is bound there."""
    eventually(lambda: port in bound(place), 20, f"UDP port {port} is bound")


def free_port(place):
    """A port that nobody has for UDP or TCP."""
    while (port := place.free_port()) in bound(place):
        pass
    return port


def ask(place, address, port, data):
    """A datagram from there and the answer to it, with our own address. Raises OSError.

    It is sent again when nothing comes: a server that forks may be away for a moment, a busy machine loses some.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with place.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(2)
        sock.connect((address, port))
        for more in (True, True, True, False):
            sock.send(data)
            try:
                return sock.recv(70000), sock.getsockname()[:2]
            except TimeoutError:
                if not more:
                    raise
        raise AssertionError("not reached")


def relayed(guest, minimum, verb, target):
    """Assert that so many flows or calls were relayed, whatever carries the guest's TCP."""
    if guest.native:
        return

    def seen():
        return [
            call
            for call in guest.calls
            if call["datapath"] in ("relay", "ring")
            and call["verb"] == verb
            and target in call["target"]
        ]

    try:
        eventually(lambda: len(seen()) >= minimum, 5, f"{minimum} {verb} {target}")
    except AssertionError as error:
        error.add_note(guest.tail())
        raise


def card(world):
    """The index of the peer's interface."""
    names = world.peer.inside(socket.if_nameindex)
    return next(index for index, name in names if name != "lo")


def sender(world, family):
    """A socket of the peer's that sends to groups by its interface."""
    sock = world.peer.socket(KIND[family], socket.SOCK_DGRAM)
    sock.settimeout(20)
    sock.bind((world.peer.addr4 if family == 4 else world.peer.addr6, 0))
    if family == 4:
        address = socket.inet_aton(world.peer.addr4)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, address)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, card(world))
    return sock
