"""What a guest learned, for how long, within what bounds, from many threads."""

import threading
from ipaddress import ip_address

import pytest

from xensock.policy import Names

A, B = ip_address("203.0.113.9"), ip_address("2001:db8::9")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_learned_names_are_found_latest_first() -> None:
    names = Names()
    assert names.of(A) == ()
    names.learn("web.test", [A, B], 300)
    names.learn("Other.TEST.", [A], 300)
    assert names.of(A) == ("other.test", "web.test")
    assert names.of(B) == ("web.test",)
    names.learn("web.test", [A], 300)
    assert names.of(A) == ("web.test", "other.test")
    assert len(names) == 3


def test_mapped_addresses_are_the_ipv4_ones() -> None:
    names = Names()
    names.learn("web.test", [ip_address("::ffff:203.0.113.9")], 1)
    assert names.of(A) == names.of(ip_address("::ffff:203.0.113.9")) == ("web.test",)


def test_a_pair_holds_for_its_time_to_live_and_the_grace() -> None:
    clock = Clock()
    names = Names(clock=clock)
    names.learn("short.test", [A], 0)
    names.learn("long.test", [A], 200)
    clock.now += 59.9
    assert set(names.of(A)) == {"short.test", "long.test"}
    assert names.lapsed(A) == ()
    clock.now += 0.1
    assert names.of(A) == ("long.test",)
    assert names.lapsed(A) == ("short.test",)
    clock.now += 199.9
    assert names.of(A) == ("long.test",)
    clock.now += 0.1
    assert names.of(A) == ()
    assert names.lapsed(A) == ("long.test", "short.test")
    names.learn("short.test", [A], 0)
    assert names.of(A) == ("short.test",)


def test_nobody_makes_a_pair_hold_for_ever() -> None:
    clock = Clock()
    names = Names(clock=clock)
    names.learn("web.test", [A], 2**31 - 1)
    names.learn("odd.test", [A], -5)
    assert set(names.of(A)) == {"web.test", "odd.test"}
    clock.now += 8 * 86400
    assert names.of(A) == ()


def test_pairs_that_are_not_right_any_more_are_forgotten() -> None:
    names = Names()
    names.learn("web.test", [A, B], 60)
    names.learn("other.test", [A], 60)
    names.keep(lambda name, address: name == "web.test" and address == A)
    assert names.of(A) == ("web.test",)
    assert names.of(B) == names.lapsed(B) == ()
    assert len(names) == 1


def test_learning_again_never_shortens() -> None:
    clock = Clock()
    names = Names(clock=clock, grace=0)
    names.learn("web.test", [A], 100)
    names.learn("web.test", [A], 1)
    clock.now += 50
    assert names.of(A) == ("web.test",)


def test_the_oldest_goes_first() -> None:
    names = Names(limit=3)
    for number in range(3):
        names.learn(f"n{number}.test", [A], 1)
    names.learn("n0.test", [A], 1)  # fresh again
    names.learn("n3.test", [B], 1)
    assert len(names) == 3
    assert names.of(A) == ("n0.test", "n2.test")
    assert names.of(B) == ("n3.test",)


def test_nonsense_limits() -> None:
    for wrong in ({"limit": 0}, {"grace": -1.0}):
        with pytest.raises(ValueError, match="at least 1"):
            Names(**wrong)


def test_many_threads() -> None:
    names = Names(limit=64)
    hosts = [ip_address(f"10.0.0.{number}") for number in range(100)]
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for turn in range(400):
                host = hosts[(seed * 31 + turn) % 100]
                names.learn(f"n{seed}.test", [host], 1)
                names.of(hosts[turn % 100])
                assert len(names) <= 64
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert sum(len(names.of(host)) for host in hosts) == len(names) == 64
