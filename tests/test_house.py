"""Rules of the house that a reader would otherwise have to check by eye."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from functools import cache
from pathlib import Path

import pytest

from named import is_defined

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "xensock"

# Who may import whom. The vocabulary knows nobody; what people touch knows everybody.
ARROWS: dict[str, set[str]] = {
    "calls": set(),
    "doctor": set(),
    "wire": {"calls"},
    "ring": {"wire"},
    "transport": {"wire", "ring"},
    "pvcalls": {"calls", "wire", "ring", "transport", "policy"},
    "client": {"calls", "wire", "ring", "transport", "pvcalls"},
    "testing": {"transport"},
    "policy": {"calls"},
    "stack": {"calls", "client"},
    "observe": {"calls"},
    "supervisor": {"calls", "policy", "stack"},
    "backend": {
        "calls",
        "policy",
        "stack",
        "observe",
        "supervisor",
        "doctor",
        "wire",
        "transport",
        "pvcalls",
    },
    "cli": {
        "calls",
        "policy",
        "stack",
        "observe",
        "supervisor",
        "backend",
        "doctor",
        "bench",
        "wire",
        "transport",
        "pvcalls",
        "client",
    },
    "bench": {"calls", "client", "observe", "doctor", "policy"},
}

# Modules whose tests are elsewhere than in tests/unit/<part>/test_<module>.py, and where.
TESTED_BY: dict[str, str] = {
    "__main__.py": "tests/unit/test_api.py",
    "cli/bench.py": "tests/unit/bench",
    "cli/examples.py": "tests/unit/cli/test_main.py",
    "cli/group.py": "tests/unit/cli/test_main.py",
    "cli/install.py": "tests/unit/backend/test_installing.py",
    "cli/doctor.py": "tests/unit/doctor/test_checks.py",
    "cli/version.py": "tests/unit/cli/test_main.py",
    "cli/failures.py": "tests/unit/cli/test_run.py",
    "supervisor/rearming.py": "tests/containers/test_restart.py",
    # The own sockets are tested as a whole, beside the kernel's.
    **{
        f"client/{name}.py": "tests/unit/client/test_sockets.py"
        for name in (
            "address",
            "arguments",
            "attachment",
            "held",
            "kernel",
            "link",
            "listener",
            "making",
            "stream",
            "transfer",
        )
    },
    "client/explaining.py": "tests/unit/stack/test_upstream.py",
    "testing/mirror.py": "tests/unit/client/test_stateful.py",
    "testing/sockets.py": "tests/unit/client/test_stateful.py",
    "testing/transports.py": "tests/unit/transport/test_contract.py",
    "calls/family.py": "tests/unit/client/test_family.py",
    # What is seen of guests, and done to them, from outside.
    "backend/asking.py": "tests/programs/test_looking.py",
    "cli/looking.py": "tests/programs/test_looking.py",
    "cli/overview.py": "tests/programs/test_overview.py",
    "supervisor/looking.py": "tests/programs/test_looking.py",
    "supervisor/family.py": "tests/programs/test_family.py",
    "supervisor/udp_card.py": "tests/programs/test_udp.py",
    "supervisor/udp_diag.py": "tests/programs/test_udp.py",
    "doctor/check.py": "tests/unit/doctor/test_checks.py",
    "doctor/kernel.py": "tests/unit/doctor/test_checks.py",
    "doctor/netlink.py": "tests/unit/doctor/test_checks.py",
    "doctor/probe.py": "tests/unit/doctor/test_checks.py",
    # What a backend answers shows at the other end of its rings.
    "pvcalls/serving/asking.py": "tests/pvcalls/test_datagrams.py",
    "pvcalls/serving/attempt.py": "tests/pvcalls/test_streams.py",
    "pvcalls/serving/call.py": "tests/pvcalls/test_streams.py",
    "pvcalls/serving/closing.py": "tests/pvcalls/test_streams.py",
    "pvcalls/serving/consulting.py": "tests/policy/test_hooks.py",
    "pvcalls/serving/connecting.py": "tests/pvcalls/test_streams.py",
    "pvcalls/serving/datagrams.py": "tests/pvcalls/test_datagrams.py",
    "pvcalls/serving/explaining.py": "tests/pvcalls/test_explain.py",
    "pvcalls/serving/framing.py": "tests/pvcalls/test_datagrams.py",
    "pvcalls/serving/guest.py": "tests/pvcalls/test_streams.py",
    "pvcalls/serving/joining.py": "tests/pvcalls/test_joined.py",
    "pvcalls/serving/listening.py": "tests/pvcalls/test_streams.py",
    "pvcalls/serving/names_options.py": "tests/pvcalls/test_extensions.py",
    "pvcalls/serving/opening.py": "tests/pvcalls/test_extensions.py",
    "pvcalls/serving/redirecting.py": "tests/policy/test_policies.py",
    "pvcalls/serving/refreshing.py": "tests/policy/test_reloading.py",
    "pvcalls/serving/repeating.py": "tests/pvcalls/test_takeover.py",
    "pvcalls/serving/resuming.py": "tests/pvcalls/test_takeover.py",
    "pvcalls/takeover.py": "tests/pvcalls/test_takeover.py",
    "supervisor/waiting.py": "tests/policy/test_hooks.py",
    "supervisor/promising.py": "tests/policy/test_promises.py",
    "supervisor/relay_ends.py": "tests/unit/supervisor/test_relay_client.py",
    "supervisor/refreshing.py": "tests/policy/test_reloading.py",
    "pvcalls/serving/resolving.py": "tests/pvcalls/test_datagrams.py",
    "pvcalls/serving/rings.py": "tests/pvcalls/test_extensions.py",
    "pvcalls/serving/sharing.py": "tests/lib/test_shared.py",
    "pvcalls/serving/strictly.py": "tests/policy/test_terms.py",
    "pvcalls/serving/telling.py": "tests/pvcalls/test_datagrams.py",
    "pvcalls/serving/unix.py": "tests/pvcalls/test_extensions.py",
    "backend/strict.py": "tests/policy/test_terms.py",
    "pvcalls/calltable.py": "tests/unit/pvcalls/test_frontend.py",
    "pvcalls/datapages.py": "tests/unit/pvcalls/test_frontend.py",
    "transport/base.py": "tests/unit/transport/test_local_front.py",
    # Between real domains only (make xen).
    **{
        f"transport/xen_{part}.py": "tests/xen/test_cells.py"
        for part in ("back", "events", "front", "libs", "memory", "store")
    },
    "transport/local_events.py": "tests/unit/transport/test_local_back.py",
    "transport/local_packets.py": "tests/unit/transport/test_local_back.py",
    "transport/pages.py": "tests/unit/transport/test_local_front.py",
    "supervisor/guest.py": "tests/unit/supervisor/test_launch.py",
    "backend/serving.py": "tests/unit/backend/test_embedded.py",
    "supervisor/joined.py": "tests/containers/test_engines.py",
    # What the supervisor does to calls shows in a guest only: the kernel is the oracle there.
    "supervisor/astray.py": "tests/ways/test_passing.py",
    "supervisor/binding.py": "tests/semantics/probes/probe_bind.py",
    "supervisor/connecting.py": "tests/semantics/probes/probe_connect.py",
    "supervisor/unix_calls.py": "tests/semantics/probes/probe_unix.py",
}

LONGEST = 600
LONGEST_TEST = 800
UNLIMITED = {"requirements.lock", "LICENSE"}

# Written in pieces, so that this file does not find itself.
PACKAGE_HOSTS = ["pypi" + ".org", "python" + "hosted", "deb." + "debian", "registry." + "npmjs"]
UNFINISHED = ["TO" + "DO", "FIX" + "ME", "Not" + "ImplementedError", "not " + "implemented"]
PLACES = ["/wo" + "rk/", "/ro" + "ot/", "/home/" + "[a-z]"]

# Hosts that a URL in the tree may name: reserved for documentation and tests (RFC 2606, 5737,
# 3849, 6761), private or the machine's own, and sources that comments cite.
RESERVED = re.compile(
    r"(.*\.)?(test|example|invalid|localhost|example\.(com|net|org))|"
    r"(127|10|192\.168|192\.0\.2|198\.51\.100|203\.0\.113|198\.18|169\.254|0\.0)\.[\d.]+|\[.*\]|"
    r"(.*\.)?(man7|kernel|apache|rfc-editor|no-color|gnu|freedesktop|keepachangelog|semver|w3|json-schema)\.org"
)


@cache
def tracked() -> tuple[Path, ...]:
    """The files of the tree, as git knows them."""
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    ).stdout
    return tuple(path for name in listed.split("\0") if name and (path := ROOT / name).is_file())


@cache
def text_of(path: Path) -> str:
    return path.read_text(errors="replace")


def sources() -> list[Path]:
    return [path for path in tracked() if path.is_relative_to(PACKAGE) and path.suffix == ".py"]


def imported_parts(own: tuple[str, ...], source: str) -> set[str]:
    """The parts of XenSock that a module imports, also for type checking or inside functions.

    `own` is the module's place in the package, as ("policy", "rules.py").
    """
    parts: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = ("xensock", *own)[: len(own) + 1 - node.level]
                module = ".".join((*base, *(node.module or "").split("."))).rstrip(".")
            else:
                module = node.module or ""
            names = [f"{module}.{alias.name}" for alias in node.names]
        for name in names:
            words = name.split(".")
            if words[0] == "xensock" and len(words) > 1 and words[1] in ARROWS:
                parts.add(words[1])
    return parts


def parts_of(path: Path) -> set[str]:
    return imported_parts(path.relative_to(PACKAGE).parts, text_of(path))


def test_every_part_has_its_arrows() -> None:
    parts = {path.relative_to(PACKAGE).parts[0] for path in sources()}
    assert {part for part in parts if not part.endswith(".py")} <= set(ARROWS)


@pytest.mark.parametrize("part", ARROWS)
def test_imports_follow_the_arrows(part: str) -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {other}"
        for path in sources()
        if path.relative_to(PACKAGE).parts[0] == part
        for other in sorted(parts_of(path) - ARROWS[part] - {part})
    ]
    assert wrong == []


# What only computes; of os and socket nothing but names of numbers, texts of errors and sizes.
PURE = {
    "__future__", "collections", "contextvars", "dataclasses", "enum", "errno", "functools",
    "ipaddress", "os", "re", "socket", "struct", "typing", "xensock",
}  # fmt: skip
PLAIN = re.compile(r"[A-Z][A-Z0-9_]*|AddressFamily|strerror|inet_(ntop|pton)")
CALLS = {"setsockopt", "send", "recv", "sendmsg", "recvmsg"}
IO = {"open", "print", "input", "exec", "eval", "__import__"}


def impurities(source: str) -> list[str]:
    """What of a module's text reaches for the world outside: sockets, files, processes, clocks."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [each.name for each in node.names if each.name.split(".")[0] not in PURE]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            module = node.module or ""
            if module.split(".")[0] not in PURE - {"os", "socket"}:
                found.append(module)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            of_module = node.value.id in ("os", "socket")
            if node.attr in CALLS or (of_module and not PLAIN.fullmatch(node.attr)):
                found.append(f"{node.value.id}.{node.attr}")
        elif isinstance(node, ast.Name) and node.id in IO:
            found.append(node.id)
    return found


@pytest.mark.parametrize("part", ["calls", "wire"])
def test_what_is_sans_io_has_none(part: str) -> None:
    paths = [path for path in sources() if path.relative_to(PACKAGE).parts[0] == part]
    assert paths
    assert {path.name: found for path in paths if (found := impurities(text_of(path)))} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import mmap",
        "from socket import socket",
        "import os\nos.read(0, 1)",
        "import socket\nsocket.socket()",
        "def f(sock):\n    sock.setsockopt(1, 2, 3)",
        "open('x')",
    ],
)
def test_io_is_seen(source: str) -> None:
    assert len(impurities(source)) == 1


def test_the_arrows_have_no_circle() -> None:
    left = dict(ARROWS)
    while left:
        free = [part for part, needs in left.items() if not needs & set(left)]
        assert free, f"a circle among {sorted(left)}"
        for part in free:
            del left[part]


@pytest.mark.parametrize(
    "source",
    [
        "from xensock.cli import main",
        "import xensock.cli.main",
        "from xensock import cli",
        "def f():\n    from ..cli import main",
        "from .. import cli",
        "from ..cli.main import main",
    ],
)
def test_imports_are_seen_in_every_form(source: str) -> None:
    assert imported_parts(("policy", "imagined.py"), source) == {"cli"}


def mirrored(module: Path) -> bool:
    """Whether a unit test of the module's part has its name or imports it."""
    folder = ROOT / "tests" / "unit" / module.parent
    dotted = ".".join(("xensock", *module.with_suffix("").parts))
    part, _, last = dotted.rpartition(".")
    imported = re.compile(rf"(from|import) {re.escape(dotted)}\b|from {part} import .*\b{last}\b")
    return any(
        test.stem == f"test_{module.stem}" or imported.search(text_of(test))
        for test in folder.glob("test_*.py")
    )


def test_tests_mirror_modules() -> None:
    missing = []
    for path in sources():
        name = path.relative_to(PACKAGE)
        if path.name == "__init__.py" or not text_of(path).strip():
            continue
        if str(name) in TESTED_BY:
            assert (ROOT / TESTED_BY[str(name)]).exists(), TESTED_BY[str(name)]
        elif not mirrored(name):
            missing.append(str(name))
    assert missing == []


def test_no_file_is_too_long() -> None:
    too_long = {}
    for path in tracked():
        name, length = str(path.relative_to(ROOT)), text_of(path).count("\n")
        limit = LONGEST_TEST if name.startswith("tests/") else LONGEST
        if path.name not in UNLIMITED and length > limit:
            too_long[name] = length
    assert too_long == {}


@pytest.mark.parametrize("words", [PACKAGE_HOSTS, UNFINISHED, PLACES], ids=["host", "work", "path"])
def test_words_that_have_no_place_here(words: list[str]) -> None:
    pattern = re.compile("|".join(words))
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
        for path in tracked()
        if path.name != "LICENSE"
        for number, line in enumerate(text_of(path).splitlines(), 1)
        if pattern.search(line)
    ]
    assert found == []


def test_no_address_of_a_real_host() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {host}"
        for path in tracked()
        for host in re.findall(r"https?://(\[[^\]]*\]|[A-Za-z0-9.-]+)", text_of(path))
        if "." in host and not RESERVED.fullmatch(host.rstrip("."))
    ]
    assert found == []


def test_the_lock_file_has_hashes_and_no_hosts() -> None:
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text
    assert not re.search(r"^\s*(-i|--index-url|--extra-index-url|--find-links)", text, re.M)
    entries = [e for e in text.replace("\\\n", " ").splitlines() if e and not e.startswith("#")]
    entries = [entry for entry in entries if entry.strip() and not entry.strip().startswith("#")]
    assert len(entries) > 10
    assert [entry.split()[0] for entry in entries if "--hash=sha256:" not in entry] == []
    assert [entry.split()[0] for entry in entries if "==" not in entry.split()[0]] == []


def test_the_lock_file_covers_what_pyproject_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = list(project["project"]["dependencies"])
    for group in project["dependency-groups"].values():
        asked += group
    locked = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements.lock").read_text(), re.M))
    names = {re.split(r"[<>=! ;]", requirement)[0].lower() for requirement in asked}
    assert names - locked == set()


def test_tests_that_documents_name_exist() -> None:
    named = [
        (path.name, *found)
        for path in (ROOT / "docs").rglob("*.md")
        for found in re.findall(r"`(tests/[\w/.-]+?\.(?:py|c))(?:::(\w+))?`", path.read_text())
    ]
    assert {"thread.md", "security.md"} <= {document for document, _, _ in named}
    missing = []
    for document, file, function in named:
        path = ROOT / file
        if not is_defined(path, function):
            missing.append(f"{document}: {file}::{function}")
    assert missing == []


def test_the_thread_document_answers_every_point() -> None:
    text = (ROOT / "docs" / "thread.md").read_text()
    answered = [int(number) for number in re.findall(r"^### (\d+)\. ", text, re.M)]
    assert answered == list(range(1, 16))


def test_links_in_the_documents_lead_somewhere() -> None:
    broken = []
    for path in tracked():
        if path.suffix != ".md":
            continue
        targets = re.findall(r"\]\(([^)#\s]+)(?:#[\w-]+)?\)", text_of(path))
        broken += [
            f"{path.relative_to(ROOT)} → {target}"
            for target in targets
            if "://" not in target and not (path.parent / target).exists()
        ]
    assert broken == []


def test_ci_runs_the_command_that_the_readme_shows() -> None:
    section = (ROOT / "README.md").read_text().split("\n## Test\n", 1)[1]
    block = re.search(r"```\w*\n(.*?)\n```", section, re.S)
    assert block
    assert block[1].splitlines()[0] == "make test"
    assert "## Test" in (ROOT / ".ci" / "run").read_text()


def test_make_targets_in_the_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {
        (str(path.relative_to(ROOT)), target)
        for path in tracked()
        if path.suffix == ".md"
        for target in re.findall(r"(?:^|`)make ([a-z][a-z-]*)", text_of(path), re.M)
    }
    assert {entry for entry in named if entry[1] not in targets} == set()
    assert {"build", "demo", "test", "lint", "bench", "clean", "test-all"} <= targets
