"""In dom0: `xensock bench xen` in a domU with an interface and a device. bench.py KIND CPUS"""

import sys
import time

from dom0 import XENSOCK, Failed, Scenario, run, say, until

kind, cpus = sys.argv[1:]
CONFIG = 'pvcalls = ["backend=0"]\nvif = ["script=/payload/vif.sh"]'

with Scenario(f"bench-{kind}-{cpus}", peer=False) as scenario:
    try:
        start = time.monotonic()
        run("modprobe", "xen-netback")
        scenario.backend("xensock")
        guest = scenario.domain("guest", kind, cpus, "bench.sh", CONFIG, image="backend")
        # The address has been there since the domain is.
        log = scenario.folder / "far.log"
        scenario.start(*XENSOCK, "bench", "xen", "--serve", "192.0.2.1:7007", log=log)
        until("the far end", lambda: "serving" in log.read_text(), 60)
        guest.wait("^DOMU-DONE 0", 300)
        say(f"done after {time.monotonic() - start:.0f} s")
    except Failed as failed:
        say("FAILED", failed)
