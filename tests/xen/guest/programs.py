"""In dom0: programs as they are in a domU, under `xensock run --backend xen:` with Python's standard library alone.
programs.py BACK KIND CPUS: curl fetches from the network, whoever is there fetches from the domU's nginx."""

import hashlib
import http.server
import subprocess
import sys
import threading
import time

from dom0 import ADDRESS, Failed, Scenario, say, until

back, kind, cpus = sys.argv[1:]
BODY = b"".join(hashlib.sha256(b"%d" % number).digest() for number in range(1 << 15))


class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, *_):
        pass


def fetched():
    done = subprocess.run(
        ["curl", "-s", "-S", "--max-time", "60", f"http://{ADDRESS}:8501/probe.py"],
        stdout=subprocess.PIPE, check=False,
    )  # fmt: skip
    return done.stdout


with Scenario(f"programs-{back}-{kind}-{cpus}") as scenario:
    try:
        start = time.monotonic()
        server = http.server.ThreadingHTTPServer((ADDRESS, 7780), Answers)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        scenario.backend(back)
        guest = scenario.domain("guest", kind, cpus, "programs.sh", 'pvcalls = ["backend=0"]')
        found = guest.wait(r"^curl (.*)", 200)
        say("curl ok" if found[1].startswith(hashlib.sha256(BODY).hexdigest()) else "curl FAILED")
        guest.wait(r"^nginx begins", 60)
        with open("/payload/probe.py", "rb") as file:
            wanted = file.read()
        until("nginx", lambda: fetched() == wanted, 120)
        say("nginx ok")
        say(f"done after {time.monotonic() - start:.0f} s")
    except Failed as failed:
        say("FAILED", failed)
