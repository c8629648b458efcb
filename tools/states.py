#!/usr/bin/env python3
"""Draw the session's state machines into docs/reference/pvcalls.md from the tables in xensock.wire.states.

With --check nothing is written, and the exit status says whether the drawings are up to date.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from xensock.wire import states

DOCUMENT = Path(__file__).parents[1] / "docs" / "reference" / "pvcalls.md"
TABLES = {"frontend": states.FRONT, "backend": states.BACK}


def drawn(text: str) -> str:
    """A document with the mermaid block behind each `<!-- states: … -->` as the tables have it."""

    def block(match: re.Match[str]) -> str:
        return f"{match[1]}```mermaid\n{states.diagram(TABLES[match[2]])}```\n"

    return re.sub(
        r"(<!-- states: (\w+) -->\n)```mermaid\n.*?^```\n", block, text, flags=re.M | re.S
    )


def main() -> int:
    """Write the document, or check it."""
    before = DOCUMENT.read_text()
    after = drawn(before)
    if "--check" in sys.argv[1:]:
        return before != after
    DOCUMENT.write_text(after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
