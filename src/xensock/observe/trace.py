"""The trace: one line per mediated call, as aligned text or as JSON.

    18:22:19.123  curl[71]  connect(203.0.113.9:443) = 0  web.test  allow any:443  direct  1.25 ms

Rules
- Text columns only grow, up to a limit, so that lines stay aligned without waiting for the end.
- What a guest chose (its program's name, the names it asks for) may hold terminal escapes: every
  character that is not printable is shown as an escape, and a backslash as two. JSON is ASCII.
- JSON lines are the fields of `Record` and `"schema": 1`. Readers ignore members they do not know.
"""

from __future__ import annotations

import errno
import json
import threading
import time
from typing import TYPE_CHECKING, Any, Literal, TextIO, get_args

from xensock.calls.record import Outcome, Path, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Style = Literal["text", "json"]
SCHEMA = 1

# Column: least and greatest width. What is longer pushes the rest of its line to the right.
_CALL, _NAME, _RULE, _PATH = (40, 64), (10, 30), (32, 48), (6, 6)
_PROGRAM = (12, 24)

_DIM, _RED, _GREEN, _YELLOW, _CYAN = "2", "31", "32", "33", "36"
_OUTCOMES = {"allow": _GREEN, "deny": _RED, "guest": _DIM}

# How DNS calls what a resolve record has as errno.
_RCODES = {errno.ENOENT: "NXDOMAIN", errno.EAGAIN: "SERVFAIL", errno.EACCES: "REFUSED"}

_REQUIRED = {"time": float, "guest": str, "pid": int, "program": str, "verb": str, "target": str}
_OPTIONAL = {
    "decision": str,
    "rule": str,
    "hint": str,
    "datapath": str,
    "result": int,
    "error": int,
    "duration": float,
    "source": str,
    "also": str,
    "user": int,
    "connection": int,
    "accepted": bool,
}
_FIELDS = tuple(Record.__dataclass_fields__)


class TraceWriter:
    """Writes records to a text stream, one line and one flush each; any thread may call it.

    colour   whether text lines carry ANSI colours
    policy   the policy file that decides, if there is one: a refused call's line says what to add to it
    lost     is called once when the stream fails, by a full disk or a reader that has left, and nothing is written
             from then on; without it `write` raises what the stream raises (OSError)
    Raises ValueError for an unknown style.
    """

    def __init__(
        self,
        stream: TextIO,
        style: Style = "text",
        colour: bool = False,
        policy: str = "",
        lost: Callable[[OSError], None] | None = None,
    ) -> None:
        if style not in get_args(Style):
            raise ValueError(f"unknown trace style {style!r}; there are text and json")
        self._stream = stream
        self._style = style
        self._colour = colour
        self._policy = policy
        self._lost = lost
        self._over = False
        self._lock = threading.Lock()
        self._widths = [least for least, _ in (_PROGRAM, _CALL, _NAME, _RULE, _PATH)]

    def write(self, record: Record) -> None:
        """Add the line of one record."""
        with self._lock:
            if self._over:
                return
            try:
                self._write(record)
            except OSError as error:
                if self._lost is None:
                    raise
                self._over = True
                self._lost(error)

    def _write(self, record: Record) -> None:
        line = record_to_json(record) if self._style == "json" else self._text(record)
        encoding = getattr(self._stream, "encoding", None)
        if encoding:
            line = line.encode(encoding, "backslashreplace").decode(encoding)
        self._stream.write(line + "\n")
        self._stream.flush()

    def _text(self, record: Record) -> str:
        outcome, result = _outcome(record), _result(record)
        failed = record.error not in (0, errno.EINPROGRESS)
        call = f"{record.verb}({printable(record.target)})"
        cells = (
            _program(record),
            f"{call} = {result}",
            printable(record.name or "") if record.name != record.target else "",
            outcome,
            record.datapath,
        )
        limits = (_PROGRAM, _CALL, _NAME, _RULE, _PATH)
        self._widths = [
            max(width, min(len(cell), most))
            for width, cell, (_, most) in zip(self._widths, cells, limits, strict=True)
        ]
        program, done, name, rule, path = (
            cell.ljust(width) for cell, width in zip(cells, self._widths, strict=True)
        )
        if failed:
            at = len(call) + 3
            done = done[:at] + self._paint(_RED, done[at:])
        parts = [
            self._paint(_DIM, _clock(record.time)),
            program,
            done,
            name,
            self._paint(_OUTCOMES.get(record.decision, _DIM), rule),
            self._paint(_CYAN, path),
            self._paint(_DIM, _duration(record.duration)),
        ]
        if (failed or record.decision == "deny") and record.hint:
            parts.append(self._paint(_YELLOW, f"hint: {printable(self._remedy(record.hint))}"))
        if record.decision == "deny" and record.also:
            parts.append(self._paint(_DIM, f"then: {printable(record.also)}"))
        return "  ".join(parts)

    def _remedy(self, hint: str) -> str:
        """The option that would allow the call, or what to add to the policy file where there is one."""
        rule = hint.removeprefix("--allow ")
        if not self._policy or rule == hint:
            return hint
        return f"allow = {json.dumps(rule, ensure_ascii=False)} under [[rule]] in {self._policy}"

    def _paint(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colour and text.strip() else text


def printable(text: str) -> str:
    """The text with everything that could steer a terminal shown as an escape."""
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(char if char.isprintable() and char != "\\" else _escape(char) for char in text)


def _escape(char: str) -> str:
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")


def _program(record: Record) -> str:
    if not record.pid:  # a question to the name server: a datagram does not say whose it is
        return printable(record.program) or "-"
    return f"{printable(record.program) or '?'}[{record.pid}]"


def _result(record: Record) -> str:
    if record.verb == "resolve" and record.error in _RCODES:
        return _RCODES[record.error]
    if record.error:
        return f"-1 {errno.errorcode.get(record.error, f'errno {record.error}')}"
    return str(record.result)


def _outcome(record: Record) -> str:
    where = f" ({printable(record.source)})" if record.source else ""
    return f"{record.decision} {printable(record.rule)}{where}".strip()


def _clock(moment: float) -> str:
    millis = round(moment * 1000)
    return f"{time.strftime('%H:%M:%S', time.localtime(millis // 1000))}.{millis % 1000:03d}"


def _duration(seconds: float) -> str:
    return f"{seconds * 1e3:8.2f} ms" if seconds < 100 else f"{seconds:8.1f} s "


def record_to_json(record: Record) -> str:
    """One line of JSON, without the line's end."""
    import json

    fields: dict[str, Any] = {"schema": SCHEMA}
    fields.update((name, getattr(record, name)) for name in _FIELDS)
    return json.dumps(fields)


def record_from_json(line: str) -> Record:
    """Read one line of a JSON trace. Raises ValueError for what is none, or of another schema."""
    import json

    fields = json.loads(line)
    if not isinstance(fields, dict):
        raise ValueError("a trace line is a JSON object")
    if fields.get("schema") != SCHEMA:
        raise ValueError(f"schema {fields.get('schema')!r} of a trace line is not {SCHEMA}")
    values = {key: _typed(fields, key, kind) for key, kind in _REQUIRED.items()}
    for key, kind in _OPTIONAL.items():
        if key in fields:
            values[key] = _typed(fields, key, kind)
    if fields.get("name") is not None:
        values["name"] = _typed(fields, "name", str)
    _one_of(values, "decision", get_args(Outcome))
    _one_of(values, "datapath", get_args(Path))
    return Record(**values)


def _typed(fields: dict[str, Any], key: str, kind: type) -> Any:
    if key not in fields:
        raise ValueError(f"a trace line has no {key!r}")
    value = fields[key]
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise ValueError(f"{key!r} of a trace line is {value!r}, which is no {kind.__name__}")
    return value


def _one_of(values: dict[str, Any], key: str, words: Sequence[str]) -> None:
    if values.get(key, "") not in words:
        raise ValueError(f"{key!r} of a trace line is {values[key]!r}")
