"""What a watcher tells of a real tree: where to look, and when."""

from __future__ import annotations

import errno
import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from p2psync import watcher as watching
from p2psync.local import LocalReplica
from p2psync.scan import Part
from p2psync.watcher import Watcher
from tests.support import do_not_wait_for_disk, make_tree, new_replica, opened

PATIENCE_SECONDS = 20.0

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the events are inotify's")


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    do_not_wait_for_disk(monkeypatch)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    tree = {b".p2pignore": b"ignored/\n", b"d/f": b"1", b"d/sub/g": b"2", b"e/h": b"3", b"ignored/x": b"x"}
    return new_replica(tmp_path / "replica", dict(tree))


@pytest.fixture
def watcher() -> Iterator[Watcher]:
    watcher = Watcher(settle=0.02)
    yield watcher
    watcher.close()


@pytest.fixture
def replica(root: Path, watcher: Watcher) -> Iterator[LocalReplica]:
    """A replica that has been scanned, and is watched."""
    replica = LocalReplica(os.fsencode(root), watcher=watcher)
    replica.scan(keep=True)
    yield replica
    replica.close()


def told(watcher: Watcher, enough: Callable[[Part], bool]) -> Part:
    """Wait for events as a watch does, and return all that they tell of, once it is enough."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    folders: dict[bytes, bool] = {}
    while True:
        due = watcher.due()
        assert time.monotonic() < deadline, f"only {folders} was told"
        if time.monotonic() < due:
            wait = max(0.0, min(due, deadline) - time.monotonic())
            select.select([watcher.fileno()], [], [], wait)
            continue
        part = watcher.part(b"")
        if part.folders is None:
            return part
        for path, deep in part.folders.items():
            folders[path] = folders.get(path, False) or deep
        if enough(Part(folders)):
            return Part(folders)


def test_at_first_everything_is_to_be_looked_at_at_once(watcher: Watcher) -> None:
    assert watcher.due() <= time.monotonic()
    assert watcher.part(b"").folders is None


def test_after_a_scan_there_is_nothing_to_look_at_for_long(replica: LocalReplica, watcher: Watcher) -> None:
    assert watcher.due() > time.monotonic() + 300


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda root: (root / "d" / "f").write_bytes(b"edit"), {b"d": False}),
        (lambda root: (root / "d" / "f").unlink(), {b"d": False}),
        (lambda root: (root / "d" / "f").chmod(0o600), {b"d": False}),
        (lambda root: (root / "d" / "f").rename(root / "e" / "f"), {b"d": False, b"e": False}),
        (lambda root: (root / "new").symlink_to("d"), {b"": False}),
        (lambda root: (root / "new").mkdir(), {b"": False, b"new": True}),
        (lambda root: (root / "d").rename(root / "new"), {b"": False, b"new": True}),
        (lambda root: (root / "e" / ".p2pignore").write_bytes(b"h\n"), {b"e": True}),
    ],
    ids=["edit", "deletion", "permissions", "rename", "link", "new folder", "moved folder", "rules"],
)
def test_a_change_says_where_to_look(
    root: Path,
    replica: LocalReplica,
    watcher: Watcher,
    change: Callable[[Path], object],
    where: dict[bytes, bool],
) -> None:
    change(root)
    part = told(watcher, lambda part: where.items() <= (part.folders or {}).items())
    assert part.folders == where


def test_a_folder_that_is_new_is_watched_once_it_has_been_looked_at(
    root: Path, replica: LocalReplica, watcher: Watcher
) -> None:
    make_tree(root, {b"new/deep/f": b"1"})
    told(watcher, lambda part: b"new" in (part.folders or {}))
    watcher.failed()  # so that the scan looks at it again
    replica.scan(keep=True)
    (root / "new" / "deep" / "f").write_bytes(b"edit")
    told(watcher, lambda part: b"new/deep" in (part.folders or {}))


def test_a_folder_that_was_moved_is_watched_under_its_new_name(
    root: Path, replica: LocalReplica, watcher: Watcher
) -> None:
    (root / "d").rename(root / "moved")
    told(watcher, lambda part: b"moved" in (part.folders or {}))
    watcher.failed()
    replica.scan(keep=True)
    (root / "moved" / "sub" / "g").write_bytes(b"edit")
    told(watcher, lambda part: b"moved/sub" in (part.folders or {}))


def test_what_is_ignored_and_the_sidecar_are_not_watched(
    root: Path, replica: LocalReplica, watcher: Watcher
) -> None:
    (root / "ignored" / "x").write_bytes(b"edit")
    (root / ".p2psync" / "x").write_bytes(b"")
    (root / "d" / "f").write_bytes(b"edit")
    part = told(watcher, lambda part: b"d" in (part.folders or {}))
    assert part.folders == {b"d": False}


def test_when_events_were_dropped_everything_is_looked_at(replica: LocalReplica, watcher: Watcher) -> None:
    assert watcher._events
    watcher._events.on_queue_overflow()  # type: ignore[union-attr]
    assert told(watcher, lambda part: False).folders is None


def test_when_the_root_is_gone_a_scan_will_tell(root: Path, replica: LocalReplica, watcher: Watcher) -> None:
    root.rename(root.parent / "elsewhere")
    assert told(watcher, lambda part: False).folders is None


def test_other_private_rules_have_everything_looked_at(replica: LocalReplica, watcher: Watcher) -> None:
    assert watcher.part(b"*.tmp\n").folders is None


def test_a_scan_that_failed_is_made_again(replica: LocalReplica, watcher: Watcher) -> None:
    watcher.failed()
    assert told(watcher, lambda part: False).folders is None


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda root: (root / "d" / "f").write_bytes(b"edit"), "p2psync.look._seen"),
        (lambda root: (root / "d" / "new").write_bytes(b""), "p2psync.scan._children"),
        (lambda root: make_tree(root, {b"new/f": b""}), "p2psync.scan._children"),
    ],
    ids=["file", "folder", "new folder"],
)
def test_what_could_not_be_read_is_looked_at_again_with_the_next_part(
    root: Path,
    replica: LocalReplica,
    watcher: Watcher,
    change: Callable[[Path], object],
    what: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def failing(*arguments: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    change(root)
    select.select([watcher.fileno()], [], [])
    while watcher.due() > time.monotonic():
        time.sleep(0.001)
    with monkeypatch.context() as patch:
        patch.setattr(what, failing)
        assert replica.scan(keep=True).problems
    before = replica.newest()
    assert replica.scan(keep=True).problems == []
    assert replica.newest() > before
    assert watcher.part(b"").folders == {}


def test_without_watches_left_folders_are_looked_at_by_time_and_it_is_said_how_to_get_more(
    root: Path, watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert watcher._events
    watch = watcher._events.watch

    def limited(path: bytes, directory: int) -> None:
        if path.startswith(b"d"):
            raise OSError(errno.ENOSPC, "no more")
        watch(path, directory)

    monkeypatch.setattr(watcher._events, "watch", limited)
    monkeypatch.setattr(watching, "UNWATCHED_SECONDS", 0.01)
    with opened(root):
        pass
    replica = LocalReplica(os.fsencode(root), watcher=watcher)
    replica.scan(keep=True)
    assert "sysctl fs.inotify.max_user_watches" in watcher.warning
    (root / "d" / "sub" / "g").write_bytes(b"edit")
    part = told(watcher, lambda part: b"d/sub" in (part.folders or {}))
    assert part.folders is not None
    assert part.folders[b"d/sub"]
    monkeypatch.setattr(watcher._events, "watch", watch)
    watcher.failed()
    replica.scan(keep=True)
    assert watcher._unwatched == set()  # they are watched as soon as they can be
    replica.close()


def test_where_there_are_no_events_everything_is_looked_at_by_time(root: Path) -> None:
    polling = Watcher(poll=0.05)
    replica = LocalReplica(os.fsencode(root), watcher=polling)
    replica.scan(keep=True)
    assert told(polling, lambda part: False).folders is None
    replica.close()
    polling.close()


def test_a_watcher_leaves_no_descriptor_behind() -> None:
    before = os.listdir("/dev/fd")
    Watcher().close()
    assert os.listdir("/dev/fd") == before
