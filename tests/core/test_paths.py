"""Paths: what may travel, what is reserved, and how a conflict copy is called."""

from __future__ import annotations

import re
from itertools import islice

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from p2psync.core.model import Digest
from p2psync.core.paths import (
    MAX_NAME,
    MAX_PATH,
    ancestors,
    check,
    conflict_names,
    folders_of,
    is_conflict_copy,
    is_reserved,
    join,
    split,
)

# -- parts

NAMES = st.binary(min_size=1, max_size=6).map(lambda name: name.replace(b"/", b"x"))
FOLDERS = st.lists(NAMES, max_size=3).map(b"/".join)


@given(FOLDERS, NAMES)
def test_split_undoes_join(directory: bytes, name: bytes) -> None:
    assert split(join(directory, name)) == (directory, name)


@given(st.lists(NAMES, min_size=1, max_size=5))
def test_ancestors_are_the_folders_on_the_way_nearest_first(names: list[bytes]) -> None:
    found = list(ancestors(b"/".join(names)))
    assert found == [b"/".join(names[:length]) for length in range(len(names) - 1, 0, -1)]


@given(st.lists(FOLDERS))
def test_the_folders_of_paths_are_all_that_hold_any_of_them(paths: list[bytes]) -> None:
    assert folders_of(paths) == {folder for path in paths for folder in ancestors(path)}


# -- what may travel

HOSTILE = {
    "nothing": b"",
    "absolute": b"/etc/passwd",
    "up": b"..",
    "up and away": b"../x",
    "down and up": b"a/../../x",
    "up at the end": b"a/..",
    "here": b".",
    "here below": b"a/./b",
    "an empty name": b"a//b",
    "a slash at the end": b"a/",
    "NUL": b"a\0b",
    "NUL at the end": b"a\0",
    "the sidecar": b".p2psync",
    "below the sidecar": b".p2psync/manifest.db",
    "a sidecar further down": b"a/.p2psync/ignore",
    "a long name": b"x" * (MAX_NAME + 1),
    "a long name further up": b"x" * (MAX_NAME + 1) + b"/a",
    "a long path": b"x/" * (MAX_PATH // 2) + b"x",
}


@pytest.mark.parametrize("path", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_path_is_refused(path: bytes) -> None:
    with pytest.raises(ValueError, match=r"^a (path|name) "):
        check(path)


ODD = [
    *(
        b"a",
        b"a/b",
        b"...",
        b"..a",
        b"a..",
        b".a",
        b"-rf",
        b"a b ",
        b"a\nb",
        b"\xff\xfe",
        b"a\\..\\b",
        b"C:\\x",
    ),
    *(b".p2pignore", b".p2psyncs", b"p2psync", b"a.p2psync", b"x" * MAX_NAME),
    b"x/" * (MAX_PATH // 2 - 1) + b"x",
]


@pytest.mark.parametrize("path", ODD)
def test_an_odd_path_is_none_the_less_a_path(path: bytes) -> None:
    check(path)


@given(st.binary(max_size=20) | st.lists(st.sampled_from([b".", b"..", b"", b"a"])).map(b"/".join))
def test_what_is_accepted_stays_below_the_root(path: bytes) -> None:
    try:
        check(path)
    except ValueError:
        return
    assert not set(path.split(b"/")) & {b"", b".", b".."}
    assert b"\0" not in path


# -- what is reserved

TAKEN_FOR_THE_SIDECAR = {
    "itself": ".p2psync",
    "case (macOS, Windows)": ".P2PSync",
    "Turkish case": ".P2PSYNC",
    "the long s": ".p2p\u017fync",
    "zero-width joiner (HFS+)": ".p2p\u200dsync",
    "zero-width non-joiner at the start": "\u200c.p2psync",
    "right-to-left mark at the end": ".p2psync\u200f",
    "byte order mark": "\ufeff.p2psync",
    "fullwidth full stop": "\uff0ep2psync",
    "one dot leader": "\u2024p2psync",
    "fullwidth letters": ".\uff50\uff12\uff50\uff33\uff39\uff2e\uff23",
    "a trailing dot (NTFS)": ".p2psync.",
    "trailing dots and spaces": ".p2psync . .",
    "a trailing carriage return": ".p2psync\r",
    "a trailing dot behind a joiner": ".p2psync\u200d.",
    "a no-break space at the end": ".p2psync\u00a0",
    "8.3": "P2PSYN~1",
    "8.3 in lower case": "p2psyn~1",
    "8.3, the twelfth": "P2PSYN~12",
}
LIKE_THE_SIDECAR = {
    "longer": ".p2psync2",
    "shorter": ".p2psyn",
    "no dot": "p2psync",
    "two dots": "..p2psync",
    "a space first": " .p2psync",
    "a backup": ".p2psync.bak",
    "no number after the tilde": "P2PSYN~x",
    "nothing after the tilde": "p2psyn~",
    "a cyrillic letter": ".\u04402psync",
    "an accent": ".p2psy\u0144c",
    "the ignore file": ".p2pignore",
}


@pytest.mark.parametrize("name", TAKEN_FOR_THE_SIDECAR.values(), ids=TAKEN_FOR_THE_SIDECAR)
def test_what_some_file_system_takes_for_the_sidecar_is_reserved(name: str) -> None:
    assert is_reserved(name.encode())
    with pytest.raises(ValueError, match="sidecar"):
        check(b"a/" + name.encode() + b"/x")


@pytest.mark.parametrize("name", LIKE_THE_SIDECAR.values(), ids=LIKE_THE_SIDECAR)
def test_what_only_looks_like_it_is_not(name: str) -> None:
    assert not is_reserved(name.encode())


@pytest.mark.parametrize("name", [b"\xff.p2psync", b".p2psync\xff", b".p2\xe2\x80psync", b"\xed\xb2\x80"])
def test_bytes_that_are_no_text_are_not_reserved(name: bytes) -> None:
    assert not is_reserved(name)


# -- conflict copies

DIGEST = Digest(bytes(range(16)))
NAMED = {
    b"report.txt": b"report.sync-conflict-20261123-041500-AAAQEAY.txt",
    b"a/b/report.txt": b"a/b/report.sync-conflict-20261123-041500-AAAQEAY.txt",
    b"archive.tar.gz": b"archive.tar.sync-conflict-20261123-041500-AAAQEAY.gz",
    b"Makefile": b"Makefile.sync-conflict-20261123-041500-AAAQEAY",
    b".bashrc": b".bashrc.sync-conflict-20261123-041500-AAAQEAY",
    b"..x": b"..x.sync-conflict-20261123-041500-AAAQEAY",
    b".config.toml": b".config.sync-conflict-20261123-041500-AAAQEAY.toml",
    b"a.b/c": b"a.b/c.sync-conflict-20261123-041500-AAAQEAY",
    b"\xff.txt": b"\xff.sync-conflict-20261123-041500-AAAQEAY.txt",
}


def names(path: bytes, mtime_ns: int = 0, digest: Digest = DIGEST, count: int = 5) -> list[bytes]:
    return list(islice(conflict_names(path, mtime_ns, digest), count))


@pytest.mark.parametrize("path", NAMED)
def test_a_copy_is_called_after_the_version_that_lost(path: bytes) -> None:
    assert names(path, 1_795_407_300_999_999_999)[0] == NAMED[path]


@pytest.mark.parametrize(
    ("mtime_ns", "time"),
    [
        (0, "19700101-000000"),
        (-1, "19691231-235959"),
        (951_782_400 * 10**9, "20000229-000000"),
        (253_402_300_799 * 10**9 + 999_999_999, "99991231-235959"),
        (253_402_300_800 * 10**9, "99991231-235959"),
        (-62_135_596_800 * 10**9, "00010101-000000"),
        (-62_135_596_801 * 10**9, "00010101-000000"),
        (2**63 - 1, "22620411-234716"),
        (-(2**63), "16770921-001243"),
        (2**200, "99991231-235959"),
        (-(2**200), "00010101-000000"),
    ],
)
def test_any_time_makes_a_name(mtime_ns: int, time: str) -> None:
    assert names(b"f", mtime_ns)[0] == f"f.sync-conflict-{time}-AAAQEAY".encode()


WORDS = st.text(st.sampled_from("aé漢.\U0001f600"), min_size=1, max_size=130).map(str.encode)
ANY_NAMES = WORDS | st.binary(min_size=1, max_size=MAX_NAME)
ANY_NAMES = ANY_NAMES.map(lambda name: name[:MAX_NAME].translate(None, b"/\0") or b"x").filter(
    lambda name: name not in (b".", b"..") and not is_reserved(name)
)
TIMES = st.integers(-(2**63), 2**63 - 1)
DIGESTS = st.binary(min_size=16, max_size=16).map(Digest)


@given(FOLDERS, ANY_NAMES, TIMES, DIGESTS)
@example(b"", b"\x80" * 58 + b"z." + b"e" * 195, 0, DIGEST)
@example(b"", b"a." + b"e" * 253, 0, DIGEST)
@example(b"", "漢".encode() * 70 + b"." + b"e" * 44, 0, DIGEST)
def test_the_names_are_usable_distinct_and_always_the_same(
    folder: bytes, name: bytes, mtime_ns: int, digest: Digest
) -> None:
    path = join(folder, name)
    found = names(path, mtime_ns, digest)
    assert names(path, mtime_ns, digest) == found
    assert len(set(found)) == len(found) == 5
    for copy in found:
        assert split(copy)[0] == folder
        check(split(copy)[1])
        assert is_conflict_copy(copy)


@pytest.mark.parametrize("start", ["", "x", "xx", "xxx"])
@pytest.mark.parametrize("char", ["é", "漢", "\U0001f600"])
def test_a_long_name_is_cut_between_characters(start: str, char: str) -> None:
    longest = (MAX_NAME - len(start) - 4) // len(char.encode())
    for copy in names(f"{start}{char * longest}.txt".encode()):
        stem, _, _ = copy.decode().partition(".")
        assert f"{start}{char * longest}".startswith(stem)


@pytest.mark.parametrize("stem", [b"x" * 300, "é".encode() * 150, "漢".encode() * 100, b"\x80" * 300])
def test_a_long_name_keeps_its_extension_and_all_that_fits(stem: bytes) -> None:
    for copy in names(stem[: MAX_NAME - 4] + b".txt"):
        assert copy.endswith(b".txt")
        assert MAX_NAME - 3 <= len(copy) <= MAX_NAME


def test_an_extension_that_leaves_no_room_is_dropped() -> None:
    assert names(b"a." + b"e" * 253)[0] == b"a.sync-conflict-19700101-000000-AAAQEAY"


@given(
    ANY_NAMES.filter(lambda name: len(name) < 100 and b"sync-conflict" not in name), TIMES, DIGESTS, DIGESTS
)
def test_the_copy_of_a_copy_has_one_mark(name: bytes, mtime_ns: int, first: Digest, second: Digest) -> None:
    for copy in names(name, mtime_ns, first):
        again = names(copy, mtime_ns, second)
        assert all(len(re.findall(rb"\.sync-conflict-", other)) == 1 for other in again)
        assert again == names(name, mtime_ns, second)


@pytest.mark.parametrize(
    "path",
    [b"a", b"sync-conflict", b"a.sync-conflict-2026-1", b"d.sync-conflict-20261123-041500-AAAQEAY/a", b"a~1"],
)
def test_other_names_are_no_conflict_copies(path: bytes) -> None:
    assert not is_conflict_copy(path)


def test_contents_and_times_that_differ_make_names_that_differ() -> None:
    other = Digest(bytes(range(1, 17)))
    assert len({names(b"f", 0)[0], names(b"f", 0, other)[0], names(b"f", 10**9)[0]}) == 3
