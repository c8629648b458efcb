"""In dom0: a domU with an interface and two devices, whose backends are dom0 and a driver domain: its routes decide.
two.py KIND CPUS"""

import socket
import sys
import threading
import time

from dom0 import ADDRESS, Failed, Scenario, run, say

kind, cpus = sys.argv[1:]
CONFIG = 'pvcalls = ["backend=0", "backend=driver"]\nvif = ["script=/payload/vif.sh"]'


def tell(address, name):
    """Say the name to whoever connects."""
    listener = socket.create_server((address, 7100))

    def serve():
        while True:
            sock, _ = listener.accept()
            with sock:
                sock.sendall(name)

    threading.Thread(target=serve, daemon=True).start()


with Scenario(f"two-{kind}-{cpus}", peer=False) as scenario:
    try:
        start = time.monotonic()
        tell(ADDRESS, b"near")
        run("modprobe", "xen-netback")
        scenario.backend("xensock")
        driver = scenario.domain("driver", "pv", 1, "driver.sh", image="backend")
        driver.wait("^xensock backend: listening at xen:", 120)
        guest = scenario.domain("guest", kind, cpus, "two.sh", CONFIG)
        tell("192.0.2.1", b"interface")  # it has been there since the domain is
        guest.wait("^DOMU-DONE", 120)
        say(f"done after {time.monotonic() - start:.0f} s")
    except Failed as failed:
        say("FAILED", failed)
