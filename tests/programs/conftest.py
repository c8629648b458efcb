"""Which programs run over rings in every test run, and which in CI only."""

from __future__ import annotations

import pytest

# Over rings as over relay, but for the far side; the others show that in a minute, these take several.
RINGS_IN_CI = {
    "test_git.py",
    "test_handing_over.py",
    "test_iperf3.py",
    "test_lang_go.py",
    "test_lang_java.py",
    "test_lang_musl.py",
    "test_lang_names.py",
    "test_lang_node.py",
    "test_lang_python_extra.py",
    "test_postgres.py",
    "test_ssh.py",
}


@pytest.hookimpl(tryfirst=True)  # before those that are slow are left out
def pytest_collection_modifyitems(items) -> None:
    for item in items:
        if item.path.name in RINGS_IN_CI and item.get_closest_marker("ring"):
            item.add_marker(pytest.mark.slow)
