#!/usr/bin/env python3
"""Write the tables of docs/reference/which-sockets.md from tests/which/cells.py.

With --check nothing is written, and the exit status says whether they are up to date.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from which.cells import Row

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "reference" / "which-sockets.md"


def written(text: str) -> str:
    """A document with the tables behind `<!-- cells -->` and `<!-- urgent -->` as cells.py has them."""
    sys.path.insert(0, str(ROOT / "tests"))
    from which.cells import ROWS, URGENT

    for mark, rows in (("cells", ROWS), ("urgent", URGENT)):
        head = f"<!-- {mark} -->\n"
        text = re.sub(head + r"(\|.*\n)*", head + _table(rows), text)
    return text


def _table(rows: tuple[Row, ...]) -> str:
    from which.cells import COLUMNS

    lines = [
        "| family | type | protocol | " + " | ".join(COLUMNS) + " |",
        "|---" * (3 + len(COLUMNS)) + "|",
    ]
    for row in rows:
        cells = (row.family, row.type, row.protocol, *(getattr(row, each) for each in COLUMNS))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


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
