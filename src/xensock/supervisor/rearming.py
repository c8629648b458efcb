"""Listeners that the host has for sockets of the guest's own network, taken over from a backend before this one.

They were kept, listening: clients that came meanwhile are in their queues. Which of the guest's sockets each stands for
is in its name, the rest is asked of the kernel: a socket that has gone meanwhile has nothing outside any more.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING

from xensock.calls.address import Endpoint, packed, unpacked
from xensock.calls.call import Decision
from xensock.supervisor import binding
from xensock.supervisor.datagrams import PORT
from xensock.supervisor.diag import TCP_LISTEN
from xensock.supervisor.groups import GROUP

if TYPE_CHECKING:
    from xensock.supervisor.datagrams import Datagrams
    from xensock.supervisor.supervisor import Supervisor


def resume(sup: Supervisor) -> None:
    """Take over what a predecessor left of this guest's ports. Before the supervisor starts. Raises OSError."""
    inodes = sup.open_sockets()
    sup.ports.adopt(inodes)
    if sup.parts.datagrams is not None:
        _datagrams(sup, sup.parts.datagrams, inodes)
    left = sup.parts.guest.left
    found: dict[int, binding.Outers] = {}
    for name in sorted(each for each in left if each.startswith(f"{binding.OUTER}.")):
        _, number, port, inside, _ = name.split(".")
        outers = found.setdefault(
            int(number), binding.Outers([], int(port), inside=inside == binding.INSIDE)
        )
        outers.sockets.append(socket.socket(fileno=left.pop(name)))
    if not found:
        return
    diag = sup.guest_diag
    try:
        held = {each.cookie for each in diag.held()}
        listening = {each.cookie: each.host for each in diag.held(states=1 << TCP_LISTEN)}
    except OSError:  # a kernel that shows none: all may be there
        held, listening = set(found), {}
    bound = diag.shows_bound(sup.parts.guest.socket)
    for key, outers in found.items():
        if key in listening:
            _listens(sup, key, outers, Endpoint(listening[key], outers.guest_port))
        elif outers.inside or (bound and key not in held):
            binding.forget(sup, key, outers)
            for each in outers.sockets:
                each.close()
        else:
            sup.reserved[key] = outers
            sup.parts.relay.watch(key, partial(binding.drop, sup, key), listening=False)


def _listens(sup: Supervisor, key: int, outers: binding.Outers, end: Endpoint) -> None:
    from xensock.supervisor.supervisor import Verdict

    outers.listening = True
    sup.reserved[key] = outers
    sup.parts.relay.watch(key, partial(binding.drop, sup, key))
    rule = Decision(True, f"port {end.port}, from before a restart")
    opened = sup.accepts(0, "?", Verdict(rule, "relay", "allow"))
    only = binding.only_loopback(end) if outers.inside else None
    for each in outers.sockets:
        if not outers.inside:
            sup.ports.listens(each, end)
        sup.parts.relay.publish(each, end.port, only, lambda: None, opened=opened)


def _datagrams(sup: Supervisor, datagrams: Datagrams, inodes: set[int]) -> None:
    """UDP ports of the guest's sockets that are there still. What was sent to them meanwhile is in their queues."""
    guest = sup.parts.guest
    there: dict[int, socket.socket] = {}
    for name in [each for each in guest.left if each.startswith(f"{PORT}.")]:
        _, address, port, cookie, inode = name.split(".")
        outer = socket.socket(fileno=guest.left.pop(name))
        local = Endpoint(unpacked(bytes.fromhex(address)), int(port))
        if int(inode) not in inodes:
            guest.drop(name)
            outer.close()
            continue
        if datagrams.holds(local):
            outer.close()  # of another socket that shares it
        else:
            datagrams.hold(local, outer, _decision(datagrams, local, outer))
        datagrams.share(local, int(cookie), int(inode))
        there[int(cookie)] = datagrams.bound[packed(local.host), local.port].outer
    for name in [each for each in guest.left if each.startswith(f"{GROUP}.")]:
        _, cookie, group, inode = name.split(".")
        os.close(guest.left.pop(name))
        if int(inode) not in inodes:
            guest.drop(name)
            continue
        mine = there.get(int(cookie))  # None: it joined and is not bound yet
        with suppress(OSError):  # no interface leads there any more
            datagrams.groups.resume(int(cookie), ip_address(bytes.fromhex(group)), int(inode), mine)
    datagrams.judge_groups()  # by the rules of now


def _decision(datagrams: Datagrams, local: Endpoint, outer: socket.socket) -> Decision:
    if datagrams.published(local.port) is not None:
        return Decision(True, f"--publish {local.port}/udp")
    only = outer.family == socket.AF_INET6 and bool(
        outer.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    )
    return datagrams.may_bind(local, only)
