"""Fail when a test run skipped what it was for.

tools/skips.py RESULTS.xml… [PART=MINIMUM…] [allow=REASON…]

Every skip's reason must match a line of tools/allowed-skips.txt or a REASON, both regular
expressions, and at least MINIMUM tests whose module begins with PART must have passed.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

ALLOWED = Path(__file__).with_name("allowed-skips.txt")


def allowed_reasons() -> list[re.Pattern[str]]:
    lines = (line.split("#", 1)[0].strip() for line in ALLOWED.read_text().splitlines())
    return [re.compile(line) for line in lines if line]


def main(arguments: list[str]) -> int:
    results = [argument for argument in arguments if argument.endswith(".xml")]
    rest = [argument.split("=", 1) for argument in arguments if argument not in results]
    minimums = [(part, int(least)) for part, least in rest if part != "allow"]
    allowed = allowed_reasons() + [re.compile(reason) for key, reason in rest if key == "allow"]
    passed: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    wrong: list[str] = []
    known = 0
    for case in (case for file in results for case in ElementTree.parse(file).iter("testcase")):
        module = case.get("classname", "")
        skip = case.find("skipped")
        if skip is not None and skip.get("type") == "pytest.xfail":
            known += 1  # it ran, and found a difference that is documented
        elif skip is not None:
            reason = skip.get("message", "")
            skipped[reason] += 1
            if not any(pattern.search(reason) for pattern in allowed):
                wrong.append(f"{module}.{case.get('name')}: {reason}")
        elif case.find("failure") is None and case.find("error") is None:
            passed[module] += 1
    print(f"{passed.total()} passed, {skipped.total()} skipped, {known} known differences")
    for reason, count in skipped.most_common():
        print(f"  {count:4} x {reason}")
    for part, minimum in minimums:
        count = sum(number for module, number in passed.items() if module.startswith(part))
        print(f"{part}: {count} passed, at least {minimum} expected")
        if count < minimum:
            wrong.append(f"{part}: only {count} of {minimum} tests passed")
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
