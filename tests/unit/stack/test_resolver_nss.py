from __future__ import annotations

import asyncio
import threading
import time
from ipaddress import ip_address

import pytest

from xensock.stack import resolver_nss
from xensock.stack.hostfiles import ResolvConf
from xensock.stack.resolver_nss import Nss, may_know_more

HOME = (ip_address("192.0.2.1"),)


@pytest.mark.parametrize(
    ("name", "modules", "server", "asked"),
    [
        ("web.test", "files dns", "192.0.2.53", False),
        ("web", "files dns", "192.0.2.53", True),  # the search list
        ("printer.local", "files dns", "192.0.2.53", False),
        ("printer.local", "files mdns4_minimal dns", "192.0.2.53", True),
        ("web.test", "files mdns4_minimal dns", "192.0.2.53", False),
        ("web.test", "files myhostname wins dns", "192.0.2.53", False),
        ("web.test", "mymachines files dns", "192.0.2.53", True),
        ("web.test", "files sss dns", "192.0.2.53", True),
        ("web.test", "resolve files dns", "192.0.2.53", True),
        ("web.test", "resolve files dns", "127.0.0.53", False),  # it is asked over DNS anyway
        ("2130706433", "files dns", "192.0.2.53", False),  # 127.0.0.1 to getaddrinfo
        ("127.1", "files sss dns", "192.0.2.53", False),
        ("we\\046b", "files sss dns", "192.0.2.53", False),
        (".", "files sss dns", "192.0.2.53", False),
    ],
)
def test_nss_is_asked_only_where_it_may_know_more(
    name: str, modules: str, server: str, asked: bool
) -> None:
    conf = ResolvConf(servers=(ip_address(server),))
    assert may_know_more(name, tuple(modules.split()), conf) is asked


def test_an_answer_and_no_answer() -> None:
    def ask(name: str):
        if name != "home":
            raise OSError
        return HOME

    async def main() -> None:
        nss = Nss(ask)
        assert await nss.lookup("home", 10) == HOME
        assert await nss.lookup("away", 10) == ()

    asyncio.run(main())


def test_the_hosts_own_database_answers() -> None:
    async def main():
        return await Nss().lookup("localhost", 10)

    assert any(address.is_loopback for address in asyncio.run(main()))


def test_a_module_that_hangs_costs_only_its_patience(monkeypatch) -> None:
    monkeypatch.setattr(resolver_nss, "MAX_THREADS", 3)
    release = threading.Event()

    def ask(name: str):
        if name == "stuck":
            release.wait(30)
        return HOME

    async def main() -> None:
        nss = Nss(ask)
        started = time.monotonic()
        stuck = [nss.lookup("stuck", 0.1) for _ in range(3)]
        assert await asyncio.gather(*stuck) == [(), (), ()]
        assert await nss.lookup("home", 10) == ()  # all threads are taken: NSS is skipped
        assert time.monotonic() - started < 5
        release.set()
        async with asyncio.timeout(10):
            while await nss.lookup("home", 10) != HOME:  # noqa: ASYNC110 (they come back)
                await asyncio.sleep(0)

    asyncio.run(main())


def test_a_module_that_outlives_the_loop_does_no_harm() -> None:
    release, left = threading.Event(), []

    def ask(name: str):
        left.append(threading.current_thread())
        release.wait(30)
        return HOME

    asyncio.run(Nss(ask).lookup("stuck", 0.01))
    release.set()
    left[0].join(10)
    assert not left[0].is_alive()
