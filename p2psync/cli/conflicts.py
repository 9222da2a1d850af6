"""The commands about conflicts: which are open, and settling them."""

from __future__ import annotations

import os
from contextlib import closing
from typing import TYPE_CHECKING

import click

from p2psync.cli.options import DRY_RUN, JSON, exits, find_root, inside, is_terminal, own
from p2psync.errors import Exit, P2PSyncError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from p2psync.conflicts import Keep, Open
    from p2psync.local import LocalReplica


@click.command(epilog=exits(ok="0 none is open; 1 some are"))
@click.argument("paths", nargs=-1, metavar="[PATH]...", type=click.Path(path_type=bytes))
@JSON
@click.pass_context
def conflicts(context: click.Context, paths: tuple[bytes, ...], as_json: bool) -> None:
    """List the conflicts that nobody has settled yet: what, whose, when, how big.

    A conflict is open as long as the copy of the version that lost is there. `resolve` settles it, and so
    does deleting the copy, or moving it over the file. With PATH: only those about it, or below it.
    """
    from p2psync import render_conflicts
    from p2psync.conflicts import named, open_conflicts
    from p2psync.local import LocalReplica

    root = find_root()
    with closing(LocalReplica(root, lock=False)) as replica:
        found = open_conflicts(replica)
        undecided: Sequence[bytes] = sorted(replica.manifest.replicas.pending()) if not paths else []
        if paths:
            found = named(found, [inside(root, path) for path in paths])
        names = replica.names()
        if as_json:
            shown = render_conflicts.as_json(found, undecided, names)
        else:
            shown = render_conflicts.text(found, undecided, names, replica.identity.replica)
        click.echo(shown, nl=False)
    if not shown and is_terminal(2):
        click.echo("no conflicts", err=True)
    context.exit(Exit.CONFLICTS if found or undecided else Exit.IN_STEP)


@click.command(epilog=exits(Exit.LOCKED, ok="0 done; 1 done, but some paths were left alone"))
@click.argument("paths", nargs=-1, metavar="[PATH]...", type=click.Path(path_type=bytes))
@click.option(
    "--keep",
    type=click.Choice(["ours", "theirs", "both", "merged"]),
    help="Which version stays. 'ours': the one that this replica had; 'both': the copy gets a name of its"
    " own; 'merged': what is at PATH now, edited since.",
)
@click.option("--all", "every", is_flag=True, help="Settle all that are open.")
@click.option("--prefer", metavar="newest|PEER", help="Keep the later version, or the one that PEER made.")
@click.option(
    "--tool",
    metavar="CMD",
    envvar="MERGE",
    show_envvar=True,
    help="Merge with a program: vimdiff, meld, 'code --wait', or any that takes base, ours, theirs, merged.",
)
@DRY_RUN
@JSON
@click.pass_context
def resolve(
    context: click.Context,
    paths: tuple[bytes, ...],
    keep: str | None,
    every: bool,
    prefer: str | None,
    tool: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Settle conflicts: choose a version for each PATH, and remove the copy.

    The next sync does so on the other replicas. What goes is in the history; `undo` takes a choice back.
    """
    from p2psync import render_conflicts
    from p2psync.conflicts import Keep, named, one_copy_each, open_conflicts, settle

    if every == bool(paths):
        raise click.UsageError("name the paths, or say --all")
    chosen_tool = (
        tool if context.get_parameter_source("tool") is click.core.ParameterSource.COMMANDLINE else None
    )
    if (keep is not None) + (prefer is not None) + (chosen_tool is not None) > 1:
        raise click.UsageError("--keep, --prefer and --tool are three ways: choose one")
    if keep is None and prefer is None and tool is None:
        raise click.UsageError(
            "say which version to keep: --keep ours|theirs|both|merged, --prefer newest|PEER, or --tool CMD"
        )
    root = find_root()
    with own(root) as replica:
        replica.scan(not dry_run)
        found = open_conflicts(replica)
        if paths:
            found = named(found, [inside(root, path) for path in paths])
        if keep is not None:
            choices = [(one, Keep(keep)) for one in found]
        elif prefer is not None:
            choices = one_copy_each([(one, _preferred(replica, one, prefer, root)) for one in found])
        else:
            _with_tool(context, replica, found, tool or "", dry_run, as_json)
            return
        settled = settle(replica, choices, dry_run=dry_run)
    click.echo(render_conflicts.report(settled, dry_run, as_json), nl=False)
    context.exit(settled.exit_code)


def _preferred(replica: LocalReplica, one: Open, prefer: str, root: bytes) -> Keep:
    """Return which version --prefer means."""
    from p2psync.config import peers
    from p2psync.conflicts import NoConflict, keep_copy, newest_is_copy
    from p2psync.core.paths import printable, shown

    if prefer == "newest":
        return keep_copy(one, newest_is_copy(one))
    addresses = {peer.address for peer in peers(root) if peer.name == prefer}
    wanted = {record.replica for record in replica.peers() if record.address in addresses}
    wanted |= {number for number, name in replica.names().items() if name == prefer}
    if not wanted:
        raise NoConflict(
            f"there is no peer {printable(prefer)}: `p2psync peer list` shows those that there are"
        )
    if (one.winner_by in wanted) == (one.loser_by in wanted):
        raise NoConflict(
            f"{shown(one.path)}: it is not known which version {printable(prefer)} made: say --keep"
        )
    return keep_copy(one, one.loser_by in wanted)


def _with_tool(
    context: click.Context,
    replica: LocalReplica,
    found: Sequence[Open],
    tool: str,
    dry_run: bool,
    as_json: bool,
) -> None:
    from p2psync import mergetool, render_conflicts
    from p2psync.conflicts import Keep, Settled, base_of, open_conflicts, settle
    from p2psync.core.model import Problem

    settled = Settled([], [])

    def keep_aside(path: bytes, why: str, text: bytes | None) -> None:
        where = f"; the merged text is in {_saved(path, text)}" if text is not None else ""
        settled.problems.append(Problem(path, why + where))

    for listed in found:
        # Another version of the same file may have been merged just now: this one is merged into that.
        one = next((now for now in open_conflicts(replica) if now.copy == listed.copy), listed)
        path = replica.contents.text(one.winner.digest) if one.winner else None
        copy = replica.contents.text(one.loser.digest)
        if path is None or copy is None:
            settled.problems.append(Problem(one.path, "is no text that a tool could merge; use --keep"))
            continue
        if dry_run:
            settled.conflicts.append((one, f"what {tool} makes of it"))
            continue
        ours, theirs = (copy, path) if one.lost_here else (path, copy)
        texts = mergetool.Texts(base_of(replica, one) or b"", ours, theirs, path)
        try:
            merged = mergetool.merge(tool, os.fsdecode(one.path), texts)
        except mergetool.ToolFailed as error:
            keep_aside(one.path, str(error), error.saved)
            break  # who gives up has had enough
        if merged is None:
            settled.problems.append(Problem(one.path, f"{tool} saved nothing new; the conflict stays open"))
            continue
        try:
            part = settle(replica, [(one, Keep.MERGED)], merged)
        except P2PSyncError as error:
            keep_aside(one.path, str(error), merged)
            break
        settled.conflicts += part.conflicts
        for problem in part.problems:
            keep_aside(problem.path, problem.why, merged if problem.path == one.path else None)
    click.echo(render_conflicts.report(settled, dry_run, as_json), nl=False)
    context.exit(settled.exit_code)


def _saved(path: bytes, text: bytes) -> str:
    """Write a text that has no place in the tree to a file of its own; return where."""
    import tempfile

    stem, ending = os.path.splitext(os.path.basename(os.fsdecode(path)))
    fd, file = tempfile.mkstemp(ending, f"{stem}.merged-")
    with open(fd, "wb") as target:
        target.write(text)
    return file
