#!/usr/bin/env python3
"""Write the table of docs/reference/conformance.md from tests/conformance/known.py.

With --check nothing is written, and the exit status says whether the table is up to date.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "reference" / "conformance.md"


def written(text: str) -> str:
    """A document with the table behind `<!-- known -->` as known.py has it."""
    sys.path.insert(0, str(ROOT / "tests"))
    from conformance.known import KNOWN

    rows = "".join(f"| `{pattern}` | {why} |\n" for pattern, why in KNOWN.items())
    table = f"| Tests | Why not |\n|---|---|\n{rows}"
    return re.sub(r"(<!-- known -->\n)(\|.*\n)*", lambda found: found[1] + table, text)


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
