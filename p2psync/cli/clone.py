"""The command `clone`."""

from __future__ import annotations

import os

import click

from p2psync.cli.options import (
    EXIT_CODES,
    Connection,
    Directory,
    absolute,
    connection_options,
    exits,
    is_terminal,
)
from p2psync.errors import Exit, ReplicaError


@click.command(
    epilog=exits(Exit.CONFLICTS, Exit.GUARD, Exit.UNREACHABLE, Exit.LOCKED, ok=EXIT_CODES[Exit.IN_STEP])
)
@click.argument("address")
@click.argument("directory", required=False, type=Directory(exists=False))
@click.option("--name", metavar="NAME", help="What people call the new replica.  [default: host:directory]")
@click.option(
    "--peer", metavar="NAME", default="origin", show_default=True, help="What ADDRESS is called as a peer."
)
@click.option("--create", is_flag=True, help="Make ADDRESS a replica if it is none yet.")
@connection_options
@click.option("-q", "--quiet", is_flag=True, help="Only tell of problems.")
@click.pass_context
def clone(
    context: click.Context,
    address: str,
    directory: bytes | None,
    name: str | None,
    peer: str,
    create: bool,
    connection: Connection,
    quiet: bool,
) -> None:
    """Make DIRECTORY a replica with all that is at ADDRESS, which becomes its peer.

    DIRECTORY is new or empty; by default it is called as the folder at ADDRESS. A clone that was interrupted
    is carried on by `p2psync sync` in it, or by the same command.
    """
    from p2psync import config, local, render, run
    from p2psync.core.paths import shown
    from p2psync.peer import parse_address
    from p2psync.progress import Line, Silent
    from p2psync.root import is_sidecar

    place = absolute(address)
    target = directory or os.path.basename(os.path.normpath(parse_address(place).path))
    if not target or target in (b".", b"..", b"/", b"~"):
        raise click.UsageError("say into which DIRECTORY: the address names none")
    target = os.path.abspath(target)
    chosen = config.Peer(peer, place, **connection)
    begun = is_sidecar(os.path.join(target, b".p2psync"))
    if begun and chosen.address not in (known.address for known in config.peers(target)):
        raise ReplicaError(
            f"{shown(target)} is a replica already, and {place} is no peer of it: to sync them, say"
            f" `p2psync sync {place}` there"
        )
    if not begun and os.path.isdir(target) and set(os.listdir(target)) - {b".p2psync"}:
        raise ReplicaError(
            f"{shown(target)} is not empty: to sync it with {place}, say `p2psync init` there, and then"
            f" `p2psync sync {place}`"
        )
    if not begun:
        local.init(target, name)
        config.add_peer(target, chosen)
    talkative = is_terminal(2) and not quiet
    with Line() if talkative else Silent() as progress:
        options = run.Options(create=create)
        runs = run.sync(target, [chosen], options, progress, lambda question: False)
    if not begun and not any(one.results or one.received for one in runs):
        _take_back(target)
    render.report(runs, quiet=quiet, verbose=False, dry_run=False)
    context.exit(run.worst(runs))


def _take_back(target: bytes) -> None:
    """Leave nothing of a clone of what is no replica, or not there: the next try may name another."""
    import shutil

    shutil.rmtree(os.path.join(target, b".p2psync"))
    if not os.listdir(target):
        os.rmdir(target)
