"""Hostile frontends against a daemon: it goes on, leaks nothing, and its other guests do not notice.

XENSOCK_HOSTILE_ROUNDS says how many rounds (CI's long run: 10000), XENSOCK_HOSTILE_SEED repeats one.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest

from backkit import Front, until
from daemonkit import Daemon, daemon, gone
from hostilekit import ATTACKS, Attack, Sink
from xensock.transport import url

if TYPE_CHECKING:
    from collections.abc import Iterator

ROUNDS = int(os.environ.get("XENSOCK_HOSTILE_ROUNDS", "200"))
SEED = int(os.environ.get("XENSOCK_HOSTILE_SEED", "1"))
PACE = 100.0  # round trips a second of a modest guest
WARM = 40  # rounds before what the daemon has is counted
LEAK = 24 << 20  # bytes that its memory may grow: the allocator's, not ours


@pytest.fixture
def sink() -> Iterator[Sink]:
    made = Sink()
    yield made
    made.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Daemon]:
    with daemon(tmp_path, "--allow", "loopback", "--allow", "listen:any") as made:
        # The trace of so many refusals is not what is tested.
        drain = threading.Thread(target=_drain, args=(made,), daemon=True)
        drain.start()
        yield made
        made.process.kill()
        drain.join(10)


def _drain(made: Daemon) -> None:
    assert made.process.stderr is not None
    for line in made.process.stderr:
        made.log.append(line)


def descriptors(made: Daemon) -> int:
    return len(os.listdir(f"/proc/{made.process.pid}/fd"))


def of_status(made: Daemon, name: str) -> int:
    text = Path(f"/proc/{made.process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith(name))


def mappings(made: Daemon) -> int:
    return Path(f"/proc/{made.process.pid}/maps").read_text().count("\n")


def settled(made: Daemon, most: int) -> int:
    """How many descriptors there are, once there are at most so many."""
    deadline = time.monotonic() + 20
    while (count := descriptors(made)) > most and time.monotonic() < deadline:
        time.sleep(0.05)
    return count


def rounds(made: Daemon, sink: Sink, numbers: range) -> None:
    for number in numbers:
        name = Attack(made.url, sink, Random(SEED * 1_000_003 + number)).run()
        assert made.process.poll() is None, f"round {number} ({name}) ended the backend: {made.log}"


def no_internal_errors(made: Daemon) -> None:
    faults = [line for line in made.log if "internal error" in line or "Traceback" in line]
    assert faults == [], "".join(made.log[-200:])


@pytest.mark.timeout(max(120, ROUNDS // 10))
def test_rounds_of_attacks_leave_nothing_behind(served: Daemon, sink: Sink) -> None:
    rounds(served, sink, range(WARM))
    assert gone(served)
    before = (settled(served, 40), of_status(served, "Threads:"), mappings(served))
    memory = of_status(served, "VmRSS:")
    rounds(served, sink, range(WARM, WARM + ROUNDS))
    assert gone(served)
    assert settled(served, before[0] + 2) <= before[0] + 2
    assert of_status(served, "Threads:") <= before[1]
    assert mappings(served) <= before[2] + 40
    assert (of_status(served, "VmRSS:") - memory) * 1024 <= LEAK
    no_internal_errors(served)


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_each_attack_is_survived(served: Daemon, sink: Sink, name: str) -> None:
    for number in range(5):
        attack = Attack(served.url, sink, Random(number))
        attack.random.choice = _only(name, attack.random.choice)  # type: ignore[method-assign]
        attack.run()
    assert gone(served)
    no_internal_errors(served)
    # Whoever comes next is served.
    front = Front(url.connect(served.url, name="next")).handshake()
    front.listener()
    front.close()


def _only(name: str, choice):  # type: ignore[no-untyped-def]
    def choose(options):  # type: ignore[no-untyped-def]
        if options and options[0] == sorted(ATTACKS.items())[0]:
            return name, ATTACKS[name]
        return choice(options)

    return choose


class Modest:
    """An honest guest that makes a round trip through an echo server now and then."""

    def __init__(self, where: str, sink: Sink) -> None:
        self.front = Front(url.connect(where, name="modest")).handshake()
        _, self.stream, response = self.front.connect(sink.echo.getsockname())
        assert response.ret == 0

    def rate(self, seconds: float) -> float:
        """Round trips a second, of at most PACE."""
        start, trips = time.monotonic(), 0
        while (now := time.monotonic()) < start + seconds:
            self.stream.send(b"are you there?")
            assert self.stream.recv_exactly(14) == b"are you there?"
            trips += 1
            time.sleep(max(0.0, start + trips / PACE - now))
        return trips / seconds


@pytest.mark.alone
def test_a_modest_guest_keeps_its_rate(served: Daemon, sink: Sink) -> None:
    stop = threading.Event()

    def attack() -> None:
        number = 0
        while not stop.is_set():
            rounds(served, sink, range(number, number + 1))
            number += 1

    modest = Modest(served.url, sink)
    alone = modest.rate(1.0)
    hostile = threading.Thread(target=attack)
    hostile.start()
    try:
        # The sink gives its connections up after some seconds; stay below that.
        beside = modest.rate(1.5)
    finally:
        stop.set()
        hostile.join()
    modest.front.close()
    assert beside >= 0.8 * alone, f"{beside:.0f} of {alone:.0f} round trips a second"
    until(lambda: served.ask("version")["ok"])
