"""The command `diff`."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import click

from p2psync.cli.options import (
    JSON,
    Connection,
    chosen_peers,
    complain,
    connection_options,
    exits,
    find_root,
    inside,
    own,
    wants_colour,
)
from p2psync.errors import Exit

if TYPE_CHECKING:
    from p2psync.config import Peer


@click.command(epilog=exits(Exit.UNREACHABLE, Exit.LOCKED, ok="0 done; 1 with --exit-code, they differ"))
@click.argument("what", nargs=-1, metavar="[PEER-OR-ADDRESS] [PATH]...")
@click.option("--stat", is_flag=True, help="Only tell how much each path differs.")
@click.option("--exit-code", is_flag=True, help="End with 1 if there is a difference.")
@connection_options
@JSON
@click.pass_context
def diff(
    context: click.Context,
    what: tuple[str, ...],
    stat: bool,
    exit_code: bool,
    connection: Connection,
    as_json: bool,
) -> None:
    """Show how this replica and a peer differ now: texts line by line, a summary of the rest.

    `-` is what the peer has, `+` what is here. Without PEER it is the only one that is configured. With PATH:
    only what is there and below. Nothing is changed on either side.
    """
    from p2psync import render_diff
    from p2psync.compare import compare
    from p2psync.core.paths import shown
    from p2psync.peer import parse_address
    from p2psync.progress import Silent
    from p2psync.run import open_address

    root = find_root()
    peer, paths = _split(root, what, connection)
    within = [inside(root, path.encode("utf-8", "surrogateescape")) for path in paths]
    with ExitStack() as opened:
        home = opened.enter_context(own(root))
        far = open_address(parse_address(peer.address, port=peer.port), peer, root)
        opened.callback(far.close)
        found = compare(home, far, Silent(), within, texts=not as_json)
    for problem in found.problems:
        complain(f"{shown(problem.path)} {problem.why}")
    if as_json:
        click.echo(render_diff.as_json(found.found, peer.name), nl=False)
    elif stat:
        click.echo(render_diff.stat(found.found, peer.name), nl=False)
    else:
        sys.stdout.flush()
        for part in render_diff.text(found.found, peer.name, wants_colour(1)):
            sys.stdout.buffer.write(part)
        sys.stdout.buffer.flush()
    context.exit(Exit.CONFLICTS if exit_code and found.found else Exit.IN_STEP)


def _split(root: bytes, what: tuple[str, ...], connection: Connection) -> tuple[Peer, tuple[str, ...]]:
    """Tell the peer from the paths: a peer is named first, by its name or by an address."""
    from dataclasses import replace

    from p2psync.config import ConfigError, peers

    known = {peer.name: peer for peer in peers(root)}
    if what and (what[0] in known or _is_address(root, what[0])):
        return chosen_peers(root, what[:1], connection)[0], what[1:]
    if len(known) != 1:
        names = ", ".join(known) or "none is configured; `p2psync peer add NAME ADDRESS` adds one"
        raise ConfigError(f"name the peer to compare with, or its address ({names})")
    (only,) = known.values()
    return replace(only, **connection), what


def _is_address(root: bytes, text: str) -> bool:
    """Is it on another machine, or the root of another replica?"""
    from p2psync.root import find_root

    if ":" in text and not os.path.lexists(text):
        return True
    path = os.fsencode(text)
    other = find_root(path) if os.path.isdir(path) else None
    return other is not None and os.path.realpath(other) != os.path.realpath(root)
