#!/usr/bin/env python3
"""Write the table of docs/reference/which-sockets.md from tests/which/cells.py.

With --check nothing is written, and the exit status says whether the table is up to date.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "reference" / "which-sockets.md"


def written(text: str) -> str:
    """A document with the table behind `<!-- cells -->` as cells.py has it."""
    sys.path.insert(0, str(ROOT / "tests"))
    from which.cells import COLUMNS, ROWS

    lines = [
        "| family | type | protocol | " + " | ".join(COLUMNS) + " |",
        "|---" * (3 + len(COLUMNS)) + "|",
    ]
    for row in ROWS:
        cells = (row.family, row.type, row.protocol, *(getattr(row, each) for each in COLUMNS))
        lines.append("| " + " | ".join(cells) + " |")
    table = "\n".join(lines) + "\n"
    return re.sub(r"(<!-- cells -->\n)(\|.*\n)*", lambda found: found[1] + table, text)


def main() -> int:
    """Write the document, or check it."""
    before = DOCUMENT.read_text()
    after = written(before)
    if "--check" in sys.argv[1:]:
        return before != after
    DOCUMENT.write_text(after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
