"""The commands that make replicas, name their peers, say how they stand, and serve them."""

from __future__ import annotations

import os
from contextlib import closing
from typing import TYPE_CHECKING

import click

from p2psync.cli.options import (
    JSON,
    Commands,
    Connection,
    Directory,
    absolute,
    chosen_peers,
    connection_options,
    exits,
    find_root,
    is_terminal,
    own,
)
from p2psync.errors import Exit

if TYPE_CHECKING:
    from collections.abc import Callable

    from p2psync.core.replica import Replica


@click.command(epilog=exits())
@click.argument("directory", type=Directory(exists=False), default=b".")
@click.option("--name", metavar="NAME", help="What people call this replica.  [default: host:directory]")
def init(directory: bytes, name: str | None) -> None:
    """Make DIRECTORY (default: the current one) a replica.

    Its state is kept in DIRECTORY/.p2psync. Doing it twice changes nothing.
    """
    from p2psync import local
    from p2psync.core.paths import shown

    if not directory:
        raise click.UsageError("the name of the directory is empty")
    made = local.init(directory, name)
    what = "is a replica now" if made else "was a replica already; nothing changed"
    click.echo(f"{shown(os.path.realpath(directory))} {what}")


@click.group(cls=Commands, epilog=exits())
def peer() -> None:
    """Add, list, rename, remove and test the peers of this replica."""


@peer.command("add", epilog=exits())
@click.argument("name")
@click.argument("address")
@connection_options
def peer_add(
    name: str,
    address: str,
    connection: Connection,
) -> None:
    """Remember ADDRESS as the peer NAME; nothing is contacted yet.

    ADDRESS is a path, [user@]host:path, or ssh://[user@]host[:port]/path.
    """
    from p2psync import config

    added = config.Peer(name, absolute(address), **connection)
    config.add_peer(find_root(), added)
    click.echo(f"added {name}: {added.address}")


@peer.command("list", epilog=exits())
@JSON
def peer_list(as_json: bool) -> None:
    """List the configured peers, and who else is waited for, since it was synced with.

    Those are mostly replicas that sync to this one. Deletions are remembered for them, and what they had last
    is kept to merge from, until `peer remove`.
    """
    from p2psync import config, render_peers
    from p2psync.local import LocalReplica

    root = find_root()
    known = config.peers(root)
    with closing(LocalReplica(root, lock=False)) as replica:
        others = replica.others(peer.address for peer in known)
    if as_json:
        told = render_peers.list_json(known, others)
    else:
        told = render_peers.list_text(known, others, is_terminal(1))
    click.echo(told, nl=False)


@peer.command("rename", epilog=exits())
@click.argument("name")
@click.argument("new")
def peer_rename(name: str, new: str) -> None:
    """Call the peer NAME by another name, NEW; nothing else changes."""
    from p2psync import config

    config.rename_peer(find_root(), name, new)
    click.echo(f"renamed {name} to {new}")


@peer.command("test", epilog=exits(Exit.UNREACHABLE, Exit.LOCKED))
@click.argument("peer", metavar="PEER-OR-ADDRESS")
@connection_options
@JSON
def peer_test(peer: str, connection: Connection, as_json: bool) -> None:
    """Connect to a peer and tell how it is there: versions, speed, clock, what the file system can do.

    No file is touched.
    """
    from p2psync import render_peers
    from p2psync.run import test_peer

    root = find_root()
    (chosen,) = chosen_peers(root, (peer,), connection)
    tested = render_peers.Tested(chosen, *test_peer(chosen, root))
    click.echo(render_peers.tested_json(tested) if as_json else render_peers.tested_text(tested), nl=False)


@peer.command("remove", epilog=exits(Exit.LOCKED))
@click.argument("name")
def peer_remove(name: str) -> None:
    """Forget the peer NAME, and the replica that answers there; nothing is touched there.

    Where no peer has that name, all replicas called so are forgotten that sync to this one: `peer list` has
    them.

    Deletions are not kept for it any more: what is deleted here, and it still has a month later, comes back
    if it is ever synced with again.
    """
    from p2psync import config

    root = find_root()
    with own(root) as replica:
        known = config.peers(root)
        count = 0
        if all(peer.name != name for peer in known):
            count = replica.forget_others(name, [peer.address for peer in known])
        if not count:
            removed = config.remove_peer(root, name)
            replica.forget_peers(removed.address, [other.address for other in config.peers(root)])
    click.echo(f"removed {name}" if count < 2 else f"removed {count} replicas called {name}")


def _parse_age(context: click.Context, option: click.Parameter, text: str | None) -> float:
    from p2psync.status import parse_age

    try:
        return parse_age(text) if text is not None else 0.0
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.command(epilog=exits(Exit.LOCKED, ok="0 done; 1 with --check, a peer is out of step"))
@click.option("--check", is_flag=True, help="Only name peers that are out of step; exit with 1 if any is.")
@click.option(
    "--max-age",
    metavar="AGE",
    callback=_parse_age,
    help="With --check: a peer may be out of step for so long: 90s, 15m, 2h, 3d.",
)
@JSON
@click.pass_context
def status(context: click.Context, check: bool, max_age: float, as_json: bool) -> None:
    """Show what changed here since the last sync, how it stands with each peer, and a running watch."""
    import time

    from p2psync import render_status
    from p2psync.status import status

    now = status(find_root())
    if not check:
        click.echo(render_status.as_json(now) if as_json else render_status.text(now), nl=False)
        return
    late = [peer for peer in now.peers if peer.out_of_step(time.time(), max_age)]
    click.echo(render_status.as_json(now) if as_json else render_status.late_text(late), nl=False)
    context.exit(Exit.CONFLICTS if late else Exit.IN_STEP)


@click.command(epilog=exits(Exit.UNREACHABLE, Exit.LOCKED))
@click.argument("root", required=False, type=click.Path(path_type=bytes))
@click.option("--create", is_flag=True, help="Make ROOT a replica if it is none yet.")
@click.option(
    "--restrict-to",
    metavar="PATH",
    type=click.Path(path_type=bytes),
    help="Open nothing but PATH and what is below it. Without ROOT, it is what the other side asks for.",
)
@click.option("--read-only", is_flag=True, help="Change no file of ROOT.")
@click.option("--append-only", is_flag=True, help="Keep all of the history of ROOT, however old.")
@click.option("--beside", type=Directory(), hidden=True, help="Where the other side is, on this machine.")
@click.pass_context
def serve(
    context: click.Context,
    root: bytes | None,
    create: bool,
    restrict_to: bytes | None,
    read_only: bool,
    append_only: bool,
    beside: bytes | None,
) -> None:
    """Be the far end of a sync: speak to a p2psync elsewhere over stdin and stdout.

    Started by ssh; not meant to be typed, except into authorized_keys, to restrict what a key may do:

    \b
    restrict,command="p2psync serve --restrict-to /srv/notes" ssh-ed25519 AAAA...
    """
    import signal
    from functools import partial

    from p2psync import restrict
    from p2psync.local import open_replica
    from p2psync.serve import serve_stdio

    opener: Callable[..., Replica] = partial(open_replica, neighbour=beside)
    if restrict_to is not None or read_only or append_only:
        within = None if restrict_to is None else os.path.abspath(restrict_to)
        opener = restrict.Key(within, read_only, append_only).open
    if beside is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal it goes to all; who started us ends us
    if root is None:
        if restrict_to is None:
            raise click.UsageError("Missing argument 'ROOT'.", context)
        root, create = restrict.request(os.environb.get(b"SSH_ORIGINAL_COMMAND", b""))
    try:
        context.exit(serve_stdio(root, opener, create))
    except KeyboardInterrupt:
        if beside is not None:  # who started us has ended us, and says why
            os._exit(Exit.INTERRUPTED)
        raise
