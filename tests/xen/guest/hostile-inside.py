"""In a domU: attacks on the backend over real grants, event channels and xenstore, each with a session of its own, then
an honest connection. hostile-inside.py ADDRESS ROUNDS"""

import contextlib
import sys
import time
from random import Random

from peer import DEAF, ECHO

from backkit import Front, sockaddr
from hostilekit import ATTACKS, EXPECTED, Attack
from xensock.transport import url
from xensock.transport.xen_store import Store
from xensock.wire.commands import encode_request
from xensock.wire.requests import Connect, Poll

ADDRESS, ROUNDS = sys.argv[1], int(sys.argv[2])
# These are of transports within one host, whose descriptors both sides have.
LOCAL = {"raw_messages", "events_that_block_and_are_full"}


class There:
    """A server of the backend's host, as attacks ask for it."""

    def __init__(self, port):
        self.port = port

    def getsockname(self):
        return ADDRESS, self.port


class Servers:
    """In place of hostilekit.Sink."""

    echo, deaf = There(ECHO), There(DEAF)


def revokes_grants_that_are_mapped(attack):
    front = attack.front.handshake()
    for _ in range(3):
        _, stream = attack.live(2)
        stream.ring.write(b"x" * 1000)
        stream.event.notify()
        stream.ring.close()
        stream.page.release()
        stream.data.release()
        stream.pages.free()
    front.event.notify()


def unbinds_channels_that_are_in_use(attack):
    front = attack.front.handshake()
    _, stream = attack.live(2)
    stream.ring.write(b"x" * 1000)
    stream.event.close()
    front.push(encode_request(1, Poll(9)))
    front.event.close()


def names_grants_and_ports_of_nobody(attack):
    front, rnd = attack.front.handshake(), attack.random
    for _ in range(20):
        id, stream = front.socket(), front.stream(1)
        ref = rnd.choice((stream.ref, rnd.randrange(4096), attack.word()))
        port = rnd.choice((stream.port, rnd.randrange(64), attack.word()))
        attack.soon(front.submit(Connect(id, sockaddr(ADDRESS, ECHO), 0, ref, port)))


def a_storm_in_xenstore(attack):
    """Nodes of its own, and states, as fast as xenstored takes them."""
    attack.front.handshake()
    session = attack.session
    try:
        for number in range(100):
            session.write({f"x{number % 50}": "y" * attack.random.randrange(2000), "state": "4"})
    finally:
        store = Store()
        front = f"{store.path_of(store.own_domain())}/device/pvcalls/0"
        store.remove(front, [name for name in store.names(front) if name[1:].isdigit()])
        store.close()


def stays_where_it_was_expelled(attack):
    """Initialised, with nodes that are malformed: it is told once."""
    front = attack.front
    front.offer()
    front.session.write({"version": "none", "state": "3"})
    front.session.wait_for(lambda nodes: nodes.get("state") in ("5", "6"), 5)
    time.sleep(1)
    assert front.session.nodes["state"] in ("5", "6")


def a_storm_on_many_ports(attack):
    front = attack.front.handshake()
    streams = [attack.live(1)[1] for _ in range(8)]
    end = time.monotonic() + 1
    while time.monotonic() < end:
        for stream in streams:
            stream.event.notify()
        front.event.notify()


def takes_all_it_can(attack):
    """Grants and channels, until the backend says no or the domain has no more."""
    attack.front.handshake()
    for _ in range(20):
        _, stream = attack.live(6)
        stream.ring.write(bytes(1000))


OURS = (
    revokes_grants_that_are_mapped, unbinds_channels_that_are_in_use, names_grants_and_ports_of_nobody,
    a_storm_in_xenstore, stays_where_it_was_expelled, a_storm_on_many_ports, takes_all_it_can,
)  # fmt: skip


def honest():
    """Whoever comes next is served."""
    front = Front(url.connect("xen:", timeout=60)).handshake()
    _, stream, response = front.connect((ADDRESS, ECHO))
    assert response.ret == 0, response
    stream.send(b"are you there?")
    assert stream.recv_exactly(14) == b"are you there?"
    front.close()


def main():
    attacks = {name: each for name, each in sorted(ATTACKS.items()) if name not in LOCAL}
    attacks |= {each.__name__: each for each in OURS}
    honest()
    print("honest before", flush=True)
    for number in range(ROUNDS):
        for name, each in attacks.items():
            start = time.monotonic()
            attack = Attack("xen:", Servers(), Random(number))
            try:
                with contextlib.suppress(*EXPECTED):
                    each(attack)
            finally:
                with contextlib.suppress(BufferError, ValueError):
                    attack.front.close()
            print("attacked", name, f"{time.monotonic() - start:.1f} s", flush=True)
    honest()
    print("honest after", flush=True)


if __name__ == "__main__":
    main()
