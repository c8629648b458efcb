"""Sockets handed to others: `handed.py ECHO-ADDRESS ECHO-PORT OWN-ADDRESS OWN-PORT`."""

import os
import socket
import subprocess
import sys

far = (sys.argv[1], int(sys.argv[2]))
own = (sys.argv[3], int(sys.argv[4]))
TALK = """
import socket, sys
with socket.socket(fileno=int(sys.argv[1])) as sock:
    sock.sendall(b"from another program")
    sock.shutdown(socket.SHUT_WR)
    print(sock.makefile().read())
"""


def report(what: str, right: bool) -> None:
    print(what, "ok" if right else "WRONG", flush=True)


# To a program that was executed, which ends the conversation.
with socket.create_connection(far) as sock:
    fd = str(sock.fileno())
    argv = [sys.executable, "-c", TALK, fd]
    said = subprocess.run(argv, pass_fds=[sock.fileno()], capture_output=True, text=True).stdout
    report("inherited", said == "from another program\n")

# To a process that never asked for a socket, before it is connected: connect() there.
here, there = socket.socketpair()
if (child := os.fork()) == 0:
    _, fds, _, _ = socket.recv_fds(there, 10, 1)
    with socket.socket(fileno=fds[0]) as sock:
        sock.connect(far)
        sock.sendall(b"passed")
        there.sendall(sock.recv(100))
    os._exit(0)
with socket.socket() as sock:
    socket.send_fds(here, [b"x"], [sock.fileno()])
    same = here.recv(100) == b"passed"
    # The same open file: it is connected for us as well.
    report("passed", same and sock.getpeername() == far)
os.waitpid(child, 0)

# A duplicate made before connect, and one over another number.
with socket.socket() as sock:
    twin = sock.dup()
    spare = os.open("/dev/null", os.O_RDONLY)
    os.dup2(sock.fileno(), spare)
    sock.connect(far)
    named = twin.getpeername() == far
    third = socket.socket(fileno=spare)
    twin.sendall(b"one ")
    third.sendall(b"two")
    sock.shutdown(socket.SHUT_WR)
    report("dup", named and third.makefile().read() == "one two")
    twin.close()
    third.close()

# A listener of the parent, served by the child, reached by the parent as anybody.
with socket.create_server(own) as listener:
    if (child := os.fork()) == 0:
        sock, client = listener.accept()
        sock.sendall(client[0].encode())
        os._exit(0)
    with socket.create_connection(own) as sock:
        report("listener", sock.recv(100).decode() == sock.getsockname()[0])
os.waitpid(child, 0)
