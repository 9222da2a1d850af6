"""What the commands share: types and options, and how they find the replica and its peers."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from typing import TYPE_CHECKING, Any

import click

from p2psync.errors import Exit, NotAReplica

if TYPE_CHECKING:
    from p2psync.config import Peer
    from p2psync.core.guard import MaxDelete
    from p2psync.drivers import Drivers
    from p2psync.local import LocalReplica
    from p2psync.settings import Settings


class Commands(click.Group):
    """A group that knows what was probably meant, and lists its commands by what they are for."""

    def __init__(self, *arguments: Any, **values: Any) -> None:  # noqa: ANN401 - as click has it
        super().__init__(*arguments, **values)
        self.sections: dict[str, str] = {}
        """Of each command, if they are many."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """As click has it, but in sections, and no sentence cut short."""
        listed: dict[str, list[tuple[str, str]]] = {}
        for name, section in self.sections.items() or ((one, "Commands") for one in self.list_commands(ctx)):
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                text = re.sub(r"\s+", " ", re.sub(r"\s\([^)]*\)", "", command.help or ""))
                short = re.split(r"[.:;] |, (?:in|and|but|also) |\.$", text)[0]
                listed[section] = [*listed.get(section, ()), (name, short)]
        for section, rows in listed.items():
            with formatter.section(section):
                formatter.write_dl(rows)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click has it."""
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            from p2psync.settings import nearest

            ctx.fail(f"there is no command {args[0]!r}{nearest(args[0], self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)


LOCK_WAIT = 10.0
"""Seconds that a command waits for another run to finish."""
YEAR_SECONDS = 366 * 24 * 3600.0
EXIT_CODES = {
    Exit.IN_STEP: "0 in step",
    Exit.CONFLICTS: "1 done, but conflicts were set aside or some paths have problems",
    Exit.USAGE: "2 wrong usage",
    Exit.FAILED: "3 failed",
    Exit.GUARD: "4 a guard tripped: nothing was changed",
    Exit.UNREACHABLE: "5 a peer could not be reached",
    Exit.LOCKED: "6 locked by another run",
    Exit.INTERRUPTED: "130 interrupted",
}


def exits(*codes: Exit, ok: str = "0 done") -> str:
    """Return the paragraph that ends a command's help."""
    told = [EXIT_CODES[code] for code in (*codes, Exit.USAGE, Exit.FAILED, Exit.INTERRUPTED)]
    return "Exit codes: " + "; ".join([ok, *sorted(told, key=lambda text: int(text.split()[0]))]) + "."


class Number(click.FloatRange):
    """A number in a range; NaN is in none."""

    def convert(self, value: Any, param: Any, ctx: Any) -> float:  # noqa: ANN401 - as click has it
        """As click has it."""
        number = float(super().convert(value, param, ctx))
        if number != number:
            self.fail("it is not a number", param, ctx)
        return number

    def _describe_range(self) -> str:
        return _range(self.min, self.max)


class Seconds(Number):
    """A time that somebody waits; more than a year of it is a year, which is all that systems can wait."""

    def convert(self, value: Any, param: Any, ctx: Any) -> float:  # noqa: ANN401 - as click has it
        """As click has it."""
        return min(super().convert(value, param, ctx), YEAR_SECONDS)


class Count(click.IntRange):
    """A whole number in a range."""

    def _describe_range(self) -> str:
        return _range(self.min, self.max)


def _range(low: float | None, high: float | None) -> str:
    """Return a range as people say it, not as click does (`x>=0`)."""
    return f"{low} to {high}" if high is not None else f"{low} or more"


class Directory(click.Path):
    """A directory as bytes, as the system knows it."""

    def __init__(self, exists: bool = True) -> None:
        super().__init__(exists=exists, file_okay=False, path_type=bytes)


def find_root() -> bytes:
    """Return the replica that the command is about.

    Raises:
        NotAReplica: there is none here or above.
    """
    from p2psync.root import find_root

    root = find_root(b".")
    if root is None:
        raise NotAReplica(f"{os.getcwd()} is not in a replica: `p2psync init` makes a directory one")
    return root


def _parse_rate(context: click.Context, option: click.Parameter, text: str | None) -> str | None:
    from p2psync.core.pace import parse_rate

    try:
        parse_rate(text or "0")
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    return text


def connection_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say how to reach a peer; those that are given are the command's `connection`."""

    @functools.wraps(command)
    def collecting(*arguments: Any, **values: Any) -> None:  # noqa: ANN401 - as click has it
        given = {name: values.pop(name) for name in _CONNECTION}
        if values.pop("compressed"):
            given["compress"] = "on"
        connection = {name: value for name, value in given.items() if value is not None}
        command(*arguments, connection=connection, **values)

    result: Callable[..., None] = collecting
    for option in (
        click.option(
            "--bwlimit",
            metavar="RATE",
            callback=_parse_rate,
            help="Send no faster than RATE over ssh, each way: 500 (KiB/s), 10M.  [default: no limit]",
        ),
        click.option("-z", "compressed", is_flag=True, help="The same as --compress on."),
        click.option(
            "--compress",
            type=click.Choice(["auto", "on", "off"]),
            help="Compress what goes over ssh; 'auto': what gets smaller, and harder on a slow line."
            "  [default: auto]",
        ),
        click.option(
            "--reuse/--no-reuse",
            default=None,
            help="Keep the connection for the next sync, for ten minutes.  [default: reuse, unless ssh is"
            " configured for that itself]",
        ),
        click.option("--remote-command", metavar="CMD", help="p2psync on the peer.  [default: p2psync]"),
        click.option("-p", "--port", type=Count(1, 65535), metavar="PORT", help="Port of the peer's sshd."),
        click.option("-e", "--ssh-command", metavar="CMD", help="The ssh to use.  [default: ssh]"),
    ):
        result = option(result)
    return result


_CONNECTION = ("ssh_command", "port", "remote_command", "reuse", "compress", "bwlimit")
Connection = dict[str, Any]
"""Fields of a `config.Peer`."""


def chosen_peers(root: bytes, names: tuple[str, ...], connection: Connection) -> list[Peer]:
    """Return the peers that were named, or all that are configured."""
    from dataclasses import replace

    from p2psync import config

    known = {peer.name: peer for peer in config.peers(root)}
    if not names and not known:
        raise config.ConfigError(
            "there is no peer to sync with: name one, or add it with `p2psync peer add NAME ADDRESS`"
        )
    chosen: dict[str, Peer] = {}
    for name in names or known:
        peer = replace(known.get(name) or _unnamed(root, name), **connection)
        chosen.setdefault(peer.address, peer)
    return list(chosen.values())


def _unnamed(root: bytes, address: str) -> Peer:
    """Return the peer at an address that is not configured.

    Raises:
        ConfigError: it is a bare word that names nothing.
    """
    from dataclasses import replace

    from p2psync.config import ConfigError, peers, unnamed

    if "/" not in address and ":" not in address and not os.path.isdir(address):
        raise ConfigError(
            f"there is no peer and no folder named {address!r}: `p2psync peer list` shows the peers,"
            f" and ./{address} with --create is a new folder"
        )
    place = absolute(address)
    known = next((peer for peer in peers(root) if peer.address == place), None)
    return known or replace(unnamed(root, place), name=address)


def absolute(text: str) -> str:
    """Return an address that means the same from any directory.

    Raises:
        AddressError: it is no address.
    """
    from p2psync.peer import Address, parse_address

    address = parse_address(text)
    return str(Address(os.path.abspath(address.path)) if address.host is None else address)


def is_terminal(fd: int) -> bool:
    """Is there a person at this end?"""
    try:
        return os.isatty(fd)
    except OSError:  # closed
        return False


def max_delete_of(found: Settings) -> MaxDelete:
    """Return how many files a sync may delete, as is set."""
    from p2psync.core.guard import HALF, parse_max_delete

    text = found["sync.max-delete"]
    return parse_max_delete(text) if text is not None else HALF


def drivers(found: Settings, policies: bool = True) -> Drivers | None:
    """Return the rules about merges and, with `policies`, about conflicts; None if there are none."""
    from p2psync.drivers import Drivers

    tables = found.table("merge"), found.table("conflicts") if policies else {}
    return Drivers(*tables) if any(tables) else None


def wants_colour(fd: int, found: Settings | None = None) -> bool:
    """Is what goes there to be coloured? `--color` says so, else NO_COLOR, else whether it is a terminal."""
    wish = click.get_current_context().find_root().params.get("color")
    wish = wish or (found["ui.color"] if found else "auto")
    if wish != "auto":
        return bool(wish == "always")
    return is_terminal(fd) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


prefer_option = click.option(
    "--prefer",
    type=click.Choice(["both", "newest", "local", "peer", "skip"]),
    help="What becomes of versions that do not merge. 'both': the winner keeps the name, the other becomes a"
    " conflict copy; 'skip': both stay as they are.  [default: both]",
)
DRY_RUN = click.option("-n", "--dry-run", is_flag=True, help="Only show what would be done.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


def inside(root: bytes, path: bytes) -> bytes:
    """Return a path as typed, relative to the root of the replica.

    Raises:
        ReplicaError: it is not in there, or can be no entry.
    """
    from p2psync.core.paths import check, shown
    from p2psync.errors import ReplicaError

    # The folder may be reached through links; what is at the path itself is never followed.
    folder, name = os.path.split(os.path.normpath(os.path.join(os.getcwdb(), path)))
    inside = os.path.relpath(os.path.join(os.path.realpath(folder), name), os.path.realpath(root))
    try:
        check(inside)
    except ValueError as error:
        raise ReplicaError(f"{shown(path)} is no path in the replica {shown(root)}") from error
    return inside


def refuse_sidecar(target: str) -> None:
    """Refuse to write to a path that lies in a sidecar.

    Raises:
        ReplicaError: it does.
    """
    from p2psync.core.paths import is_reserved, shown
    from p2psync.errors import ReplicaError

    folder, name = os.path.split(os.path.abspath(os.fsencode(target)))
    if any(map(is_reserved, (*os.path.realpath(folder).split(b"/"), name))):
        raise ReplicaError(
            f"{shown(os.fsencode(target))} lies in .p2psync, where nothing is put by hand: name another place"
        )


def own(root: bytes, waits: bool = True) -> AbstractContextManager[LocalReplica]:
    """Open the replica for a command that changes it; `waits` a little for another run to finish."""
    from p2psync.run import open_when_free

    return closing(open_when_free(root, LOCK_WAIT if waits else 0))


def complain(error: Exception | str) -> None:
    """Say on stderr what is wrong."""
    from p2psync.core.paths import printable

    click.echo(f"p2psync: error: {printable(str(error))}", err=True)
