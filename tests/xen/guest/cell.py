"""In dom0: one frontend at one backend. cell.py BACK KIND CPUS FRONT: all that every pair must do (probe.py), then the
backend ends and begins anew, then the domain is destroyed while bytes flow. Of Linux's backend as it ships: what it can
do, and how far it comes with the rest."""

import sys
import time

from dom0 import ADDRESS, Failed, Scenario, run, say, until

back, kind, cpus, front = sys.argv[1:]
# pvcalls_back_remove() of Linux is empty: its module stays in use while a device is bound, and nothing would be let go.
ENDLESS = ("linux", "mended")
# A port that a cell before left in TIME-WAIT cannot be bound: each has its own.
PORT = (
    8500 + 8 * (back == "xensock") + 4 * (front == "xensock") + 2 * (kind == "pvh") + (cpus != "1")
)
DENIED = ["--deny", f"{ADDRESS}:7999"]


def heard(scenario, pattern, count=1):
    return until(
        f"the peer: {pattern}", lambda: scenario.peer_log.read_text().count(pattern) >= count, 120
    )


def shipped(scenario):
    script = f"{front}-front.sh port={PORT} only=connect,refused,last,stalls"
    guest = scenario.domain("guest", kind, cpus, script, 'pvcalls = ["backend=0"]')
    guest.wait("^(stalls|DOMU-DONE)", 200)
    guest.destroy()
    until("domain gone", lambda: not guest.alive(), 60)
    say("destroyed, nothing of it is left")


def every(scenario):
    start = time.monotonic()
    script = f"{front}-front.sh port={PORT}" + (" skip=restarted" if back in ENDLESS else "")
    guest = scenario.domain("guest", kind, cpus, script, 'pvcalls = ["backend=0"]')
    guest.wait("^listening", 200)
    say(f"in the domU after {time.monotonic() - start:.0f} s")
    scenario.start(
        "python3", "/payload/client.py", ADDRESS, str(PORT), log=scenario.folder / "client.log"
    )
    if back in ENDLESS:
        say("restart: not with Linux's backend")
    else:
        guest.wait("^backend-may-end", 200)
        scenario.kill_backend()
        say("backend ended")
        guest.wait("^backend-may-begin", 60)
        scenario.backend(back, *DENIED)
        say("backend began")
    guest.wait("^destroy-me", 200)
    heard(scenario, "flowing")
    guest.destroy()
    until("domain gone", lambda: not guest.alive(), 60)
    say("destroyed, nothing of it is left")
    heard(scenario, "endless ended")
    say(f"done after {time.monotonic() - start:.0f} s")


with Scenario(f"{front}-{back}-{kind}-{cpus}") as scenario:
    try:
        scenario.backend(back, *DENIED)
        (shipped if back == "linux" else every)(scenario)
    except Failed as failed:
        say("FAILED", failed)
        for line in run("xenstore-ls", "-f", check=False).splitlines():
            if "pvcalls" in line and "feature" not in line:
                print(line)
