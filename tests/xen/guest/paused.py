"""In dom0: a domU that is created paused, before there is a backend, and goes on once what its driver reads when it
probes is in xenstore. paused.py KIND CPUS"""

import re
import sys
import time

from dom0 import Failed, Scenario, number, run, say, until

kind, cpus = sys.argv[1:]


def read(path):
    """A node of xenstore, - where there is none."""
    said = run("xenstore-read", path, check=False).strip()
    return "-" if said.startswith("xenstore-read:") else said


def ran():
    """Seconds that the domain has run, while it is paused."""
    return re.search(r"^guest .* --p--- +([\d.]+)$", run("xl", "list"), re.MULTILINE)


with Scenario(f"paused-{kind}-{cpus}") as scenario:
    try:
        start = time.monotonic()
        script = "linux-front.sh only=connect,echo"
        guest = scenario.domain("guest", kind, cpus, script, 'pvcalls = ["backend=0"]', paused=True)
        back = f"/local/domain/0/backend/pvcalls/{number('guest')}/0"
        say("before", read(f"{back}/state"), read(f"{back}/versions"))
        scenario.backend("xensock")
        until("InitWait", lambda: read(f"{back}/state") == "2", 60)
        for name in ("versions", "max-page-order", "function-calls"):
            say("published", name, read(f"{back}/{name}"))
        say("ran", ran()[1] if ran() else "FAILED: it is not paused")
        guest.unpause()
        guest.wait("^DOMU-DONE", 200)
        say(f"done after {time.monotonic() - start:.0f} s")
    except Failed as failed:
        say("FAILED", failed)
