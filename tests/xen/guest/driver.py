"""In dom0: the backend in a domU, its frontend in another; the network is the first domU's. driver.py KIND CPUS"""

import sys
import time

from dom0 import Failed, Scenario, say, until

kind, cpus = sys.argv[1:]

with Scenario(f"driver-{kind}-{cpus}", peer=False) as scenario:
    try:
        start = time.monotonic()
        driver = scenario.domain("driver", "pv", 1, "driver.sh", image="backend")
        driver.wait("^xensock backend: listening at xen:", 120)
        guest = scenario.domain(
            "guest", kind, cpus, "xensock-front.sh skip=restarted", 'pvcalls = ["backend=driver"]'
        )
        guest.wait("^destroy-me", 300)
        driver.wait("flowing", 120)
        guest.destroy()
        until("domain gone", lambda: not guest.alive(), 60)
        say("destroyed, nothing of it is left")
        driver.wait("endless ended", 60)
        say(f"done after {time.monotonic() - start:.0f} s")
    except Failed as failed:
        say("FAILED", failed)
