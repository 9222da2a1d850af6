"""A scan of the folders in which something happened finds just what a scan of the whole tree finds."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from p2psync.core.ignore import Ignore
from p2psync.core.model import Kind, Transition
from p2psync.core.paths import join, split
from p2psync.local import LocalReplica
from p2psync.scan import Part, Scan, scan
from tests.support import (
    OLD_NS,
    carry_out,
    directory,
    do_not_wait_for_disk,
    entries,
    file,
    make_tree,
    mounted,
    new_replica,
    opened,
)

NAMES = (b"a", b"b", b"c")
PATHS = [b"/".join(names) for names in [(a,) for a in NAMES] + [(a, b) for a in NAMES for b in NAMES]]
PATHS += [b"a/b/c", b"b/a/a", b"c/c/c", b"a/a/b/b"]
OPERATIONS = st.one_of(
    st.tuples(st.just("write"), st.sampled_from(PATHS), st.binary(max_size=2)),
    st.tuples(st.just("mkdir"), st.sampled_from(PATHS), st.just(b"")),
    st.tuples(st.just("remove"), st.sampled_from(PATHS), st.just(b"")),
    st.tuples(st.just("rename"), st.sampled_from(PATHS), st.sampled_from(PATHS)),
    st.tuples(st.just("chmod"), st.sampled_from(PATHS), st.just(b"")),
    st.tuples(st.just("link"), st.sampled_from(PATHS), st.sampled_from(NAMES)),
    st.tuples(
        st.just("ignore"), st.sampled_from([b"", b"a", b"b"]), st.sampled_from([b"a", b"b/", b"/c", b""])
    ),
)

Dirty = dict[bytes, bool]


@pytest.fixture(autouse=True, scope="module")
def quick_disk() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        do_not_wait_for_disk(patch)
        yield


def beyond_links(root: bytes, path: bytes, last: bool = False) -> bytes:
    """Return where a path leads if folders on the way, or also the last, are links: that is told of."""
    folder, name = split(path)
    if last:
        folder, name = path, b""
    found = os.path.relpath(os.path.join(os.path.realpath(os.path.join(root, folder)), name), root)
    return b"" if found == b"." else found


def operate(root: bytes, operation: tuple[str, bytes, bytes]) -> Dirty:
    """Do it if it can be done; return the folders that the system would tell of, and those that are new."""
    what, path, more = operation
    path = beyond_links(root, path, last=what == "ignore")
    if what == "rename":
        more = beyond_links(root, more)
    full = os.path.join(root, path)
    try:
        match what:
            case "write":
                with open(full, "wb") as file:
                    file.write(more)
                os.utime(full, ns=(OLD_NS, OLD_NS + len(more)))
            case "mkdir":
                os.mkdir(full)
            case "remove" if os.path.isdir(full) and not os.path.islink(full):
                shutil.rmtree(full)
            case "remove":
                os.unlink(full)
            case "rename":
                os.rename(full, os.path.join(root, more))
            case "chmod":
                os.chmod(full, os.stat(full).st_mode ^ 0o040)
            case "link":
                os.symlink(more, full)
            case "ignore":
                with open(os.path.join(full, b".p2pignore"), "wb") as file:
                    file.write(more)
                return {path: True}
    except OSError:
        return {}
    dirty = {split(path)[0]: False}
    new = more if what == "rename" else path
    if what == "rename":
        dirty.setdefault(split(more)[0], False)
    if what in ("mkdir", "rename"):
        dirty[new] = True
    return dirty


def scan_part(replica: LocalReplica, dirty: Mapping[bytes, bool], ignores: Mapping[bytes, Ignore]) -> Scan:
    """Scan a part, and write down what was found as a replica does."""
    manifest, stamp = replica.manifest, replica.manifest.next_stamp()
    found = scan(replica._root, manifest, stamp, b"", part=Part(dirty, ignores=ignores))
    with manifest.transaction():
        manifest.use(stamp)
        manifest.record(found.changes)
        replica._note(found)
    return found


@settings(max_examples=150)
@given(st.lists(st.lists(OPERATIONS, min_size=1, max_size=5), min_size=1, max_size=6))
@example([[("mkdir", b"b/c", b"")], [("link", b"b/a", b"c"), ("mkdir", b"b/a/a", b"")]])
def test_a_part_is_enough_where_something_happened(
    tmp_path_factory: pytest.TempPathFactory, rounds: list[list[tuple[str, bytes, bytes]]]
) -> None:
    root = new_replica(
        tmp_path_factory.mktemp("part") / "replica", {b"a/b/f": b"1", b"b/g": b"2", b"c/c/h": b""}
    )
    with contextlib.closing(LocalReplica(os.fsencode(root))) as replica:
        replica.scan(keep=True)
        ignores = replica._ignores
        for operations in rounds:
            dirty: Dirty = {}
            for operation in operations:
                for path, deep in operate(os.fsencode(root), operation).items():
                    dirty[path] = dirty.get(path, False) or deep
            if not dirty:
                continue
            part = scan_part(replica, dirty, ignores)
            assert part.problems == []
            ignores = part.ignores
            whole = replica.look()
            assert whole.changes == []
            assert (whole.rules, whole.mounts) == (part.rules, part.mounts)
            assert {path: i.fingerprint for path, i in whole.ignores.items()} == {
                path: i.fingerprint for path, i in ignores.items()
            }
    shutil.rmtree(root)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return new_replica(tmp_path / "replica", {b"d/f": b"1", b"e/g": b"2"})


def test_what_is_not_looked_at_is_neither_found_nor_deleted(root: Path) -> None:
    with opened(root) as replica:
        replica.scan(keep=True)
        shutil.rmtree(root / "e")
        make_tree(root, {b"d/f": b"edit", b"h": b"new"})
        found = scan_part(replica, {b"d": False}, replica._ignores)
        assert [change.path for change in found.changes] == [b"d/f"]
        assert all(entry.alive for entry in entries(replica).values())


def test_a_disk_that_is_not_looked_at_is_remembered_as_mounted(root: Path) -> None:
    """Else all that is on it would be taken for deleted once it is not mounted any more (I6)."""
    with opened(root) as replica:
        with mounted(root / "e"):
            make_tree(root, {b"e/on it": b"1"})
            replica.scan(keep=True)
            make_tree(root, {b"d/f": b"edit"})
            found = scan_part(replica, {b"d": False}, replica._ignores)
            assert [change.path for change in found.changes] == [b"d/f"]
        (problem,) = replica.scan(keep=True).problems
        assert problem.path == b"e"
        assert entries(replica)[b"e/on it"].alive


def test_a_folder_that_a_sync_has_made_is_looked_at(root: Path) -> None:
    with opened(root) as replica:
        replica.scan(keep=True)
        ignores = replica._ignores
        carry_out(
            replica, [Transition(b"new", None, directory()), Transition(b"new/f", None, file(b"1"))], b"1"
        )
        (root / "new" / "f").write_bytes(b"edit")
        found = scan_part(replica, {b"": False, b"new": True}, ignores)
        assert [change.path for change in found.changes] == [b"new/f"]
        assert b"new" in found.ignores


def test_a_folder_that_goes_while_a_scan_begins_is_found_gone(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tree(root, {b"d/sub/deep/f": b"1"})
    with opened(root) as replica:
        replica.scan(keep=True)
        shutil.rmtree(root / "d")
        monkeypatch.setattr("p2psync.scan._Scanner._is_known", lambda self, path: True)
        found = scan_part(replica, {b"d/sub/deep": False}, replica._ignores)
        assert found.problems == []
        assert not entries(replica)[b"d/sub/deep/f"].alive
        assert entries(replica)[b"e/g"].alive


def test_a_busy_file_stays_what_it_was_and_is_looked_at_later(root: Path) -> None:
    with opened(root) as replica:
        replica.scan(keep=True)
        before = entries(replica)[b"d/f"]
        make_tree(root, {b"d/f": b"half of", b"d/new": b"n"})
        part = Part({b"d": False}, busy={b"d/f", b"d/none"}, ignores=replica._ignores)
        found = scan(replica._root, replica.manifest, replica.manifest.next_stamp(), b"", part=part)
        assert [change.path for change in found.changes] == [b"d/new"]
        assert found.fingerprints[b"d"] is None
        replica.scan(keep=True)
        assert entries(replica)[b"d/f"] != before


def test_each_directory_is_watched_before_what_is_in_it_is_read(root: Path) -> None:
    seen: dict[bytes, set[str]] = {}

    def watch(path: bytes, directory: int) -> None:
        make_tree(root, {join(path, b"just made"): b""})
        seen[path] = set(os.listdir(directory))

    with opened(root) as replica:
        found = scan(
            replica._root, replica.manifest, replica.manifest.next_stamp(), b"", part=Part(None, watch=watch)
        )
    assert set(seen) == {b"", b"d", b"e"}
    files = {change.path for change in found.changes if change.row.entry.kind is Kind.FILE}
    assert files == {b"d/f", b"e/g", b"just made", b"d/just made", b"e/just made"}


def test_an_ignored_directory_is_not_watched(root: Path) -> None:
    make_tree(root, {b".p2pignore": b"e/\n"})
    watched: list[bytes] = []
    with opened(root) as replica:
        part = Part(None, watch=lambda path, directory: watched.append(path))
        scan(replica._root, replica.manifest, replica.manifest.next_stamp(), b"", part=part)
    assert sorted(watched) == [b"", b"d"]
