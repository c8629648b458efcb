"""In a domU: what version 1 allows and Linux's pvcalls-back does not stand, by hand. Says what was answered."""

from backkit import Front
from xensock.transport import url
from xensock.wire.commands import encode_request
from xensock.wire.requests import Accept, Poll, Release

ANY = "0.0.0.0"
MOMENT = 10  # seconds


def told(front, cookie):
    return "never" if front.pending(cookie, MOMENT) else "answered"


def polls(front):
    """POLL of a listener, which is released then."""
    listener = front.listener(ANY, 8700)
    cookie = front.submit(Poll(listener))
    print("release", told(front, front.submit(Release(listener, False))), flush=True)
    print("poll", told(front, cookie), flush=True)


def accepts(front):
    """ACCEPT of a listener and its release, of which the backend is told at once."""
    for count in range(10):
        listener, stream = front.listener(ANY, 8701 + count), front.stream(1)
        cookie = 1000 + count
        accept = Accept(listener, front.new_id(), stream.ref, stream.port)
        front.ring.push(encode_request(2000 + count, accept))
        front.ring.push(encode_request(cookie, Release(listener, False)))
        front.event.notify()  # of both at once
        if front.pending(cookie, MOMENT):
            print("accepted and released never", flush=True)
            return
    print("accepted and released answered", flush=True)


if __name__ == "__main__":
    front = Front(url.connect("xen:", timeout=60)).handshake()
    polls(front)
    accepts(front)
