"""Names that a guest learned, as the backend after this one knows them."""

from __future__ import annotations

import os
from ipaddress import ip_address
from typing import TYPE_CHECKING

from xensock.backend import learned
from xensock.backend.learned import Learned
from xensock.policy.names import Names

if TYPE_CHECKING:
    import pytest

ONE, TWO = ip_address("192.0.2.1"), ip_address("2001:db8::1")


def test_what_the_next_one_knows() -> None:
    fd = os.memfd_create("names")
    names = Names()
    log = Learned(names, fd)
    names.learn("Web.Example.", [ONE, TWO], 30)
    names.learn("other.example", [ONE], 30)
    names.learn("web.example", [TWO], 3600)
    # Killed now; the last line was cut off.
    os.pwrite(fd, b'[1e9, "half.exam', os.fstat(fd).st_size)
    after = Names()
    again = Learned(after, fd)
    assert after.current() == names.current()
    assert after.of(ONE) == ("other.example", "web.example")
    after.learn("third.example", [TWO], 30)
    third = Names()
    Learned(third, fd).close()
    assert third.of(TWO) == ("third.example", "web.example")
    log.close()
    again.close()
    os.close(fd)


def test_what_has_lapsed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learned, "LONGEST", 1000)
    now = 0.0
    names = Names(clock=lambda: now, grace=0)
    fd = os.memfd_create("names")
    log = Learned(names, fd)
    for number in range(200):
        names.learn(f"n{number}.example", [ONE], 10)
        now += 1
    assert os.fstat(fd).st_size < 3000
    log.close()
    names.learn("after.example", [ONE], 10)
    os.close(fd)
