from __future__ import annotations

import os
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xensock.stack.hostfiles import (
    Followed,
    HostFiles,
    parse_hosts,
    parse_nsswitch,
    parse_resolv_conf,
)


def addresses(*texts: str) -> tuple:
    return tuple(map(ip_address, texts))


def test_hosts_gives_names_and_addresses_in_order() -> None:
    hosts = parse_hosts(
        "127.0.0.1 localhost\n"
        "# 192.0.2.9 commented\n"
        "192.0.2.1\tWeb.Test web  # the web server\n"
        "2001:db8::1 web.test\n"
        "192.0.2.2 web.test\n"
        "fe80::1%eth0 scoped.test\n"
        "192.0.2 short.test\n"
        "192.0.2.3\n"
    )
    assert hosts.addresses["web.test"] == addresses("192.0.2.1", "2001:db8::1", "192.0.2.2")
    assert hosts.addresses["web"] == addresses("192.0.2.1")
    assert hosts.names[ip_address("192.0.2.1")] == ("web.test", "web")
    assert set(hosts.addresses) == {"localhost", "web.test", "web"}


def test_resolv_conf_is_read_as_libc_reads_it() -> None:
    conf = parse_resolv_conf(
        "# generated\n; also a comment\n"
        "domain old.test\n"
        "search Corp.Test. example.test  # two\n"
        "nameserver 192.0.2.53 # first\n"
        " nameserver 192.0.2.99\n"  # libc wants the keyword at the line's start
        "nameserver not-an-address\n"
        "nameserver fe80::1%eth0\n"
        "nameserver 192.0.2.54\n"
        "nameserver 192.0.2.55\n"  # the fourth: libc takes three
        "options ndots:2 timeout:1 attempts:9 rotate\n"
        "options edns0 use-vc trust-ad timeout:x\n"
    )
    assert conf.servers == addresses("192.0.2.53", "fe80::1%eth0", "192.0.2.54")
    assert conf.search == ("corp.test", "example.test")
    assert (conf.timeout, conf.attempts, conf.ndots) == (1, 5, 2)
    assert conf.rotate
    assert conf.edns0
    assert conf.use_vc


@pytest.mark.parametrize(
    ("option", "timeout"), [("timeout:0", 1), ("timeout:99", 30), ("timeout:-1", 5), ("", 5)]
)
def test_timeouts_stay_within_libc_bounds(option: str, timeout: int) -> None:
    assert parse_resolv_conf(f"options {option}\n").timeout == timeout


def test_without_nameserver_this_machine_is_asked() -> None:
    assert parse_resolv_conf("search corp.test\n").servers == addresses("127.0.0.1")


def test_nsswitch_gives_the_modules_without_actions() -> None:
    text = (
        "passwd: files systemd\n"
        "hosts:  mymachines resolve [!UNAVAIL=return] files mdns4_minimal[NOTFOUND=return]dns # x\n"
    )
    assert parse_nsswitch(text) == ("mymachines", "resolve", "files", "mdns4_minimal", "dns")
    assert parse_nsswitch("passwd: files\n") == ("files", "dns")


@given(st.text())
def test_no_text_breaks_the_parsers(text: str) -> None:
    parse_hosts(text)
    parse_nsswitch(text)
    assert parse_resolv_conf(text).servers


def test_a_missing_file_is_empty_until_it_is_there(tmp_path) -> None:
    path = tmp_path / "hosts"
    files = HostFiles(str(tmp_path / "none"), str(path), str(tmp_path / "none"))
    assert files.hosts().addresses == {}
    path.write_text("192.0.2.1 web.test\n")
    assert files.hosts().addresses["web.test"] == addresses("192.0.2.1")
    path.unlink()
    assert files.hosts().addresses == {}
    assert files.modules() == ("files", "dns")


def test_an_unchanged_file_is_parsed_once(tmp_path) -> None:
    path = tmp_path / "file"
    path.write_text("x")
    os.utime(path, (1, 1))
    parsed = []
    followed = Followed(str(path), lambda text: parsed.append(text) or len(parsed))
    assert [followed.get() for _ in range(3)] == [1, 1, 1]
    assert parsed == ["x"]


def test_each_rewrite_is_seen_even_within_one_tick_of_the_clock(tmp_path) -> None:
    path = tmp_path / "file"
    followed = Followed(str(path), str)
    for number in range(200):
        path.write_text(f"{number % 10}")  # the same inode and size, mostly the same mtime
        assert followed.get() == f"{number % 10}"


def test_a_file_renamed_over_it_is_seen(tmp_path) -> None:
    path, new = tmp_path / "file", tmp_path / "new"
    path.write_text("a")
    new.write_text("b")
    for file in (path, new):
        os.utime(file, (1, 1))
    followed = Followed(str(path), str)
    assert followed.get() == "a"
    new.rename(path)
    assert followed.get() == "b"


def test_a_replaced_symbolic_link_is_seen(tmp_path) -> None:
    """As when a VPN client points /etc/resolv.conf elsewhere."""
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
        os.utime(tmp_path / name, (1, 1))
    link = tmp_path / "link"
    link.symlink_to("one")
    followed = Followed(str(link), str)
    assert followed.get() == "one"
    (tmp_path / "fresh").symlink_to("two")
    (tmp_path / "fresh").rename(link)
    assert followed.get() == "two"
