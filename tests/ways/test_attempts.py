"""Ways around the backend, one by one, by ordinary users and by root. Natively each leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from guestkit import no_user_namespaces

from .conftest import HERE, everywhere, guests

if TYPE_CHECKING:
    from collections.abc import Callable

    from world.runner import Guest

    Seen = Callable[..., dict[str, str]]

FILES = ("reach.py", "rights.py", "datagrams.py", "shows.py")
USERS = pytest.mark.parametrize("user", ["xstest", None], ids=["ordinary", "root"])
RINGS = (
    *("io_uring", "connect by io_uring"),
    *("socket and connect by io_uring", "datagram by io_uring"),
)
# What a kernel may lack, so that an attempt comes to nothing natively, too: how that shows. No other may.
FAMILY, PROTOCOL, TYPE = {"EAFNOSUPPORT"}, {"EPROTONOSUPPORT"}, {"ESOCKTNOSUPPORT"}
LACKING = {
    **{
        f"socket: {name}": FAMILY
        for name in ("vsock", "xdp", "smc", "bluetooth", "tipc", "can", "alg", "rds", "key")
    },
    "socket: sctp": PROTOCOL,
    "socket: sctp by packets": PROTOCOL | TYPE,
    "socket: dccp": PROTOCOL | TYPE,
    "socket: l2tp": PROTOCOL,
    "socket: udp-lite": PROTOCOL,
    "socket: netfilter": PROTOCOL,
    "socket: audit": PROTOCOL,
    "socket: transformations": PROTOCOL,
    "multipath": PROTOCOL | {"ENOPROTOOPT"},
    "option: another layer": {"ENOENT"},  # the module tls
    "option: source routing in IPv6": {"EINVAL", "ENOPROTOOPT"},  # without segment routing
    "x32": {"ENOSYS"},
    **{name: {"ENOSYS"} for name in RINGS},
}
# Natively for root only where the kernel's settings allow it (dev.tty.legacy_tiocsti, io_uring_disabled).
BY_SETTING = {"typing on the terminal": {"EIO"}, **{name: {"EPERM"} for name in RINGS}}
# Errors that must be those of the kernel: a backend that cannot read or give anything must not let go on.
SAME = {"an address that cannot be read": "EFAULT", "no room for a descriptor": "EMFILE"}


def names(file: str) -> set[str]:
    return set(re.findall(r'\battempt\("([^"]+)"\)', (HERE / "tries" / file).read_text()))


@everywhere
@USERS
@pytest.mark.parametrize("file", FILES)
def test_attempts(guest: Guest, seen: Seen, file: str, user: str | None) -> None:
    """No attempt comes to anything in a guest; without a guest each does, for root or for everybody."""
    found = seen(guest, file, user)
    assert names(file) <= set(found)
    for name, word in SAME.items():
        assert found.pop(name, word) == word
    if not guest.native:
        assert {name: word for name, word in found.items() if word in ("done", "silence")} == {}
        return
    other = seen(guest, file, None)
    idle = {
        name: (word, other[name])
        for name, word in found.items()
        if "done" not in (word, other[name])
        and word not in LACKING.get(name, set()) | BY_SETTING.get(name, set())
    }
    assert idle == {}


@guests
@USERS
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("spaces", ["--user", "--user --net --mount"])
def test_user_namespaces_gain_nothing(
    guest: Guest, seen: Seen, file: str, user: str | None, spaces: str
) -> None:
    """A guest may make user namespaces, and all that they permit; every attempt fails as before."""
    if reason := no_user_namespaces():
        pytest.skip(reason)
    found = seen(guest, file, user, ("unshare", "--map-root-user", *spaces.split()))
    # Interfaces of a network that it made for itself are its own.
    own = {"change an interface"} if "--net" in spaces else set()
    assert {name for name, word in found.items() if word in ("done", "silence")} - own == set()


def test_every_attempt_has_a_name_of_its_own() -> None:
    listed = [sorted(names(file)) for file in FILES]
    assert all(len(each) > 2 for each in listed)
    assert len({name for each in listed for name in each}) == sum(map(len, listed))
    assert {path.name for path in Path(HERE / "tries").glob("*.py")} == {
        *FILES,
        "kit.py",
        "takes.py",
    }


def test_the_document_has_every_attempt() -> None:
    told = (HERE.parents[1] / "docs" / "security.md").read_text()
    assert [name for file in FILES for name in sorted(names(file)) if f"`{name}`" not in told] == []
