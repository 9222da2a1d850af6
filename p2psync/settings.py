"""Settings: what can be set, where, and which value counts. Owns the table of all settings.

A flag counts first, then the environment (`P2PSYNC_SECTION_KEY`), then `.p2psync/config.toml` of the
replica, then `$XDG_CONFIG_HOME/p2psync/config.toml` of the user.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from p2psync.core.choose import Mode
from p2psync.core.guard import parse_max_delete
from p2psync.core.model import Prefer
from p2psync.core.pace import parse_compress, parse_rate
from p2psync.errors import ReplicaError


class SettingsError(ReplicaError):
    """A setting is wrong, or there is none of that name."""


class Setting(NamedTuple):
    """Something that can be set."""

    section: str
    key: str
    kind: type
    """Of its value: str, int, float, bool or list (of texts)."""
    default: Any
    help: str
    check: Callable[[Any], object] = lambda value: None
    """Raises ValueError for a value that makes no sense."""

    @property
    def name(self) -> str:
        """How it is called: `section.key`."""
        return f"{self.section}.{self.key}"


def _one_of(*choices: str) -> Callable[[Any], object]:
    def check(value: str) -> None:
        if value not in choices:
            raise ValueError(f"it is one of {', '.join(choices)}")

    return check


def _at_least_zero(value: float) -> None:
    if not value >= 0:
        raise ValueError("it is a number from 0 on")


def _percent(value: float) -> None:
    if not 0 <= value <= 100:
        raise ValueError("it is a number from 0 to 100")


def _port(value: int) -> None:
    if not 0 < value < 65536:
        raise ValueError("it is a number from 1 to 65535")


MAX_SIZE = 1 << 20
"""Characters of a file."""
POLICIES = [each.value for each in Prefer if each is not Prefer.SKIP]
_CONNECTION = (
    ("ssh-command", str, None, "the ssh to use", lambda value: None),
    ("port", int, None, "port of the peer's sshd", _port),
    ("remote-command", str, None, "p2psync on the peer", lambda value: None),
    ("reuse", bool, True, "keep the connection for the next sync", lambda value: None),
    ("compress", str, "auto", "compress what goes over ssh: auto, on, off", parse_compress),
    ("bwlimit", str, "0", "send no faster, each way: 500 (KiB/s), 10M; 0: no limit", parse_rate),
)
SETTINGS = {
    setting.name: setting
    for setting in (
        Setting(
            "sync", "prefer", str, "both", "what becomes of versions that do not merge", _one_of(*Prefer)
        ),
        Setting("sync", "max-delete", str, None, "how many files a sync may delete", parse_max_delete),
        Setting("sync", "lock-wait", float, 10.0, "seconds to wait for another run", _at_least_zero),
        Setting("history", "days", float, 30.0, "how long the history is kept", _at_least_zero),
        Setting("history", "percent", float, 10.0, "of the disk, at most, for the history", _percent),
        Setting("ui", "color", str, "auto", "auto, always, never", _one_of("auto", "always", "never")),
        Setting(
            "ui",
            "progress",
            str,
            "auto",
            "auto, plain, json, off",
            _one_of("auto", "plain", "json", "off"),
        ),
        Setting("hooks", "on_change", list, [], "command after a sync of a watch that changed something"),
        Setting("hooks", "on_conflict", list, [], "command after one that set a conflict aside"),
        Setting("hooks", "on_error", list, [], "command after one that met an error"),
        Setting("hooks", "shell", bool, False, "have a shell run these commands"),
        *(Setting("connection", *rest) for rest in _CONNECTION),
    )
}
"""All but those of a peer, and the tables `merge` and `conflicts`, whose keys are patterns."""
PEER = {
    setting.key: setting
    for setting in (
        Setting("peer", "address", str, None, "a path, [user@]host:path or ssh://[user@]host[:port]/path"),
        *(Setting("peer", *rest) for rest in _CONNECTION),
        Setting("peer", "mode", str, "two-way", "which way changes go: " + ", ".join(Mode), _one_of(*Mode)),
        Setting("peer", "paths", list, [], "only what is there and below"),
        Setting("peer", "exclude", list, [], "patterns of what is left out"),
    )
}
"""Those of a peer: `peer.NAME.KEY`."""
TABLES = {
    "merge": "how texts are merged, by pattern: text, union, binary, or a command that is given base, ours"
    " and theirs, and prints the merge (by the keys of JSON, TOML and YAML: with a command, as no kept"
    " library does it and leaves the rest of the file as it was)",
    "conflicts": f"what becomes of versions that do not merge, by pattern: {', '.join(POLICIES)}",
}
_SECTIONS = ["peer", *TABLES, *dict.fromkeys(setting.section for setting in SETTINGS.values())]


class Value(NamedTuple):
    """A value that counts, and where it is from."""

    value: Any
    origin: str
    """A file, a variable of the environment, or `default`."""


@dataclass
class Settings:
    """What is set for one replica."""

    values: dict[str, Value]
    """By name: of all settings, and of peers and patterns as far as they are set."""

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401 - of the setting's kind
        """Return the value of a setting."""
        return self.values[name].value

    def table(self, section: str) -> dict[str, str]:
        """Return the table `merge` or `conflicts`: by pattern, in order."""
        start = f"{section}."
        return {name[len(start) :]: v.value for name, v in self.values.items() if name.startswith(start)}


def user_file() -> str:
    """Return where the settings of the user are."""
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return os.path.join(base, "p2psync", "config.toml")


def root_file(root: bytes) -> str:
    """Return where the settings of a replica are."""
    return os.path.join(os.fsdecode(root), ".p2psync", "config.toml")


def load(root: bytes | None) -> Settings:
    """Return what is set.

    Args:
        root: of the replica; None: what is set for none.

    Raises:
        SettingsError: a file or a variable is wrong; told are the place and what is known.
    """
    values = {name: Value(setting.default, "default") for name, setting in SETTINGS.items()}
    for file in (user_file(), *([root_file(root)] if root is not None else [])):
        values.update(dict(_of_file(file)))
    variables = {_variable(name): name for name in SETTINGS}
    sections = tuple({_variable(f"{setting.section}.") for setting in SETTINGS.values()})
    for variable, text in os.environ.items():
        name = variables.get(variable, "")
        if not name and variable.startswith(sections):
            raise SettingsError(f"there is no setting {variable}{nearest(variable, list(variables))}")
        if name and text:
            values[name] = Value(parse(SETTINGS[name], text, variable), variable)
    return Settings(values)


def _variable(name: str) -> str:
    return "P2PSYNC_" + name.replace(".", "_").replace("-", "_").upper()


def parse(setting: Setting, text: str, place: str) -> Any:  # noqa: ANN401 - of the setting's kind
    """Return the value that a text stands for; raises SettingsError."""
    value: Any = text
    try:
        if setting.kind is bool:
            value = _BOOLS[text.lower()]
        elif setting.kind in (int, float):
            value = setting.kind(text)
        elif setting.kind is list:
            command = setting.section == "hooks" and text.strip()
            value = text if command else [part for part in text.split(",") if part]
        setting.check(value)
    except KeyError:
        raise SettingsError(f"{place}: {text!r} is neither true nor false") from None
    except ValueError as error:
        raise SettingsError(f"{place}: {text!r} makes no sense for {setting.name}: {error}") from None
    return value


_BOOLS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def read(file: str) -> dict[str, Any]:
    """Return what a file holds, unchecked; nothing, if there is none.

    Raises:
        SettingsError: it cannot be read, or is no TOML.
    """
    try:
        if stat.S_ISFIFO(os.stat(file).st_mode):
            raise SettingsError(f"cannot read {file}: it is a fifo, and who opens it waits for ever")
        with open(file, encoding="utf-8-sig") as source:
            import tomllib  # costs milliseconds, and mostly there is no such file

            text = source.read(MAX_SIZE + 1)
        if len(text) > MAX_SIZE:
            raise SettingsError(f"cannot read {file}: it is larger than {MAX_SIZE >> 20} MiB")
        return tomllib.loads(text)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:  # of TOML, or of its letters
        raise SettingsError(f"cannot read {file}: {error}") from error


def check(file: str) -> None:
    """Raise a SettingsError if something is wrong with a file."""
    for _ in _of_file(file):
        pass


def _of_file(file: str) -> Iterator[tuple[str, Value]]:
    for section, table in read(file).items():
        if section not in _SECTIONS:
            raise _unknown(file, section, _SECTIONS, "", section)
        if not isinstance(table, dict):
            raise SettingsError(f"{file}{_line(file, '', section)}: {section} is no table: write [{section}]")
        if section == "peer":
            for peer, settings in table.items():
                yield from _peer(file, peer, settings)
        elif section in TABLES:
            for pattern, value in table.items():
                yield f"{section}.{pattern}", Value(_policy(file, section, pattern, value), file)
        else:
            known = {s.key: s for s in SETTINGS.values() if s.section == section}
            yield from _table(file, section, table, known)


def _peer(file: str, peer: str, settings: object) -> Iterator[tuple[str, Value]]:
    if not isinstance(settings, dict) or "address" not in settings:
        raise SettingsError(f"{file}{_line(file, '', f'peer.{peer}')}: [peer.{peer}] has no address")
    yield from _table(file, f"peer.{peer}", settings, PEER)


def _table(
    file: str, section: str, table: Mapping[str, Any], known: Mapping[str, Setting]
) -> Iterator[tuple[str, Value]]:
    for key, value in table.items():
        if key not in known:
            raise _unknown(file, key, list(known), section, key)
        yield f"{section}.{key}", Value(_checked(file, section, known[key], value), file)


def _checked(file: str, section: str, setting: Setting, value: Any) -> Any:  # noqa: ANN401
    place = f"{file}{_line(file, section, setting.key)}: [{section}]: {setting.key}"
    if section == "hooks" and setting.kind is list:
        words = value if isinstance(value, list) else [value]
        if not words or not all(isinstance(word, str) and word for word in words):
            raise SettingsError(f"{place} should be a command or a list of words, not {value!r}")
        return value
    kinds = (int, float) if setting.kind is float else (setting.kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and setting.kind is not bool):
        wanted = {str: "a text", int: "a number", float: "a number", bool: "true or false"}
        raise SettingsError(f"{place} should be {wanted.get(setting.kind, 'a list of texts')}, not {value!r}")
    if isinstance(value, list) and not all(isinstance(text, str) for text in value):
        raise SettingsError(f"{place} should be a list of texts")
    try:
        setting.check(value)
    except ValueError as error:
        raise SettingsError(f"{place} = {value!r} makes no sense: {error}") from None
    return value


def _policy(file: str, section: str, pattern: str, value: object) -> str:
    place = f"{file}{_line(file, section, pattern)}: [{section}]: {pattern!r}"
    if not isinstance(value, str) or not value:
        raise SettingsError(f"{place} should be a text")
    if section == "conflicts" and value not in POLICIES:
        raise SettingsError(f"{place} = {value!r} makes no sense: it is one of {', '.join(POLICIES)}")
    return value


def _unknown(file: str, key: str, known: list[str], section: str, shown: str) -> SettingsError:
    where = f"[{section}]: " if section else ""
    return SettingsError(
        f"{file}{_line(file, section, shown)}: {where}there is no setting {key!r}{nearest(key, known)}"
    )


def nearest(word: str, known: list[str]) -> str:
    """Return a question that names what was probably meant, or else all that there is."""
    import difflib

    near = [name for name in known if name.endswith(f".{word}")] or difflib.get_close_matches(word, known, 1)
    return f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"


def _line(file: str, section: str, key: str) -> str:
    """Return `:12`, the line of a file at which a key is, or a table begins; nothing, if it is not found."""
    header = re.compile(r"\s*\[\s*([^\]]+?)\s*\]")
    now = ""
    with open(file, encoding="utf-8", errors="replace") as source:
        for number, line in enumerate(source, 1):
            found = header.match(line)
            if found:
                now = found[1].replace('"', "").replace("'", "")
                if not section and (now == key or now.startswith(f"{key}.")):
                    return f":{number}"
            elif now == section and line.split("=")[0].strip().strip("\"'") == key:
                return f":{number}"
    return ""
