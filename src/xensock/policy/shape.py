"""Whether a document has the shape that types ask for; all that is wrong, each with its place and a suggestion."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import msgspec.inspect as mi

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from xensock.policy.places import Path

_ARTICLES = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "a table",
}


def check(value: object, wanted: type, report: Callable[[Path, bool, str, str], None]) -> bool:
    """Whether `value` has the shape of a msgspec type. Each fault is reported: the path of the value (or of its key,
    if the flag says so), what is wrong, and what to do."""
    return _Checker(report).value(value, mi.type_info(wanted), (), "")


class _Checker:
    def __init__(self, report: Callable[[Path, bool, str, str], None]) -> None:
        self.report = report

    def fail(self, path: Path, message: str, hint: str, *, key: bool = False) -> bool:
        self.report(path, key, message, hint)
        return False

    def value(self, value: Any, wanted: mi.Type, path: Path, about: str) -> bool:
        options = _options(wanted)
        if isinstance(wanted, mi.Metadata):
            about = str((wanted.extra_json_schema or {}).get("description", about))
        if any(isinstance(option, mi.AnyType) for option in options):
            return True
        for option in options:
            if isinstance(option, mi.StructType) and isinstance(value, dict):
                return self.table(value, option, path)
            if isinstance(option, mi.DictType) and isinstance(value, dict):
                return self.each(value.items(), option.value_type, path, about)
            if isinstance(option, mi.ListType) and isinstance(value, list):
                return self.each(enumerate(value), option.item_type, path, about)
        faults = [fault for option in options if (fault := _fault(value, option)) != ""]
        if len(faults) < len(options):
            return True
        said = next((fault for fault in faults if fault), None)
        if said is None:
            kinds = " or ".join(dict.fromkeys(_kind(option) for option in options))
            said = f"{path_text(path)} must be {kinds}, not {_describe(value)}"
        else:
            said = f"{path_text(path)}: {said}"
        return self.fail(path, said, _suggest(value, options) or about or "see the reference")

    def each(
        self, items: Iterable[tuple[str | int, Any]], wanted: mi.Type, path: Path, about: str
    ) -> bool:
        good = True
        for part, value in items:
            good &= self.value(value, wanted, (*path, part), about)
        return good

    def table(self, value: dict[str, Any], wanted: mi.StructType, path: Path) -> bool:
        fields = {field.encode_name: field for field in wanted.fields}
        good = True
        for key, inner in value.items():
            field = fields.get(key)
            if field is None:
                near = get_close_matches(key, fields, n=1, cutoff=0.6)
                known = f"known are {', '.join(sorted(fields))}"
                hint = f"did you mean {near[0]}?" if near else known
                where = f"in {path_text(path)}" if path else "at the top"
                good = self.fail((*path, key), f"unknown key {key!r} {where}", hint, key=True)
            else:
                good &= self.value(inner, field.type, (*path, key), "")
        for key, field in fields.items():
            if field.required and key not in value:
                good = self.fail(
                    path, f"{path_text(path)} has no {key!r}", f"add {key} = …", key=True
                )
        return good


def path_text(path: Path) -> str:
    """A path as people write it: rule 3, limit.rate."""
    words: list[str] = []
    for part in path:
        if isinstance(part, int):
            words[-1] += f" {part + 1}"
        else:
            words.append(part)
    return ".".join(words) or "the file"


def _options(wanted: mi.Type) -> Sequence[mi.Type]:
    """The alternatives of a type, without what TOML cannot say."""
    if isinstance(wanted, mi.Metadata):
        return _options(wanted.type)
    if isinstance(wanted, mi.UnionType):
        return [option for each in wanted.types for option in _options(each)]
    return [] if isinstance(wanted, mi.NoneType) else [wanted]


def _fault(value: Any, wanted: mi.Type) -> str | None:
    """What is wrong with a value of this very type, "" if nothing is; None: it is of another type."""
    match wanted:
        case mi.StrType() if isinstance(value, str):
            if wanted.min_length is not None and len(value) < wanted.min_length:
                return "the text is empty"
            if wanted.pattern is not None and not re.search(wanted.pattern, value):
                return f"{value!r} is not understood"
            return ""
        case mi.IntType() if isinstance(value, int) and not isinstance(value, bool):
            return _bounds(value, wanted)
        case mi.FloatType() if isinstance(value, (int, float)) and not isinstance(value, bool):
            return _bounds(value, wanted)
        case mi.BoolType() if isinstance(value, bool):
            return ""
        case mi.LiteralType() if value in wanted.values and not isinstance(value, bool):
            return ""
        case mi.LiteralType():
            words = " or ".join(repr(word) for word in wanted.values)
            return f"{value!r} is not {words}"
    return None


def _bounds(value: float, wanted: mi.IntType | mi.FloatType) -> str:
    if wanted.gt is not None and value <= wanted.gt:
        return f"{value} is not more than {wanted.gt:g}"
    if wanted.ge is not None and value < wanted.ge:
        return f"{value} is less than {wanted.ge:g}"
    if wanted.le is not None and value > wanted.le:
        return f"{value} is more than {wanted.le:g}"
    return ""


def _suggest(value: Any, options: Sequence[mi.Type]) -> str:
    for option in options:
        if isinstance(option, mi.LiteralType):
            words = [str(word) for word in option.values]
            if not isinstance(value, str):
                return f"write {words[0]}"
            near = get_close_matches(value, words, n=1, cutoff=0.5)
            return f"did you mean {near[0]!r}?" if near else f"write {words[0]!r}"
        if isinstance(option, mi.BoolType) and value in ("true", "false"):
            return f"write {value} without quotes"
    if isinstance(value, str) and any(isinstance(o, (mi.IntType, mi.FloatType)) for o in options):
        bare = re.fullmatch(r"[0-9.]+", value)
        return f"write {value} without quotes" if bare else ""
    return ""


def _kind(wanted: mi.Type) -> str:
    match wanted:
        case mi.StrType():
            return "text"
        case mi.IntType():
            return "a whole number"
        case mi.FloatType():
            return "a number"
        case mi.BoolType():
            return "true or false"
        case mi.ListType():
            return "a list"
    return "a table"


def _describe(value: object) -> str:
    return _ARTICLES.get(type(value), "a date or a time")
