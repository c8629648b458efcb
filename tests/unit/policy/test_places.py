"""Places of keys and values, against what tomllib reads from the same text."""

from __future__ import annotations

import json
import tomllib
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xensock.policy.places import Place, find

TEXTS = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=8
) | st.sampled_from(['"""', "'''", "# no comment", "[table]", "a = 1", "]", "}"])
KEYS = st.sampled_from(["a", "b-c", "d_1", "1", "with space", "dot.ted", "ä"])
SCALARS = TEXTS | st.integers(-9, 9) | st.booleans()
INLINE = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)
TABLES = st.dictionaries(KEYS, INLINE, max_size=4)
DOCUMENTS = st.dictionaries(KEYS, INLINE | st.lists(TABLES, min_size=1, max_size=3), max_size=4)


def spell(value: Any, style: int) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        if style == 1 and "'" not in value:
            return f"'{value}'"
        if style == 2:
            return (
                '"""'
                + json.dumps(value, ensure_ascii=False)[1:-1].replace("\x7f", "\\u007f")
                + '"""'
            )
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        inner = [spell(each, style) for each in value]
        return "[\n # a comment ]\n " + ",\n ".join(inner) + (" ,\n]" if inner else "]")
    inner = [f"{spell(key, 0)} = {spell(each, style)}" for key, each in value.items()]
    return "{ " + ", ".join(inner) + " }"


def write(document: dict[str, Any], style: int) -> str:
    plain = {k: v for k, v in document.items() if not tables(v)}
    lines = [f"  {spell(k, 0)} = {spell(v, style)}  # said" for k, v in plain.items()]
    for key, value in document.items():
        for table in value if tables(value) else ():
            lines += ["", f"[[ {spell(key, 0)} ]] # of several"]
            lines += [f"{spell(k, 1)}={spell(v, style)}" for k, v in table.items()]
    return "\n".join(lines) + "\n"


def tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) for v in value)


def flat(value: Any, path: tuple[str | int, ...] = ()) -> dict[tuple[str | int, ...], Any]:
    found = {path: value} if path else {}
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, inner in items:
        found |= flat(inner, (*path, key))
    return found


@settings(suppress_health_check=[HealthCheck.too_slow])  # a busy machine draws slowly
@given(DOCUMENTS, st.integers(0, 2))
def test_each_value_has_the_place_where_it_stands(document: dict[str, Any], style: int) -> None:
    text = write(document, style)
    assert tomllib.loads(text) == document
    found = find(text)
    lines = text.split("\n")
    for path, value in flat(document).items():
        place = found.of(path)
        rest = lines[place.line - 1][place.column - 1 :]
        if isinstance(value, (str, int)):
            assert rest.startswith(spell(value, style).split("\n")[0]), (path, place)
        else:
            assert rest.startswith(("[", "{")), (path, place)
        if isinstance(path[-1], str) and not isinstance(value, dict):
            key = found.of(path, key=True)
            assert lines[key.line - 1][key.column - 1 :].startswith(("[[", '"', "'")), path


def test_dotted_keys_tables_and_their_parts() -> None:
    text = """a.b . "c d" = 1
[x.y]
z = { q = [1,
  { r = 2 }] }
[[x.list]]
name = "first"
[x.list.sub]
deep = true
[[x.list]]
name = 1979-05-27T07:32:00Z
"""
    found = find(text)
    assert found.of(("a", "b", "c d")) == Place(1, 15)
    assert found.of(("a", "b"), key=True) == Place(1, 1)
    assert found.of(("x", "y", "z", "q", 1, "r")) == Place(4, 9)
    assert found.of(("x", "list", 0, "sub", "deep")) == Place(8, 8)
    assert found.of(("x", "list", 1, "name")) == Place(10, 8)
    assert found.of(("x", "list", 1, "missing")) == Place(9, 1)
    assert found.of(("nowhere",)) == Place(1, 1)
