"""What fsck calls damage, what it does not, and what it makes good."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import shutil
import sqlite3
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from p2psync import database, disk
from p2psync import stage as stage_module
from p2psync import undo as undo_module
from p2psync.cli import main
from p2psync.config import Peer
from p2psync.connect import connect_local
from p2psync.core.damage import Finding, What, compare, is_lost, is_unissued, judge_bytes, went_to_history
from p2psync.core.model import Kind, Row, Stat
from p2psync.core.revert import Changed
from p2psync.core.vector import ReplicaId
from p2psync.errors import Exit, PeerError, ProtocolError, Unreachable
from p2psync.fsck import Report, fsck
from p2psync.local import LocalReplica, open_replica
from p2psync.progress import Silent
from p2psync.render_fsck import as_json, text
from p2psync.restrict import Key
from p2psync.undo import contents, restore, undo
from tests.cli_support import fake_ssh, locked, p2psync
from tests.support import (
    OLD_NS,
    Link,
    digest,
    directory,
    do_not_wait_for_disk,
    file,
    history,
    make_tree,
    new_replica,
    not_as_root,
    opened,
    scanned,
    snapshot,
    staged,
    sync,
    tombstone,
    version,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    do_not_wait_for_disk(monkeypatch)
    monkeypatch.setattr("p2psync.fsck.sync_file_system", lambda fd: None)

    def execute(self: sqlite3.Connection, sql: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        return sqlite3.Connection.execute(self, sql.replace("= FULL", "= OFF"), values)

    monkeypatch.setattr(database.Database, "execute", execute)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A replica that was scanned."""
    root = new_replica(tmp_path / "here", {b"d/f": b"good bytes", b"g": b"others", b"l": Link(b"d/f")})
    scanned(root)
    return root


def check(root: Path, peer: Path | None = None, repair: bool = False) -> Report:
    far = Peer("there", str(peer)) if peer else None
    with opened(root) as replica:
        return fsck(os.fsencode(root), replica, far, repair, Silent())


def found(report: Report) -> list[tuple[What, bytes]]:
    return [(finding.what, finding.path) for finding in report.findings]


def sql(root: Path, statement: str, *values: object) -> None:
    """Plant something in a manifest."""
    with database_of(root) as database:
        assert database.execute(statement, values).rowcount > 0


@contextlib.contextmanager
def database_of(root: Path) -> Iterator[sqlite3.Connection]:
    file = root / ".p2psync" / "manifest.db"
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as database:
        database.execute("PRAGMA synchronous = OFF")
        yield database


def rot(root: Path, path: str, data: bytes) -> None:
    """Let a disk forget what is in a file: its size and all its times stay, as far as the manifest knows."""
    file = root / path
    before = file.stat()
    assert len(data) == before.st_size
    file.write_bytes(data)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    sql(
        root,
        "UPDATE entry SET stat_ctime_ns = ? WHERE stat_inode = ?",
        file.stat().st_ctime_ns,
        before.st_ino,
    )


def rotten(root: Path) -> Path:
    rot(root, "d/f", b"good bits!")
    return root


def run_folder(root: Path) -> Path:
    (run,) = (root / ".p2psync" / "history").iterdir()
    return run


def pair(root: Path) -> Path:
    """Sync the replica with a new one, and return that."""
    there = new_replica(root.parent / "there")
    assert sync(root, there).in_step
    return there


# -- what is damage


STAT = Stat(4, OLD_NS, OLD_NS, 1)


@pytest.mark.parametrize(
    ("row", "data", "seen", "what"),
    [
        (Row(file(b"good"), STAT), b"good", STAT, None),
        (Row(file(b"good"), STAT), b"evil", STAT, What.ROTTEN),
        (Row(file(b"good"), STAT, racy=True), b"evil", STAT, What.CHANGED),
        (Row(file(b"good"), STAT), b"evil", STAT._replace(ctime_ns=0), What.CHANGED),
        (Row(file(b"good"), STAT), b"evil", STAT._replace(mtime_ns=0), What.CHANGED),
        (Row(file(b"good"), STAT), b"evil", STAT._replace(inode=0), What.CHANGED),
        (Row(file(b"good"), STAT), b"good", STAT._replace(inode=0), None),
        (Row(file(b"good")), b"evil", STAT, What.CHANGED),
    ],
)
def test_bytes_are_rotten_if_they_are_others_and_the_stat_vouches_for_them(
    row: Row, data: bytes, seen: Stat, what: What | None
) -> None:
    assert judge_bytes(row, digest(data), seen) is what


def test_an_entry_needs_a_folder_unless_no_scan_looks_at_it() -> None:
    assert not is_lost(file(b""), directory(), visited=True)
    assert not is_lost(tombstone(), None, visited=True)
    assert is_lost(file(b""), None, visited=False)
    for parent in (tombstone(), file(b"")):
        assert is_lost(file(b""), parent, visited=True)
        assert not is_lost(file(b""), parent, visited=False)


def test_a_tick_beyond_the_clock_was_never_issued() -> None:
    entry = file(b"", seen=version(7, 100))
    assert is_unissued(entry, ReplicaId(7), 99)
    assert not is_unissued(entry, ReplicaId(7), 100)
    assert not is_unissued(entry, ReplicaId(8), 0)


def test_what_was_replaced_went_to_the_history_and_what_was_touched_did_not() -> None:
    old = file(b"old")
    assert went_to_history(Changed(b"p", old, file(b"new")))
    assert went_to_history(Changed(b"p", old, tombstone()))
    assert not went_to_history(Changed(b"p", old, file(b"old", 0o600)))
    assert not went_to_history(Changed(b"p", None, old))
    assert not went_to_history(Changed(b"p", directory(), tombstone()))


def test_a_peer_is_judged_by_its_entry_and_by_its_bytes() -> None:
    ours = file(b"good")
    assert compare(b"p", ours, ours, digest(b"good"), "there") is None
    for theirs, seen, what in (
        (file(b"else"), b"else", What.DIFFERENT),
        (ours, b"evil", What.ROTTEN),
        (ours, None, What.UNREADABLE),
    ):
        finding = compare(b"p", ours, theirs, None if seen is None else digest(seen), "there")
        assert finding is not None
        assert (finding.what, finding.peer, finding.is_damage) == (what, "there", True)


# -- the healthy


def test_a_replica_that_is_sound_is_said_to_be(root: Path) -> None:
    report = check(root)
    assert (report.findings, report.files, report.size, report.exit_code) == ([], 2, 16, Exit.IN_STEP)
    assert text(report, False) == "2 files (16 B) read: all sound\n"


def test_a_replica_that_was_never_scanned_is_sound(tmp_path: Path) -> None:
    assert check(new_replica(tmp_path / "new", {b"f": b"1"})).findings == []


def test_what_people_did_since_the_last_sync_is_no_damage(root: Path) -> None:
    make_tree(root, {b"new": b"new", b"d/f": b"edited"}, OLD_NS + 1)
    (root / "g").unlink()
    report = check(root)
    assert found(report) == [(What.CHANGED, b"g"), (What.CHANGED, b"d/f")]
    assert report.exit_code == Exit.IN_STEP
    assert "changed since: g: deleted\n" in text(report, False)
    assert sorted(map(str, scanned(root))) == sorted(map(str, (b"d", b"d/f", b"g", b"l", b"new")))


def test_a_check_writes_nothing(root: Path) -> None:
    make_tree(root, {b"d/f": b"edited"}, OLD_NS + 1)
    with database_of(root) as database:
        before = list(database.iterdump())
    check(root, repair=True)
    with database_of(root) as database:
        assert list(database.iterdump()) == before


def test_a_touch_and_a_rename_are_no_damage(root: Path) -> None:
    os.utime(root / "g")
    (root / "d").rename(root / "e")
    assert {what for what, _ in found(check(root))} == {What.CHANGED}


def test_ignored_files_are_not_looked_at_and_not_repaired(root: Path) -> None:
    (root / ".p2psync" / "ignore").write_bytes(b"/d\n")
    rotten(root)
    before = snapshot(root)
    report = check(root, repair=True)
    assert b"d/f" not in [path for _, path in found(report)]
    assert snapshot(root) == before


def test_what_outlives_its_folder_because_it_is_ignored_is_no_damage(root: Path) -> None:
    there = pair(root)
    (root / ".p2psync" / "ignore").write_bytes(b"/d/f\n")
    (there / "d" / "f").unlink()
    (there / "d").rmdir()
    sync(root, there)
    assert (root / "d" / "f").exists()
    assert [check(replica).findings for replica in (root, there)] == [[], []]


def test_what_is_on_a_disk_that_is_not_mounted_is_neither_lost_nor_sound(root: Path) -> None:
    sql(root, "INSERT INTO mount VALUES (x'64')")
    (root / "d" / "f").unlink()
    report = check(root, repair=True)
    assert (found(report), report.exit_code) == ([(What.UNREADABLE, b"d")], Exit.CONFLICTS)


NAMES = [b"a", b"b", b"a/x", b"a/y", b"a/x/p", b"b/x", b"\xff", b"c", b"c/.p2pignore"]


@pytest.mark.parametrize("seed", range(8))
def test_after_any_history_all_is_sound(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    roots = [new_replica(tmp_path / str(number)) for number in range(3)]
    for step in range(30):
        root = chance.choice(roots)
        if chance.random() < 0.3:
            other = chance.choice([each for each in roots if each != root])
            sync(root, other)
        else:
            disturb(chance, root, step)
    reports = [check(root) for root in roots]
    assert [f for report in reports for f in report.findings if f.what is not What.CHANGED] == []
    sync(roots[0], roots[1])
    report = check(roots[0], roots[1])
    assert (report.findings, report.error) == ([], None)


def disturb(chance: random.Random, root: Path, step: int) -> None:
    path = os.path.join(os.fsencode(root), chance.choice(NAMES))
    kind = chance.randrange(5)
    with contextlib.suppress(OSError):
        if kind == 0 and not os.path.isdir(path):
            os.unlink(path)
        elif kind == 0:
            os.rename(path, path + b"2")
        elif kind == 1:
            os.chmod(path, 0o700)
        elif kind == 2:
            os.makedirs(path, exist_ok=True)
        else:
            data = chance.choice([b"x*\n", b"p\n", b"same\n"]) if kind == 3 else b"%d\n" % step
            make_tree(root, {os.path.relpath(path, os.fsencode(root)): data}, OLD_NS + step)


# -- the manifest


SOUND_ROW = "UPDATE entry SET {} WHERE name = x'67'"  # g


@pytest.mark.parametrize(
    "damage",
    [
        *("digest = x'00'", "size = -1", "mode = 4095", "kind = 2", "kind = 3", "revision = -1"),
        *("target = x'00'", "name = x'2e2e'", "name = x'612f2f62'", "name = x'2e70327073796e63'"),
        *("digest = 7", "size = 'many'"),
    ],
)
def test_a_row_that_no_scan_can_have_made_is_damage(root: Path, damage: str) -> None:
    sql(root, SOUND_ROW.format(damage))
    report = check(root)
    assert What.MANIFEST in {what for what, _ in found(report)}
    assert report.exit_code == Exit.CONFLICTS


@pytest.mark.parametrize("damage", ["version = x'00'", "version = 'no'", "kind = 9", "name = 'text'"])
def test_a_row_that_cannot_be_decoded_is_damage_and_ends_the_check(root: Path, damage: str) -> None:
    sql(root, SOUND_ROW.format(damage))
    report = check(root, repair=True)
    assert [finding.what for finding in report.findings] == [What.MANIFEST]
    assert (report.exit_code, report.is_complete, report.files) == (Exit.CONFLICTS, False, 0)
    assert "; the rest could not be checked; " in text(report, True)


def test_a_row_of_no_folder_is_damage(root: Path) -> None:
    sql(root, "DELETE FROM directory WHERE path = x'64'")
    assert (What.MANIFEST, b"f") in found(check(root))


@pytest.mark.parametrize(
    "damage",
    ["DELETE FROM entry WHERE name = x'64'", "UPDATE entry SET kind = 0, mode = 0 WHERE name = x'64'"],
)
def test_an_entry_in_a_folder_that_is_none_is_damage(root: Path, damage: str) -> None:
    sql(root, damage)
    assert found(check(root)) == [(What.MANIFEST, b"d/f")]


def phantom(root: Path, folder: bytes, *names: bytes, told: Path | None = None) -> None:
    """Delete a folder, and have the rows of what was in it be as before, as soon as `told` was told of it."""
    marks = ",".join("?" * len(names))
    with database_of(root) as database:
        rows = database.execute(f"SELECT * FROM entry WHERE name IN ({marks})", names).fetchall()
    shutil.rmtree(root / os.fsdecode(folder))
    scanned(root)
    if told:
        sync(root, told)
    with database_of(root) as database:
        database.executemany(f"INSERT OR REPLACE INTO entry VALUES ({','.join('?' * 16)})", rows)


def test_rows_below_a_deleted_folder_are_damage_and_repaired_by_the_peers(root: Path) -> None:
    make_tree(root, {b"d/e/deep": b"deep"})
    there = pair(root)
    phantom(root, b"d", b"f", b"e", b"deep", told=there)
    make_tree(there, {b"d/f": b"of there"})
    lost = [(What.MANIFEST, path) for path in (b"d/e", b"d/f", b"d/e/deep")]
    assert found(check(root)) == lost
    report = check(root, repair=True)
    assert found(report) == lost
    assert text(report, True).count("; repaired from what the peers have, with the next sync") == 3
    assert check(root).findings == []
    assert sync(root, there).in_step
    assert (root / "d" / "f").read_bytes() == b"of there"
    assert snapshot(root) == snapshot(there)
    assert not (root / "d" / "e").exists()
    assert [check(replica).findings for replica in (root, there)] == [[], []]


@pytest.mark.parametrize("syncs", [0, 1])
def test_what_a_peer_still_has_comes_back_when_a_row_in_no_folder_is_repaired(root: Path, syncs: int) -> None:
    there = pair(root)
    phantom(root, b"d", b"f")
    for _ in range(syncs):
        sync(root, there)
    assert check(root, repair=True).repaired.keys() == {b"d/f"}
    for _ in range(2):
        sync(root, there)
    assert snapshot(root) == snapshot(there)
    assert (root / "d" / "f").read_bytes() == b"good bytes"
    assert [check(replica).findings for replica in (root, there)] == [[], []]


def test_earlier_versions_of_a_row_that_is_forgotten_can_still_be_had(root: Path) -> None:
    there = pair(root)
    make_tree(there, {b"d/f": b"edited there"}, OLD_NS + 1)
    assert sync(root, there).in_step
    phantom(root, b"d", b"f")
    assert check(root, repair=True).repaired.keys() == {b"d/f"}
    with opened(root) as replica:
        run = replica.manifest.past.runs()[0].name
        assert b"".join(contents(replica, undo_module.past(replica, b"d/f", run))) == b"good bytes"
    sync(root, there)
    with opened(root) as replica:
        restore(replica, b"d/f", run)
    assert (root / "d" / "f").read_bytes() == b"good bytes"


def test_what_lives_in_a_folder_that_is_there_is_found_by_the_scan_after_a_repair(
    root: Path,
) -> None:
    before = snapshot(root)
    sql(root, "UPDATE entry SET kind = 0, mode = 0 WHERE name = x'64'")
    assert check(root, repair=True).repaired == {b"d/f": "the disk, with the next sync"}
    assert scanned(root)[b"d"].kind is Kind.DIRECTORY
    assert check(root).findings == []
    assert snapshot(root) == before


def test_an_ignored_row_below_a_deleted_folder_is_no_damage(root: Path) -> None:
    phantom(root, b"d", b"f")
    (root / ".p2psync" / "ignore").write_bytes(b"f\n")
    assert check(root, repair=True).findings == []


def test_a_version_of_a_tick_that_was_never_issued_is_damage(root: Path) -> None:
    sql(root, "UPDATE meta SET value = value - 1 WHERE key = 'tick'")
    report = check(root)
    assert found(report) == [(What.MANIFEST, path) for path in (b"d", b"g", b"l", b"d/f")]
    assert all("(I2)" in finding.why for finding in report.findings)


@pytest.mark.parametrize(
    "damage", ["digest = x'00'", "version = x'00'", "size = -1", "path = x'2e2e2f61'", "kind = 17"]
)
def test_an_earlier_version_that_cannot_be_is_damage(root: Path, damage: str) -> None:
    make_tree(root, {b"g": b"edited"}, OLD_NS + 1)
    scanned(root)
    sql(root, f"UPDATE remembered SET {damage}")
    report = check(root)
    assert [finding.what for finding in report.findings] == [What.MANIFEST]
    assert report.files == 2


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE kept SET offset = offset + 1",
        "UPDATE kept SET start = start + 1",
        "UPDATE kept SET size = size - 1",
        "UPDATE kept SET length = -1",
        "UPDATE kept SET offset = 9223372036854775807",
    ],
)
def test_a_text_that_is_not_where_it_was_kept_is_damage(root: Path, damage: str) -> None:
    there = pair(root)
    assert check(there).findings == []
    sql(there, damage)
    assert found(check(there)) == [(What.BASE, b"")] * 2


def test_a_table_of_contents_that_lacks_some_is_completed_and_nothing_else_is_lost(root: Path) -> None:
    make_tree(root, {b"g": b"edited"}, OLD_NS + 1)
    files = len(scanned(root))
    sql(root, "DELETE FROM holder")
    report = check(root)
    assert found(report) == [(What.MANIFEST, b"")]
    assert report.is_complete
    report = check(root, repair=True)
    assert text(report, True).startswith("manifest: ")
    assert "cannot be found by their contents; completed\n" in text(report, True)
    assert not report.gave_up_manifest
    assert check(root).findings == []
    assert len(scanned(root)) == files


def test_a_text_that_is_not_where_it_was_kept_is_forgotten_by_a_repair_and_kept_anew(root: Path) -> None:
    there = pair(root)
    sql(there, "UPDATE kept SET start = start + 1")
    report = check(there, repair=True)
    assert found(report) == [(What.BASE, b"")] * 2
    assert text(report, True).count("; forgotten\n") == 2
    assert check(there).findings == []
    for number in range(2):
        make_tree(root, {b"d/f": b"other" if number == 0 else b"good bytes"}, OLD_NS + 1 + number)
        sync(root, there)
    make_tree(there, {b"d/f": b"edited"}, OLD_NS + 9)
    with opened(there) as replica:
        assert replica.texts([digest(b"good bytes")]) == [b"good bytes"]


def test_texts_that_were_cut_off_are_damage(root: Path) -> None:
    there = pair(root)
    os.truncate(there / ".p2psync" / "bases", 3)
    assert found(check(there)) == [(What.BASE, b"")] * 2


def test_a_database_that_is_damaged_inside_is_damage(root: Path) -> None:
    with database_of(root) as database:
        database.execute("PRAGMA journal_mode = DELETE")
        (page,) = database.execute("SELECT rootpage FROM sqlite_master WHERE name = 'entry_seq'").fetchone()
        (size,) = database.execute("PRAGMA page_size").fetchone()
    with (root / ".p2psync" / "manifest.db").open("r+b") as raw:
        raw.seek((page - 1) * size + size - 60)
        raw.write(b"\xff" * 60)
    report = check(root)
    assert report.findings
    assert {finding.what for finding in report.findings} == {What.MANIFEST}
    assert not report.is_complete
    assert report.exit_code == Exit.CONFLICTS
    assert "--repair has the next sync make the manifest anew" in text(report, False)
    with opened(root) as replica:
        assert not replica.manifest.is_anew()
    assert "the next sync makes the manifest anew" in text(check(root, repair=True), True)
    with opened(root) as replica:
        assert replica.manifest.is_anew()
        assert replica.manifest.faults() == []


def test_a_manifest_that_cannot_be_opened_ends_the_command(root: Path) -> None:
    (root / ".p2psync" / "manifest.db").write_bytes(b"nonsense" * 1000)
    assert "manifest" in p2psync(root, "fsck", code=3).err


# -- files


def test_a_file_that_changed_without_a_trace_is_rotten(root: Path) -> None:
    report = check(rotten(root))
    assert found(report) == [(What.ROTTEN, b"d/f")]
    assert report.exit_code == Exit.CONFLICTS
    assert (root / "d" / "f").read_bytes() == b"good bits!"
    assert "--repair" in text(report, False)


def test_a_racy_file_that_changed_without_a_trace_only_changed(root: Path) -> None:
    rotten(root)
    sql(root, "UPDATE entry SET racy = 1 WHERE name = x'66'")
    report = check(root)
    assert (found(report), report.exit_code) == ([(What.CHANGED, b"d/f")], Exit.IN_STEP)


@not_as_root
@pytest.mark.parametrize("path", ["g", "d"])
def test_what_cannot_be_read_is_not_called_sound(root: Path, path: str) -> None:
    (root / path).chmod(0)
    try:
        report = check(root, repair=True)
    finally:
        (root / path).chmod(0o700)
    assert (What.UNREADABLE, os.fsencode(path)) in found(report)
    assert report.exit_code == Exit.CONFLICTS
    assert report.repaired == {}


@pytest.fixture
def bad_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, int], None]:
    """Make a file one that cannot be read."""

    def break_it(path: Path, code: int) -> None:
        inode = path.stat().st_ino
        read = os.read

        def failing(fd: int, length: int) -> bytes:
            if os.fstat(fd).st_ino == inode:
                raise OSError(code, os.strerror(code))
            return read(fd, length)

        monkeypatch.setattr(os, "read", failing)

    return break_it


def test_a_file_that_the_disk_cannot_read_is_rotten_and_repaired(
    root: Path, bad_disk: Callable[[Path, int], None]
) -> None:
    there = pair(root)
    bad_disk(root / "d" / "f", errno.EIO)
    report = check(root, there, repair=True)
    assert (found(report), report.repaired) == ([(What.ROTTEN, b"d/f")], {b"d/f": "the peer"})
    assert (root / "d" / "f").read_bytes() == b"good bytes"


def test_a_file_that_may_not_be_read_is_unreadable(root: Path, bad_disk: Callable[[Path, int], None]) -> None:
    bad_disk(root / "d" / "f", errno.EACCES)
    report = check(root, repair=True)
    assert (found(report), report.repaired, report.left) == ([(What.UNREADABLE, b"d/f")], {}, {})


def test_a_file_that_is_edited_while_it_is_checked_is_no_damage(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hash_file = disk.hash_file

    def edit_first(name: bytes, fd: int) -> object:
        if name == b"g":
            raise disk.Changing(errno.EAGAIN, "is being written to")
        os.unlink(name, dir_fd=fd)
        return hash_file(name, fd)

    monkeypatch.setattr("p2psync.fsck.hash_file", edit_first)
    report = check(root, repair=True)
    assert sorted(found(report)) == [(What.CHANGED, b"d/f"), (What.CHANGED, b"g")]
    assert report.exit_code == Exit.IN_STEP


# -- the history


@pytest.fixture
def past(root: Path) -> Path:
    """A replica with a run that has replaced one file and deleted another."""
    there = pair(root)
    make_tree(there, {b"d/f": b"newer bytes"}, OLD_NS + 1)
    (there / "g").unlink()
    (there / "l").unlink()
    assert sync(root, there).in_step
    assert sorted(history(root)) == [b"d/f", b"good bytes", b"others"]
    return root


def test_a_history_that_is_whole_is_sound(past: Path) -> None:
    assert check(past).findings == []


def test_what_a_run_took_away_and_is_not_what_it_was_is_damage(past: Path) -> None:
    kept = run_folder(past) / "d" / "f"
    kept.write_bytes(b"good bits!")
    report = check(past)
    assert (found(report), report.exit_code) == ([(What.HISTORY, b"d/f")], Exit.CONFLICTS)


def test_what_people_took_out_of_the_history_is_told_and_no_damage(past: Path) -> None:
    (run_folder(past) / "g").unlink()
    report = check(past)
    assert (found(report), report.exit_code) == ([(What.MISSING, b"g")], Exit.IN_STEP)
    assert run_folder(past).name in text(report, False)


def test_a_file_whose_permissions_changed_needs_no_history(root: Path) -> None:
    there = pair(root)
    (there / "g").chmod(0o600)
    assert sync(root, there).in_step
    assert check(root).findings == []


# -- the peer


def test_a_peer_that_has_the_same_is_sound(root: Path) -> None:
    there = pair(root)
    report = check(root, there)
    assert (report.findings, report.compared, report.exit_code) == ([], 2, Exit.IN_STEP)
    assert "2 compared with the peer" in text(report, False)


def test_rot_at_the_peer_is_found_and_left_to_it(root: Path) -> None:
    there = rotten(pair(root))
    report = check(root, there, repair=True)
    (finding,) = report.findings
    assert (finding.what, finding.path, finding.peer) == (What.ROTTEN, b"d/f", "there")
    assert (report.exit_code, report.repaired) == (Exit.CONFLICTS, {})
    assert text(report, True).startswith("rotten on there: d/f: ")
    assert (there / "d" / "f").read_bytes() == b"good bits!"


def test_other_contents_under_the_same_version_are_damage(root: Path) -> None:
    there = pair(root)
    rotten(there)
    sql(there, "UPDATE entry SET digest = ? WHERE name = x'66'", digest(b"good bits!"))
    (finding,) = check(root, there).findings
    assert (finding.what, finding.path, finding.peer) == (What.DIFFERENT, b"d/f", "there")


def test_what_changed_on_either_side_is_not_compared(root: Path) -> None:
    there = pair(root)
    make_tree(there, {b"d/f": b"edited there"}, OLD_NS + 1)
    make_tree(root, {b"g": b"edited here"}, OLD_NS + 1)
    before = snapshot(there)
    report = check(root, there)
    assert (found(report), report.compared) == ([(What.CHANGED, b"g")], 0)
    assert snapshot(there) == before
    with opened(there) as replica:
        assert [record.path for record in replica.look().changes] == [b"d/f"]


def test_what_the_peer_ignores_is_not_asked_for(root: Path) -> None:
    there = pair(root)
    (there / ".p2psync" / "ignore").write_bytes(b"f\n")
    assert check(root, there).compared == 1


def test_a_replica_tells_no_digest_of_what_it_does_not_vouch_for(root: Path) -> None:
    (root / ".p2psync" / "ignore").write_bytes(b"g\n")
    make_tree(root, {b"g": b"secret"}, OLD_NS + 1)
    with opened(root) as replica:
        replica.scan(keep=False)
        asked = [b"d/f", b"g", b"d", b"l", b"nothing", b"nothing/below"]
        assert replica.rehash(asked) == [digest(b"good bytes"), *[None] * 5]


def test_who_may_only_read_may_compare(root: Path) -> None:
    replica = Key(read_only=True).open(os.fsencode(root), False)
    with contextlib.closing(replica):
        assert replica.rehash([b"g"]) == [digest(b"others")]


def test_a_peer_is_asked_for_paths_inside_its_root_alone(root: Path) -> None:
    with contextlib.closing(connect_local(os.fsencode(root), open_replica, create=False)) as peer:
        for path in (b"../x", b"/etc/passwd", b".p2psync/manifest.db"):
            with pytest.raises(PeerError):
                peer.rehash([path])


@pytest.mark.parametrize("answer", [[], [None] * 3, [b"short", None], [7, None]])
def test_a_peer_that_answers_nonsense_ends_the_check_with_what_was_found_before(
    root: Path, monkeypatch: pytest.MonkeyPatch, answer: list[object]
) -> None:
    there = pair(root)
    rotten(root)

    def opener(root: bytes, create: bool, neighbour: bytes) -> LocalReplica:
        replica = LocalReplica(root)
        monkeypatch.setattr(replica, "rehash", lambda paths: answer)
        return replica

    monkeypatch.setattr("p2psync.run.open_replica", opener)
    report = check(root, there)
    assert isinstance(report.error, ProtocolError)
    assert (found(report), report.exit_code) == ([(What.ROTTEN, b"d/f")], Exit.FAILED)


def test_a_peer_that_cannot_be_reached_is_told_first(root: Path) -> None:
    (root.parent / "ssh").write_text("#!/bin/sh\nexit 255\n")
    (root.parent / "ssh").chmod(0o755)
    with opened(root) as replica, pytest.raises(Unreachable):
        peer = Peer("far", "host:/x", ssh_command=str(root.parent / "ssh"))
        fsck(os.fsencode(root), replica, peer, False, Silent())


# -- repair


def from_history(root: Path) -> None:
    """The good bytes are in the history, because another file had them."""
    make_tree(root, {b"twin": b"good bytes"})
    there = pair(root)
    (there / "twin").unlink()
    assert sync(root, there).in_step


def from_bases(root: Path) -> None:
    there = new_replica(root.parent / "there", {b"d/f": b"1"})
    make_tree(there, {b"d/f": b"good bytes"})
    (root / "d" / "f").unlink()
    scanned(root)
    assert sync(root, there).in_step


def from_another(root: Path) -> None:
    make_tree(root, {b"a": b"good bytes", b"twin": b"good bytes"})
    scanned(root)


SOURCES: dict[str, tuple[Callable[[Path], object], str]] = {
    "history": (from_history, "the history"),
    "bases": (from_bases, "the bases"),
    "another file": (from_another, "twin"),
    "peer": (pair, "the peer"),
}


@pytest.mark.parametrize("source", SOURCES)
def test_good_bytes_are_put_in_the_place_of_rotten_ones(root: Path, source: str) -> None:
    prepare, place = SOURCES[source]
    prepare(root)
    (root / "d" / "f").chmod(0o640)
    before, known = snapshot(root), scanned(root)
    rotten(root)
    if source == "another file":
        rot(root, "a", b"bad bytes!")
    report = check(root, root.parent / "there" if source == "peer" else None, repair=True)
    assert (What.ROTTEN, b"d/f") in found(report)
    assert report.repaired[b"d/f"] == place
    assert report.exit_code == Exit.CONFLICTS
    assert snapshot(root) == before
    assert snapshot(root)[b"d/f"].mode == 0o640
    assert b"good bits!" in history(root)
    assert staged(root) == []
    assert scanned(root) == known
    assert check(root).findings == []


def test_a_repair_is_nothing_new_to_a_peer(root: Path) -> None:
    there = pair(root)
    rotten(root)
    assert check(root, there, repair=True).repaired == {b"d/f": "the peer"}
    result = sync(root, there)
    assert (result.local.transitions, result.peer.transitions) == ([], [])


def test_a_repair_is_a_run_that_the_log_shows_and_undo_leaves_alone(root: Path) -> None:
    from_another(root)
    rot(root, "a", b"bad bytes!")
    rotten(root)
    assert len(check(root, repair=True).repaired) == 2
    with opened(root) as replica:
        (run,) = [run for run in replica.manifest.past.runs() if run.kind == "repair"]
        assert (run.peer, run.size) == ("2 files", 20)
        assert undo(replica, run.name).transitions == []
    said = p2psync(root, "log").out
    assert "repair 2 files" in said
    assert "(20 B kept)" in said
    assert (root / "d" / "f").read_bytes() == b"good bytes"


def test_what_is_nowhere_is_left_alone_and_said(root: Path) -> None:
    report = check(rotten(root), repair=True)
    assert report.left == {b"d/f": "its bytes are nowhere to be found"}
    assert (root / "d" / "f").read_bytes() == b"good bits!"
    assert "; not repaired: its bytes are nowhere" in text(report, True)
    with opened(root) as replica:
        assert replica.manifest.past.runs() == []
    assert not (root / ".p2psync" / "history").exists()


def test_a_peer_whose_bytes_are_rotten_too_is_no_source(root: Path) -> None:
    there = pair(root)
    with database_of(there) as database:
        database.execute("DELETE FROM kept")
    rotten(root)
    rot(there, "d/f", b"bad bytes!")
    report = check(root, there, repair=True)
    assert found(report) == [(What.ROTTEN, b"d/f")] * 2
    assert (report.repaired, set(report.left)) == ({}, {b"d/f"})


def test_a_disk_that_is_full_leaves_all_as_it_was(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from_another(root)
    rot(root, "a", b"bad bytes!")
    rotten(root)

    def full(fd: int, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = snapshot(root)
    with monkeypatch.context() as patch:
        patch.setattr(stage_module, "write_all", full)
        report = check(root, repair=True)
    assert report.left[b"d/f"] == "cannot be written: No space left on device"
    assert (report.repaired, report.exit_code, report.error) == ({}, Exit.CONFLICTS, None)
    assert (snapshot(root), staged(root)) == (before, [])
    assert check(root, repair=True).repaired == {b"d/f": "twin", b"a": "twin"}


def test_a_file_that_is_edited_while_it_is_repaired_is_left_alone(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from_another(root)
    rot(root, "a", b"bad bytes!")
    rotten(root)

    def edit(fd: int) -> None:
        make_tree(root, {b"d/f": b"edited"}, OLD_NS + 1)

    monkeypatch.setattr("p2psync.fsck.sync_file_system", edit)
    report = check(root, repair=True)
    assert set(report.left) == {b"d/f"}
    assert set(report.repaired) == {b"a"}
    assert snapshot(root)[b"d/f"].data == b"edited"


def test_a_write_protected_file_in_a_write_protected_folder_is_repaired(root: Path) -> None:
    from_another(root)
    (root / "d" / "f").chmod(0o444)
    (root / "d").chmod(0o555)
    try:
        scanned(root)
        before = snapshot(root)
        rot_protected = root / "d" / "f"
        rot_protected.chmod(0o644)
        rot(root, "d/f", b"good bits!")
        rot_protected.chmod(0o444)
        ctime, inode = rot_protected.stat().st_ctime_ns, rot_protected.stat().st_ino
        sql(root, "UPDATE entry SET stat_ctime_ns = ? WHERE stat_inode = ?", ctime, inode)
        check(root, repair=True)
        assert snapshot(root)[b"d/f"] == before[b"d/f"]
        assert stat.S_IMODE((root / "d").stat().st_mode) == 0o555
    finally:
        (root / "d").chmod(0o755)


# -- the command


@pytest.fixture
def over(request: pytest.FixtureRequest, root: Path) -> list[str]:
    """How the peer is reached."""
    there = root.parent / "there"
    return [*fake_ssh(root.parent), "--peer", f"host:{there}"] if request.param else ["--peer", str(there)]


@pytest.mark.parametrize("over", [False, True], ids=["fork", "ssh"], indirect=True)
def test_the_command_compares_and_repairs(root: Path, over: list[str]) -> None:
    there = pair(root)
    assert p2psync(root, "fsck", *over).out.endswith("2 compared with the peer: all sound\n")
    rotten(root)
    rot(there, "g", b"OTHERS")
    ran = p2psync(root, "fsck", "--repair", "--json", *over, code=1)
    kinds = [(each["what"], each["side"] == "local", each["path"]) for each in ran.json["findings"]]
    assert kinds == [("rotten", True, "d/f"), ("rotten", False, "g")]
    assert ran.json["findings"][0]["repaired"] == "the peer"
    assert (root / "d" / "f").read_bytes() == b"good bytes"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], Exit.IN_STEP),
        (["--peer", "nobody"], Exit.USAGE),
        (["--peer", "./d"], Exit.FAILED),
        (["--peer", "."], Exit.FAILED),
        (["--peer", "host:/x", "-e", "false"], Exit.UNREACHABLE),
    ],
)
def test_the_exit_codes(
    root: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: Exit
) -> None:
    assert run(root, monkeypatch, *arguments) == code


def test_a_replica_that_is_in_use_is_not_checked(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2psync.cli.options.LOCK_WAIT", 0)
    with locked(root):
        assert run(root, monkeypatch) == Exit.LOCKED


def run(root: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the command in this process."""
    monkeypatch.chdir(root)
    monkeypatch.setattr("sys.argv", ["p2psync", "fsck", *arguments])
    return main()


def test_names_and_reasons_are_told_in_one_line_that_no_terminal_obeys() -> None:
    report = Report([Finding(What.ROTTEN, b"a\n\x1b[2J", "why\r", "p\neer")])
    line, _summary = text(report, False).splitlines()
    assert line == "rotten on p\\neer: a\\n\\x1b[2J: why\\r"


def test_json_has_all_of_it(root: Path) -> None:
    report = check(rotten(root), repair=True)
    assert json.loads(as_json(report)) == {
        "findings": [
            {
                "what": "rotten",
                "side": "local",
                "path": "d/f",
                "why": "its bytes are not those that were synced, though nobody wrote to it",
                "damage": True,
                "repaired": None,
                "left": "its bytes are nowhere to be found",
            }
        ],
        "files": 2,
        "bytes": 16,
        "compared": 0,
        "complete": True,
        "error": None,
        "exit_code": 1,
    }
