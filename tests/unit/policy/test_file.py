"""The types of a policy file and the schema that is published."""

from __future__ import annotations

import json
from importlib.resources import files

import msgspec

from xensock.policy.file import PolicyFile, schema


def test_the_published_schema_is_that_of_the_types() -> None:
    published = files("xensock.policy").joinpath("policy.schema.json").read_text()
    assert json.loads(published) == schema()
    assert published == json.dumps(schema(), indent=2) + "\n"


def test_every_key_is_described() -> None:
    for name, table in schema()["$defs"].items():
        assert table["description"], name
        assert table["additionalProperties"] is False
        for key, value in table["properties"].items():
            assert value.get("description"), (name, key)


def test_an_empty_file_is_a_policy() -> None:
    assert msgspec.convert({}, PolicyFile) == PolicyFile()
