"""The command `sync`."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import click

from p2psync.cli.options import (
    EXIT_CODES,
    Connection,
    Number,
    chosen_peers,
    connection_options,
    exits,
    find_root,
    is_terminal,
    prefer_option,
)
from p2psync.errors import Exit, P2PSyncError

if TYPE_CHECKING:
    from p2psync.core.guard import MaxDelete


def _parse_max_delete(context: click.Context, option: click.Parameter, text: str | None) -> MaxDelete:
    from p2psync.core.guard import HALF, parse_max_delete

    try:
        return parse_max_delete(text) if text is not None else HALF
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.command(
    epilog=exits(Exit.CONFLICTS, Exit.GUARD, Exit.UNREACHABLE, Exit.LOCKED, ok=EXIT_CODES[Exit.IN_STEP])
)
@click.argument("peers", nargs=-1, metavar="[PEER-OR-ADDRESS]...")
@click.option("-n", "--dry-run", is_flag=True, help="Only show what would happen; touch nothing.")
@prefer_option
@click.option("--create", is_flag=True, help="Make a peer a replica that is none yet.")
@click.option(
    "--max-delete",
    metavar="N|N%",
    callback=_parse_max_delete,
    help="Delete at most so many files, or such a share of them, from any side; else change nothing and exit"
    " with 4.  [default: 50%, but always up to 20]",
)
@click.option("--approve", metavar="PLAN-ID", default="", help="Carry out the plan that was refused, once.")
@connection_options
@click.option(
    "--lock-wait",
    type=Number(0),
    default=10,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for another run to finish.",
)
@click.option("-v", "--verbose", is_flag=True, help="Name every path that changes.")
@click.option("-q", "--quiet", is_flag=True, help="Only tell of conflicts and problems.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_context
def sync(
    context: click.Context,
    peers: tuple[str, ...],
    dry_run: bool,
    prefer: str,
    create: bool,
    max_delete: MaxDelete,
    approve: str,
    connection: Connection,
    lock_wait: float,
    verbose: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Bring this replica and its peers to the same state.

    A PEER is the name of a configured one, or an address: a path, [user@]host:path, or
    ssh://[user@]host[:port]/path. Without any, all configured peers are synced.
    """
    from p2psync import ssh

    talkative = is_terminal(2) and not (quiet or as_json)
    try:
        root = find_root()
        chosen = chosen_peers(root, peers, connection)
        with closing(ssh.Early(() if create else chosen)) as early:
            # These take about as long to import as ssh takes to reach a host near by.
            from p2psync import render, run
            from p2psync.core.model import Prefer

            options = run.Options(Prefer(prefer), dry_run, create, lock_wait, max_delete, approve)
            confirm = _confirm if is_terminal(0) else _decline
            with render.Line() if talkative else render.Silent() as progress:
                runs = run.sync(root, chosen, options, progress, confirm, early)
    except P2PSyncError as error:
        if as_json:
            from p2psync import render

            click.echo(render.as_json([], error))
        raise
    if as_json:
        click.echo(render.as_json(runs))
    else:
        render.report(runs, quiet=quiet, verbose=verbose, dry_run=dry_run)
    context.exit(run.worst(runs))


def _confirm(question: str) -> bool:
    return click.confirm(question, err=True)


def _decline(question: str) -> bool:
    return False
