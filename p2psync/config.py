"""`.p2psync/config.toml`: the peers a replica has. Owns the file; comments in it survive."""

from __future__ import annotations

import os
import re
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from p2psync.core.choose import Mode
from p2psync.core.pace import parse_compress, parse_rate
from p2psync.core.retention import Limits
from p2psync.errors import Exit, P2PSyncError, ReplicaError

if TYPE_CHECKING:
    import tomlkit

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class ConfigError(P2PSyncError):
    """What was asked of the configuration makes no sense."""

    exit_code = Exit.USAGE


@dataclass(frozen=True)
class Peer:
    """A replica to sync with, as configured: each field is a key in its table."""

    name: str
    address: str
    ssh_command: str | None = None
    port: int | None = None
    remote_command: str | None = None
    reuse: bool = True
    """Keep the connection for the next sync."""
    compress: str = "auto"
    """What is sent over ssh: the name of a `Compress`, in small letters."""
    bwlimit: str = "0"
    """How much of it, as `parse_rate` has it."""
    mode: str = "two-way"
    """Which way changes go: a `choose.Mode`."""
    paths: tuple[str, ...] = ()
    """Only what is there and below; empty: all."""
    exclude: tuple[str, ...] = ()
    """Patterns of what is left out."""


HOOKS = ("on_change", "on_conflict", "on_error")
_KEYS = {
    "address": str,
    "ssh-command": str,
    "port": int,
    "remote-command": str,
    "reuse": bool,
    "compress": str,
    "bwlimit": str,
    "mode": str,
    "paths": list,
    "exclude": list,
}


def peers(root: bytes) -> list[Peer]:
    """Return the configured peers, in their order.

    Raises:
        ReplicaError: the file cannot be read, or holds what p2psync does not know.
    """
    tables = _load(root).get("peer", {})
    return [_peer(name, table, os.fsdecode(_file(root))) for name, table in tables.items()]


def history_limits(root: bytes) -> Limits:
    """Return how much history is kept: `days` and `percent` (of the disk) in `[history]`.

    Raises:
        ReplicaError: the file cannot be read, or holds what p2psync does not know.
    """
    table = _load(root).get("history", {})
    if not isinstance(table, dict):
        raise ReplicaError(f"{os.fsdecode(_file(root))}: history is no table: write [history]")
    for key, value in table.items():
        known = key in Limits._fields
        if not known or isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            raise ReplicaError(
                f"{os.fsdecode(_file(root))}: [history]: {key} = {value!r} makes no sense;"
                " known are days and percent, both numbers"
            )
    return Limits(**table)


def hooks(root: bytes) -> dict[str, list[str]]:
    """Return the commands of `[hooks]`, split into words.

    Each is a list of words, or a text that is split as a shell would, or, with `shell = true`, left to `sh`.

    Raises:
        ReplicaError: the file cannot be read, or holds what p2psync does not know.
    """
    import shlex

    table = _load(root).get("hooks", {})
    place = os.fsdecode(_file(root))
    if not isinstance(table, dict):
        raise ReplicaError(f"{place}: hooks is no table: write [hooks]")
    commands = {}
    for key, value in table.items():
        words = value if isinstance(value, list) else [value]
        if key == "shell" and isinstance(value, bool):
            continue
        if key not in HOOKS or not words or not all(isinstance(word, str) and word for word in words):
            raise ReplicaError(
                f"{place}: [hooks]: {key} = {value!r} makes no sense; known are {', '.join(HOOKS)}, each a"
                " command or a list of words, and shell = true"
            )
        if isinstance(value, str):
            try:
                words = ["sh", "-c", value] if table.get("shell") else shlex.split(value)
            except ValueError as error:
                raise ReplicaError(f"{place}: [hooks]: {key} cannot be split into words: {error}") from error
        commands[key] = words
    return commands


def _load(root: bytes) -> dict[str, Any]:
    file = _file(root)
    try:
        with open(file, "rb") as source:
            return tomllib.load(source)
    except FileNotFoundError:
        return {}
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ReplicaError(f"cannot read {os.fsdecode(file)}: {error}") from error


def _peer(name: str, table: object, file: str) -> Peer:
    if not isinstance(table, dict) or "address" not in table:
        raise ReplicaError(f"{file}: [peer.{name}] has no address")
    for key, value in table.items():
        if key not in _KEYS:
            raise ReplicaError(f"{file}: [peer.{name}]: unknown key {key!r}; known are {', '.join(_KEYS)}")
        if not isinstance(value, _KEYS[key]):
            raise ReplicaError(f"{file}: [peer.{name}]: {key} should be of type {_KEYS[key].__name__}")
        if isinstance(value, list) and not all(isinstance(text, str) for text in value):
            raise ReplicaError(f"{file}: [peer.{name}]: {key} should be a list of texts")
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in table.items()
    }
    peer = Peer(name, **{key.replace("-", "_"): value for key, value in values.items()})
    try:
        Mode(peer.mode)
        parse_compress(peer.compress)
        parse_rate(peer.bwlimit)
    except ValueError as error:
        raise ReplicaError(f"{file}: [peer.{name}]: {error}") from error
    return peer


def add_peer(root: bytes, peer: Peer) -> None:
    """Add a peer.

    Raises:
        ConfigError: the name cannot be used, or is in use.
        ReplicaError: the file cannot be written.
    """
    import tomlkit

    _check_free(root, peer.name)
    if not peer.address.isprintable():
        raise ConfigError(
            "an address with control characters or odd bytes cannot be kept; name it on the command line"
        )
    document = _document(root)
    table = tomlkit.table()
    usual = Peer(peer.name, peer.address)
    for key in _KEYS:
        field = key.replace("-", "_")
        if key == "address" or getattr(peer, field) != getattr(usual, field):
            table[key] = getattr(peer, field)
    document.setdefault("peer", tomlkit.table(is_super_table=True))[peer.name] = table
    _write(root, document)


def remove_peer(root: bytes, name: str) -> None:
    """Remove a peer from the configuration; nothing is touched on the peer.

    Raises:
        ConfigError: there is none of that name.
        ReplicaError: the file cannot be written.
    """
    if all(known.name != name for known in peers(root)):
        raise ConfigError(f"there is no peer {name}: `p2psync peer list` shows those that there are")
    document = _document(root)
    del document["peer"][name]
    _write(root, document)


def rename_peer(root: bytes, name: str, new: str) -> None:
    """Call a peer by another name.

    Raises:
        ConfigError: there is none of that name, or the new one cannot be used, or is in use.
        ReplicaError: the file cannot be written.
    """
    import tomlkit

    if all(known.name != name for known in peers(root)):
        raise ConfigError(f"there is no peer {name}: `p2psync peer list` shows those that there are")
    _check_free(root, new)
    document = _document(root)
    table = tomlkit.table(is_super_table=True)
    for key, value in document["peer"].items():
        table[new if key == name else key] = value
    document["peer"] = table
    _write(root, document)


def _check_free(root: bytes, name: str) -> None:
    """Refuse a name for a peer that cannot be used, or is in use, with a ConfigError."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} cannot name a peer: use letters, digits, '.', '_' and '-'")
    if any(known.name == name for known in peers(root)):
        raise ConfigError(f"there is a peer {name} already: `p2psync peer remove {name}` removes it")


def _file(root: bytes) -> bytes:
    return os.path.join(root, b".p2psync", b"config.toml")


def _document(root: bytes) -> tomlkit.TOMLDocument:
    import tomlkit

    try:
        with open(_file(root), encoding="utf-8") as source:
            return tomlkit.load(source)
    except FileNotFoundError:
        return tomlkit.document()


def _write(root: bytes, document: tomlkit.TOMLDocument) -> None:
    import tomlkit

    file = _file(root)
    try:
        with open(file + b".new", "w", encoding="utf-8") as target:
            tomlkit.dump(document, target)
            target.flush()
            os.fsync(target.fileno())
        os.replace(file + b".new", file)
    except OSError as error:
        raise ReplicaError(f"cannot write {os.fsdecode(file)}: {error.strerror}") from error
