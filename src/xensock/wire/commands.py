"""The command ring's 64-byte slots ⇄ requests and responses.

Every request begins with `req_id` u32 @0 (the frontend's cookie), `cmd` u32 @4 and the socket's
`id` u64 @8. Offsets are those of docs/reference/pvcalls.md (v1) and extensions.md.
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Any

from .errors import ENOTSUP, WireError, to_wire
from .extensions import ALL, Extension
from .requests import (
    ADDRESS,
    EXTENDED,
    OPTION,
    PAGE,
    SLOT,
    UNIX_ADDRESS,
    Accept,
    Attach,
    Bind,
    Close,
    CloseFlag,
    Command,
    Connect,
    ConnectFlag,
    Explain,
    GetName,
    GetOption,
    How,
    Listen,
    PageAddress,
    Poll,
    Release,
    Request,
    SetOption,
    Shutdown,
    Socket,
    Which,
)
from .responses import Response

if TYPE_CHECKING:
    from collections.abc import Set

__all__ = [
    "ADDRESS",
    "OPTION",
    "PAGE",
    "SLOT",
    "UNIX_ADDRESS",
    "Accept",
    "Attach",
    "BadRequest",
    "Bind",
    "Close",
    "CloseFlag",
    "Command",
    "Connect",
    "ConnectFlag",
    "Explain",
    "GetName",
    "GetOption",
    "How",
    "Listen",
    "PageAddress",
    "Poll",
    "Release",
    "Request",
    "Response",
    "SetOption",
    "Shutdown",
    "Socket",
    "UnknownCommand",
    "Which",
    "command_of",
    "decode_request",
    "encode_request",
]


class BadRequest(WireError):
    """A request that cannot be carried out. It is answered, with `ret`; nobody is disconnected."""

    def __init__(self, reason: str, req_id: int, cmd: int, id: int, ret: int) -> None:
        super().__init__(reason)
        self.req_id = req_id
        self.cmd = cmd
        self.id = id
        self.ret = ret


class UnknownCommand(BadRequest):
    """A command that v1 and the agreed extensions do not have; `ret` is ENOTSUP, -524."""

    def __init__(self, req_id: int, cmd: int, id: int) -> None:
        super().__init__(f"command {cmd} is unknown", req_id, cmd, id, ENOTSUP)


_HEAD = struct.Struct("<IIQ")
_LAYOUT: dict[Command, struct.Struct] = {
    Command.SOCKET: struct.Struct("<III"),
    Command.CONNECT: struct.Struct("<28sIIII"),
    Command.RELEASE: struct.Struct("<B"),
    Command.BIND: struct.Struct("<28sI"),
    Command.LISTEN: struct.Struct("<I"),
    Command.ACCEPT: struct.Struct("<QII"),
    Command.POLL: struct.Struct("<"),
    Command.SHUTDOWN: struct.Struct("<I"),
    Command.GETNAME: struct.Struct("<I"),
    Command.SETOPT: struct.Struct("<III36s"),
    Command.GETOPT: struct.Struct("<IIII"),
    Command.CLOSE: struct.Struct("<I"),
    Command.ATTACH: struct.Struct("<36xII"),
    Command.EXPLAIN: struct.Struct("<I"),
}
_PAGE_ADDRESS = struct.Struct("<H2xI")
# Plain numbers: every request passes here, and those of enums cost as much as all the rest.
_COMMANDS = {command.value: command for command in Command}
_HOPS = 16  # where they begin in `type` of SOCKET
_ASYNC, _PAGE = ConnectFlag.ASYNC.value, ConnectFlag.PAGE_ADDRESS.value


def _fits(what: str, data: bytes, room: int) -> bytes:
    if len(data) > room:
        raise WireError(f"{what} has {len(data)} bytes, a request has room for {room}")
    return data


def _fields(request: Request) -> tuple[Command, tuple[int | bytes, ...]]:
    """The command and what its layout packs behind the socket's id."""
    match request:
        case Socket(_, domain, type_, protocol, hops):
            return Command.SOCKET, (domain, type_ | _limited("hops", hops, 255) << _HOPS, protocol)
        case Connect(_, address, flags, ref, port, None):
            raw = _fits("the address", address, ADDRESS)
            return Command.CONNECT, (raw, len(raw), flags, ref, port)
        case Connect(_, _, flags, ref, port, PageAddress(family, page, length)):
            flags |= ConnectFlag.PAGE_ADDRESS
            return Command.CONNECT, (_PAGE_ADDRESS.pack(family, page), length, flags, ref, port)
        case Release(_, reuse):
            return Command.RELEASE, (int(reuse),)
        case Bind(_, address):
            raw = _fits("the address", address, ADDRESS)
            return Command.BIND, (raw, len(raw))
        case Listen(_, backlog):
            return Command.LISTEN, (backlog,)
        case Accept(_, new_id, ref, port):
            return Command.ACCEPT, (new_id, ref, port)
        case Poll():
            return Command.POLL, ()
        case Shutdown(_, how):
            return Command.SHUTDOWN, (how,)
        case GetName(_, which):
            return Command.GETNAME, (which,)
        case SetOption(_, level, name, value):
            raw = _fits("the value", value, OPTION)
            return Command.SETOPT, (level, name, len(raw), raw)
        case GetOption(_, level, name, length, ref):
            return Command.GETOPT, (level, name, length, ref)
        case Close(_, flags):
            return Command.CLOSE, (flags,)
        case Attach(_, ref, port):
            return Command.ATTACH, (ref, port)
        case Explain(_, ref):
            return Command.EXPLAIN, (ref,)
        case _:
            raise WireError(f"{request!r} is no request")


def command_of(request: Request) -> Command:
    """The command number of a request."""
    return _fields(request)[0]


def encode_request(req_id: int, request: Request) -> bytes:
    """The 64 bytes of a request. Raises WireError for a value that has no room there."""
    command, fields = _fields(request)
    try:
        head = _HEAD.pack(req_id, command, request.id)
        return (head + _LAYOUT[command].pack(*fields)).ljust(SLOT, b"\0")
    except struct.error as why:
        raise WireError(f"{request!r}: {why}") from why


def decode_request(slot: bytes, extensions: Set[Extension] = ALL) -> tuple[int, Request]:
    """The cookie and the request in 64 bytes, as v1 plus `extensions` understand them.

    Reserved bytes and flags are ignored. Raises UnknownCommand, BadRequest for a request to be
    answered with an error, and WireError when these are not 64 bytes.
    """
    if len(slot) != SLOT:
        raise WireError(f"a request has {SLOT} bytes, not {len(slot)}")
    req_id, cmd, id = _HEAD.unpack_from(slot)
    command = _COMMANDS.get(cmd)
    if command is None or (command in EXTENDED and EXTENDED[command] not in extensions):
        raise UnknownCommand(req_id, cmd, id)
    fields = _LAYOUT[command].unpack_from(slot, _HEAD.size)
    try:
        return req_id, _request(command, id, fields, extensions)
    except WireError as why:
        ret = to_wire(errno.EINVAL)
        raise BadRequest(f"{command.name}: {why}", req_id, cmd, id, ret) from None


def _limited(what: str, number: int, limit: int) -> int:
    if number > limit:
        raise WireError(f"{what} is {number}, at most {limit}")
    return number


def _connect(id: int, fields: tuple[Any, ...], extensions: Set[Extension]) -> Connect:
    raw, length, flags, ref, port = fields
    if Extension.ASYNC_CONNECT not in extensions:
        flags &= ~_ASYNC
    if Extension.UNIX not in extensions:
        flags &= ~_PAGE
    flags &= _ASYNC | _PAGE
    if not flags & _PAGE:
        length = _limited("the address's length", length, ADDRESS)
        return Connect(id, raw[:length], flags, ref, port)
    length = _limited("the address's length", length, UNIX_ADDRESS)
    family, page = _PAGE_ADDRESS.unpack_from(raw)
    return Connect(id, b"", flags, ref, port, PageAddress(family, page, length))


def _request(
    command: Command, id: int, fields: tuple[Any, ...], extensions: Set[Extension]
) -> Request:
    match command:
        case Command.SOCKET:
            domain, type_, protocol = fields
            if Extension.HOPS not in extensions:
                return Socket(id, domain, type_, protocol)
            hops = type_ >> _HOPS & 0xFF
            return Socket(id, domain, type_ & ~(0xFF << _HOPS), protocol, hops)
        case Command.CONNECT:
            return _connect(id, fields, extensions)
        case Command.RELEASE:
            return Release(id, bool(fields[0]))
        case Command.BIND:
            raw, length = fields
            return Bind(id, raw[: _limited("the address's length", length, ADDRESS)])
        case Command.LISTEN:
            return Listen(id, *fields)
        case Command.ACCEPT:
            return Accept(id, *fields)
        case Command.POLL:
            return Poll(id)
        case Command.SHUTDOWN:
            return Shutdown(id, _limited("how", fields[0], max(How)))
        case Command.GETNAME:
            return GetName(id, _limited("which", fields[0], max(Which)))
        case Command.SETOPT:
            level, name, length, raw = fields
            value = raw[: _limited("the value's length", length, OPTION)]
            return SetOption(id, level, name, value)
        case Command.GETOPT:
            level, name, length, ref = fields
            return GetOption(id, level, name, _limited("the length", length, PAGE), ref)
        case Command.CLOSE:
            return Close(id, fields[0] & CloseFlag.RESET)
        case Command.ATTACH:
            return Attach(id, *fields)
        case Command.EXPLAIN:
            return Explain(id, *fields)
