"""Names as glibc finds them: `names.py NAME...`, `-` reads names from stdin; addresses or "no such
name", and with -v how many whole seconds each took."""

import socket
import sys
import time


def look(name: str) -> str:
    start = time.monotonic()
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)}
        said = " ".join(sorted(found))
    except socket.gaierror as error:
        said = "no such name" if error.errno == socket.EAI_NONAME else f"error {error.errno}"
    return f"{said} {time.monotonic() - start:.0f}" if verbose else said


words = sys.argv[1:]
verbose = words[0] == "-v"
for word in words[verbose:]:
    for name in (line.rstrip("\n") for line in sys.stdin) if word == "-" else [word]:
        print(look(name), flush=True)
