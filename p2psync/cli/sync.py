"""The command `sync`."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Any

import click

from p2psync.cli.options import (
    Connection,
    Seconds,
    chosen_peers,
    connection_options,
    drivers,
    exits,
    find_root,
    inside,
    is_terminal,
    max_delete_of,
    prefer_option,
    wants_colour,
)
from p2psync.errors import Exit, P2PSyncError

if TYPE_CHECKING:
    from p2psync.core.choose import Filter
    from p2psync.core.guard import MaxDelete


def _parse_max_delete(context: click.Context, option: click.Parameter, text: str | None) -> MaxDelete | None:
    from p2psync.core.guard import parse_max_delete

    try:
        return parse_max_delete(text) if text is not None else None
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _parse_size(context: click.Context, option: click.Parameter, text: str | None) -> int | None:
    from p2psync.core.choose import parse_size

    try:
        return parse_size(text) if text is not None else None
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def filter_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say what a run is about; they are the command's `filters`."""

    @functools.wraps(command)
    def collecting(*arguments: Any, **values: Any) -> None:  # noqa: ANN401 - as click has it
        filters = {name: values.pop(name) for name in _FILTERS}
        command(*arguments, filters=filters, **values)

    result: Callable[..., None] = collecting
    for option in (
        click.option(
            "--mode",
            type=click.Choice(["two-way", "push", "pull", "mirror"]),
            help="Which way changes go. 'push': nothing is changed here; 'pull': nothing on the peer;"
            " 'mirror': the peer becomes as it is here, what it has of its own goes to its history."
            "  [default: two-way]",
        ),
        click.option(
            "-x",
            "--one-file-system",
            is_flag=True,
            help="Leave out what other file systems hold in the tree.",
        ),
        click.option(
            "--max-size",
            metavar="SIZE",
            callback=_parse_size,
            help="Leave out larger files: 500K, 10M, 1.5G.",
        ),
        click.option(
            "--exclude-from",
            multiple=True,
            metavar="FILE",
            type=click.File("rb"),
            help="Leave out what matches a line of FILE.",
        ),
        click.option(
            "--include",
            multiple=True,
            metavar="PATTERN",
            help="But not what matches PATTERN; no folder above it may be left out.",
        ),
        click.option(
            "--exclude",
            multiple=True,
            metavar="PATTERN",
            help="Leave out what matches PATTERN, in the syntax of .p2pignore, in this run.",
        ),
        click.option(
            "--path",
            "paths",
            multiple=True,
            metavar="PATH",
            type=click.Path(path_type=bytes),
            help="Only sync PATH, with what is below it, and conflict copies of it.",
        ),
    ):
        result = option(result)
    return result


_FILTERS = ("mode", "one_file_system", "max_size", "exclude_from", "include", "exclude", "paths")


@click.command(
    epilog=exits(
        Exit.CONFLICTS,
        Exit.GUARD,
        Exit.UNREACHABLE,
        Exit.LOCKED,
        ok="0 in step, as far as the run is about it",
    ).replace("could not be reached", "could not be reached, or --timeout ran out")
)
@click.argument("peers", nargs=-1, metavar="[PEER-OR-ADDRESS]...")
@click.option("-n", "--dry-run", is_flag=True, help="Only show what would happen; touch nothing.")
@prefer_option
@filter_options
@click.option(
    "-c", "--checksum", is_flag=True, help="Read every file, also if its size and times are what they were."
)
@click.option("--create", is_flag=True, help="Make a peer a replica that is none yet.")
@click.option(
    "--max-delete",
    metavar="N|N%",
    callback=_parse_max_delete,
    help="Delete at most so many files, or such a share of them, from any side; else change nothing and exit"
    " with 4.  [default: 50%, but always up to 20]",
)
@click.option(
    "--accept-folder",
    multiple=True,
    metavar="PATH",
    type=click.Path(exists=True, file_okay=False, path_type=bytes),
    help="PATH here, whose disk is not mounted any more, or that a new or empty one hides, is to be as it is"
    " now: what is not in it is taken for deleted.",
)
@click.option("--approve", metavar="PLAN-ID", default="", help="Carry out the plan that was refused, once.")
@click.option(
    "--plan",
    "plan_file",
    metavar="FILE",
    type=click.File("rb"),
    help="Carry out just the plan that `sync -n --json` wrote to FILE, or nothing.",
)
@connection_options
@click.option(
    "--lock-wait",
    type=Seconds(0),
    metavar="SECONDS",
    help="How long to wait for another run to finish.  [default: 10]",
)
@click.option(
    "--timeout",
    type=Seconds(0),
    metavar="SECONDS",
    help="End the run if it is not done by then; the next one carries on.",
)
@click.option("-y", "--yes", is_flag=True, help="Answer questions with yes.")
@click.option("--batch", is_flag=True, help="Ask nothing and show no progress: for cron.")
@click.option("-v", "--verbose", is_flag=True, help="Name every path that changes, and all problems.")
@click.option("-q", "--quiet", is_flag=True, help="Only tell of conflicts and problems.")
@click.option(
    "--progress",
    type=click.Choice(["auto", "plain", "json", "off"]),
    help="How to tell of progress on stderr; 'auto': one line, on a terminal.  [default: auto]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_context
def sync(
    context: click.Context,
    peers: tuple[str, ...],
    dry_run: bool,
    prefer: str | None,
    filters: dict[str, Any],
    checksum: bool,
    create: bool,
    max_delete: MaxDelete | None,
    accept_folder: tuple[bytes, ...],
    approve: str,
    plan_file: Any,  # noqa: ANN401 - a binary file
    connection: Connection,
    lock_wait: float | None,
    timeout: float | None,
    yes: bool,
    batch: bool,
    verbose: bool,
    quiet: bool,
    progress: str | None,
    as_json: bool,
) -> None:
    """Bring this replica and its peers to the same state.

    A PEER is the name of a configured one, or an address: a path, [user@]host:path, or
    ssh://[user@]host[:port]/path. Without any, all configured peers are synced.
    """
    from p2psync import settings, ssh

    if timeout:
        _end_after(timeout)
    try:
        root = find_root()
        found = settings.load(root)
        progress = progress or found["ui.progress"]
        if progress == "auto":
            progress = "line" if is_terminal(2) and not (quiet or as_json or batch) else "off"
        plans = _read_plans(plan_file) if plan_file else None
        chosen = chosen_peers(root, peers or tuple(plans or ()), connection)
        wanted = _filter(root, **filters)
        with closing(ssh.Early(() if create else chosen)) as early:
            # These take about as long to import as ssh takes to reach a host near by.
            from p2psync import render, run
            from p2psync.core.choose import Mode
            from p2psync.core.model import Prefer
            from p2psync.progress import teller

            options = run.Options(
                Prefer(prefer or found["sync.prefer"]),
                dry_run,
                create,
                found["sync.lock-wait"] if lock_wait is None else lock_wait,
                max_delete or max_delete_of(found),
                approve,
                wanted,
                Mode(filters["mode"]) if filters["mode"] else None,
                [inside(root, path) for path in accept_folder],
                checksum,
                plans,
                drivers(found, prefer is None),
            )
            with teller(progress) as told:
                runs = run.sync(root, chosen, options, told, _answer(yes, batch), early)
    except P2PSyncError as error:
        if as_json:
            from p2psync import render

            click.echo(render.as_json([], error))
        raise
    if as_json:
        click.echo(render.as_json(runs))
    else:
        render.report(runs, quiet=quiet, verbose=verbose, dry_run=dry_run, colour=wants_colour(1, found))
    context.exit(run.worst(runs))


def _filter(
    root: bytes,
    mode: str | None,
    one_file_system: bool,
    max_size: int | None,
    exclude_from: tuple[Any, ...],
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    paths: tuple[bytes, ...],
) -> Filter:
    from p2psync.core.choose import Filter, Mode

    lines = [file.read().rstrip(b"\n") for file in exclude_from]
    lines += [os.fsencode(pattern) for pattern in exclude] + [b"!" + os.fsencode(one) for one in include]
    is_root = any(os.path.samefile(path, root) for path in paths if os.path.isdir(path))
    within = (b"",) if is_root else tuple(inside(root, path) for path in paths)
    return Filter(
        Mode(mode or Mode.TWO_WAY),
        within,
        b"".join(line + b"\n" for line in lines),
        max_size,
        one_file_system,
    )


def _read_plans(file: Any) -> dict[str, str]:  # noqa: ANN401 - a binary file
    """Return the plans in what `sync -n --json` wrote: by peer, its name.

    Raises:
        UsageError: it is something else.
    """
    import json

    try:
        return {str(peer["peer"]): str(peer["plan"]) for peer in json.load(file)["peers"] if peer["plan"]}
    except (ValueError, KeyError, TypeError) as error:
        raise click.UsageError(f"{file.name} is no plan: `p2psync sync -n --json` writes one") from error


def _end_after(seconds: float) -> None:
    def end(number: int, frame: object) -> None:
        raise TimedOut(seconds)

    signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)


class TimedOut(KeyboardInterrupt):
    """The run has taken too long; it ends as if somebody had interrupted it."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"not done after {seconds:g} s (--timeout)")
        self.exit_code = Exit.UNREACHABLE


def _answer(yes: bool, batch: bool) -> Callable[[str], bool]:
    if yes:
        return lambda question: True
    if batch or not is_terminal(0):
        return lambda question: False
    return lambda question: click.confirm(question, err=True)
