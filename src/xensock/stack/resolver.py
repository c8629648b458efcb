"""Names as the host knows them: its hosts file, its name service switch, its DNS servers.

Theory of operation
    A question is a DNS message and so is the answer, whatever its type. Addresses (A, AAAA) and
    names of addresses (PTR) are looked up in the hosts file first; then addresses in NSS, where it
    may know more than DNS (resolver_nss); everything else, and what those do not know, goes to the
    servers of resolv.conf(5) as it came (resolver_upstream), and the answer comes back as it came.

Rules
- Nothing is cached here, except what the files say until they change: the host's servers cache.
- The same question asked twice at the same time is asked once.
- Importing this module is cheap: asyncio comes with the first question.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from xensock.stack import resolver_wire as wire
from xensock.stack.hostfiles import HostFiles

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from xensock.calls.address import IPAddress
    from xensock.stack.resolver_nss import Nss
    from xensock.stack.resolver_upstream import MakeSocket, Upstream

LOCAL_TTL = 30  # seconds for which an answer from the hosts file or NSS may be kept


class Resolver:
    """Resolves names as the host does. One event loop may use it; `hosts_names` any thread.

    resolv_conf, hosts, nsswitch   paths of the host's files; changes are followed
    port                           of the DNS servers
    ask                            in place of getaddrinfo(3): name → addresses, or OSError
    make_socket                    makes the sockets by which servers are asked
    """

    def __init__(
        self,
        resolv_conf: str = "/etc/resolv.conf",
        hosts: str = "/etc/hosts",
        nsswitch: str = "/etc/nsswitch.conf",
        *,
        port: int = 53,
        ask: Callable[[str], tuple[IPAddress, ...]] | None = None,
        make_socket: MakeSocket = socket.socket,
    ) -> None:
        self.files = HostFiles(resolv_conf, hosts, nsswitch)
        self._port = port
        self._ask = ask
        self._make_socket = make_socket
        self._nss: Nss | None = None
        self._upstream: Upstream | None = None
        self._under_way: dict[tuple[bytes, IPAddress | None], asyncio.Task[bytes | None]] = {}

    def hosts_names(self, address: IPAddress) -> tuple[str, ...]:
        """The names of `address` in the hosts file. A guest's libc reads that file itself, so that
        no question tells which name it meant."""
        return self.files.hosts().names.get(address, ())

    async def query(self, message: bytes, server: IPAddress | None = None) -> bytes:
        """Answer a DNS query: SERVFAIL when no server answers, FORMERR without one question.

        `server` is the address that the guest asked (see `Upstream.ask`). Raises WireError for
        what has not even a header.
        """
        if len(message) < wire.HEADER:
            raise wire.WireError("shorter than a DNS header")
        try:
            question = wire.read_question(message)
        except wire.WireError:
            return wire.reply(message, None, wire.FORMERR)
        local = await self._local(message, question)
        if local is not None:
            return local
        answer = await self._forward(message, question, server)
        if answer is None:
            return wire.reply(message, question, wire.SERVFAIL)
        return wire.with_id(answer, wire.head(message)[0])

    async def _local(self, message: bytes, question: wire.Question) -> bytes | None:
        """The answer from hosts file or NSS, if they know the name."""
        if question.cls != wire.IN:
            return None
        hosts = self.files.hosts()
        if question.type == wire.PTR:
            address = wire.reverse_address(question.labels)
            names = hosts.names.get(address, ()) if address is not None else ()
            try:
                data = [(wire.PTR, wire.encode_name(name)) for name in names[:1]]
            except wire.WireError:  # a name that DNS cannot carry
                return None
            if not data:
                return None
            return wire.reply(message, question, wire.NOERROR, data, ttl=LOCAL_TTL)
        if question.type not in (wire.A, wire.AAAA) or not question.labels:
            return None
        addresses = hosts.addresses.get(question.name, ())
        if not addresses:
            addresses = await self._ask_nss(question.name)
        if not addresses:
            return None
        # A name that has only addresses of the other family exists: no data, not "no such name".
        version = 4 if question.type == wire.A else 6
        data = [(question.type, one.packed) for one in addresses if one.version == version]
        return wire.reply(message, question, wire.NOERROR, data, ttl=LOCAL_TTL)

    async def _ask_nss(self, name: str) -> tuple[IPAddress, ...]:
        from xensock.stack import resolver_nss

        conf = self.files.resolv_conf()
        if not resolver_nss.may_know_more(name, self.files.modules(), conf):
            return ()
        if self._nss is None:
            self._nss = resolver_nss.Nss(self._ask) if self._ask else resolver_nss.Nss()
        return await self._nss.lookup(name, conf.timeout * conf.attempts)

    async def _forward(
        self, message: bytes, question: wire.Question, server: IPAddress | None
    ) -> bytes | None:
        import asyncio

        from xensock.stack.resolver_upstream import Upstream, same

        if self._upstream is None:
            self._upstream = Upstream(self._port, self._make_socket)
        conf = self.files.resolv_conf()
        first = next((one for one in conf.servers if same(one, server)), None)
        # A retransmission waits for the same answer; libc repeats its identifier, others do not.
        key = (message[2:], first)
        task = self._under_way.get(key)
        if task is None:
            task = asyncio.get_running_loop().create_task(
                self._upstream.ask(message, question, conf, first)
            )
            self._under_way[key] = task
            task.add_done_callback(lambda _: self._under_way.pop(key, None))
        return await asyncio.shield(task)
