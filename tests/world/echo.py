"""Echo server of the world, TCP and UDP: `echo.py PORT`. Sends back what it gets, keeps half-close.

A TCP connection is closed in our direction only after the client has closed its own; a datagram is
answered from the address it was sent to (ip(7), IP_PKTINFO).
"""

import socket
import socketserver
import struct
import sys
import threading

IP_PKTINFO = 8


class Stream(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while data := self.request.recv(65536):
            self.request.sendall(data)


class Tcp(socketserver.ThreadingTCPServer):
    """One server for IPv4 and, where the machine has it, IPv6."""

    address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 1024

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def handle_error(self, request, client_address) -> None:
        """A client that goes away is no news."""


def datagrams(family: int, port: int) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        sock.bind(("", port))
        while True:
            data, control, _, client = sock.recvmsg(65536, 256)
            # Any interface may carry the answer; its source is the address that was asked.
            if family == socket.AF_INET6:
                control = [(a, b, info[:16] + struct.pack("i", 0)) for a, b, info in control]
            else:
                control = [(a, b, struct.pack("i", 0) + info[4:]) for a, b, info in control]
            sock.sendmsg([data], control, 0, client)


port = int(sys.argv[1])
for family in {socket.AF_INET, Tcp.address_family}:
    threading.Thread(target=datagrams, args=(family, port), daemon=True).start()
Tcp(("", port), Stream).serve_forever()
