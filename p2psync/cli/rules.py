"""The commands that ask why: ignore rules, and what becomes of a path."""

from __future__ import annotations

import os
from contextlib import closing

import click

from p2psync.cli.options import (
    JSON,
    Connection,
    chosen_peers,
    connection_options,
    exits,
    find_root,
    inside,
    is_terminal,
)
from p2psync.errors import Exit


@click.command(epilog=exits(ok="0 done; 1 with --check, a path is not ignored"))
@click.argument("patterns", nargs=-1, metavar="[PATTERN]...", type=click.Path(path_type=bytes))
@click.option("--local", is_flag=True, help="For this replica alone: in .p2psync/ignore.")
@click.option("--check", is_flag=True, help="Take PATTERN for a path: is it ignored, and by which line?")
@click.pass_context
def ignore(context: click.Context, patterns: tuple[bytes, ...], local: bool, check: bool) -> None:
    """Leave out what matches PATTERN, in git's syntax; without any, show the rules at the root.

    The pattern is added to .p2pignore at the root of the replica, which is synced like a file. What is there
    already stays where it is, on all replicas.
    """
    from p2psync import render_rules, rules

    root = find_root()
    if check:
        if not patterns:
            raise click.UsageError("name the paths to check")
        found = [(path, rules.deciding(root, inside(root, path), os.path.isdir(path))) for path in patterns]
        click.echo(render_rules.checked(found), nl=False)
        ignored = all(rule is not None and rule.ignored for _, rule in found)
        context.exit(Exit.IN_STEP if ignored else Exit.CONFLICTS)
    if not patterns:
        shown = render_rules.in_force(rules.in_force(root))
        click.echo(shown, nl=False)
        if not shown and is_terminal(2):
            click.echo("there are no rules at the root", err=True)
        return
    if any(b"\n" in pattern or not pattern.strip() for pattern in patterns):
        raise click.UsageError("a pattern is one line, and not empty")
    from p2psync.core.model import Kind
    from p2psync.local import LocalReplica

    file = rules.OWN if local else rules.SHARED
    with closing(LocalReplica(root, lock=False)) as replica:
        rows = ((path, row.entry) for path, row in replica.manifest.all_rows() if row is not None)
        known = [(path, entry.kind is Kind.DIRECTORY) for path, entry in rows if entry.alive]
    new = rules.add(root, file, patterns)
    for pattern in patterns:
        click.echo(render_rules.added(pattern, file, pattern in new, rules.hits(pattern, known)))


@click.command(epilog=exits(Exit.UNREACHABLE, Exit.LOCKED))
@click.argument("path", type=click.Path(path_type=bytes))
@click.option("--offline", is_flag=True, help="Do not ask the peers what the next sync would do.")
@connection_options
@JSON
def why(path: bytes, offline: bool, connection: Connection, as_json: bool) -> None:
    """Tell all about PATH: its versions and who made them, which rule applies, what the next sync would do.

    The peers that are configured are asked, by a dry run that changes nothing.
    """
    from p2psync import config, render_log, render_rules, rules, run
    from p2psync.local import LocalReplica
    from p2psync.progress import Silent
    from p2psync.undo import NotFound

    root = find_root()
    place = inside(root, path)
    rule = rules.deciding(root, place, os.path.isdir(path) and not os.path.islink(path))
    with closing(LocalReplica(root, lock=False)) as replica:
        try:
            versions = render_log.versions(replica, place)
        except NotFound:
            versions = []
    peers = chosen_peers(root, (), connection) if not offline and config.peers(root) else []
    runs = []
    if peers and not (rule and rule.ignored):
        options = run.Options(dry_run=True)
        runs = run.sync(root, peers, options, Silent(), lambda question: False)
    told = render_rules.Told(place, os.path.lexists(path), rule, versions, runs)
    click.echo(render_rules.why_json(told) if as_json else render_rules.why_text(told), nl=False)
