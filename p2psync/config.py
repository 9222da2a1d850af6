"""`.p2psync/config.toml`: the peers a replica has. Owns the file; comments in it survive."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from p2psync import settings
from p2psync.core.retention import Limits
from p2psync.errors import Exit, P2PSyncError, ReplicaError

if TYPE_CHECKING:
    import tomlkit

_CONNECTION = ("ssh-command", "port", "remote-command", "reuse", "compress", "bwlimit")
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


def peers(root: bytes) -> list[Peer]:
    """Return the configured peers, in their order, with what is set for all connections.

    Raises:
        SettingsError: a file cannot be read, or holds what p2psync does not know.
    """
    found = settings.load(root)
    usual = {key: found[f"connection.{key}"] for key in _CONNECTION}
    names = dict.fromkeys(name[5:].rpartition(".")[0] for name in found.values if name.startswith("peer."))
    peers = []
    for name in names:
        own = {key: found.values.get(f"peer.{name}.{key}") for key in settings.PEER}
        values: dict[str, Any] = usual | {key: value.value for key, value in own.items() if value}
        values = {k.replace("-", "_"): tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        peers.append(Peer(name, **values))
    return peers


def unnamed(root: bytes, address: str) -> Peer:
    """Return a peer that is not configured, with what is set for all connections; raises as `peers`."""
    found = settings.load(root)
    usual: dict[str, Any] = {key.replace("-", "_"): found[f"connection.{key}"] for key in _CONNECTION}
    return Peer(address, address, **usual)


def history_limits(root: bytes) -> Limits:
    """Return how much history is kept; raises as `peers`."""
    found = settings.load(root)
    return Limits(found["history.days"], found["history.percent"])


def hooks(root: bytes) -> dict[str, list[str]]:
    """Return the commands of `[hooks]`, split into words.

    Each is a list of words, or a text that is split as a shell would, or, with `shell = true`, left to `sh`.

    Raises:
        SettingsError: a file cannot be read, or holds what p2psync does not know.
    """
    import shlex

    found = settings.load(root)
    commands = {}
    for key in HOOKS:
        value = found[f"hooks.{key}"]
        if isinstance(value, str) and value:
            try:
                value = ["sh", "-c", value] if found["hooks.shell"] else shlex.split(value)
            except ValueError as error:
                raise settings.SettingsError(f"[hooks]: {key} cannot be split into words: {error}") from error
        if value:
            commands[key] = value
    return commands


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
    document = _document(settings.root_file(root))
    table = tomlkit.table()
    usual = Peer(peer.name, peer.address)
    for key in settings.PEER:
        value, default = (getattr(one, key.replace("-", "_")) for one in (peer, usual))
        if key == "address" or value != default:
            table[key] = list(value) if isinstance(value, tuple) else value
    document.setdefault("peer", tomlkit.table(is_super_table=True))[peer.name] = table
    _write(settings.root_file(root), document)


def remove_peer(root: bytes, name: str) -> Peer:
    """Remove a peer from the configuration, and return it; nothing is touched on the peer.

    Raises:
        ConfigError: there is none of that name.
        ReplicaError: the file cannot be written.
    """
    removed = next((known for known in peers(root) if known.name == name), None)
    if removed is None:
        raise ConfigError(f"there is no peer {name}: `p2psync peer list` shows those that there are")
    document = _own_peer(root, name)
    del document["peer"][name]
    _write(settings.root_file(root), document)
    return removed


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
    document = _own_peer(root, name)
    table = tomlkit.table(is_super_table=True)
    for key, value in document["peer"].items():
        table[new if key == name else key] = value
    document["peer"] = table
    _write(settings.root_file(root), document)


def _own_peer(root: bytes, name: str) -> Any:  # noqa: ANN401 - tomlkit's document
    """Return the settings of a replica that hold a peer.

    Raises:
        ConfigError: they do not: those of the user do.
    """
    document = _document(settings.root_file(root))
    if name not in document.get("peer", {}):
        raise ConfigError(f"the peer {name} is in {settings.user_file()}, for all replicas: change it there")
    return document


def _check_free(root: bytes, name: str) -> None:
    """Refuse a name for a peer that cannot be used, or is in use, with a ConfigError."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} cannot name a peer: use letters, digits, '.', '_' and '-'")
    if any(known.name == name for known in peers(root)):
        raise ConfigError(f"there is a peer {name} already: `p2psync peer remove {name}` removes it")


# -- single settings


def set_value(file: str, name: str, text: str) -> None:
    """Set a setting in a file, and keep its comments.

    Raises:
        SettingsError: there is no such setting, or the value makes no sense.
        ReplicaError: the file cannot be written.
    """
    import tomlkit

    section, key, setting = _place(name)
    settings.check(file)
    if section in settings.TABLES and not text:
        raise ConfigError(f"say what is to be done with {key}: it is empty")
    try:
        value: Any = settings.parse(setting, text, name) if setting else text
    except settings.SettingsError as error:
        raise ConfigError(str(error)) from error
    if section == "conflicts" and value not in settings.POLICIES:
        raise ConfigError(f"{value!r} makes no sense: it is one of {', '.join(settings.POLICIES)}")
    document = _document(file)
    table: Any = document
    for part in section.split(".", 1):
        if part not in table:
            table[part] = tomlkit.table(is_super_table=part == "peer")
        table = table[part]
    if section.startswith("peer.") and "address" not in table:
        raise ConfigError(f"there is no {section} in {file}: `p2psync peer add` adds a peer")
    table[key] = value
    _write(file, document)


def unset_value(file: str, name: str) -> bool:
    """Remove a setting from a file; return False if it was not there; raises as `set_value`."""
    section, key, _ = _place(name)
    settings.check(file)
    document = _document(file)
    table: Any = document
    for part in section.split(".", 1):
        table = table.get(part, {})
    if key not in table:
        return False
    del table[key]
    _write(file, document)
    return True


def known_name(name: str) -> str:
    """Return the name of a setting if there is one; raises as `set_value`."""
    _place(name)
    return name


def _place(name: str) -> tuple[str, str, settings.Setting | None]:
    """Return section and key of a setting, and what is known of it; a pattern has nothing of the kind."""
    section, _, key = name.partition(".")
    if section in settings.TABLES and key:
        return section, key, None
    if section == "peer":
        peer, _, key = key.rpartition(".")
        if key in settings.PEER and peer:
            return f"peer.{peer}", key, settings.PEER[key]
        raise ConfigError(f"there is no setting {name!r}{settings.nearest(key, list(settings.PEER))}")
    if name in settings.SETTINGS:
        return section, key, settings.SETTINGS[name]
    raise ConfigError(f"there is no setting {name!r}{settings.nearest(name, list(settings.SETTINGS))}")


def _document(file: str) -> tomlkit.TOMLDocument:
    import tomlkit

    try:
        with open(file, encoding="utf-8") as source:
            return tomlkit.load(source)
    except FileNotFoundError:
        return tomlkit.document()


def _write(file: str, document: tomlkit.TOMLDocument) -> None:
    import tomlkit

    file = os.path.realpath(file)  # who keeps such files elsewhere has links to them
    try:
        os.makedirs(os.path.dirname(file), exist_ok=True)
        with open(file + ".new", "w", encoding="utf-8") as target:
            tomlkit.dump(document, target)
            target.flush()
            os.fsync(target.fileno())
        os.replace(file + ".new", file)
    except OSError as error:
        raise ReplicaError(f"cannot write {file}: {error.strerror}") from error
