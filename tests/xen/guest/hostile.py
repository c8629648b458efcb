"""In dom0: a domU that breaks every rule (hostile-inside.py). hostile.py KIND CPUS"""

import os
import sys
import time
from pathlib import Path

from dom0 import Failed, Scenario, say, until

kind, cpus = sys.argv[1:]


def held(process):
    """Descriptors, mappings of grants, threads."""
    own = Path(f"/proc/{process.pid}")
    grants = (own / "maps").read_text().count("/dev/xen/gntdev")
    return len(os.listdir(own / "fd")), grants, len(os.listdir(own / "task"))


with Scenario(f"hostile-{kind}-{cpus}") as scenario:
    try:
        start = time.monotonic()
        scenario.backend(
            "xensock", "--allow", "public", "--allow", "loopback", "--allow", "listen:any"
        )
        before = held(scenario.process)
        guest = scenario.domain(
            "guest", kind, cpus, "hostile.sh", 'pvcalls = ["backend=0"]', image="backend"
        )
        guest.wait("^honest after", 400)
        guest.wait("^DOMU-DONE 0", 60)
        until("domain gone", lambda: not guest.alive(), 60)
        say("nothing of it is left")
        assert scenario.process.poll() is None
        # Threads of the loop's pool stay; they are few.
        until(
            f"what it had before: {before}",
            lambda: held(scenario.process)[0] <= before[0] + 4 and not held(scenario.process)[1],
            60,
        )
        say("held", *before, "then", *held(scenario.process))
        say(f"done after {time.monotonic() - start:.0f} s")
    except Failed as failed:
        say("FAILED", failed, held(scenario.process))
