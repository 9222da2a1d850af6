"""The commands about the past: what was done, taking it back, and whether all is still there."""

from __future__ import annotations

import os
import sys
from contextlib import closing

import click

from p2psync.cli.options import (
    DRY_RUN,
    JSON,
    Connection,
    Count,
    Number,
    chosen_peers,
    complain,
    connection_options,
    exits,
    find_root,
    inside,
    is_terminal,
    own,
    refuse_sidecar,
)
from p2psync.errors import Exit

_DONE = "0 done"
_LEFT_ALONE = "1 done, but some paths were left alone"


def _version(text: bytes) -> tuple[bytes, str | None]:
    """Split PATH@RUN; what follows an @ and is no run belongs to the path."""
    from p2psync.history import is_run

    path, at, run = text.rpartition(b"@")
    name = os.fsdecode(run)
    return (path, name) if at and is_run(name) else (text, None)


@click.command("log", epilog=exits(Exit.LOCKED))
@click.argument("path", required=False, type=click.Path(path_type=bytes))
@click.option(
    "--limit", type=Count(1), metavar="N", default=20, show_default=True, help="Runs shown at most."
)
@click.option("--graph", is_flag=True, help="Draw which replicas met, or whose edits of PATH did.")
@JSON
def log(path: bytes | None, limit: int, graph: bool, as_json: bool) -> None:
    """Show what syncs did here; with PATH, every version of it that is known.

    A sync that changed something here is a run. PATH@RUN names the version that a run took away:
    `show` prints it, `restore` brings it back; `undo` puts back all that a run changed.
    """
    from p2psync import render_log
    from p2psync.local import LocalReplica

    root = find_root()
    with closing(LocalReplica(root, lock=False)) as replica:
        if path is None:
            found = render_log.runs(replica, limit)
            text = render_log.runs_graph if graph else render_log.runs_text
            click.echo(render_log.runs_json(found) if as_json else text(found), nl=False)
        else:
            place = inside(root, path)
            versions = render_log.versions(replica, place)
            if graph and not as_json:
                click.echo(render_log.versions_graph(replica, place, versions), nl=False)
                return
            shown = render_log.versions_json if as_json else render_log.versions_text
            click.echo(shown(place, versions), nl=False)


@click.command(epilog=exits())
@click.argument("version", metavar="PATH[@RUN]", type=click.Path(path_type=bytes))
def show(version: bytes) -> None:
    """Print a file as it was before RUN changed or deleted it.

    Without RUN: the latest earlier version that is kept.
    """
    from p2psync import undo
    from p2psync.local import LocalReplica

    root = find_root()
    path, run = _version(version)
    with closing(LocalReplica(root, lock=False)) as replica:
        for block in undo.contents(replica, undo.past(replica, inside(root, path), run)):
            sys.stdout.buffer.write(block)
        sys.stdout.buffer.flush()


@click.command(epilog=exits(Exit.LOCKED, ok=f"{_DONE}; {_LEFT_ALONE}"))
@click.argument("version", metavar="PATH[@RUN]", type=click.Path(path_type=bytes))
@click.option("--to", metavar="FILE", help="Write it to a new FILE instead.")
@DRY_RUN
@JSON
@click.pass_context
def restore(context: click.Context, version: bytes, to: str | None, dry_run: bool, as_json: bool) -> None:
    """Bring back a file or folder as it was before RUN changed or deleted it.

    Without RUN: the latest earlier version that is kept, also of your own edits. It is a new version, which
    the next sync carries to the other replicas; what it replaces goes to the history.
    """
    from p2psync import render_log, undo

    root = find_root()
    path, run = _version(version)
    place = inside(root, path)
    with own(root) as replica:
        if to is not None:
            refuse_sidecar(to)
            entry = undo.past(replica, place, run)
            if not dry_run:
                undo.write_copy(replica, entry, to)
            click.echo(render_log.written(to, entry, dry_run, as_json), nl=False)
            return
        outcome = undo.restore(replica, place, run, dry_run)
    render_log.report(outcome, "restored", dry_run, as_json)
    context.exit(outcome.exit_code)


@click.command(epilog=exits(Exit.LOCKED, ok=f"{_DONE}; {_LEFT_ALONE}"))
@click.argument("run", required=False)
@DRY_RUN
@JSON
@click.pass_context
def undo(context: click.Context, run: str | None, dry_run: bool, as_json: bool) -> None:
    """Put back, on this replica, every path that RUN (default: the latest) changed.

    What comes back are new versions, which the next sync carries to the other replicas. A path that was
    changed since is left alone. An undo is a run too, and can be undone. While another run is at work, RUN
    has to be named: which is the latest is not certain then.
    """
    from p2psync import render_log
    from p2psync.undo import undo

    with own(find_root(), waits=run is not None) as replica:
        outcome = undo(replica, run, dry_run)
    render_log.report(outcome, "undone", dry_run, as_json)
    context.exit(outcome.exit_code)


@click.command(epilog=exits(Exit.LOCKED))
@click.option(
    "--days", type=Number(0), metavar="DAYS", help="Keep the history of so many days.  [default: 30]"
)
@click.option(
    "--percent",
    type=Number(0, 100),
    metavar="PERCENT",
    help="Keep at most that much of the disk.  [default: 10]",
)
@DRY_RUN
def gc(days: float | None, percent: float | None, dry_run: bool) -> None:
    """Remove history that is too old or too much; the latest run always stays.

    Every sync does this once a day, or when there is too much. The defaults are set in .p2psync/config.toml,
    under [history].
    """
    from p2psync import config, render_log

    root = find_root()
    limits = config.history_limits(root)
    limits = limits._replace(
        **{key: value for key, value in (("days", days), ("percent", percent)) if value is not None}
    )
    with own(root) as replica:
        click.echo(render_log.collected(replica.collect(limits, dry_run), dry_run))


@click.command(
    epilog=exits(
        Exit.UNREACHABLE, Exit.LOCKED, ok="0 all is sound; 1 damage was found, also if it was repaired"
    )
)
@click.option("--peer", metavar="PEER-OR-ADDRESS", help="Compare files with a peer, which reads its own too.")
@click.option("--repair", is_flag=True, help="Put rotten files right, from wherever their bytes are found.")
@connection_options
@JSON
@click.pass_context
def fsck(
    context: click.Context,
    peer: str | None,
    repair: bool,
    connection: Connection,
    as_json: bool,
) -> None:
    """Read everything, and tell what is not as it should be.

    A file whose bytes changed although nobody wrote to it is rotten: the disk failed. --repair takes good
    bytes from the history, from another file or from the peer, verifies them and puts them in place; the
    rotten ones go to the history. A manifest that is damaged is made anew by the next sync.
    """
    from p2psync import fsck, render_fsck
    from p2psync.local import LocalReplica
    from p2psync.progress import Line, Silent

    root = find_root()
    far = chosen_peers(root, (peer,), connection)[0] if peer is not None else None
    talkative = is_terminal(2) and not as_json
    with closing(LocalReplica(root, lock=False)):
        pass  # a damaged manifest must not be mended before it was checked
    with own(root) as replica, Line() if talkative else Silent() as progress:
        report = fsck.fsck(root, replica, far, repair, progress)
    click.echo(render_fsck.as_json(report) if as_json else render_fsck.text(report, repair), nl=False)
    if report.error:
        complain(report.error)
    context.exit(report.exit_code)
