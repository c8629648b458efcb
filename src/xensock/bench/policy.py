"""What a policy costs: one decision among many rules, and new connections of a guest that has one."""

from __future__ import annotations

import random
import tempfile
import time
from contextlib import contextmanager
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from xensock.bench import http
from xensock.bench.interleave import Pair
from xensock.bench.process import PATIENCE, output_of
from xensock.calls.call import Protocol
from xensock.policy.load import parse
from xensock.policy.policy import Policy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xensock.bench.side import Setting

CALLS = 20_000
PORTS = (80, 443, 5432, 8080)

Call = tuple[IPv4Address, int, tuple[str, ...]]


def rules(count: int, seed: int = 1) -> list[tuple[str, str]]:
    """Rules as ("allow" or "deny", text): half of them networks of all lengths, half names, some with a wildcard."""
    made, dice = list[tuple[str, str]](), random.Random(seed)
    for number in range(count):
        port = dice.choice(PORTS)
        if number % 2:
            length = dice.choice((12, 16, 20, 24, 24, 24, 28, 32))
            address = (dice.randrange(11, 100) << 24 | dice.getrandbits(24)) >> (32 - length)
            where = f"{IPv4Address(address << (32 - length))}/{length}"
        else:
            where = f"{'*.' * (number % 10 == 0)}h{number}.d{number % 97}.example"
        made.append(("deny" if dice.random() < 0.2 else "allow", f"{where}:{port}"))
    return made


def text_of(made: list[tuple[str, str]], more: str = "") -> str:
    """A policy file of these rules."""
    tables = [f'[[rule]]\n{word} = "{rule}"\n' for word, rule in made]
    return "\n".join([*tables, more])


def calls_for(made: list[tuple[str, str]], seed: int = 2) -> list[Call]:
    """Calls that no two are alike: a third by a network of a rule, a third by a name, a third that no rule is about."""
    dice = random.Random(seed)
    networks = [text for _, text in made if text[0].isdigit()]
    names = [text for _, text in made if not text[0].isdigit()]
    found: list[Call] = []
    for number in range(CALLS):
        port = dice.choice(PORTS)
        known: tuple[str, ...] = ()
        host = IPv4Address(198 << 24 | 18 << 16 | number)
        if number % 3 == 0:
            where, _, text = dice.choice(networks).rpartition(":")
            address, _, length = where.partition("/")
            host = IPv4Address(int(ip_address(address)) | dice.getrandbits(32 - int(length) or 1))
            port = int(text)
        elif number % 3 == 1:
            name, _, text = dice.choice(names).rpartition(":")
            known, port = (name.replace("*", "deep"),), int(text)
        found.append((host, port, known))
    return found


def decide(policy: Policy, calls: list[Call]) -> float:
    """The median time of a decision in µs, that of reading the clock included."""
    took = []
    for host, port, names in calls:
        start = time.perf_counter_ns()
        policy.connect(Protocol.TCP, host, port, names)
        took.append(time.perf_counter_ns() - start)
    return median(took) / 1000


@contextmanager
def decisions(setting: Setting, count: int) -> Iterator[Pair]:
    """One decision: without rules, and with that many."""
    made = rules(count)
    policy, plain = parse(text_of(made).encode(), "bench.toml").policy(), Policy()
    calls = calls_for(made)
    yield Pair(lambda: decide(plain, calls), lambda: decide(policy, calls))


@contextmanager
def connections(setting: Setting, count: int) -> Iterator[Pair]:
    """Requests of a guest, each over a new connection: without a policy file, and with one of that many rules."""
    with http.server(setting.address) as port, tempfile.TemporaryDirectory() as directory:
        argv = http.new_connections(setting, port)
        limit = setting.seconds + 2 * PATIENCE
        path = Path(directory, "policy.toml")
        path.write_text(text_of(rules(count), f'[[rule]]\nallow = "{setting.address}:{port}"\n'))
        options = ["--policy", str(path)]
        yield Pair(
            lambda: http.parse(output_of(setting.in_guest(argv, "direct"), limit)),
            lambda: http.parse(output_of(setting.in_guest(argv, "direct", options), limit)),
        )
