#!/usr/bin/env python3
"""Write the tables of docs/reference/conformance.md from tests/conformance/known.py.

With --check nothing is written, and the exit status says whether the tables are up to date.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "reference" / "conformance.md"


def written(text: str) -> str:
    """A document with the tables behind `<!-- known -->` and `<!-- guests -->` as known.py has them."""
    sys.path.insert(0, str(ROOT / "tests"))
    from conformance.known import KNOWN, KNOWN_IN_GUESTS

    for mark, known in ("known", KNOWN), ("guests", KNOWN_IN_GUESTS):
        rows = "".join(f"| `{pattern}` | {why} |\n" for pattern, why in known.items())
        table = f"| Tests | Why not |\n|---|---|\n{rows}" if rows else "None.\n"
        text = re.sub(
            rf"(<!-- {mark} -->\n)(None\.\n|(\|.*\n)*)", lambda found, t=table: found[1] + t, text
        )
    return text


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
