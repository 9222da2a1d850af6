"""The manifest: what it gives back, what it refuses, and that no tick is ever issued twice."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from p2psync import manifest as manifest_module
from p2psync.columns import BASES
from p2psync.core.detect import vanish
from p2psync.core.model import Entry, Extent, Record, Row, Stat
from p2psync.core.order import WHOLE_FOLDER
from p2psync.core.paths import MAX_PATH
from p2psync.core.replica import VERSIONS, Change, Identity, Mark
from p2psync.core.vector import NOTHING, ReplicaId, Stamp
from p2psync.errors import Damaged, ReplicaError
from p2psync.manifest import REMEMBERED, SCHEMA_VERSION, Manifest
from tests.support import digest, directory, do_not_wait_for_disk, file, symlink, tombstone, version

NEW_IN_4 = ["holder"]
NEW_IN_3 = ["left_behind", "used", "seen", "answered", *NEW_IN_4]
STAT = Stat(3, 123_456_789_123, 223_456_789_123, 42)


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    do_not_wait_for_disk(monkeypatch)


@pytest.fixture
def place(tmp_path: Path) -> bytes:
    """Where a manifest is."""
    path = os.fsencode(tmp_path / "manifest.db")
    Manifest.create(path, "name").close()
    return path


@pytest.fixture
def manifest(place: bytes) -> Iterator[Manifest]:
    manifest = Manifest.open(place)
    yield manifest
    manifest.close()


def record(manifest: Manifest, path: bytes, entry: Entry, replaces: Entry | None = None) -> None:
    with manifest.transaction():
        manifest.record([Record(path, Row(entry), replaces)])


# -- opening


def test_a_manifest_that_cannot_be_looked_at_is_not_taken_for_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = os.fsencode(tmp_path / "manifest.db")
    Manifest.create(file, "name").close()
    stat = os.stat

    def failing(path: bytes, **options: Any) -> os.stat_result:  # noqa: ANN401
        if path == file:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return stat(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", failing)
        with pytest.raises(ReplicaError, match="cannot open") as error:
            Manifest.open(file)
    assert not isinstance(error.value, Damaged)


def test_each_manifest_is_another_replica_with_another_epoch(tmp_path: Path) -> None:
    identities = []
    for name in ("a", "b"):
        manifest = Manifest.create(os.fsencode(tmp_path / name), name)
        identities.append(manifest.identity())
        manifest.close()
    assert identities[0].replica != identities[1].replica
    assert identities[0].epoch != identities[1].epoch
    assert [identity.name for identity in identities] == ["a", "b"]


def test_an_identity_is_the_same_when_opened_again(place: bytes) -> None:
    seen = set()
    for _ in range(2):
        manifest = Manifest.open(place)
        seen.add((manifest.identity().replica, manifest.identity().epoch))
        manifest.close()
    assert len(seen) == 1


def test_a_manifest_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(ReplicaError, match="is lost"):
        Manifest.open(os.fsencode(tmp_path / "manifest.db"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("older", "lacks"), [(1, ["sample", *NEW_IN_3]), (2, NEW_IN_3), (3, NEW_IN_4)])
def test_a_manifest_of_an_older_format_is_brought_up_to_date(
    place: bytes, older: int, lacks: list[str]
) -> None:
    with contextlib.closing(Manifest.open(place)) as manifest:
        record(manifest, b"d/\xff/f", file(b"1"))
        record(manifest, b"d/\xff/f", file(b"2", seen=version(tick=2)), file(b"1"))
        record(manifest, b"gone/f", file(b"3"))
        record(manifest, b"gone/f", file(b"4", seen=version(tick=2)), file(b"3"))
        with manifest.transaction():
            manifest.forget_present([b"gone/f"])
        manifest._db.execute("DELETE FROM directory WHERE path = x'676f6e65'")
        manifest._db.execute(
            "INSERT INTO peer (replica, name, address) VALUES (5, 'a', x'61'), (6, 'b', x'')"
        )
        manifest._db.execute("INSERT OR IGNORE INTO answered VALUES (x'61', 5)")
        manifest._db.execute("UPDATE meta SET value = 100 WHERE key = 'tick'")
        manifest._db.execute("UPDATE used SET tick = 100")
    with contextlib.closing(sqlite3.connect(os.fsdecode(place))) as database:
        for table in lacks:
            database.execute(f"DROP TABLE {table}")
        if older < 4:
            database.execute("CREATE INDEX entry_digest ON entry (digest) WHERE kind = 1")
        database.execute(f"PRAGMA user_version = {older}")
        database.commit()
    for _ in range(2):
        with contextlib.closing(Manifest.open(place)) as manifest:
            assert not manifest.samples.are_any()
            assert manifest.bases(b"f") == []
            assert [*manifest.holders.of(digest(b"2"))] == [b"d/\xff/f"]
            assert [*manifest.holders.replaced(digest(b"1"))] == [("", b"d/\xff/f")]
            assert [*manifest.holders.replaced(digest(b"3"))] == [("", b"gone/f")]
            assert manifest.faults() == []
            assert manifest._db.execute("SELECT * FROM answered").fetchall() == [(b"a", 5)]
            assert [manifest.has_used(tick) for tick in (99, 100, 101)] == [True, True, False]
    with contextlib.closing(sqlite3.connect(os.fsdecode(place))) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)


def test_a_manifest_that_is_write_protected_is_told_by_its_name(place: bytes) -> None:
    with contextlib.closing(Manifest.open(place)) as manifest:
        manifest._db.execute("PRAGMA query_only = 1")
        with pytest.raises(
            ReplicaError, match=r"manifest\.db, or its -wal or -shm beside it, is write-protec"
        ):
            record(manifest, b"f", file(b"1"))


def test_who_only_looks_leaves_an_older_format_to_the_run_that_may_be_at_work(place: bytes) -> None:
    with contextlib.closing(Manifest.open(place)) as manifest:
        record(manifest, b"f", file(b"1"))
    with contextlib.closing(sqlite3.connect(os.fsdecode(place))) as database:
        database.execute("DROP TABLE holder")
        database.execute("PRAGMA user_version = 3")
    with contextlib.closing(Manifest.open(place, locked=False)) as looking:
        assert [*looking.holders.of(digest(b"1"))] == [b"f"]
        with contextlib.closing(sqlite3.connect(os.fsdecode(place))) as database:
            assert database.execute("PRAGMA user_version").fetchone() == (3,)
    with contextlib.closing(Manifest.open(place)), contextlib.closing(Manifest.open(place, locked=False)):
        pass


@pytest.mark.parametrize("done", range(5))
@pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")
def test_who_dies_while_a_damaged_manifest_is_put_aside_leaves_none_that_looks_sound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: int
) -> None:
    place = os.fsencode(tmp_path / "manifest.db")
    with contextlib.closing(Manifest.create(place, "name")) as used:
        with used.transaction():
            used.record([Record(b"%d" % n, Row(file(b"%d" % n))) for n in range(500)])
        used._db.execute("PRAGMA wal_checkpoint")
        log = Path(os.fsdecode(place) + "-wal").read_bytes()
    with open(place, "r+b") as damaged:
        damaged.seek(-16384, os.SEEK_END)
        damaged.write(b"\xff" * 16384)
    Path(os.fsdecode(place) + "-wal").write_bytes(log[:32])  # its user was killed
    rename, left = os.rename, iter(range(done))

    def dying(old: bytes, new: bytes) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        rename(old, new)

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(os, "rename", dying)
        Manifest.make_anew(place, "name").close()
    with contextlib.suppress(Damaged), contextlib.closing(Manifest.open(place)) as manifest:
        assert manifest.is_anew()
        assert manifest.faults() == []


def test_an_upgrade_of_which_one_step_fails_leaves_the_manifest_as_it_was(
    place: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.closing(sqlite3.connect(os.fsdecode(place))) as database:
        for table in ("sample", *NEW_IN_3):
            database.execute(f"DROP TABLE {table}")
        database.execute("PRAGMA user_version = 1")
    with monkeypatch.context() as patch:
        patch.setitem(manifest_module._UPGRADES, 2, ("CREATE nonsense",))
        with pytest.raises(ReplicaError, match="cannot be used"):
            Manifest.open(place)
    with contextlib.closing(Manifest.open(place)) as manifest:
        assert not manifest.samples.are_any()


@pytest.mark.parametrize("died", [True, False])
def test_after_a_death_all_of_the_manifest_is_looked_at(place: bytes, died: bool) -> None:
    with contextlib.closing(sqlite3.connect(os.fsdecode(place))) as database:
        (page,) = database.execute("SELECT rootpage FROM sqlite_master WHERE name = 'conflict'").fetchone()
        (size,) = database.execute("PRAGMA page_size").fetchone()
    with open(place, "r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)
    with open(place + b"-wal", "wb") if died else contextlib.nullcontext():
        pass
    with pytest.raises(Damaged) if died else contextlib.nullcontext():
        Manifest.open(place).close()


def test_contents_are_found_by_what_they_have_in_common(place: bytes) -> None:
    with contextlib.closing(Manifest.open(place)) as manifest:
        manifest.samples.add([(b"1", digest(b"a")), (b"2", digest(b"a")), (b"2", digest(b"b"))])
        manifest.samples.add([(b"2", digest(b"b")), (b"3", digest(b"c"))])
        assert manifest.samples.contents_with([b"1", b"2"], 4) == [digest(b"a"), digest(b"b")]
        assert manifest.samples.contents_with([b"1", b"2"], 1) == [digest(b"a")]
        assert manifest.samples.contents_with([b"4"], 4) == manifest.samples.contents_with([], 4) == []
        record(manifest, b"f", file(b"c"))
        manifest.samples.forget_old()
        assert manifest.samples.contents_with([b"1", b"2", b"3"], 4) == [digest(b"c")]


@pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")
def test_a_manifest_of_another_format_is_refused_with_both_numbers(place: bytes) -> None:
    database = sqlite3.connect(os.fsdecode(place))
    database.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    database.close()
    with pytest.raises(
        ReplicaError, match=f"format {SCHEMA_VERSION + 1}, .* {SCHEMA_VERSION}: upgrade p2psync"
    ):
        Manifest.open(place)


@pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")
@pytest.mark.parametrize("garbage", [b"", b"x", b"garbage" * 10_000, b"SQLite format 3\0" + b"\xff" * 5000])
def test_what_is_no_manifest_is_refused_and_left_as_it_is(place: bytes, garbage: bytes) -> None:
    with open(place, "wb") as file:
        file.write(garbage)
    with pytest.raises(ReplicaError, match="manifest"):
        Manifest.open(place)
    if len(garbage) > 1:  # SQLite takes an empty file for a new database
        assert Path(os.fsdecode(place)).read_bytes() == garbage


def test_a_directory_in_the_place_of_a_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.db").mkdir()
    with pytest.raises(ReplicaError, match="manifest"):
        Manifest.open(os.fsencode(tmp_path / "manifest.db"))


# -- transactions


def test_a_transaction_that_fails_leaves_nothing(manifest: Manifest) -> None:
    with pytest.raises(KeyboardInterrupt), manifest.transaction():
        manifest.record([Record(b"d/f", Row(file(b"1")))])
        raise KeyboardInterrupt
    assert manifest.entry(b"d/f") is None
    assert manifest.newest() == 0
    record(manifest, b"d/g", file(b"1"))  # the directory's number was forgotten with the rest
    assert manifest.entry(b"d/g") == file(b"1")


def test_what_was_not_committed_is_forgotten(place: bytes) -> None:
    manifest = Manifest.open(place)
    manifest.begin()
    manifest.record([Record(b"f", Row(file(b"1")))])
    manifest.close()
    manifest = Manifest.open(place)
    assert manifest.entry(b"f") is None
    manifest.close()


def test_a_manifest_that_cannot_be_written_to_is_an_error_of_the_replica(manifest: Manifest) -> None:
    manifest._db.execute("PRAGMA max_page_count = 1")
    with pytest.raises(ReplicaError, match="no room"), manifest.transaction():
        for number in range(1000):
            manifest.record([Record(b"%d" % number, Row(file(b"1")))])
    assert manifest.newest() == 0


# -- rows

ENTRIES = {
    b"f": file(b"1", 0o640, -1, version(9, 2**62), 2**40),
    b"d": directory(0o700),
    b"l": symlink(b"\xff/\n"),
    b"t": tombstone(),
    b"\xff\n": file(b"", seen=version(1).bump(Stamp(ReplicaId(2), 3))),
    b"d/e/f": file(b"3"),
    b"x/" * (MAX_PATH // 4) + b"f": file(b"deep"),
}


def test_entries_come_back_as_they_were_given(manifest: Manifest) -> None:
    for path, entry in ENTRIES.items():
        record(manifest, path, entry)
    assert {path: manifest.entry(path) for path in ENTRIES} == ENTRIES
    assert dict(manifest.changes(0)) == ENTRIES


def test_a_row_keeps_what_vouches_for_it(manifest: Manifest) -> None:
    row = Row(file(b"abc"), STAT, racy=True)
    with manifest.transaction():
        manifest.record([Record(b"d/f", row), Record(b"d", Row(directory()))])
    assert manifest.row(b"d/f") == row
    assert manifest.rows(b"d") == {b"f": row}
    assert manifest.rows(b"") == {b"d": Row(directory())}
    assert manifest.rows(b"nothing") == {}


def test_vouching_changes_the_stat_and_nothing_else(manifest: Manifest) -> None:
    with manifest.transaction():
        manifest.record([Record(b"d/f", Row(file(b"abc"), STAT, racy=True))])
    newest = manifest.newest()
    vouched = Row(file(b"abc"), STAT._replace(mtime_ns=5, ctime_ns=6, inode=7))
    with manifest.transaction():
        manifest.vouch([Record(b"d/f", vouched)])
    assert manifest.row(b"d/f") == vouched
    assert manifest.newest() == newest


def test_a_path_is_found_after_its_directory_was_looked_for_in_vain(manifest: Manifest) -> None:
    assert manifest.row(b"d/f") is None
    record(manifest, b"d/f", file(b"1"))
    assert manifest.entry(b"d/f") == file(b"1")
    assert manifest.entry(b"d/g") is None


def test_changes_are_those_of_later_commits(manifest: Manifest) -> None:
    record(manifest, b"a", file(b"1"))
    record(manifest, b"b", file(b"2"))
    then = manifest.newest()
    record(manifest, b"a", file(b"3"))
    assert list(manifest.changes(then)) == [Change(b"a", file(b"3"))]
    assert list(manifest.changes(manifest.newest())) == []


def test_files_are_found_by_their_contents(manifest: Manifest) -> None:
    with manifest.transaction():
        manifest.record([Record(b"d/%d" % n, Row(file(b"%d" % (n % 600)))) for n in range(1000)])
        manifest.record([Record(b"l", Row(symlink(b"1"))), Record(b"t", Row(tombstone()))])
    digests = [digest(b"%d" % n) for n in range(700)]
    assert sorted(manifest.holders.of(digest(b"1"))) == [b"d/1", b"d/601"]
    assert list(manifest.holders.of(digest(b"699"))) == []
    found = manifest.holders.any_of(digests)
    assert found[digest(b"1")] in {b"d/1", b"d/601"}
    assert found[digest(b"599")] == b"d/599"
    assert set(found) == set(digests[:600])


def test_what_was_recorded_is_found_by_its_contents_before_it_is_committed(manifest: Manifest) -> None:
    manifest.begin()
    manifest.record([Record(b"a", Row(file(b"1")))])
    assert [*manifest.holders.of(digest(b"1"))] == [b"a"]
    manifest.record([Record(b"a", Row(file(b"2", seen=version(tick=2))), file(b"1"))])
    manifest.record([Record(b"a", Row(file(b"3", seen=version(tick=3))), file(b"2", seen=version(tick=2)))])
    assert [manifest.holders.any_of([digest(data)]) for data in (b"1", b"2", b"3")] == [
        {},
        {},
        {digest(b"3"): b"a"},
    ]
    assert [[*manifest.holders.replaced(digest(data))] for data in (b"1", b"2")] == [[("", b"a")]] * 2
    manifest.roll_back()
    assert manifest.holders.any_of([digest(b"3")]) == {}
    manifest.begin()
    manifest.record([Record(b"a", Row(file(b"4")))])
    manifest.roll_back()
    record(manifest, b"b", file(b"5"))
    assert manifest.holders.any_of([digest(b"4"), digest(b"5")]) == {digest(b"5"): b"b"}


def test_a_file_that_moved_is_found_where_it_is(manifest: Manifest) -> None:
    for path in (b"a/f", b"b/f", b"c/f"):
        record(manifest, path, file(b"1"))
        record(manifest, path, tombstone(seen=version(tick=2)), file(b"1"))
    record(manifest, b"d/f", file(b"1"))
    assert [*manifest.holders.of(digest(b"1"))] == [b"d/f"]
    assert manifest.holders.any_of([digest(b"1")]) == {digest(b"1"): b"d/f"}


@pytest.mark.parametrize("path", [b"f", b"d/\xff", b"d/\xc3\xa9/\x01f"])
def test_where_contents_were_is_known_as_long_as_the_version_is(manifest: Manifest, path: bytes) -> None:
    record(manifest, path, file(b"1"))
    record(manifest, path, file(b"2", seen=version(tick=2)), file(b"1"))
    record(manifest, path, tombstone(seen=version(tick=3)), file(b"2", seen=version(tick=2)))
    record(manifest, b"e/f", file(b"3"))
    rows = "SELECT count(*) FROM holder"
    with manifest.transaction():
        manifest.holders.forget_old()
        manifest.forget_folders()
    assert manifest._db.execute(rows).fetchone() == (3,)
    assert [[*manifest.holders.replaced(digest(data))] for data in (b"1", b"2")] == [[("", path)]] * 2
    with manifest.transaction():
        manifest.forget_present([path])
        manifest.holders.forget_old()
        manifest.forget_folders()
    assert [*manifest.holders.replaced(digest(b"1"))] == [("", path)]
    with manifest.transaction():
        manifest.forget([path])
        manifest.holders.forget_old()
    assert manifest._db.execute(rows).fetchone() == (1,)
    assert [*manifest.holders.of(digest(b"3"))] == [b"e/f"]


def test_what_could_not_be_found_by_its_contents_is_counted_and_can_be_again(manifest: Manifest) -> None:
    record(manifest, b"d/f", file(b"1"))
    record(manifest, b"d/f", file(b"2", seen=version(tick=2)), file(b"1"))
    record(manifest, b"d/g", file(b"2"))
    assert manifest.holders.missing() == 0
    manifest._db.execute("DELETE FROM holder WHERE name = x'66'")
    assert manifest.holders.missing() == 2
    with manifest.transaction():
        manifest.holders.make()
    assert manifest.holders.missing() == 0
    assert sorted(manifest.holders.of(digest(b"2"))) == [b"d/f", b"d/g"]
    assert [*manifest.holders.replaced(digest(b"1"))] == [("", b"d/f")]


def test_where_contents_were_for_a_moment_of_a_transaction_is_known_too(manifest: Manifest) -> None:
    with manifest.transaction():
        seq = manifest.next_seq()
        manifest.record_under(seq, [Record(b"d/f", Row(file(b"1")))])
        manifest.record_under(seq, [Record(b"d/f", Row(file(b"2", seen=version(tick=2))), file(b"1"))])
    assert [*manifest.holders.replaced(digest(b"1"))] == [("", b"d/f")]
    assert manifest.holders.missing() == 0


def test_all_of_many_files_with_the_same_contents_are_found(manifest: Manifest) -> None:
    paths = {b"%d/%d" % (n % 3, n) for n in range(100)}
    with manifest.transaction():
        manifest.record([Record(path, Row(file(b"same"))) for path in paths])
    found = list(manifest.holders.of(digest(b"same")))
    assert (len(found), set(found)) == (100, paths)
    assert manifest.holders.any_of([digest(b"same")])[digest(b"same")] in paths


def test_to_find_one_of_many_files_with_the_same_contents_takes_no_longer_than_of_few(
    manifest: Manifest,
) -> None:
    with manifest.transaction():
        manifest.record([Record(b"many/%d" % n, Row(file(b"many"))) for n in range(2000)])
        manifest.record([Record(b"few/%d" % n, Row(file(b"few"))) for n in range(20)])
    steps = []
    for data in (b"few", b"many"):
        steps.append(0)
        manifest._db.set_progress_handler(lambda: steps.append(steps.pop() + 1), 1)
        assert next(manifest.holders.of(digest(data)))
        manifest._db.set_progress_handler(None, 1)
    assert steps[1] <= steps[0]


# -- remembered versions


def test_versions_that_were_replaced_are_remembered(manifest: Manifest) -> None:
    first, second = file(b"1", seen=version(1, 1)), file(b"2", seen=version(1, 2))
    record(manifest, b"f", first)
    record(manifest, b"f", second, replaces=first)
    record(manifest, b"g", second)
    assert manifest.bases(b"f") == [first]
    assert manifest.bases(b"g") == []


def test_a_touch_replaces_no_version(manifest: Manifest) -> None:
    record(manifest, b"f", file(b"1"))
    record(manifest, b"f", file(b"1", mtime_ns=5), replaces=file(b"1"))
    assert manifest.bases(b"f") == []


def test_only_the_latest_versions_of_a_path_are_remembered(manifest: Manifest) -> None:
    versions = [file(b"%d" % n, seen=version(1, n + 1), revision=n + 1) for n in range(2 * REMEMBERED)]
    for path in (b"f", b"g"):
        record(manifest, path, versions[0])
    for old, new in pairwise(versions):
        record(manifest, b"f", new, replaces=old)
        record(manifest, b"g", new, replaces=old if new is versions[1] else None)
    assert manifest.bases(b"f") == versions[-1 - BASES : -1]
    assert [known.entry for known in manifest.past.versions(b"f")] == versions[-1 - REMEMBERED :]
    assert manifest.bases(b"g") == versions[:1]


def test_of_the_versions_that_very_many_replicas_have_those_of_the_latest_to_sync_are_told(
    manifest: Manifest,
) -> None:
    versions = [file(b"%d" % n, seen=version(1, n + 1), revision=n + 1) for n in range(VERSIONS + 20)]
    record(manifest, b"f", versions[0])
    for number, (old, new) in enumerate(pairwise(versions)):
        meet(manifest, 1000 - number)
        record(manifest, b"f", new, replaces=old)
    assert manifest.bases(b"f") == versions[-1 - VERSIONS : -1]


def test_for_who_may_only_read_nothing_is_kept(manifest: Manifest) -> None:
    reader = Identity(ReplicaId(~5), "reader", 1)
    versions = [file(b"%d" % n, seen=version(1, n + 1), revision=n + 1) for n in range(BASES + 5)]
    record(manifest, b"f", versions[0])
    for pending, (old, new) in zip(([], [b"f"], *[None] * BASES), pairwise(versions), strict=False):
        if pending is not None:
            with manifest.transaction():
                manifest.replicas.set_mark(reader, Mark(1, 2, b"", pending), 1)
        record(manifest, b"f", new, replaces=old)
    assert manifest.bases(b"f") == versions[2 : 2 + BASES]
    assert manifest.replicas.acknowledged() == manifest.newest()
    assert manifest.replicas.pending() == set()
    assert manifest.replicas.waited_for() == []


def _state(manifest: Manifest) -> list[tuple[object, ...]]:
    """Return all that a manifest knows of paths."""
    paths = [path for path, _ in manifest.all_rows()]
    return [(path, manifest.row(path), *manifest.past.versions(path)) for path in paths]


@pytest.mark.parametrize(
    "odd", [None, "edited", "young", "gone before", "goes with less", "old hand", "timed", "far ahead"]
)
def test_a_folder_that_goes_is_recorded_at_once_as_its_files_would_be_one_by_one(
    manifest: Manifest, tmp_path: Path, odd: str | None
) -> None:
    first, stamp = version(1, 1), Stamp(ReplicaId(9), 5)
    there = {b"d/%d" % n: file(b"%d" % n, seen=first) for n in range(2 * WHOLE_FOLDER)}
    there |= {
        b"d/l": symlink(b"x", seen=first),
        b"d/\xff'\"": file(b"", seen=first),
        b"d/s": directory(seen=first),
    }
    there |= {b"d/s/%d" % n: file(b"s", seen=first) for n in range(WHOLE_FOLDER)}
    there |= {b"d2/stays": file(b"stays", seen=first), b"e": file(b"e", seen=first)}
    match odd:
        case "edited":
            there[b"d/1"] = file(b"edited", seen=version(1, 2))
        case "young":
            there[b"d/1"] = file(b"1", seen=first, revision=7)
        case "gone before":
            there[b"d/1"] = tombstone(first)
        case "old hand":
            there[b"d/1"] = file(b"1", seen=first, revision=REMEMBERED + 2)
    gone = [
        Record(path, Row(vanish(entry, stamp)), entry)
        for path, entry in there.items()
        if entry.alive and path.startswith(b"d/")
    ]
    if odd == "goes with less":
        gone = [one for one in gone if one.path != b"d/1"]
    if odd in ("timed", "far ahead"):
        path, row, before = gone[0]
        unlike = {"mtime_ns": 5} if odd == "timed" else {"revision": 9}
        gone[0] = Record(path, Row(replace(row.entry, **unlike)), before)
    Manifest.create(os.fsencode(tmp_path / "other.db"), "other").close()
    other = Manifest.open(os.fsencode(tmp_path / "other.db"))
    earlier = [file(b"%d" % n, seen=version(1, n + 2), revision=n + 1) for n in range(REMEMBERED + 1)]
    for one in (manifest, other):
        with one.transaction():
            one.record(
                [Record(path, Row(entry, STAT if entry.size else None)) for path, entry in there.items()]
            )
        if odd == "old hand":
            for old, new in pairwise([*earlier, there[b"d/1"]]):
                record(one, b"d/1", new, replaces=old)
    with manifest.transaction():
        manifest.record(gone)
    with other.transaction():
        seq = other.next_seq()
        for each in gone:
            other.record_under(seq, [each])
    assert _state(manifest) == _state(other)
    living = {path for path, row in manifest.all_rows() if row and row.entry.alive}
    assert living == {path for path, entry in there.items() if entry.alive} - {one.path for one in gone}
    other.close()


def test_a_folder_of_which_all_goes_is_recorded_in_a_few_statements(manifest: Manifest) -> None:
    there = {b"d/%d" % n: file(b"%d" % n, seen=version(1, 1)) for n in range(100)}
    with manifest.transaction():
        manifest.record([Record(path, Row(entry)) for path, entry in there.items()])
    stamp = manifest.next_stamp()
    gone = [Record(path, Row(vanish(entry, stamp)), entry) for path, entry in there.items()]
    statements: list[str] = []
    manifest._db.set_trace_callback(statements.append)
    with manifest.transaction():
        manifest.record(gone)
    assert len(statements) < 20


# -- ticks (I2)


def ticks(place: bytes, number: int) -> list[int]:
    """Open the manifest, use this many stamps, close it."""
    manifest = Manifest.open(place)
    used = []
    for _ in range(number):
        stamp = manifest.next_stamp()
        with manifest.transaction():
            manifest.use(stamp)
        used.append(stamp.tick)
    manifest.close()
    return used


def test_no_tick_is_issued_twice(place: bytes) -> None:
    used = ticks(place, 50) + ticks(place, 50)
    assert used == sorted(set(used))


@pytest.mark.parametrize("now_ns", [0, -(10**18), 10**15])
def test_no_tick_is_issued_twice_when_the_clock_is_set_back(
    place: bytes, monkeypatch: pytest.MonkeyPatch, now_ns: int
) -> None:
    before = ticks(place, 3)
    monkeypatch.setattr(time, "time_ns", lambda: now_ns)
    after = ticks(place, 3) + ticks(place, 3)
    assert before + after == sorted({*before, *after})


def test_ticks_follow_the_clock_so_that_they_outlive_a_lost_manifest(
    place: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time_ns() + 10**12
    monkeypatch.setattr(time, "time_ns", lambda: now)
    assert ticks(place, 2) == [now // 1000, now // 1000 + 1]


def test_an_older_stamp_does_not_set_the_clock_back(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamp = manifest.next_stamp()
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    with manifest.transaction():
        manifest.use(stamp)
        manifest.use(Stamp(stamp.replica, 1))
    assert manifest.next_stamp().tick > stamp.tick


def test_of_very_many_ticks_the_latest_are_recalled_and_earlier_ones_not_doubted(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest_module, "RECALLED", 2)
    with manifest.transaction():
        for tick in (10, 20, 30, 40):
            manifest.use(Stamp(ReplicaId(1), tick))
        assert not manifest.has_used(15)
        manifest.forget_ticks()
    assert [manifest.has_used(tick) for tick in (20, 25, 30, 35, 40)] == [True, True, True, False, True]


def test_a_stamp_that_was_not_used_may_be_issued_again(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 10**18)
    assert manifest.next_stamp() == manifest.next_stamp()
    assert NOTHING.bump(manifest.next_stamp()).tick_of(manifest.identity().replica) == 10**15


# -- what a scan may skip


def test_a_fingerprint_stands_until_it_is_forgotten(manifest: Manifest) -> None:
    with manifest.transaction():
        manifest.set_fingerprints({b"": b"1", b"d": b"2", b"e": b"3"})
        manifest.forget_fingerprints([b"d"])
        manifest.set_fingerprints({b"e": None})
    assert [manifest.fingerprint(path) for path in (b"", b"d", b"e", b"f")] == [b"1", None, None, None]


def test_a_folder_that_was_forgotten_is_known_by_another_number_if_it_comes_back(manifest: Manifest) -> None:
    for path in (b"gone/a", b"stays/a"):
        record(manifest, path, file(b"1"))
    with manifest.transaction():
        manifest.forget([b"gone/a"])
        manifest.forget_folders()
    record(manifest, b"new/a", file(b"1"))
    record(manifest, b"gone/b", file(b"2"))
    assert manifest.homeless() == []
    assert [manifest.entry(path) for path in (b"gone/b", b"new/b")] == [file(b"2"), None]


def test_what_is_skipped_is_new_once(manifest: Manifest) -> None:
    with manifest.transaction():
        assert manifest.skip([b"a", b"b"]) == [b"a", b"b"]
        assert manifest.skip([b"b", b"c"]) == [b"c"]


# -- kept texts and peers


def test_where_texts_are_kept_is_remembered(manifest: Manifest) -> None:
    extents = [Extent(digest(b"%d" % n), n, n, n, n) for n in range(700)]
    with manifest.transaction():
        manifest.texts.keep(extents)
    asked = [digest(b"%d" % n) for n in range(650, 1400)]
    assert manifest.texts.kept(asked) == set(asked[:50])
    assert manifest.texts.extent(digest(b"5")) == extents[5]
    assert manifest.texts.extent(digest(b"700")) is None


def test_a_peer_is_in_step_only_with_nothing_left_behind(manifest: Manifest) -> None:
    peer = Identity(ReplicaId(5), "peer", 1)
    synced = []
    for pending, now in (([b"left"], 100.5), ([], 200.5), ([b"left"], 300.5)):
        with manifest.transaction():
            manifest.replicas.set_mark(peer, Mark(1, 2, b"", pending), now)
        synced.append(manifest.replicas.all()[0].synced_at)
    assert synced == [None, 200, 200]


def test_of_peers_that_are_to_be_asked_of_too_many_paths_all_is_asked(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2psync.replicas.MAX_PATHS", 2)
    peer, mark = Identity(ReplicaId(5), "peer", 1), Mark(1, 2, b"", [b"left"])
    with manifest.transaction():
        manifest.replicas.set_mark(peer, mark, 1)
        manifest.replicas.ask_again([b"a"])
        assert manifest.replicas.mark(peer.replica) == Mark(1, 2, b"", [b"a", b"left"])
        manifest.replicas.ask_again([b"b"])
    assert manifest.replicas.mark(peer.replica) == Mark(0, 2, b"", [b"a", b"left"])


def test_a_peer_is_remembered_with_its_latest_address_and_name(manifest: Manifest) -> None:
    with manifest.transaction():
        manifest.replicas.met(ReplicaId(5), "host:old")
        manifest.replicas.met(ReplicaId(5), "host:\udcff")
        manifest.replicas.set_mark(Identity(ReplicaId(5), "peer", 1), Mark(1, 2, b""), 1)
    (peer,) = manifest.replicas.all()
    assert (peer.replica, peer.name, peer.address, peer.acknowledged) == (5, "peer", "host:\udcff", 0)


def known_peers(manifest: Manifest) -> list[int]:
    """Return the replicas of which more is known than the name."""
    return [peer.replica for peer in manifest.replicas.all() if manifest.replicas.mark(peer.replica)]


def meet(manifest: Manifest, peer: int, *addresses: str) -> None:
    with manifest.transaction():
        manifest.replicas.set_mark(Identity(ReplicaId(peer), f"name {peer}", 1), Mark(1, 2, b""), 1)
        for address in addresses:
            manifest.replicas.met(ReplicaId(peer), address)


def test_who_answered_at_an_address_is_forgotten_but_for_the_name(manifest: Manifest) -> None:
    meet(manifest, 5, "host:x")
    meet(manifest, 6, "host:x")
    meet(manifest, 7, "host:other")
    meet(manifest, 8)  # it only ever called
    with manifest.transaction():
        manifest.replicas.forget("host:x", ["host:other"])
    assert known_peers(manifest) == [7, 8]
    assert [peer.name for peer in manifest.replicas.all()] == ["name 5", "name 6", "name 7", "name 8"]
    assert manifest.replicas.answers_at("host:x") is None


def test_who_answered_at_another_address_that_stays_is_not_forgotten(manifest: Manifest) -> None:
    meet(manifest, 5, "vpn:x", "host:x")
    with manifest.transaction():
        manifest.replicas.forget("host:x", ["vpn:x"])
    assert known_peers(manifest) == [5]
    with manifest.transaction():
        manifest.replicas.forget("vpn:x", ["host:x"])  # which was another's once
    assert known_peers(manifest) == []


def test_an_address_belongs_to_who_answered_there_last(manifest: Manifest) -> None:
    with manifest.transaction():
        manifest.replicas.met(ReplicaId(5), "host:x")
        manifest.replicas.met(ReplicaId(6), "host:x")
    assert {peer.replica: peer.address for peer in manifest.replicas.all()} == {5: "", 6: "host:x"}
