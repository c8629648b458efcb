"""A policy file read: every error in it with line, column and a suggestion, or the policy that it means."""

from __future__ import annotations

import os
import re
import tomllib
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from xensock.calls.address import Endpoint
from xensock.calls.call import Limit, Protocol
from xensock.policy import places, shape
from xensock.policy.entries import Terms
from xensock.policy.file import ExpectTable, HooksTable, NetworkTable, PolicyFile, RuleTable
from xensock.policy.networks import RESERVED, Network
from xensock.policy.policy import Policy, options
from xensock.policy.rules import Rule, RuleError, check_group, near, parse_rules
from xensock.policy.unix import PREFIX, UnixRules, is_unix, parse_unix

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xensock.policy.hooks import Hooks
    from xensock.policy.places import Path

LARGEST = 16 << 20  # bytes of a file
_AT = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")
_HEADER = re.compile(r"^[ \t]*\[", re.MULTILINE)
_FACTORS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}
_TABLES: dict[str, type[msgspec.Struct]] = {"rule": RuleTable, "expect": ExpectTable}
T = TypeVar("T", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Problem:
    """One error in a file. Lines and columns from 1."""

    line: int
    column: int
    message: str
    hint: str


class PolicyError(ValueError):
    """A file that is no policy: all its problems, in order."""

    def __init__(self, path: str, problems: Sequence[Problem]) -> None:
        self.path = path
        self.problems = tuple(sorted(problems, key=lambda p: (p.line, p.column)))
        first = self.problems[0]
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        super().__init__(f"{path}:{first.line}:{first.column}: {first.message}{more}")
        self.hint = f"{first.hint}; all that is wrong: xensock policy check {path}"


@dataclass(slots=True)
class Document:
    """A file that holds a policy."""

    path: str
    tables: PolicyFile
    places: places.Places
    rules: list[tuple[Rule, Terms]] = field(default_factory=list)
    unix: UnixRules = field(default_factory=UnixRules)
    networks: list[Network] = field(default_factory=list)
    cases: list[tuple[int, str, bool]] = field(default_factory=list)  # table, call, allowed
    hooks: Hooks | None = None

    def where(self, case: int) -> str:
        """Where a case stands, as FILE:LINE."""
        return f"{self.path}:{self.places.of(('expect', case)).line}"

    def policy(self, allow: Sequence[str] = (), deny: Sequence[str] = ()) -> Policy:
        """What the file says, with options beside it. Raises RuleError for a bad option."""
        rules, unix = options(allow, deny, self.tables.groups)
        return Policy(
            [*rules, *self.rules],
            self.unix.joined(unix),
            title=os.path.basename(self.path),
            close_on_reload=self.tables.close_on_reload,
            networks=self.networks,
            hooks=self.hooks,
            unix_datagrams=self.tables.unix_datagrams == "allow",
        )


def load(path: str) -> Document:
    """Read a policy file. Raises OSError, and PolicyError with every error in the file."""
    with open(path, "rb") as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise PolicyError(path, [Problem(1, 1, "the file is too large", "at most 16 MB")])
    return parse(data, path)


def parse(data: bytes, path: str) -> Document:
    """Read the text of a policy file. Raises PolicyError."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise PolicyError(
            path, [Problem(line, 1, "the file is not UTF-8", "save it as UTF-8")]
        ) from None
    text = text.replace("\r\n", "\n")
    try:
        tables = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise PolicyError(path, syntax_problems(text, error)) from None
    return _Reader(path, places.find(text)).read(tables)


def syntax_problems(text: str, error: Exception) -> list[Problem]:
    """What is wrong with text that is no TOML: the first error of each table."""
    found = {_syntax_problem(text, str(error), 0)}
    starts = [match.start() for match in _HEADER.finditer(text)]
    for start, end in zip([0, *starts], [*starts, len(text)], strict=True):
        try:
            tomllib.loads(text[start:end])
        except (tomllib.TOMLDecodeError, RecursionError) as inner:
            found.add(_syntax_problem(text[start:end], str(inner), text.count("\n", 0, start)))
    lines: dict[int, Problem] = {}
    for problem in found:
        lines.setdefault(problem.line, problem)
    return list(lines.values())


def _syntax_problem(text: str, said: str, before: int) -> Problem:
    match = _AT.search(said)
    what = said[: match.start()] if match else said
    if match and match[1]:
        line, column = int(match[1]), int(match[2])
    else:
        line, column = (
            text.rstrip("\n").count("\n") + 1,
            len(text.rstrip("\n").rpartition("\n")[2]) + 1,
        )
    bad = (text.splitlines() or [""])[min(line, text.count("\n") + 1) - 1]
    hint = "the file is TOML 1.0: key = value, [table], [[rule]]"
    bare = re.match(r"""\s*([\w.-]+)\s*=\s*([^\s"'\[{#][^#]*?)\s*(#.*)?$""", bad)
    if bare and not re.fullmatch(r"[-+0-9.eE_:TZ]+|true|false", bare[2]):
        hint = f'text stands in quotes: {bare[1]} = "{bare[2]}"'
    elif re.match(r"\s*[\w.-]+\s*:", bad):
        hint = "a key and its value stand apart by =, not by a colon"
    elif "Cannot declare" in what or "overwrite" in what.lower() or "twice" in what:
        hint = "each key and each table once; rules are [[rule]] with two brackets"
    elif "Unclosed" in what or "Unterminated" in what or "end of document" in said:
        hint = "close the quotes or brackets that were opened"
    return Problem(line + before, column, what[:1].lower() + what[1:], hint)


class _Reader:
    def __init__(self, path: str, where: places.Places) -> None:
        self.path = path
        self.where = where
        self.problems: list[Problem] = []
        self.good = True

    def report(self, path: Path, key: bool, message: str, hint: str) -> None:
        place = self.where.of(path, key=key)
        self.problems.append(Problem(place.line, place.column, message, hint))

    def read(self, tables: dict[str, object]) -> Document:
        good = shape.check(tables, PolicyFile, self.report)
        # What has the wrong shape is reported and left out; the rest may have errors, too.
        kept = msgspec.convert(tables, PolicyFile) if good else salvaged(tables, PolicyFile)
        document = Document(self.path, kept, self.where)
        self.meaning(document, good)
        if self.problems:
            raise PolicyError(self.path, self.problems)
        return document

    # --- meaning

    def meaning(self, document: Document, good: bool) -> None:
        self.good = good
        tables = document.tables
        for name, members in tables.groups.items():
            try:
                check_group(name, members, tables.groups)
            except RuleError as error:
                path: Path = ("groups", name) if error.at is None else ("groups", name, error.at)
                self.report(path, error.at is None, error.message, error.hint)
        for name, network in tables.networks.items():
            self.network(document, name, network)
        allow: dict[str, None] = {}
        deny: dict[str, None] = {}
        for at, rule in enumerate(tables.rule):
            self.rule(document, at, rule, allow, deny)
        document.unix = UnixRules(allow, deny)
        if tables.hooks is not None:
            document.hooks = self.hooks(tables.hooks)
        for at in range(len(tables.expect)):
            self.case(document, at)

    def side(self, path: Path, allow: object, deny: object) -> tuple[Path, list[str], bool] | None:
        """Where the calls of a rule or a case stand, and whether they are allowed."""
        if allow is None and deny is None and not self.good:
            return None  # it may be what was left out
        if (allow is None) == (deny is None):
            both = allow is not None
            self.report(
                path,
                True,
                f"{shape.path_text(path)} has {'both allow and deny' if both else 'neither allow nor deny'}",
                "write two of them" if both else 'write allow = "HOST:PORT" or deny = "HOST:PORT"',
            )
            if not both:
                return None
        word, value = ("allow", allow) if allow is not None else ("deny", deny)
        patterns = [value] if isinstance(value, str) else value
        assert isinstance(patterns, list)
        if not patterns:
            self.report((*path, word), False, f"{word} is an empty list", "leave the rule out")
        return (*path, word), patterns, word == "allow"

    def rule(
        self,
        document: Document,
        at: int,
        rule: RuleTable,
        allow: dict[str, None],
        deny: dict[str, None],
    ) -> None:
        path: Path = ("rule", at)
        side = self.side(path, rule.allow, rule.deny)
        redirect = self.redirect((*path, "redirect"), rule.redirect)
        self.programs((*path, "program"), rule.program)
        self.via((*path, "via"), rule.via, document.tables.networks)
        if isinstance(redirect, str) and rule.via is not None:
            self.report(
                (*path, "via"),
                True,
                "via with a redirection to a unix socket, which is in no network",
                "leave one of them out",
            )
        if side is None:
            return
        where, patterns, allowed = side
        extras = [
            word
            for word in ("redirect", "limit", "via", "verify")
            if getattr(rule, word) is not None
        ]
        for word in extras if not allowed else ():
            self.report((*path, word), True, f"{word} in a rule that denies", "leave it out")
        for number, pattern in enumerate(patterns):
            place: Path = (
                where if isinstance(getattr(rule, str(where[-1])), str) else (*where, number)
            )
            if is_unix(pattern):
                self.unix(place, pattern, rule, allow if allowed else deny)
                continue
            try:
                found = parse_rules(pattern, document.tables.groups)
            except RuleError as error:
                self.report(place, False, error.message, error.hint)
                continue
            streams = [word for word in extras if word != "via"]
            self.fits(path, place, found, rule, extras)
            terms = Terms(
                allowed,
                programs=_listed(rule.program),
                labels=rule.labels,
                redirect=redirect,
                via=_listed(rule.via),
                limit=_limit(rule),
                verify=rule.verify,
                close_on_reload=document.tables.close_on_reload,
                source=f"{self.path}:{self.where.of(place).line}",
            )
            if streams and not any(each.direction != "connect" for each in found):
                # What is verified or counted is TCP: datagrams of such a rule would go past it.
                found = tuple(replace(each, protocol=Protocol.TCP) for each in found)
            document.rules += [(each, terms) for each in found]

    def fits(
        self,
        path: Path,
        place: Path,
        found: tuple[Rule, ...],
        rule: RuleTable,
        extras: list[str],
    ) -> None:
        """Whether what a rule adds has a meaning for what it is about."""
        streams = [word for word in extras if word != "via"]
        for each in found[:1]:
            if each.direction != "connect" and extras:
                self.report(
                    place,
                    False,
                    f"{', '.join(extras)} in a rule to {each.direction}",
                    "they are about connecting: leave them out, or make two rules",
                )
            elif each.protocol not in (None, Protocol.TCP) and streams:
                self.report(
                    place,
                    False,
                    f"{', '.join(streams)} in a rule about {each.protocol}",
                    "they are about TCP: leave them out, or make two rules",
                )
        if rule.verify is not None and not all(each.name for each in found):
            self.report(
                place,
                False,
                "verify in a rule that names no host",
                "write a name such as api.example.test:443",
            )

    def unix(self, place: Path, pattern: str, rule: RuleTable, side: dict[str, None]) -> None:
        try:
            side[parse_unix(pattern)] = None
        except RuleError as error:
            self.report(place, False, error.message, error.hint)
        if any((rule.program, rule.labels, rule.redirect, rule.limit, rule.via, rule.verify)):
            self.report(
                place,
                False,
                "a rule about a unix socket says more than its path",
                "leave the rest out, or make two rules",
            )

    def hooks(self, table: HooksTable) -> Hooks | None:
        from xensock.policy.hooks import HookError, Hooks, find

        place = self.where.of(("hooks", "class"))
        try:
            made = find(table.cls, os.path.dirname(os.path.abspath(self.path)))
        except HookError as error:
            self.report(("hooks", "class"), False, str(error), error.hint)
            return None
        return Hooks(made, table.timeout, f"{self.path}:{place.line}")

    def redirect(self, path: Path, text: str | None) -> Endpoint | str | None:
        if text is None:
            return None
        try:
            return parse_redirect(text)
        except RuleError as error:
            self.report(path, False, error.message, error.hint)
            return None

    def programs(self, path: Path, programs: str | list[str] | None) -> None:
        for at, program in enumerate(_listed(programs)):
            if not program.startswith(("/", "*")):
                import shutil

                found = shutil.which(program)
                self.report(
                    path if isinstance(programs, str) else (*path, at),
                    False,
                    f"program {program!r} is not an absolute path",
                    f"write {os.path.realpath(found)}" if found else f"write */{program}",
                )

    def network(self, document: Document, name: str, table: NetworkTable) -> None:
        path: Path = ("networks", name)
        if name in RESERVED:
            self.report(path, True, f"a network cannot be called {name!r}", "use another name")
            return
        if not re.fullmatch(r"[\w.-]+", name):
            self.report(
                path, True, f"{name!r} is no name for a network", "letters, digits, . and - only"
            )
        if (table.netns is None) == (table.backend is None):
            if self.good or table.netns is not None:
                both = "both netns and backend" if table.netns else "neither netns nor backend"
                hint = 'write netns = "/run/netns/NAME" or backend = "local:PATH"'
                self.report(path, True, f"network {name} has {both}", hint)
            return
        if table.netns is not None and not table.netns.startswith("/"):
            bare = table.netns.removeprefix("netns:")
            hint = f'write "{bare if bare.startswith("/") else f"/run/netns/{bare}"}"'
            self.report((*path, "netns"), False, f"{table.netns!r} is no absolute path", hint)
        if table.backend is not None and not re.fullmatch(r"local:.+", table.backend):
            self.report(
                (*path, "backend"),
                False,
                f"{table.backend!r} is no URL of a backend",
                "write local:PATH",
            )
        if table.resolv_conf is not None and table.backend is not None:
            self.report(
                (*path, "resolv_conf"),
                True,
                "resolv_conf of a backend, which resolves names itself",
                "leave it out",
            )
        document.networks.append(
            Network(name, table.netns or "", table.backend or "", table.resolv_conf or "")
        )

    def via(
        self, path: Path, via: str | list[str] | None, networks: dict[str, NetworkTable]
    ) -> None:
        names = _listed(via)
        known = (*RESERVED, *networks)
        if via is not None and not names:
            self.report(path, False, "via is an empty list", "leave it out")
        for at, name in enumerate(names):
            place: Path = path if isinstance(via, str) else (*path, at)
            if name in names[:at]:
                self.report(place, False, f"via names {name} twice", "leave one out")
            elif name not in known:
                close = near(name, known)
                hint = f'name it: [networks], {name} = {{ netns = "/run/netns/{name}" }}'
                self.report(
                    place,
                    False,
                    f"no network is called {name!r}",
                    f"did you mean {close}?" if close else hint,
                )

    def case(self, document: Document, at: int) -> None:
        from xensock.policy.explain import Call

        case = document.tables.expect[at]
        path: Path = ("expect", at)
        if case.address is not None:
            try:
                ip_address(case.address)
            except ValueError:
                self.report(
                    (*path, "address"),
                    False,
                    f"{case.address!r} is not an address",
                    "write one such as 192.0.2.1",
                )
        side = self.side(path, case.allow, case.deny)
        if side is None:
            return
        where, patterns, allowed = side
        for number, pattern in enumerate(patterns):
            place: Path = (
                where if isinstance(getattr(case, str(where[-1])), str) else (*where, number)
            )
            try:
                Call.parse(pattern)
            except RuleError as error:
                self.report(place, False, error.message, error.hint)
            else:
                document.cases.append((at, pattern, allowed))


def parse_redirect(text: str) -> Endpoint | str:
    """Where connections go instead: ADDRESS:PORT, or unix:PATH (the path is returned). Raises RuleError."""
    if text.startswith(PREFIX):
        return parse_unix(text)
    host, colon, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        address = ip_address(bare)
        if not colon or not port.isascii() or not port.isdigit() or (":" in host and bare == host):
            raise ValueError(text)
        if not 0 < int(port) < 65536:
            raise ValueError(text)
        return Endpoint(address, int(port))
    except ValueError:
        raise RuleError(
            f"redirect {text!r} is neither an address with a port nor a unix socket",
            "write 127.0.0.1:8080, [::1]:8080 or unix:/run/app.sock",
        ) from None


def salvaged(table: object, wanted: type[T]) -> T:
    """What of a table has the right shape; tables in it likewise."""
    kept: dict[str, Any] = {}
    if not isinstance(table, dict):
        return wanted()
    for each in msgspec.structs.fields(wanted):
        if each.encode_name not in table:
            continue
        value = table[each.encode_name]
        inner = _TABLES.get(each.encode_name)
        try:
            if inner is not None and isinstance(value, list):
                kept[each.name] = [salvaged(one, inner) for one in value]
            else:
                kept[each.name] = msgspec.convert(value, each.type)
        except msgspec.ValidationError:
            if isinstance(value, dict) and each.name == "groups":
                kept[each.name] = {k: v for k, v in value.items() if _texts(v)}
            if isinstance(value, dict) and each.name == "networks":
                # Names alone count: what is wrong in a table has been reported.
                kept[each.name] = {k: salvaged(v, NetworkTable) for k, v in value.items()}
    return wanted(**kept)


def _texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) and text for text in value)


def _limit(rule: RuleTable) -> Limit | None:
    table = rule.limit
    if table is None:
        return None
    rate = table.rate
    if isinstance(rate, str):
        number = rate.rstrip("kMG")
        rate = max(1, int(float(number) * _FACTORS[rate[len(number) :]]))
    return Limit(rate, table.connects, table.concurrent)


def _listed(texts: str | list[str] | None) -> tuple[str, ...]:
    if texts is None:
        return ()
    return (texts,) if isinstance(texts, str) else tuple(texts)
