"""The database under the manifest: how it is opened, and what its errors mean. Owns SQLite's settings."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from typing import Any

from p2psync.errors import Damaged, ReplicaError

SYNCHRONOUS = "FULL"
"""A commit that has returned outlives a power cut (I8)."""
DAMAGED = b".damaged"
"""Ends the name of a file that tells that the manifest is."""


class _Cursor(sqlite3.Cursor):
    """A cursor whose errors are told as what they are to a user: the sidecar's."""

    def __next__(self) -> Any:  # noqa: ANN401
        with told(self.connection):
            return super().__next__()

    def fetchone(self) -> Any:  # noqa: ANN401
        with told(self.connection):
            return super().fetchone()


class Database(sqlite3.Connection):
    """A connection with such cursors."""

    file: bytes = b""

    def cursor(self, factory: Any = _Cursor) -> Any:  # noqa: ANN401
        """As sqlite3 has it."""
        return super().cursor(factory)

    def execute(self, *args: Any) -> sqlite3.Cursor:  # noqa: ANN401
        """As sqlite3 has it."""
        with told(self):
            return super().execute(*args)

    def executemany(self, *args: Any) -> sqlite3.Cursor:  # noqa: ANN401
        """As sqlite3 has it."""
        with told(self):
            return super().executemany(*args)


class told:  # noqa: N801 - a class, for it is entered for every row
    """Turns errors of SQLite into ours; a damaged file is marked as such for the next run."""

    __slots__ = ("_connection",)

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Tell of errors of this connection."""
        self._connection = connection

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, sqlite3.Error):
            return
        if type(error) is not sqlite3.DatabaseError:  # none of its kinds: the file itself is damaged
            raise ReplicaError(f"the manifest cannot be used: {error}") from error
        file = getattr(self._connection, "file", b"")
        if file:
            with contextlib.suppress(OSError):
                os.close(os.open(file + DAMAGED, os.O_WRONLY | os.O_CREAT, 0o600))
        raise Damaged(f"the manifest is damaged: {error}; the next sync makes it anew") from error


def connect(file: bytes) -> sqlite3.Connection:
    """Open a database; WAL where the file system can do it, a rollback journal where not.

    Raises:
        Damaged: it is no database any more.
        ReplicaError: it cannot be used.
    """
    try:
        connection = sqlite3.connect(
            os.fsdecode(file), timeout=10, isolation_level=None, check_same_thread=False, factory=Database
        )
    except sqlite3.Error as error:
        raise ReplicaError(f"the manifest cannot be used: {error}") from error
    try:
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA journal_mode = WAL")  # answers with the mode it could get
        connection.execute(f"PRAGMA synchronous = {SYNCHRONOUS}")
        connection.execute("PRAGMA cache_size = -8192")
        connection.execute("PRAGMA user_version").fetchone()
    except ReplicaError:
        connection.close()
        raise
    return connection


def is_sound(database: sqlite3.Connection) -> bool:
    """Does SQLite find nothing wrong with the file?"""
    try:
        return bool(database.execute("PRAGMA quick_check(1)").fetchone() == ("ok",))
    except Damaged:
        return False
