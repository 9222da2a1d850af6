"""The database under the manifest: how it is opened, and what its errors mean. Owns SQLite's settings."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from typing import Any

from p2psync.disk import FULL_SYNC, fill_holes, free_on, no_files_left, opened_as
from p2psync.errors import Damaged, NoRoom, ReplicaError

SYNCHRONOUS = "FULL"
"""A commit that has returned outlives a power cut (I8)."""
DAMAGED = b".damaged"
"""Ends the name of a file that tells that the manifest is."""
_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)
_LOG_ENDS = (b"-wal", b"-journal")
"""End the names of the files that hold what is not in the database yet, or must leave it again."""
_INDEX_BYTES = 1 << 20
"""Of the index of the log, for 512 MiB of log: what a commit of some million files writes."""
_LEAST_INDEX_BYTES = 32 * 1024
"""What SQLite begins with: 16 MiB of log."""
_TRIES = 100
"""For a copy of a database that others write to meanwhile."""


def no_room(file: bytes) -> NoRoom:
    """Return the error of a disk that has no room for what must be written to a manifest."""
    sidecar = os.path.dirname(os.path.abspath(file))
    lacking = "are no inodes left" if no_files_left(sidecar) else "is no room"
    return NoRoom(
        f"there {lacking} on the disk of {os.fsdecode(os.path.dirname(sidecar))}, where p2psync has to write"
        " what it knows: delete something there"  # not history: that may be wanted back
    )


class _Found:
    """What a statement found. Reading it may meet damage that the statement itself has not."""

    __slots__ = ("_connection", "_cursor")

    def __init__(self, connection: sqlite3.Connection, cursor: sqlite3.Cursor) -> None:
        self._connection = connection
        self._cursor = cursor

    def __iter__(self) -> Iterator[Any]:
        with told(self._connection):
            for row in self._cursor:  # noqa: UP028 - it would close the cursor, perhaps after the database
                yield row

    def fetchone(self) -> Any:  # noqa: ANN401
        with told(self._connection):
            return self._cursor.fetchone()

    def fetchall(self) -> list[Any]:
        with told(self._connection):
            return self._cursor.fetchall()

    @property
    def rowcount(self) -> int:
        return self._cursor.rowcount


class Database(sqlite3.Connection):
    """A connection whose errors are told as what they are to a user: the sidecar's."""

    file: bytes = b""
    """Is marked if it turns out to be damaged."""
    place: bytes = b""
    """Where it is."""

    def execute(self, *args: Any) -> Any:  # noqa: ANN401
        """As sqlite3 has it, but for what can be done with the cursor."""
        with told(self):
            return _Found(self, super().execute(*args))

    def executemany(self, *args: Any) -> Any:  # noqa: ANN401
        """As `execute`."""
        with told(self):
            return _Found(self, super().executemany(*args))


class told:  # noqa: N801 - a class, for it is entered for every row
    """Turns errors of SQLite into ours; a damaged file is marked as such for the next run."""

    __slots__ = ("_connection",)

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Tell of errors of this connection."""
        self._connection = connection

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, (sqlite3.Error, UnicodeDecodeError)):
            return
        code, place = getattr(error, "sqlite_errorcode", None), getattr(self._connection, "place", b"")
        sidecar = os.path.dirname(os.path.abspath(place))
        if code in _FULL or (code == sqlite3.SQLITE_CANTOPEN and no_files_left(sidecar)):
            raise no_room(place) from error
        if code is not None and code & 0xFF == sqlite3.SQLITE_READONLY:
            place = f"{os.fsdecode(place)}, or its -wal or -shm beside it,"
            raise ReplicaError(f"{place} is write-protected: p2psync has to write to them") from error
        if not _is_damage(error):
            raise ReplicaError(f"the manifest cannot be used: {error}") from error
        file = getattr(self._connection, "file", b"")
        if file:
            mark_damaged(file)
        raise Damaged(f"the manifest is damaged: {error}; the next sync makes it anew") from error


def _is_damage(error: Exception) -> bool:
    """Is the file itself damaged, rather than out of reach, or in use?

    So it is if what is no text, or no table any more, should be one; else the error is of one of the kinds of
    `sqlite3.DatabaseError`.
    """
    if isinstance(error, sqlite3.OperationalError):
        return str(error).startswith(("no such ", "Could not decode "))
    return type(error) is sqlite3.DatabaseError or isinstance(error, UnicodeDecodeError)


def mark_damaged(file: bytes) -> None:
    """Have the next run that may do so make a manifest anew."""
    with contextlib.suppress(OSError):
        os.close(os.open(file + DAMAGED, os.O_WRONLY | os.O_CREAT, 0o600))


def connect(file: bytes) -> sqlite3.Connection:
    """Open a database; WAL where the file system can do it, a rollback journal where not.

    Raises:
        Damaged: it is no database any more.
        NoRoom: there is none to work with it.
        ReplicaError: it cannot be used.
    """
    connection = _opened(os.fsdecode(file), file)
    try:
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA journal_mode = WAL")  # answers with the mode it could get
        _make_index_whole(file)
        connection.execute(f"PRAGMA synchronous = {SYNCHRONOUS}")
        if FULL_SYNC:
            connection.execute("PRAGMA fullfsync = ON")  # for checkpoints too
        connection.execute("PRAGMA cache_size = -4096")
        connection.execute("PRAGMA user_version").fetchone()
    except ReplicaError:
        connection.close()
        raise
    return connection


def _make_index_whole(file: bytes) -> None:
    """Have the disk set aside the index of the log, which is a file with holes in memory.

    A page of it for which the disk has no block when it is written to kills the process (SIGBUS).
    RACE: so it may before this, in the instant since SQLite has made the index.

    Raises:
        NoRoom: the disk is full.
    """
    try:
        fd = opened_as(os.stat(file + b"-shm"))  # who closes another one drops the locks of SQLite
    except FileNotFoundError:  # there is no log
        return
    if fd is None:
        return
    size = min(max(free_on(fd) // 64, _LEAST_INDEX_BYTES), _INDEX_BYTES)  # the log cannot take more than that
    if not (fill_holes(fd, size) or fill_holes(fd, _LEAST_INDEX_BYTES)):
        raise no_room(file)


def copied(file: bytes) -> sqlite3.Connection:
    """Return a copy in memory of a database beside which nothing can be written, as SQLite has to.

    Others may write to it meanwhile, also to one on a disk that is read-only here.

    Raises:
        Damaged: it is no database any more.
        ReplicaError: it cannot be read.
    """
    for _ in range(_TRIES):
        before = _state(file)
        # Whose log is there, it is open, or who had it open was killed: the log has to be read, and there are
        # locks. Else nobody has it open, and nothing is locked.
        how = "mode=ro" if any(before[1:]) else "immutable=1"
        memory = _opened(":memory:", file)
        try:
            with told(memory), contextlib.closing(_opened(f"file:{_quoted(file)}?{how}", file)) as source:
                source.backup(memory)
            memory.execute("PRAGMA user_version").fetchone()
        except Damaged:
            memory.close()
            if _state(file) == before:
                raise
            continue
        except ReplicaError:
            memory.close()
            raise
        if any(before[1:]) or _state(file) == before:
            return memory
        memory.close()
    raise ReplicaError("the manifest cannot be read: others write to it all the time")


def _opened(name: str, file: bytes) -> Database:
    try:
        connection = sqlite3.connect(
            name,
            timeout=10,
            isolation_level=None,
            check_same_thread=False,
            factory=Database,
            uri=name.startswith("file:"),
        )
    except sqlite3.Error as error:
        raise ReplicaError(f"the manifest cannot be used: {error}") from error
    connection.place = file
    return connection


def _state(file: bytes) -> tuple[object, ...]:
    """Return what changes when somebody writes to a database: first of it, then whether it has a log."""
    st = os.stat(file)
    state: list[object] = [(st.st_ino, st.st_size, st.st_mtime_ns)]
    for end in _LOG_ENDS:
        try:
            state.append(os.stat(file + end).st_size > 0)
        except FileNotFoundError:
            state.append(False)
    return tuple(state)


def _quoted(file: bytes) -> str:
    from urllib.parse import quote  # costs milliseconds, and is rarely needed

    return quote(os.path.abspath(file))


def is_sound(database: sqlite3.Connection) -> bool:
    """Does SQLite find nothing wrong with the file?"""
    try:
        return bool(database.execute("PRAGMA quick_check(1)").fetchone() == ("ok",))
    except Damaged:
        return False
