"""The limits that the documents name are those of the code, with their defaults."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from xensock.backend import names
from xensock.pvcalls.serving.limits import Limits as OfFrontends
from xensock.supervisor.limits import Limits as OfGuests
from xensock.transport.base import Limits as OfTransports

ROOT = Path(__file__).parents[2]


def rows(document: str, section: str) -> dict[str, str]:
    """The first two cells of each row of the section's tables."""
    text = (ROOT / "docs" / document).read_text()
    part = text.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    lines = [line.strip("|").split(" | ") for line in part.splitlines() if line.startswith("| ")]
    return {cells[0].strip(" `"): cells[1].strip() for cells in lines if len(cells) > 1}


def number(text: str) -> int:
    return int(re.match(r"[\d,]+", text)[0].replace(",", ""))  # type: ignore[index]


def test_of_guests() -> None:
    told = rows("security.md", "Limits")
    assert {each.name: str(each.default) for each in fields(OfGuests)} == {
        name: value for name, value in told.items() if name != "name"
    }


def test_of_what_a_guest_may_have_of_a_backend() -> None:
    told, ours, theirs = rows("reference/backend.md", "Limits"), OfFrontends(), OfTransports()
    assert number(told["sockets"]) == ours.sockets
    assert number(told["pages mapped"]) == ours.pages == theirs.pages
    assert number(told["event channels"]) == theirs.ports
    assert number(told["questions for names under way"]) == names.LIMIT
    assert number(told["seconds to connect, and to let go once told to"]) == ours.handshake
    assert number(told["guests"]) == ours.guests
    waits = "bytes that wait for slow receivers after their sockets were released"
    assert told[waits] == f"{ours.lingering[0] >> 20} MiB, of {ours.lingering[1]:,} connections"


def test_of_datagrams() -> None:
    header = (ROOT / "native" / "core" / "udpflows.h").read_text()
    known = dict(re.findall(r"#define XS_UDP_(\w+) \(?(\d+)", header))
    told = rows("explanation/udp.md", "Limits")
    assert told["flows of a guest"].startswith(known["FLOWS"])
    assert told["ports of a guest with a socket outside"].startswith(known["PORTS"])
    assert told["waiting for a decision"] == (
        f"{known['WAITING_EACH']} datagrams of a flow, {known['WAITING']} MiB of all"
    )
