"""Hooks: a class of the policy's author that is asked about calls, after the rules.

    from xensock.policy.hooks import Answer, Call, allow, deny, redirect

    class Hooks:
        def connect(self, call: Call) -> Answer | None: ...
        async def resolve(self, call: Call) -> Answer | None: ...

Rules
- Of `connect`, `listen`, `accept` and `resolve` it has those that it wants to be asked about. None as the answer: as
  the rules say. `--deny` is not asked about.
- Fails closed: what raises, answers something else, or takes longer than the time limit is a refusal.
- Nothing is remembered: each call is asked about. Waiting for an answer holds up the thread that calls, and nobody
  else: coroutines share a loop, other methods have a thread for each call. One that never returns keeps its thread.
"""

from __future__ import annotations

import asyncio
import errno
import importlib
import inspect
import itertools
import os
import sys
import threading
import types
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from xensock.calls.call import Decision, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from xensock.calls.address import Endpoint

VERBS = ("connect", "listen", "accept", "resolve")
MOST = 256  # calls under way at once; more are refused
_numbers = itertools.count()
_slots = threading.BoundedSemaphore(MOST)


@dataclass(frozen=True, slots=True)
class Call:
    """What a hook is asked about.

    verb      "connect" (datagrams' flows, too), "listen", "accept" or "resolve"
    guest     the guest's name; `labels` are its
    protocol  "tcp", "udp" or "icmp"
    host      the address: the destination, the local one, the client's; of resolve the name
    port      the destination's, or the one that the guest listens on
    names     by which the guest learnt the address, the latest first
    pid       of the caller as the host sees it, 0 where it is not known; `program` is the path of what it runs
    allowed   what the rules say; `rule` is the one that says so, or a default
    """

    verb: Literal["connect", "listen", "accept", "resolve"]
    guest: str
    protocol: str
    host: str
    port: int
    names: tuple[str, ...] = ()
    pid: int = 0
    program: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    allowed: bool = False
    rule: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a hook says; see `allow`, `deny` and `redirect`."""

    allowed: bool
    why: str = ""
    to: Endpoint | str | None = None


def allow() -> Answer:
    """The call goes on, whatever the rules say; a rule that allows it keeps its terms."""
    return Answer(True)


def deny(why: str = "") -> Answer:
    """The call is refused: EACCES, or a name that does not exist. `why` stands in traces."""
    return Answer(False, why)


def redirect(to: str) -> Answer:
    """A TCP connection goes to "ADDRESS:PORT" or "unix:PATH" instead. Raises ValueError."""
    from xensock.policy.load import parse_redirect

    return Answer(True, to=parse_redirect(to))


class HookError(ValueError):
    """A class of hooks that cannot be had; `hint` says what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class Hooks:
    """A class of hooks, ready to be asked. `timeout` is in seconds; `source` is where the policy names it."""

    def __init__(self, target: object, timeout: float = 2.0, source: str = "") -> None:
        self._target = target
        self._name = type(target).__name__
        self._timeout = timeout
        self._source = source
        self.verbs = frozenset(verb for verb in VERBS if callable(getattr(target, verb, None)))

    def ask(self, call: Call, decision: Decision) -> Future[Decision]:
        """What becomes of a call of which the rules said `decision`: there at latest after the time limit."""
        asked: Future[Decision] = Future()

        def settle(found: Decision) -> None:
            with suppress(InvalidStateError):  # too late
                asked.set_result(found)

        def refuse(why: str) -> None:
            settle(self._refused(call, why))

        slots = _slots
        if not slots.acquire(blocking=False):
            refuse(f"{MOST} calls are under way")
            return asked
        method: Callable[[Call], Any] = getattr(self._target, call.verb)
        clock = _loop("hooks-clock")
        late = f"no answer within {self._timeout:g} s"
        clock.call_soon_threadsafe(clock.call_later, self._timeout, refuse, late)
        if inspect.iscoroutinefunction(method):
            work = self._awaited(method, call, decision, settle, slots.release)
            asyncio.run_coroutine_threadsafe(work, _loop("hooks"))
        else:
            run = threading.Thread(
                target=self._called,
                args=(method, call, decision, settle, slots.release),
                daemon=True,
            )
            run.start()
        return asked

    def _called(
        self,
        method: Callable[[Call], Any],
        call: Call,
        decision: Decision,
        settle: Callable[[Decision], None],
        release: Callable[[], None],
    ) -> None:
        try:
            settle(self._judged(call, decision, method(call)))
        except BaseException as error:
            settle(self._refused(call, f"{type(error).__name__}: {error}"))
        finally:
            release()

    async def _awaited(
        self,
        method: Callable[[Call], Any],
        call: Call,
        decision: Decision,
        settle: Callable[[Decision], None],
        release: Callable[[], None],
    ) -> None:
        try:
            found = await asyncio.wait_for(method(call), self._timeout)
            settle(self._judged(call, decision, found))
        except TimeoutError:
            settle(self._refused(call, f"no answer within {self._timeout:g} s"))
        except Exception as error:
            settle(self._refused(call, f"{type(error).__name__}: {error}"))
        finally:
            release()

    def _judged(self, call: Call, decision: Decision, found: object) -> Decision:
        """What an answer means."""
        if found is None:
            return replace(decision, cacheable=False)
        if not isinstance(found, Answer):
            return self._refused(call, f"it answers {type(found).__name__}, not an Answer")
        if not found.allowed:
            return self._refused(call, found.why)
        text = self._text(call)
        if found.to is not None:
            if call.verb != "connect" or call.protocol != Protocol.TCP:
                return self._refused(call, "only TCP connections can be redirected")
            return Decision(
                True,
                text,
                cacheable=False,
                redirect=found.to,
                needs_relay=True,
                source=self._source,
            )
        if decision.allowed:
            return replace(decision, cacheable=False)
        name = call.host if call.verb == "resolve" else None
        return Decision(True, text, name=name, cacheable=False, source=self._source)

    def _text(self, call: Call) -> str:
        return f"hook {self._name}.{call.verb}"

    def _refused(self, call: Call, why: str) -> Decision:
        error = 0 if call.verb == "resolve" else errno.EACCES
        text = self._text(call) + (f": {why}" if why else "")
        hint = f"see the hooks named at {self._source}"
        return Decision(False, text, error, cacheable=False, hint=hint, source=self._source)


def find(text: str, folder: str) -> object:
    """An object of the class that "FILE.py:CLASS" (from `folder`) or "MODULE:CLASS" names. Raises HookError."""
    where, colon, name = text.rpartition(":")
    if not colon or not where or not name.isidentifier():
        raise HookError(
            f"hooks {text!r} is not a class", "write FILE.py:CLASS, or MODULE:CLASS of a package"
        )
    try:
        module = _file(os.path.join(folder, where)) if where.endswith(".py") else _module(where)
    except Exception as error:
        raise HookError(
            f"hooks {text!r} cannot be loaded: {type(error).__name__}: {error}",
            f"see that `python3 {where}` runs" if where.endswith(".py") else "see its name",
        ) from error
    found = getattr(module, name, None)
    if not isinstance(found, type):
        raise HookError(f"there is no class {name} in {where}", "check the spelling")
    try:
        made: object = found()
    except Exception as error:
        raise HookError(
            f"hooks {text!r} cannot be made: {type(error).__name__}: {error}",
            "the class is called without arguments",
        ) from error
    if not any(callable(getattr(made, verb, None)) for verb in VERBS):
        raise HookError(f"{name} has none of {', '.join(VERBS)}", "a hook is one of these methods")
    return made


def _file(path: str) -> object:
    """A module from a file, run anew each time; no compiled form of it is kept or believed."""
    with open(path, "rb") as file:
        code = compile(file.read(), path, "exec", dont_inherit=True)
    module = types.ModuleType(f"xensock_hooks_{next(_numbers)}")
    module.__file__ = path
    sys.modules[module.__name__] = module  # dataclasses and pickle look there
    try:
        exec(code, module.__dict__)
    except BaseException:
        del sys.modules[module.__name__]
        raise
    return module


def _module(name: str) -> object:
    return importlib.import_module(name)


_loops: dict[tuple[int, str], asyncio.AbstractEventLoop] = {}
_lock = threading.Lock()


def _loop(name: str) -> asyncio.AbstractEventLoop:
    """An event loop on a thread of this process: one for coroutines, one for time, which no hook holds up."""
    with _lock:
        key = os.getpid(), name
        if key not in _loops:
            _loops[key] = asyncio.new_event_loop()
            threading.Thread(target=_loops[key].run_forever, name=name, daemon=True).start()
        return _loops[key]
