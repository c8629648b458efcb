"""Names: the backend resolves them, and the answers look as the standard library's."""

from __future__ import annotations

import socket as standard
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from xensock.client import install, names

if TYPE_CHECKING:
    from conftest import Api


def asked(call: Any, *args: Any, **options: Any) -> Any:
    """What a lookup came to: its answers, in any order, or the number of its error."""
    try:
        return sorted(call(*args, **options))
    except standard.gaierror as error:
        return error.errno


@pytest.mark.parametrize(
    "question",
    [
        ("127.0.0.1", 80),
        ("::1", 80),
        ("::1", 80, standard.AF_INET),
        ("127.0.0.1", "http"),
        ("127.0.0.1", "no-such-service"),
        ("127.1", 1),
        (None, 80),
        (None, 80, 0, standard.SOCK_STREAM, 0, standard.AI_PASSIVE),
        ("localhost", 80, standard.AF_INET),
        ("localhost", 80, standard.AF_INET, standard.SOCK_DGRAM),
        ("localhost", None, standard.AF_INET, standard.SOCK_STREAM, 0, standard.AI_CANONNAME),
        (b"localhost", 80, standard.AF_INET),
        ("localhost", 80, 0, 0, 0, standard.AI_NUMERICHOST),
        ("localhost", 80, 99),
    ],
    ids=str,
)
def test_answers_are_the_standard_librarys(attached: str, question: tuple[Any, ...]) -> None:
    assert asked(names.getaddrinfo, *question) == asked(standard.getaddrinfo, *question)


def test_names_that_are_none(api: Api) -> None:
    for name in ("nowhere.invalid", "a..b", "x" * 64, "."):
        with pytest.raises((standard.gaierror, UnicodeError)):
            api.getaddrinfo(name, 80)


def test_bad_arguments(api: Api) -> None:
    with pytest.raises(TypeError):
        api.getaddrinfo(7, 80)
    with pytest.raises(standard.gaierror):
        api.getaddrinfo("local\0host", 80)


def test_a_socket_takes_names(api: Api) -> None:
    with api.create_server(("localhost", 0)) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"
        port = listener.getsockname()[1]
        with api.socket() as sock:
            sock.connect(("localhost", port))
            assert sock.getpeername() == ("127.0.0.1", port)


def test_the_first_address(attached: str) -> None:
    assert install.gethostbyname("localhost") == standard.gethostbyname("localhost")
    assert install.gethostbyname_ex("localhost")[2] == ["127.0.0.1"]


def test_many_at_once(attached: str) -> None:
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: names.resolve("localhost", standard.AF_INET), range(200)))
    assert found == [["127.0.0.1"]] * 200
