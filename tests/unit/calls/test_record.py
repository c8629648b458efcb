"""A record needs only what is known when the call arrives."""

from dataclasses import FrozenInstanceError, replace

import pytest

from xensock.calls import Record, Verb


def test_grows_by_replace_only() -> None:
    record = Record(1.5, "g", 7, "curl", Verb.CONNECT, "198.51.100.7:80")
    assert (record.decision, record.error, record.name) == ("", 0, None)
    done = replace(record, decision="allow", datapath="direct", duration=0.25)
    assert done.duration == 0.25
    assert record.duration == 0.0
    with pytest.raises(FrozenInstanceError):
        record.error = 13  # type: ignore[misc]
