"""What a look at the disk means: what is a new version, and what is not."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from p2psync.core.detect import RACY_NS, is_racy, observe, vanish
from p2psync.core.model import NO_DIGEST, Digest, Entry, Kind
from p2psync.core.vector import ReplicaId, Stamp, Version

NOW = Stamp(ReplicaId(1), 9)
VERSION = Version({ReplicaId(1): 5, ReplicaId(2): 6})
SEEN = Entry(kind=Kind.FILE, digest=Digest(b"d" * 16), size=3, mode=0o644, mtime_ns=100)
KNOWN = replace(SEEN, version=VERSION, revision=4)
FOLDER = Entry(kind=Kind.DIRECTORY, version=VERSION, revision=4, mode=0o755, mtime_ns=100)
LINK = Entry(kind=Kind.SYMLINK, version=VERSION, revision=4, digest=Digest(b"l" * 16), target=b"t")
GONE = Entry(kind=Kind.TOMBSTONE, version=VERSION, revision=4)

EDITS = {
    "contents": (KNOWN, replace(SEEN, digest=Digest(b"e" * 16))),
    "contents, back in time": (KNOWN, replace(SEEN, digest=Digest(b"e" * 16), mtime_ns=1)),
    "size": (KNOWN, replace(SEEN, size=4)),
    "permissions": (KNOWN, replace(SEEN, mode=0o755)),
    "permissions of a folder": (FOLDER, Entry(kind=Kind.DIRECTORY, mode=0o700)),
    "a target": (LINK, Entry(kind=Kind.SYMLINK, digest=Digest(b"m" * 16), target=b"u")),
    "a file that became a folder": (KNOWN, Entry(kind=Kind.DIRECTORY, mode=0o755)),
    "a folder that became a file": (FOLDER, SEEN),
    "what was deleted before": (GONE, SEEN),
}


@pytest.mark.parametrize(("known", "seen"), EDITS.values(), ids=EDITS)
def test_a_change_is_a_version_that_follows_the_one_known(known: Entry, seen: Entry) -> None:
    assert observe(known, seen, NOW) == replace(seen, version=VERSION.bump(NOW), revision=5)


def test_what_is_new_begins_a_history() -> None:
    assert observe(None, SEEN, NOW) == replace(SEEN, version=Version({NOW.replica: NOW.tick}), revision=1)


@pytest.mark.parametrize("known", [KNOWN, LINK, FOLDER])
def test_what_is_unchanged_stays_the_very_same(known: Entry) -> None:
    seen = replace(known, version=Version(), revision=0)
    assert observe(known, seen, NOW) is known


@pytest.mark.parametrize("mtime_ns", [50, 150])
def test_a_touch_changes_the_time_and_makes_no_version(mtime_ns: int) -> None:
    assert observe(KNOWN, replace(SEEN, mtime_ns=mtime_ns), NOW) == replace(KNOWN, mtime_ns=mtime_ns)
    assert observe(LINK, replace(LINK, mtime_ns=mtime_ns), NOW) == replace(LINK, mtime_ns=mtime_ns)


def test_the_time_of_a_folder_means_nothing() -> None:
    assert observe(FOLDER, replace(FOLDER, mtime_ns=999), NOW) is FOLDER


@pytest.mark.parametrize("known", [KNOWN, FOLDER, LINK])
def test_what_vanished_is_a_tombstone_that_follows_it_and_keeps_nothing_of_it(known: Entry) -> None:
    tombstone = vanish(known, NOW)
    assert tombstone == Entry(kind=Kind.TOMBSTONE, version=VERSION.bump(NOW), revision=5)
    assert (tombstone.digest, tombstone.size, tombstone.mode, tombstone.target) == (NO_DIGEST, 0, 0, b"")


def test_nothing_vanishes_twice() -> None:
    assert vanish(GONE, NOW) is GONE


@pytest.mark.parametrize(
    ("age_ns", "racy"), [(-1, True), (0, True), (RACY_NS - 1, True), (RACY_NS, False), (RACY_NS * 9, False)]
)
def test_a_file_written_just_before_it_was_hashed_is_racy(age_ns: int, racy: bool) -> None:
    hashed_at_ns = 1_700_000_000_000_000_000
    written_ns = hashed_at_ns - age_ns
    assert is_racy(written_ns, hashed_at_ns, hashed_at_ns) is racy or age_ns < 0
    assert is_racy(written_ns, written_ns, hashed_at_ns) is racy
    assert is_racy(hashed_at_ns + 10**18, written_ns, hashed_at_ns) is racy
