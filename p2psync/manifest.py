"""The manifest: every path's entry, in SQLite. Owns the schema, the rows, sequence numbers and ticks.

One transaction a step. A sequence number is the number of the commit that last changed a row, so that
"what changed since" is one range. Directories have numbers: rows are short, and a directory whose
fingerprint stands costs none of them.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from p2psync import holders
from p2psync.columns import (
    BASES,
    ENTRY,
    IS_COMMON,
    VALUES,
    blob,
    decoded,
    entry_columns,
    entry_of,
    row_of,
    version_of,
)
from p2psync.core.model import Digest, Entry, Kind, Record, Row
from p2psync.core.order import WHOLE_FOLDER
from p2psync.core.paths import join, split
from p2psync.core.replica import RECALLED, RECALLED_STEP, VERSIONS, Change, Identity, Point
from p2psync.core.vector import NOTHING, ReplicaId, Stamp, Version
from p2psync.database import DAMAGED, connect, copied, is_sound, mark_damaged, told
from p2psync.errors import Damaged, ReplicaError
from p2psync.past import Past, Run
from p2psync.replicas import Replicas
from p2psync.samples import Samples
from p2psync.texts import Texts

_T = TypeVar("_T")

SCHEMA_VERSION = 4
REMEMBERED = 100
"""Earlier versions remembered of each path."""
_ONCE_MORE = (
    "ON CONFLICT (path, version) DO UPDATE SET (seq, born, revision, mode, mtime_ns)"
    " = (excluded.seq, excluded.born, excluded.revision, excluded.mode, excluded.mtime_ns)"
    " WHERE kind = excluded.kind AND digest = excluded.digest AND size = excluded.size"
)
"""A version is remembered as it was when it was last there. One that has other contents, which breaks I1,
does not take the place of the first: a peer could have that forgotten."""

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE directory (id INTEGER PRIMARY KEY, path BLOB NOT NULL UNIQUE, fingerprint BLOB);
CREATE TABLE entry (
    directory INTEGER NOT NULL, name BLOB NOT NULL, seq INTEGER NOT NULL, born INTEGER NOT NULL,
    kind INTEGER NOT NULL, version BLOB NOT NULL, revision INTEGER NOT NULL, digest BLOB NOT NULL,
    size INTEGER NOT NULL, mode INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, target BLOB NOT NULL,
    stat_mtime_ns INTEGER, stat_ctime_ns INTEGER, stat_inode INTEGER, racy INTEGER NOT NULL,
    PRIMARY KEY (directory, name)) WITHOUT ROWID;
CREATE INDEX entry_seq ON entry (seq);
CREATE INDEX entry_born ON entry (born) WHERE born < seq;
CREATE TABLE remembered (
    path BLOB NOT NULL, seq INTEGER NOT NULL, born INTEGER NOT NULL,
    kind INTEGER NOT NULL, version BLOB NOT NULL, revision INTEGER NOT NULL, digest BLOB NOT NULL,
    size INTEGER NOT NULL, mode INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, target BLOB NOT NULL,
    UNIQUE (path, version));
CREATE INDEX remembered_seq ON remembered (seq);
CREATE INDEX remembered_born ON remembered (born);
CREATE TABLE run (
    seq INTEGER PRIMARY KEY, name TEXT NOT NULL, at INTEGER NOT NULL, kind TEXT NOT NULL, peer TEXT NOT NULL,
    size INTEGER NOT NULL);
CREATE INDEX run_name ON run (name);
CREATE TABLE conflict (
    seq INTEGER NOT NULL, path BLOB NOT NULL, resolution TEXT NOT NULL, copy BLOB NOT NULL,
    PRIMARY KEY (path, seq)) WITHOUT ROWID;
CREATE TABLE kept (
    digest BLOB PRIMARY KEY, offset INTEGER NOT NULL, length INTEGER NOT NULL,
    start INTEGER NOT NULL, size INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE peer (
    replica INTEGER PRIMARY KEY, name TEXT NOT NULL, address BLOB NOT NULL DEFAULT x'',
    synced_at INTEGER, acknowledged INTEGER NOT NULL DEFAULT 0, mark BLOB);
CREATE TABLE skipped (path BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE mount (path BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE nonce (seq INTEGER PRIMARY KEY, nonce INTEGER NOT NULL);
"""
_SAMPLE = "CREATE TABLE sample (hash BLOB, digest BLOB, PRIMARY KEY (hash, digest)) WITHOUT ROWID"
_LEFT_BEHIND = """CREATE TABLE left_behind (
    replica INTEGER, pending BLOB, acknowledged INTEGER NOT NULL, PRIMARY KEY (replica, pending))
    WITHOUT ROWID"""
"""Paths that a replica was left behind with, and what it had of this one's changes when they began to be."""
_USED = "CREATE TABLE used (tick INTEGER PRIMARY KEY)"
"""Ticks of this replica; all that it used before the first of them are not recalled."""
_SEEN = "CREATE TABLE seen (replica INTEGER PRIMARY KEY, tick INTEGER NOT NULL)"
"""The largest tick of each replica in any version that ever was here."""
_ANSWERED = (
    "CREATE TABLE answered (address BLOB, replica INTEGER, PRIMARY KEY (address, replica)) WITHOUT ROWID"
)
_HOLDER = """CREATE TABLE holder (
    digest BLOB, directory INTEGER, name BLOB, PRIMARY KEY (digest, directory, name)) WITHOUT ROWID"""
_UPGRADES = {
    1: (_SAMPLE,),
    2: (
        _LEFT_BEHIND,
        _USED,
        "INSERT INTO used SELECT value FROM meta WHERE key = 'tick'",
        _SEEN,
        _ANSWERED,
        "INSERT INTO answered SELECT address, replica FROM peer WHERE address != x''",
    ),
    3: (
        "DROP INDEX IF EXISTS entry_digest",
        "DROP INDEX IF EXISTS remembered_digest",
        _HOLDER,
        *holders.MAKE,
    ),
}
"""What brings a manifest of an older format to the next one."""


class Manifest:
    """An open manifest."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection
        self.is_copy = False
        """Is all that is written forgotten?"""
        self.past = Past(connection, self.entry)
        self.holders = holders.Holders(connection)
        self.texts = Texts(connection)
        self.samples = Samples(connection)
        self.replicas = Replicas(connection, self.newest)
        self.forgets = True
        """May earlier versions be forgotten, where there are very many of a path?"""
        self._directory_ids: dict[bytes, int] = {}
        self._missing_directory: bytes | None = None

    @classmethod
    def create(cls, file: bytes, name: str) -> Manifest:
        """Make the manifest of a new replica.

        Raises:
            ReplicaError: SQLite cannot write there.
        """
        manifest = cls(connect(file))
        with manifest.transaction():
            for statement in _SCHEMA.split(";\n"):
                manifest._db.execute(statement)
            for key, value in (
                ("replica", _random_bits(63) or 1),
                ("epoch", _random_bits(63) or 1),
                ("name", name),
                ("tick", 0),
                ("seq", 0),
                ("collected", int(time.time())),  # what has just begun has nothing to clean up
            ):
                manifest._db.execute("INSERT INTO meta VALUES (?, ?)", (key, value))
            manifest._upgrade(1)
        return manifest

    @classmethod
    def open(cls, file: bytes, copy: bool = False, locked: bool = True) -> Manifest:
        """Open an existing manifest.

        Args:
            file: where it is.
            copy: only look at it, for nothing can be written there: what is written is forgotten.
            locked: no other run is at work. If one may be, of an older p2psync perhaps, an older format is
                only looked at.

        Raises:
            Damaged: it is no manifest any more.
            NoRoom: there is none to work with it.
            ReplicaError: it is not there, cannot be used, or is of a newer p2psync.
        """
        try:
            os.stat(file)
        except FileNotFoundError:
            raise Damaged(f"the manifest {os.fsdecode(file)} is lost; the next sync makes it anew") from None
        except OSError as error:  # it may well be there, and sound
            raise ReplicaError(f"cannot open {os.fsdecode(file)}: {error.strerror}") from error
        if os.path.exists(file + DAMAGED):
            raise Damaged(f"the manifest {os.fsdecode(file)} is damaged; the next sync makes it anew")
        died = os.path.exists(file + b"-wal")
        database = copied(file) if copy else connect(file)
        try:
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version > SCHEMA_VERSION:
                raise ReplicaError(
                    f"the manifest {os.fsdecode(file)} has format {version}, this p2psync knows"
                    f" {SCHEMA_VERSION}: upgrade p2psync"
                )
            if version not in (*_UPGRADES, SCHEMA_VERSION) or (died and not is_sound(database)):
                raise Damaged(f"the manifest {os.fsdecode(file)} is damaged; the next sync makes it anew")
            if version < SCHEMA_VERSION and not (copy or locked):
                database.close()
                return cls.open(file, copy=True)
            setattr(database, "file", file)  # noqa: B010 - of Database
            manifest = cls(database)
            manifest.is_copy = copy
            if version < SCHEMA_VERSION:
                with manifest.transaction():
                    manifest._upgrade(version)
        except ReplicaError:
            database.close()
            raise
        return manifest

    def _upgrade(self, version: int) -> None:
        for older in range(version, SCHEMA_VERSION):
            for statement in _UPGRADES[older]:
                self._db.execute(statement)
        self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    @classmethod
    def make_anew(cls, file: bytes, name: str) -> Manifest:
        """Put a damaged manifest aside, if there is one, and make a new one that knows nothing.

        Raises:
            ReplicaError: SQLite cannot write there.
            OSError: it cannot be put aside.
        """
        aside = b"%s.damaged-%d" % (file, time.time())
        for end in (b"", b"-wal", b"-shm"):  # without its log a damaged one would look well closed
            with contextlib.suppress(FileNotFoundError):
                os.rename(file + end, aside + end)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(file + b".new")
        manifest = cls.create(file + b".new", name)
        with manifest.transaction():
            manifest._db.execute("INSERT INTO meta VALUES ('anew', 1)")
        manifest.close()
        os.rename(file + b".new", file)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(file + DAMAGED)
        return cls.open(file)

    def is_anew(self) -> bool:
        """Was it made anew, and the tree not scanned since?"""
        return self._db.execute("SELECT 1 FROM meta WHERE key = 'anew'").fetchone() is not None

    def set_scanned(self) -> None:
        """The tree has been scanned."""
        self._db.execute("DELETE FROM meta WHERE key = 'anew'")

    def close(self) -> None:
        """Close; what was not committed is forgotten."""
        self._db.close()

    @contextlib.contextmanager
    def transaction(self, begun: bool = False) -> Iterator[None]:
        """Commit what the block does, durably, or nothing of it.

        Args:
            begun: the transaction is open already; what was done in it belongs to the block.

        Raises:
            ReplicaError: SQLite cannot write: the disk is full, say.
        """
        try:
            if not begun:
                self.begin()
            yield
            self.holders.add()
            self._db.execute("COMMIT")
        except BaseException:
            self.roll_back()
            raise

    def begin(self) -> None:
        """Begin a transaction that `roll_back` ends, or a block of `transaction` that is told of it."""
        self._db.execute("BEGIN IMMEDIATE")

    def roll_back(self) -> None:
        """Forget the open transaction, if any."""
        self._directory_ids.clear()
        self.holders.roll_back()
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    # -- identity, clock, sequence numbers

    def identity(self) -> Identity:
        """Return who this replica is."""
        return Identity(ReplicaId(self._number("replica")), self._meta("name", str), self._number("epoch"))

    def next_stamp(self) -> Stamp:
        """Return a stamp never used before; not durable before `use` and a commit."""
        tick = max(self._number("tick") + 1, time.time_ns() // 1000)
        return Stamp(ReplicaId(self._number("replica")), tick)

    def use(self, stamp: Stamp) -> None:
        """Make sure that the tick of `stamp` is never issued again (I2), and is recalled as used."""
        self._db.execute("UPDATE meta SET value = max(value, ?) WHERE key = 'tick'", (stamp.tick,))
        self._db.execute("INSERT OR IGNORE INTO used VALUES (?)", (stamp.tick,))

    def newest(self) -> int:
        """Return the sequence number of the newest change."""
        return self._number("seq")

    def set_clock(self, tick: int) -> None:
        """Set the largest tick that was ever used; the identity must not stay what it is."""
        self._db.execute("UPDATE meta SET value = ? WHERE key = 'tick'", (tick,))

    def ahead_since(self, limit: int) -> int | None:
        """Return after which sequence number the clock was so far ahead that no peer takes what it marked.

        None if it was not. Where a peer did take over such ticks, this clock is behind now.

        Args:
            limit: the largest tick that peers take.
        """
        if self._number("tick") <= limit:
            return None
        (taken,) = self._db.execute("SELECT coalesce(max(acknowledged), 0) FROM peer").fetchone()
        for (data,) in self._db.execute("SELECT DISTINCT version FROM entry WHERE seq <= ?", (taken,)):
            with told(self._db):
                if any(stamp.tick > limit for stamp in version_of(data)):
                    return None
        return int(taken)

    def point(self) -> Point:
        """Return how far the changes go."""
        seq = self.newest()
        return Point(seq, self._nonce(seq) or 0)

    def _nonce(self, seq: int) -> int | None:
        found = self._db.execute("SELECT nonce FROM nonce WHERE seq = ?", (seq,)).fetchone()
        return int(found[0]) if found else None

    def recalled(self) -> list[Point]:
        """Return the changes that are recalled, the earliest first."""
        return [Point(*found) for found in self._db.execute("SELECT seq, nonce FROM nonce ORDER BY seq")]

    def has_used(self, tick: int) -> bool:
        """Has this replica ever used this tick, as far as it recalls?"""
        found = self._db.execute("SELECT 1 FROM used WHERE tick = ?", (tick,)).fetchone()
        (oldest,) = self._db.execute("SELECT min(tick) FROM used").fetchone()
        return found is not None or tick < oldest

    def forget_ticks(self) -> None:
        """Forget what was used before the latest of many ticks: that is not doubted any more."""
        self._db.execute(
            "DELETE FROM used WHERE tick <= (SELECT tick FROM used ORDER BY tick DESC LIMIT 1 OFFSET ?)",
            (RECALLED,),
        )

    def recalls(self, seq: int, nonce: int) -> bool:
        """Was there ever this change, as far as it recalls?"""
        known = self._nonce(seq)
        return seq <= max(0, self.newest() - RECALLED) if known is None else known == nonce

    def place(self) -> bytes | None:
        """Return where the manifest was when it got its identity; None if that is not known."""
        found = self._db.execute("SELECT value FROM meta WHERE key = 'place'").fetchone()
        return found[0] if found else None

    def settle(self, place: bytes) -> None:
        """Remember where the manifest is."""
        self._db.execute("INSERT OR REPLACE INTO meta VALUES ('place', ?)", (place,))

    def remint(self, since: int) -> None:
        """Become another replica.

        Versions marked by the old one, and recorded after sequence number `since`, are marked by the new one,
        as what follows the last version from before: the old mark may stand for something else elsewhere.
        """
        old = ReplicaId(self._number("replica"))
        for key in ("replica", "epoch"):
            self._db.execute("UPDATE meta SET value = ? WHERE key = ?", (_random_bits(63) or 1, key))
        stamp = self.next_stamp()
        self.use(stamp)
        renewed = []
        for path, entry in self.changes(since):
            if entry.version.tick_of(old):
                before = [
                    v.entry.version for v in self.past.versions(path) if v.seq is not None and v.born <= since
                ]
                version = (before or [NOTHING])[-1].bump(stamp)
                renewed.append((version.encode(), self._directory_id(split(path)[0]), split(path)[1]))
        self._db.executemany("UPDATE entry SET version = ? WHERE directory = ? AND name = ?", renewed)

    def next_seq(self) -> int:
        """Return a new sequence number, for what this transaction records."""
        self._db.execute("UPDATE meta SET value = value + 1 WHERE key = 'seq'")
        seq = self._number("seq")
        self._db.execute("INSERT INTO nonce VALUES (?, ?)", (seq, _random_bits(63)))
        self._db.execute("DELETE FROM nonce WHERE seq = ? AND seq % ? != 0", (seq - RECALLED, RECALLED_STEP))
        return seq

    def _meta(self, key: str, kind: type[_T]) -> _T:
        found = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        with told(self._db):
            if found is None or not isinstance(found[0], kind):
                raise sqlite3.DatabaseError(f"it has no {key}")
        return found[0]

    def _number(self, key: str) -> int:
        return self._meta(key, int)

    # -- rows

    def rows(self, directory: bytes) -> dict[bytes, Row]:
        """Return the rows of the children of a directory, by name."""
        found = self._db.execute(
            f"SELECT {ENTRY}, stat_mtime_ns, stat_ctime_ns, stat_inode, racy, name FROM entry"
            " WHERE directory = (SELECT id FROM directory WHERE path = ?)",
            (directory,),
        )
        return {columns[12]: self._row(columns) for columns in found}

    def rows_at(self, paths: Sequence[bytes]) -> Iterator[Row | None]:
        """Yield the rows of paths, in their order; neighbours in a folder are read at once."""
        for folder, group in itertools.groupby(map(split, paths), key=lambda parts: parts[0]):
            names = [name for _, name in group]
            if len(names) == 1:
                yield self.row(join(folder, names[0]))
                continue
            for start in range(0, len(names), VALUES):
                chunk = names[start : start + VALUES]
                found = self._db.execute(
                    f"SELECT {ENTRY}, stat_mtime_ns, stat_ctime_ns, stat_inode, racy, name FROM entry"
                    " WHERE directory = (SELECT id FROM directory WHERE path = ?)"
                    f" AND name IN ({','.join('?' * len(chunk))})",
                    (folder, *chunk),
                )
                rows = {columns[12]: self._row(columns) for columns in found}
                yield from map(rows.get, chunk)

    def row(self, path: bytes) -> Row | None:
        """Return the row of one path."""
        directory, name = split(path)
        if directory == self._missing_directory:
            return None
        known = self._db.execute("SELECT id FROM directory WHERE path = ?", (directory,)).fetchone()
        if known is None:
            self._missing_directory = directory
            return None
        columns = self._db.execute(
            f"SELECT {ENTRY}, stat_mtime_ns, stat_ctime_ns, stat_inode, racy FROM entry"
            " WHERE directory = ? AND name = ?",
            (*known, name),
        ).fetchone()
        return self._row(columns) if columns else None

    def entry(self, path: bytes) -> Entry | None:
        """Return the entry of one path."""
        row = self.row(path)
        return row.entry if row else None

    def changes(self, since: int) -> Iterator[Change]:
        """Yield the entries that changed after sequence number `since`."""
        found = self._db.execute(
            f"SELECT {ENTRY}, path, name FROM entry JOIN directory ON directory.id = entry.directory"
            " WHERE seq > ?",
            (since,),
        )
        return (Change(join(columns[8], columns[9]), self._entry(columns)) for columns in found)

    def record(self, records: Sequence[Record]) -> int:
        """Write rows under a new sequence number and return it; versions that they replace are remembered."""
        if not records:
            return self.newest()
        seq = self.next_seq()
        self.record_under(seq, records)
        return seq

    def record_under(self, seq: int, records: Sequence[Record]) -> None:
        """Write rows under a number that this transaction has taken, each path once; see `record`."""
        self.holders.recorded(seq, any(record.row.entry.kind is Kind.FILE for record in records))
        versions = {id(record.row.entry.version): record.row.entry.version for record in records}
        self.replicas.see(itertools.chain.from_iterable(versions.values()))
        records = self._record_gone(seq, records)
        superseded = [
            record
            for record in records
            if record.replaces and record.replaces.version != record.row.entry.version
        ]
        self._db.executemany(
            f"INSERT INTO remembered (path, seq, born, {ENTRY})"
            f" SELECT ?, ?, born, {ENTRY} FROM entry WHERE directory = ? AND name = ? {_ONCE_MORE}",
            (
                (path, seq, self._directory_id(folder), name)
                for path, _, _ in superseded
                for folder, name in (split(path),)
            ),
        )
        self._db.executemany(
            "DELETE FROM remembered WHERE path = ? AND seq <="
            " (SELECT seq FROM remembered WHERE path = ? ORDER BY seq DESC LIMIT 1 OFFSET ?)"
            f" AND NOT {IS_COMMON}",
            (
                (path, path, REMEMBERED)
                for path, row, _ in superseded
                if self.forgets and row.entry.revision > REMEMBERED
            ),
        )
        self._db.executemany(
            "INSERT OR REPLACE INTO entry VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
            (self._columns(record, seq) for record in records),
        )

    def _record_gone(self, seq: int, records: Sequence[Record]) -> Sequence[Record]:
        """Write the tombstones of folders in which nothing lives any more; return the records that are left.

        A tombstone has nothing of its own but its version. Where that is the same for a whole folder, as
        mostly it is, one statement writes all, in half the time.
        """
        groups: dict[bytes, list[Record]] = {}
        for record in records:
            if not record.row.entry.alive and record.replaces is not None and record.replaces.alive:
                groups.setdefault(split(record.path)[0], []).append(record)
        written: set[bytes] = set()
        for folder, group in groups.items():
            if len(group) >= WHOLE_FOLDER and self._record_folder_gone(seq, folder, group):
                written.update(record.path for record in group)
        return [record for record in records if record.path not in written] if written else records

    def _record_folder_gone(self, seq: int, folder: bytes, group: Sequence[Record]) -> bool:
        version = group[0].row.entry.version
        if not all(_is_plain_deletion(record, version) for record in group):
            return False
        directory = self._directory_id(folder)
        living = "FROM entry WHERE directory = ? AND kind != 0"
        if self._db.execute(f"SELECT count(*) {living}", (directory,)).fetchone() != (len(group),):
            return False
        self._db.execute(
            f"INSERT INTO remembered (path, seq, born, {ENTRY})"
            f" SELECT CAST(? || name AS BLOB), ?, born, {ENTRY} {living} {_ONCE_MORE}",
            (join(folder, b""), seq, directory),
        )
        self._db.execute(
            "UPDATE entry SET seq = ?, born = ?, kind = 0, version = ?, revision = revision + 1,"
            " digest = x'', size = 0, mode = 0, mtime_ns = 0, target = x'',"
            " stat_mtime_ns = NULL, stat_ctime_ns = NULL, stat_inode = NULL, racy = 0"
            " WHERE directory = ? AND kind != 0",
            (seq, seq, version.encode(), directory),
        )
        return True

    def vouch(self, records: Iterable[Record]) -> None:
        """Write the stats of unchanged entries."""
        self._db.executemany(
            "UPDATE entry SET stat_mtime_ns = ?, stat_ctime_ns = ?, stat_inode = ?, racy = ?"
            " WHERE directory = ? AND name = ?",
            (
                (*(row.stat or (None,) * 4)[1:], row.racy, self._directory_id(split(path)[0]), split(path)[1])
                for path, row, _ in records
            ),
        )

    def bases(self, path: bytes) -> list[Entry]:
        """Return the earlier versions of a path that a merge may start from, the latest last.

        The latest `BASES`, and those that other replicas had when they were last in step with this one. Where
        there are too many, those of the replicas that were so most lately.
        """
        found = self._db.execute(
            f"SELECT {ENTRY} FROM (SELECT *, row_number() OVER (ORDER BY seq DESC) AS place FROM remembered"
            f" WHERE path = ?) WHERE place <= {BASES} OR {IS_COMMON} ORDER BY seq DESC LIMIT {VERSIONS}",
            (path,),
        )
        return [self._entry(columns) for columns in found][::-1]

    def _columns(self, record: Record, seq: int) -> tuple[object, ...]:
        directory, name = split(record.path)
        entry, stat, racy = record.row
        vouching = stat[1:] if stat else (None, None, None)
        touched = record.replaces is not None and record.replaces.version == entry.version
        born = self._born(record.path) if touched else seq
        place = (self._directory_id(directory), blob(name))
        return (*place, seq, born, *entry_columns(entry), *vouching, int(racy))

    def _born(self, path: bytes) -> int:
        """Return under which number the present version of a path was recorded: a touch makes none."""
        place = (self._directory_id(split(path)[0]), split(path)[1])
        (born,) = self._db.execute(
            "SELECT born FROM entry WHERE directory = ? AND name = ?", place
        ).fetchone()
        return int(born)

    def _directory_id(self, path: bytes) -> int:
        known = self._directory_ids.get(path)
        if known is None:
            self._missing_directory = None
            self._db.execute("INSERT OR IGNORE INTO directory (path) VALUES (?)", (path,))
            (known,) = self._db.execute("SELECT id FROM directory WHERE path = ?", (path,)).fetchone()
            self._directory_ids[path] = known
        return int(known)

    def files(self) -> int:
        """Return how many files there are."""
        (count,) = self._db.execute("SELECT count(*) FROM entry WHERE kind = 1").fetchone()
        return int(count)

    # -- runs

    def named(self, part: bytes) -> list[bytes]:
        """Return the paths of what is there, and has this in its name."""
        found = self._db.execute(
            "SELECT path, name FROM entry JOIN directory ON directory.id = entry.directory"
            " WHERE instr(name, ?) AND kind != 0",
            (part,),
        )
        return [join(directory, name) for directory, name in found]

    def tombstones(self, tick: int) -> list[bytes]:
        """Return the paths deleted before `tick` whose deletion all known replicas have."""
        found = self._db.execute(
            f"SELECT {ENTRY}, path, name FROM entry JOIN directory ON directory.id = entry.directory"
            " WHERE kind = 0 AND seq <= ?",
            (self.replicas.acknowledged(),),
        )
        return [
            join(columns[8], columns[9])
            for columns in found
            if all(stamp.tick < tick for stamp in self._entry(columns).version)
        ]

    def forget(self, paths: Collection[bytes]) -> None:
        """Forget all that is known of these paths."""
        self.forget_present(paths)
        self._db.executemany("DELETE FROM remembered WHERE path = ?", ((path,) for path in paths))

    def forget_present(self, paths: Iterable[bytes]) -> None:
        """Forget what is at these paths; earlier versions stay."""
        self._db.executemany(
            "DELETE FROM entry WHERE directory = (SELECT id FROM directory WHERE path = ?) AND name = ?",
            map(split, paths),
        )

    def forget_folders(self) -> None:
        """Forget folders that are gone, if nothing is known any more of what was in them."""
        empty = self._db.execute(
            "SELECT id, path FROM directory WHERE path != x''"
            " AND NOT EXISTS (SELECT 1 FROM entry WHERE entry.directory = directory.id)"
            " AND NOT EXISTS (SELECT 1 FROM remembered WHERE remembered.path"
            " BETWEEN CAST(directory.path || '/' AS BLOB) AND CAST(directory.path || '0' AS BLOB))"
        )
        gone = []
        for number, path in empty.fetchall():
            entry = self.entry(path)
            if entry is None or entry.kind is not Kind.DIRECTORY:
                gone.append((number,))
        self._db.executemany("DELETE FROM directory WHERE id = ?", gone)
        self._directory_ids.clear()

    # -- what a scan may skip

    def fingerprint(self, directory: bytes) -> bytes | None:
        """Return the fingerprint of a directory at the last scan, if it vouches for its files."""
        found = self._db.execute("SELECT fingerprint FROM directory WHERE path = ?", (directory,)).fetchone()
        return found[0] if found else None

    def forget_fingerprints(self, directories: Iterable[bytes]) -> None:
        """Have these directories compared row by row at the next scan."""
        self._db.executemany(
            "UPDATE directory SET fingerprint = NULL WHERE path = ?", ((d,) for d in directories)
        )

    def set_fingerprints(self, fingerprints: Mapping[bytes, bytes | None]) -> None:
        """Write the fingerprints of directories."""
        self._db.executemany(
            "UPDATE directory SET fingerprint = ? WHERE id = ?",
            ((fingerprint, self._directory_id(path)) for path, fingerprint in fingerprints.items()),
        )

    def skip(self, paths: Iterable[bytes]) -> list[bytes]:
        """Remember paths that are no entries; return those not met before."""
        return [
            path
            for path in paths
            if self._db.execute("INSERT OR IGNORE INTO skipped VALUES (?)", (path,)).rowcount
        ]

    def skipped(self) -> list[bytes]:
        """Return the paths that are no entries."""
        return [path for (path,) in self._db.execute("SELECT path FROM skipped")]

    def forget_skipped(self, paths: Iterable[bytes]) -> None:
        """Forget paths that were no entries: if there is one again, it is told of."""
        self._db.executemany("DELETE FROM skipped WHERE path = ?", ((path,) for path in paths))

    def mounts(self) -> set[bytes]:
        """Return the directories on which something was mounted at the last scan."""
        return {path for (path,) in self._db.execute("SELECT path FROM mount")}

    def set_mounts(self, paths: Iterable[bytes]) -> None:
        """Remember on which directories something is mounted."""
        self._db.execute("DELETE FROM mount")
        self._db.executemany("INSERT INTO mount VALUES (?)", ((path,) for path in paths))

    # -- large contents

    def may_be_held(self, digest: Digest) -> bool:
        """May large contents be in a file here, or in one of a replica that has not seen the latest edits?"""
        return any(self.holders.of(digest)) or any(
            is_common or self.is_base(digest, path) for path, is_common in self.holders.before(digest)
        )

    def is_base(self, digest: Digest, path: bytes) -> bool:
        """Are contents among the latest of a file that is there?"""
        present = self.entry(path)
        return (
            present is not None
            and present.kind is Kind.FILE
            and any(base.digest == digest for base in self.bases(path))
        )

    def lists(self) -> int:
        """Return how many lists of chunks were kept when those were cleaned up last."""
        found = self._db.execute("SELECT value FROM meta WHERE key = 'lists'").fetchone()
        return int(found[0]) if found else 0

    def set_lists(self, count: int) -> None:
        """Remember how many lists of chunks were kept."""
        self._db.execute("INSERT OR REPLACE INTO meta VALUES ('lists', ?)", (count,))

    # -- what a check looks at

    def faults(self) -> list[str]:
        """Return what SQLite finds wrong with its file."""
        try:
            found = self._db.execute("PRAGMA integrity_check").fetchall()
            return [line for (line,) in found if line != "ok"]
        except (ReplicaError, sqlite3.DatabaseError) as error:
            return [str(error)]

    def give_up(self) -> None:
        """Have the next run that may do so make the manifest anew: it cannot be repaired."""
        mark_damaged(getattr(self._db, "file", b""))

    def clock(self) -> int:
        """Return the last tick issued."""
        return self._number("tick")

    def homeless(self) -> list[bytes]:
        """Return the names of rows that belong to no folder."""
        found = self._db.execute(
            "SELECT CAST(name AS BLOB) FROM entry WHERE directory NOT IN (SELECT id FROM directory)"
        )
        return [name for (name,) in found]

    def all_rows(self) -> Iterator[tuple[bytes, Row | None]]:
        """Yield every path and its row, folder by folder; None: it cannot be decoded."""
        found = self._db.execute(
            f"SELECT {ENTRY}, stat_mtime_ns, stat_ctime_ns, stat_inode, racy,"
            " CAST(path AS BLOB), CAST(name AS BLOB), typeof(name)"
            " FROM directory JOIN entry ON entry.directory = directory.id ORDER BY path"
        )
        return (
            (join(columns[12], columns[13]), decoded(row_of, columns) if columns[14] == "blob" else None)
            for columns in found
        )

    def all_remembered(self) -> Iterator[tuple[bytes, Entry | None]]:
        """Yield every earlier version and its path; None: it cannot be decoded."""
        found = self._db.execute(f"SELECT {ENTRY}, CAST(path AS BLOB) FROM remembered ORDER BY path, seq")
        return ((columns[8], decoded(entry_of, columns)) for columns in found)

    def add_repair(self, records: Sequence[Record], run: Run) -> None:
        """Vouch for files whose bytes were put back, and remember the run, under a number of its own.

        Their entries stay what they are: nothing about them is new to others, or could be undone.
        """
        self.vouch(records)
        self.past.add_run(run._replace(seq=self.next_seq()), ())

    def _entry(self, columns: Sequence[Any]) -> Entry:
        with told(self._db):
            return entry_of(columns)

    def _row(self, columns: Sequence[Any]) -> Row:
        with told(self._db):
            return row_of(columns)


def _is_plain_deletion(record: Record, version: Version) -> bool:
    """Does a record turn an entry into the tombstone of this version that follows it, and nothing else?"""
    revision = record.replaces.revision + 1 if record.replaces else 0
    tombstone = Entry(kind=Kind.TOMBSTONE, version=version, revision=revision)
    return revision <= REMEMBERED and record.row == Row(tombstone)


def _random_bits(count: int) -> int:
    """Return random bits; `secrets` would take milliseconds to import."""
    return int.from_bytes(os.urandom(8)) >> (64 - count)
