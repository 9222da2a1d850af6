"""What people type for a peer, and what attackers would like them to."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2psync.errors import Exit
from p2psync.peer import Address, AddressError, parse_address

MEANINGS = {
    "docs": Address(b"docs"),
    "./docs": Address(b"./docs"),
    "/srv/docs": Address(b"/srv/docs"),
    "~": Address(b"~"),
    "./a:b": Address(b"./a:b"),
    "/a:b": Address(b"/a:b"),
    "../a:b/c": Address(b"../a:b/c"),
    "file:///srv/a%20b": Address(b"/srv/a b"),
    "file:///%ff": Address(b"/\xff"),
    "host:docs": Address(b"docs", "host"),
    "host:/srv/docs": Address(b"/srv/docs", "host"),
    "host:": Address(b".", "host"),
    "host:~": Address(b".", "host"),
    "host:~/": Address(b".", "host"),
    "host:~/docs": Address(b"docs", "host"),
    "host:./~docs": Address(b"./~docs", "host"),
    "host:~/~docs": Address(b"./~docs", "host"),
    "host:a:b": Address(b"a:b", "host"),
    "host:-rf": Address(b"-rf", "host"),
    "host:a\nb": Address(b"a\nb", "host"),
    "host:$(touch PWNED)": Address(b"$(touch PWNED)", "host"),
    "host:\udcff": Address(b"\xff", "host"),
    "me@host:docs": Address(b"docs", "host", "me"),
    "my-host_2.example:x": Address(b"x", "my-host_2.example"),
    "[::1]:docs": Address(b"docs", "::1"),
    "me@[fe80::1%eth0]:/srv": Address(b"/srv", "fe80::1%eth0", "me"),
    "ssh://host": Address(b".", "host"),
    "ssh://host/": Address(b"/", "host"),
    "ssh://host/srv": Address(b"/srv", "host"),
    "ssh://host/~": Address(b".", "host"),
    "ssh://host/~/docs": Address(b"docs", "host"),
    "ssh://host/~/~/docs": Address(b"./~/docs", "host"),
    "ssh://host/a%20b%23c": Address(b"/a b#c", "host"),
    "ssh://host/\udcff": Address(b"/\xff", "host"),
    "ssh://host/a?b": Address(b"/a?b", "host"),
    "ssh://me@host:2222/srv": Address(b"/srv", "host", "me", 2222),
    "ssh://[::1]:22/x": Address(b"/x", "::1", None, 22),
    "ssh://[::1]/x": Address(b"/x", "::1"),
}


@pytest.mark.parametrize("text", MEANINGS)
def test_an_address_means_what_it_means_to_git_and_scp(text: str) -> None:
    assert parse_address(text) == MEANINGS[text]


@pytest.mark.parametrize("text", MEANINGS)
def test_an_address_written_out_means_the_same(text: str) -> None:
    address = parse_address(text)
    assert parse_address(str(address)) == address
    with_port = Address(address.path, address.host, address.user, 2022)
    if address.host is not None:
        assert parse_address(str(with_port)) == with_port


@given(
    st.text(
        st.sampled_from("ab:/@[]~%.-\n $") | st.characters(codec="utf-8") | st.just("\udcff"), max_size=20
    ),
    st.sampled_from(["", "h:", "ssh://h"]),
)
def test_any_text_is_refused_or_survives_being_written_out(text: str, start: str) -> None:
    with contextlib.suppress(AddressError):
        address = parse_address(start + text)
        assert parse_address(str(address)) == address


HOSTILE = [
    "ssh://-oProxyCommand=touch PWNED/x",
    "ssh://-oProxyCommand=touch%20PWNED/x",
    "ssh://me@-oProxyCommand=x/x",
    "ssh://[-oProxyCommand=x]/x",
    "ssh://-l@host/x",
    "-oProxyCommand=x:path",
    "user@-host:x",
    "-lroot@host:x",
    "[-host]:x",
    "host\n:x",
    "ho\nst:x",
    "us\ner@host:x",
    "us\x1b[31mer@host:x",
    "ho\x1bst:x",
    "$(touch PWNED):x",
    "`id`@host:x",
    "a;b@host:x",
    "ho st:x",
    "us er@host:x",
    "host]:x",
    "[host:x",
    "ssh://host]/x",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_host_or_user_that_ssh_or_a_shell_could_take_for_more_is_refused(text: str) -> None:
    with pytest.raises(AddressError, match=r"cannot be a (host|user)|no address"):
        parse_address(text)


SENSELESS = {
    "": "empty",
    ":path": "host",
    "@host:path": "user",
    "ssh://": "host",
    "ssh:///path": "host",
    "ssh://host:0/x": "port",
    "ssh://host:65536/x": "port",
    "ssh://host:22a/x": "port",
    "ssh://host:-1/x": "port",
    "ssh://host:\u0662\u0662/x": "port",
    "ssh://host:" + "9" * 5000 + "/x": "port",
    "ssh://me:secret@host/x": "user",
    "https://host/x": "https://",
    "rsync://host/x": "rsync://",
    "file://host/x": "three slashes",
    "file:///a%00b": "NUL",
    "a\0b": "NUL",
    "host:a\0b": "NUL",
    "ssh://host/a%00b": "NUL",
    "host:~bob/docs": r"\./~bob",
    "ssh://host/~bob/docs": "~bob",
}


@pytest.mark.parametrize("text", SENSELESS)
def test_what_means_nothing_is_a_usage_error_that_says_why(text: str) -> None:
    with pytest.raises(AddressError, match=SENSELESS[text]) as raised:
        parse_address(text)
    assert raised.value.exit_code is Exit.USAGE
    assert str(raised.value).isprintable()


def test_the_port_of_an_address_goes_before_the_one_given() -> None:
    assert parse_address("ssh://host:2222/x", port=22).port == 2222
    assert parse_address("host:x", port=2022).port == 2022
    assert parse_address("x", port=2022).port is None


def test_ssh_is_given_an_ipv6_address_without_brackets() -> None:
    assert parse_address("me@[::1]:x").login == "me@::1"
