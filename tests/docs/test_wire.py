"""The wire's reference says what the code does: offsets, command numbers, errors, diagrams."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from xensock.pvcalls.serving import names_options
from xensock.wire import commands as c
from xensock.wire import errors, extensions, indexes, local
from xensock.wire.requests import EXTENDED

ROOT = Path(__file__).parents[2]
V1 = (ROOT / "docs/reference/pvcalls.md").read_text()
MORE = (ROOT / "docs/reference/extensions.md").read_text()
ROW = re.compile(r"^\| (\d+) \| (\d+) \| `(\w+)` \|", re.M)
ADDRESS = bytes(range(101, 129))
VALUE = bytes(range(201, 237))

# A request of each command, and what the reference calls its fields.
WORDS = (0x11111111, 0x22222222, 0x33333333)
EXAMPLES: dict[str, tuple[c.Request, dict[str, int | bytes]]] = {
    "SOCKET": (c.Socket(5, *WORDS), dict(zip(("domain", "type", "protocol"), WORDS, strict=True))),
    "CONNECT": (
        c.Connect(5, ADDRESS, 1, 0x22222222, 0x33333333),
        {"addr": ADDRESS, "len": 28, "flags": 1, "ref": 0x22222222, "evtchn": 0x33333333},
    ),
    "RELEASE": (c.Release(5, True), {"reuse": 1}),
    "BIND": (c.Bind(5, ADDRESS), {"addr": ADDRESS, "len": 28}),
    "LISTEN": (c.Listen(5, 7), {"backlog": 7}),
    "ACCEPT": (
        c.Accept(5, 1 << 63 | 3, 0x22222222, 0x33333333),
        {"id_new": 1 << 63 | 3, "ref": 0x22222222, "evtchn": 0x33333333},
    ),
    "POLL": (c.Poll(5), {}),
    "SHUTDOWN": (c.Shutdown(5, 2), {"how": 2}),
    "GETNAME": (c.GetName(5, 1), {"which": 1}),
    "SETOPT": (
        c.SetOption(5, 0x11111111, 0x22222222, VALUE),
        {"level": 0x11111111, "name": 0x22222222, "len": 36, "value": VALUE},
    ),
    "GETOPT": (
        c.GetOption(5, 0x11111111, 0x22222222, 77, 0x33333333),
        {"level": 0x11111111, "name": 0x22222222, "len": 77, "ref": 0x33333333},
    ),
    "CLOSE": (c.Close(5, 1), {"flags": 1}),
    "ATTACH": (
        c.Attach(5, 0x22222222, 0x33333333),
        {"ref": 0x22222222, "evtchn": 0x33333333},
    ),
    "EXPLAIN": (c.Explain(5, 0x22222222), {"ref": 0x22222222}),
}


def section(command: c.Command) -> str:
    text = V1 if command < 256 else MORE
    heading = f"#### {command.name} ({command.value})\n"
    assert text.count(heading) == 1, heading
    return re.split(r"^#", text.split(heading)[1], maxsplit=1, flags=re.M)[0]


@pytest.mark.parametrize("command", list(c.Command), ids=lambda command: command.name)
def test_fields_lie_where_the_reference_says(command: c.Command) -> None:
    request, fields = EXAMPLES[command.name]
    raw = bytearray(c.encode_request(9, request))
    # A response's table may follow the request's.
    table = section(command).split("The response", 1)[0]
    rows = [(int(at), int(size), name) for at, size, name in ROW.findall(table)]
    assert {name for _, _, name in rows} == set(fields)
    for at, size, name in [(0, 4, ""), (4, 4, ""), (8, 8, ""), *rows]:
        expected = {0: 9, 4: int(command), 8: 5}.get(at, fields.get(name, 0))
        if isinstance(expected, int):
            expected = expected.to_bytes(size, "little")
        assert raw[at : at + size] == expected, name
        raw[at : at + size] = bytes(size)
    assert raw == bytes(64), "something that the reference does not have"


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        (
            V1,
            {
                "in_cons": indexes.IN_CONS,
                "in_prod": indexes.IN_PROD,
                "in_error": indexes.IN_ERROR,
                "out_cons": indexes.OUT_CONS,
                "out_prod": indexes.OUT_PROD,
                "out_error": indexes.OUT_ERROR,
                "ring_order": indexes.RING_ORDER,
            },
        ),
        (
            MORE,
            {
                "in_prod_event": indexes.IN_PROD_EVENT,
                "in_cons_event": indexes.IN_CONS_EVENT,
                "out_prod_event": indexes.OUT_PROD_EVENT,
                "out_cons_event": indexes.OUT_CONS_EVENT,
                "status": indexes.STATUS,
                "shared": indexes.SHARED,
                "side": indexes.SIDE,
                "in_cons_high": indexes.IN_CONS_HIGH,
                "out_cons_high": indexes.OUT_CONS_HIGH,
                "in_urgent": indexes.IN_URGENT,
                "in_urgent_count": indexes.IN_URGENT_COUNT,
                "out_urgent": indexes.OUT_URGENT,
                "out_urgent_count": indexes.OUT_URGENT_COUNT,
            },
        ),
    ],
    ids=["v1", "extensions"],
)
def test_words_of_the_indexes_page(text: str, fields: dict[str, int]) -> None:
    written = {name: int(at) for at, size, name in ROW.findall(text) if size == "4"}
    assert {name: written.get(name) for name in fields} == fields


def test_error_numbers() -> None:
    part = V1.split("\n## Errors\n")[1].split("\n## ")[0]
    first, second = part.split("It lacks")
    for text, table in ((first, errors.TABLE), (second, errors.BEYOND_TABLE)):
        listed = {name: -int(number) for name, number in re.findall(r"\b(E\w+) (\d+)\b", text)}
        assert listed == {name: ret for name, ret in table.items() if name != "EAGAIN"}


def test_every_extension_has_its_section() -> None:
    listed = re.findall(r"^\| \[`([\w-]+)`\]\(#([\w-]+)\) \|", MORE, re.M)
    assert [name for name, _ in listed] == list(extensions.Extension)
    for name, anchor in listed:
        assert f"\n## {anchor}\n" in MORE
        needs = re.search(rf"^\| \[`{name}`\].*\| (?:`([\w-]+)`)? ?\|$", MORE, re.M)
        assert needs
        assert needs[1] == extensions.NEEDS.get(extensions.Extension(name))
    for command, extension in EXTENDED.items():
        part = MORE.split(f"\n## {extension}\n")[1].split("\n## ")[0]
        assert f"#### {command.name} ({command.value})" in part


# Linux's numbers that Python's socket module does not have by name.
NUMBERS = {
    "SO_MAX_PACING_RATE": 47,
    "IP_MTU_DISCOVER": 10,
    "IP_RECVERR": 11,
    "IP_MTU": 14,
    "IP_BIND_ADDRESS_NO_PORT": 24,
    "IPV6_MTU_DISCOVER": 23,
    "IPV6_MTU": 24,
    "IPV6_RECVERR": 25,
}


def test_options_are_those_of_the_backend() -> None:
    settable, readable = set(), set()
    for level, text in re.findall(r"^\| (SOL_SOCKET|IPPROTO_\w+) \| (.*) \|$", MORE, re.M):
        both, _, only = text.partition("; to read also ")
        for names, place in ((both, settable), (only, readable)):
            for name in re.findall(r"\w+", names):
                number = NUMBERS.get(name) or getattr(socket, name)
                place.add((getattr(socket, level), number))
    own = {names_options.LINGER, names_options.ERROR}  # answered by the backend itself
    assert settable - own == names_options.SETTABLE
    assert (settable | readable) - own == names_options.READABLE
    assert own <= settable | readable


def test_messages_of_the_local_transport() -> None:
    listed = re.findall(r"^\| (\d+) \| ([A-Z]+) \|", MORE, re.M)
    assert [(name, int(number)) for number, name in listed] == [
        (kind.name, kind.value) for kind in local.Type
    ]


def test_diagrams_are_drawn_from_the_tables() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "states.py", "--check"], timeout=30, check=False
    )
    assert done.returncode == 0, "run tools/states.py"
