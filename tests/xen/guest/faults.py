"""In dom0: a domU that does what Linux's backend as it ships does not stand (faults-inside.py). dom0's kernel is left
as it is then: what runs this switches the machine off. faults.py BACK KIND CPUS"""

import os
import re
import sys

from dom0 import Failed, Scenario, run, say

back, kind, cpus = sys.argv[1:]


def kernel():
    """What this kernel says of a fault of its own; the first words of a line are those of its log."""
    for line in run("dmesg").splitlines():
        if re.search(r"BUG|RIP|Call Trace|pvcalls", line):
            say(line)


with Scenario(f"faults-{back}-{kind}-{cpus}", peer=False) as scenario:
    try:
        scenario.backend(back)
        guest = scenario.domain(
            "guest", kind, cpus, "faults.sh", 'pvcalls = ["backend=0"]', image="backend"
        )
        guest.wait("^DOMU-DONE", 200)
    except Failed as failed:
        say("FAILED", failed)
    kernel()
    if back != "xensock":
        os._exit(0)  # its module would never leave
