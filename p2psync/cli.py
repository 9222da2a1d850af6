"""The command line: parses, calls one function, renders. A command imports what it uses, when it runs."""

from __future__ import annotations

import gc
import io
import os
import sys
from contextlib import AbstractContextManager, closing
from typing import TYPE_CHECKING, Any

import click

from p2psync import __version__
from p2psync.errors import Exit, NotAReplica, P2PSyncError

if TYPE_CHECKING:
    from p2psync.config import Peer
    from p2psync.core.guard import MaxDelete
    from p2psync.local import LocalReplica

_LOCK_WAIT = 10.0
"""Seconds that a command waits for another run to finish."""
_EXIT_CODES = {
    Exit.IN_STEP: "0 in step",
    Exit.CONFLICTS: "1 done, but conflicts were set aside or some paths have problems",
    Exit.USAGE: "2 wrong usage",
    Exit.FAILED: "3 failed",
    Exit.GUARD: "4 a guard tripped: nothing was changed",
    Exit.UNREACHABLE: "5 a peer could not be reached",
    Exit.LOCKED: "6 locked by another run",
    Exit.INTERRUPTED: "130 interrupted",
}


def _exits(*codes: Exit, ok: str = "0 done") -> str:
    """Return the paragraph that ends a command's help."""
    told = [_EXIT_CODES[code] for code in (*codes, Exit.USAGE, Exit.FAILED, Exit.INTERRUPTED)]
    return "Exit codes: " + "; ".join([ok, *sorted(told, key=lambda text: int(text.split()[0]))]) + "."


class _Number(click.FloatRange):
    """A number in a range; NaN is in none."""

    def convert(self, value: Any, param: Any, ctx: Any) -> float:  # noqa: ANN401 - as click has it
        """As click has it."""
        number = float(super().convert(value, param, ctx))
        if number != number:
            self.fail("it is not a number", param, ctx)
        return number


class _Directory(click.Path):
    """A directory as bytes, as the system knows it."""

    def __init__(self, exists: bool = True) -> None:
        super().__init__(exists=exists, file_okay=False, path_type=bytes)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=_exits(Exit.CONFLICTS, Exit.GUARD, Exit.UNREACHABLE, Exit.LOCKED, ok=_EXIT_CODES[Exit.IN_STEP]),
)
@click.version_option(__version__, "-V", "--version", message="p2psync %(version)s")
@click.option(
    "-C", "directory", type=_Directory(), default=b".", metavar="DIR", help="Run as if started in DIR."
)
def cli(directory: bytes | None) -> None:
    """Keep directories identical, in both directions, over SSH or local paths.

    A directory becomes a replica with `init`; `sync` makes it and its peers the same.
    """
    if directory is not None:
        os.chdir(directory)


def _root() -> bytes:
    """Return the replica that the command is about.

    Raises:
        NotAReplica: there is none here or above.
    """
    from p2psync.local import find_root

    root = find_root(b".")
    if root is None:
        raise NotAReplica(f"{os.getcwd()} is not in a replica: `p2psync init` makes a directory one")
    return root


@cli.command(epilog=_exits())
@click.argument("directory", type=_Directory(exists=False), default=b".")
@click.option("--name", help="What people call this replica.  [default: host:directory]")
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


def _connection_options(command: click.decorators.FC) -> click.decorators.FC:
    """Add the options that say how to reach a peer."""
    for option in (
        click.option("--remote-command", metavar="CMD", help="p2psync on the peer.  [default: p2psync]"),
        click.option("-p", "--port", type=click.IntRange(1, 65535), help="Port of the peer's sshd."),
        click.option("-e", "--ssh-command", metavar="CMD", help="The ssh to use.  [default: ssh]"),
    ):
        command = option(command)
    return command


def _parse_max_delete(context: click.Context, option: click.Parameter, text: str | None) -> MaxDelete:
    from p2psync.core.guard import HALF, parse_max_delete

    try:
        return parse_max_delete(text) if text is not None else HALF
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@cli.command(
    epilog=_exits(Exit.CONFLICTS, Exit.GUARD, Exit.UNREACHABLE, Exit.LOCKED, ok=_EXIT_CODES[Exit.IN_STEP])
)
@click.argument("peers", nargs=-1, metavar="[PEER-OR-ADDRESS]...")
@click.option("-n", "--dry-run", is_flag=True, help="Only show what would happen; touch nothing.")
@click.option(
    "--prefer",
    type=click.Choice(["both", "newest", "local", "peer", "skip"]),
    default="both",
    show_default=True,
    help="What becomes of versions that do not merge. 'both': the winner keeps the name, the other becomes a"
    " conflict copy; 'skip': both stay as they are.",
)
@click.option("--create", is_flag=True, help="Make a peer a replica that is none yet.")
@click.option(
    "--max-delete",
    metavar="N|N%",
    callback=_parse_max_delete,
    help="Delete at most so many files, or such a share of them, from any side; else change nothing and exit"
    " with 4.  [default: 50%, but always up to 20]",
)
@click.option("--approve", metavar="PLAN-ID", default="", help="Carry out the plan that was refused, once.")
@_connection_options
@click.option(
    "--lock-wait",
    type=_Number(0),
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
    ssh_command: str | None,
    port: int | None,
    remote_command: str | None,
    lock_wait: float,
    verbose: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Bring this replica and its peers to the same state.

    A PEER is the name of a configured one, or an address: a path, [user@]host:path, or
    ssh://[user@]host[:port]/path. Without any, all configured peers are synced.
    """
    from p2psync import render, run
    from p2psync.core.model import Prefer

    options = run.Options(Prefer(prefer), dry_run, create, lock_wait, max_delete, approve)
    talkative = _is_terminal(2) and not (quiet or as_json)
    try:
        root = _root()
        chosen = _peers(root, peers, ssh_command, port, remote_command)
        with render.Line() if talkative else render.Silent() as progress:
            runs = run.sync(root, chosen, options, progress, _confirm if _is_terminal(0) else _decline)
    except P2PSyncError as error:
        if as_json:
            click.echo(render.as_json([], error))
        raise
    if as_json:
        click.echo(render.as_json(runs))
    else:
        render.report(runs, quiet=quiet, verbose=verbose, dry_run=dry_run)
    context.exit(run.worst(runs))


def _peers(
    root: bytes, names: tuple[str, ...], ssh_command: str | None, port: int | None, remote_command: str | None
) -> list[Peer]:
    """Return the peers that were named, or all that are configured."""
    from dataclasses import replace

    from p2psync import config

    known = {peer.name: peer for peer in config.peers(root)}
    if not names and not known:
        raise config.ConfigError(
            "there is no peer to sync with: name one, or add it with `p2psync peer add NAME ADDRESS`"
        )
    given = {"ssh_command": ssh_command, "port": port, "remote_command": remote_command}
    options = {key: value for key, value in given.items() if value is not None}
    chosen: dict[str, Peer] = {}
    for name in names or known:
        peer = replace(known.get(name) or _unnamed(name), **options)  # type: ignore[arg-type]
        chosen.setdefault(peer.address, peer)
    return list(chosen.values())


def _unnamed(address: str) -> Peer:
    """Return the peer at an address that is not configured.

    Raises:
        ConfigError: it is a bare word that names nothing.
    """
    from p2psync.config import ConfigError, Peer

    if "/" not in address and ":" not in address and not os.path.isdir(address):
        raise ConfigError(f"there is no peer and no folder named {address!r}")
    return Peer(address, _absolute(address))


def _absolute(text: str) -> str:
    """Return an address that means the same from any directory.

    Raises:
        AddressError: it is no address.
    """
    from p2psync.peer import Address, parse_address

    address = parse_address(text)
    return str(Address(os.path.abspath(address.path)) if address.host is None else address)


def _is_terminal(fd: int) -> bool:
    try:
        return os.isatty(fd)
    except OSError:  # closed
        return False


def _confirm(question: str) -> bool:
    return click.confirm(question, err=True)


def _decline(question: str) -> bool:
    return False


@cli.group(epilog=_exits())
def peer() -> None:
    """Add, list and remove the peers of this replica."""


@peer.command("add", epilog=_exits())
@click.argument("name")
@click.argument("address")
@_connection_options
def peer_add(
    name: str,
    address: str,
    ssh_command: str | None,
    port: int | None,
    remote_command: str | None,
) -> None:
    """Remember ADDRESS as the peer NAME; nothing is contacted yet.

    ADDRESS is a path, [user@]host:path, or ssh://[user@]host[:port]/path.
    """
    from p2psync import config

    added = config.Peer(name, _absolute(address), ssh_command, port, remote_command)
    config.add_peer(_root(), added)
    click.echo(f"added {name}: {added.address}")


@peer.command("list", epilog=_exits())
def peer_list() -> None:
    """List the configured peers."""
    from p2psync import config

    for known in config.peers(_root()):
        click.echo(f"{known.name}\t{known.address}")


@peer.command("remove", epilog=_exits())
@click.argument("name")
def peer_remove(name: str) -> None:
    """Forget the peer NAME; nothing is touched there."""
    from p2psync import config

    config.remove_peer(_root(), name)
    click.echo(f"removed {name}")


@cli.command(epilog=_exits(Exit.LOCKED))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def status(as_json: bool) -> None:
    """Show what changed here since the last sync, and when each peer was last in step."""
    from p2psync import render
    from p2psync.status import status

    now = status(_root())
    click.echo(render.status_json(now) if as_json else render.status_text(now), nl=False)


_DRY_RUN = click.option("-n", "--dry-run", is_flag=True, help="Only show what would be done.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
_DONE = "0 done"
_LEFT_ALONE = "1 done, but some paths were left alone"


def _inside(root: bytes, path: bytes) -> bytes:
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


def _version(text: bytes) -> tuple[bytes, str | None]:
    """Split PATH@RUN; what follows an @ and is no run belongs to the path."""
    from p2psync.history import is_run

    path, at, run = text.rpartition(b"@")
    name = os.fsdecode(run)
    return (path, name) if at and is_run(name) else (text, None)


@cli.command("log", epilog=_exits(Exit.LOCKED))
@click.argument("path", required=False, type=click.Path(path_type=bytes))
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="Runs shown at most.")
@_JSON
def log(path: bytes | None, limit: int, as_json: bool) -> None:
    """Show what syncs did here; with PATH, every version of it that is known.

    A sync that changed something here is a run. PATH@RUN names the version that a run took away:
    `show` prints it, `restore` brings it back; `undo` puts back all that a run changed.
    """
    from p2psync import render_log
    from p2psync.local import LocalReplica

    root = _root()
    with closing(LocalReplica(root, lock=False)) as replica:
        if path is None:
            found = render_log.runs(replica, limit)
            click.echo(render_log.runs_json(found) if as_json else render_log.runs_text(found), nl=False)
        else:
            inside = _inside(root, path)
            versions = render_log.versions(replica, inside)
            text = render_log.versions_json if as_json else render_log.versions_text
            click.echo(text(inside, versions), nl=False)


@cli.command(epilog=_exits())
@click.argument("version", metavar="PATH[@RUN]", type=click.Path(path_type=bytes))
def show(version: bytes) -> None:
    """Print a file as it was before RUN changed or deleted it.

    Without RUN: the latest earlier version that is kept.
    """
    from p2psync import undo
    from p2psync.local import LocalReplica

    root = _root()
    path, run = _version(version)
    with closing(LocalReplica(root, lock=False)) as replica:
        for block in undo.contents(replica, undo.past(replica, _inside(root, path), run)):
            sys.stdout.buffer.write(block)
        sys.stdout.buffer.flush()


@cli.command(epilog=_exits(Exit.LOCKED, ok=f"{_DONE}; {_LEFT_ALONE}"))
@click.argument("version", metavar="PATH[@RUN]", type=click.Path(path_type=bytes))
@click.option("--to", metavar="FILE", help="Write it to a new FILE instead.")
@_DRY_RUN
@_JSON
@click.pass_context
def restore(context: click.Context, version: bytes, to: str | None, dry_run: bool, as_json: bool) -> None:
    """Bring back a file or folder as it was before RUN changed or deleted it.

    Without RUN: the latest earlier version that is kept, also of your own edits. It is a new version, which
    the next sync carries to the other replicas; what it replaces goes to the history.
    """
    from p2psync import render_log, undo

    root = _root()
    path, run = _version(version)
    inside = _inside(root, path)
    with _own(root) as replica:
        if to is not None:
            entry = undo.past(replica, inside, run)
            if not dry_run:
                undo.write_copy(replica, entry, to)
            click.echo(render_log.written(to, entry, dry_run, as_json), nl=False)
            return
        outcome = undo.restore(replica, inside, run, dry_run)
    render_log.report(outcome, "restored", dry_run, as_json)
    context.exit(outcome.exit_code)


@cli.command(epilog=_exits(Exit.LOCKED, ok=f"{_DONE}; {_LEFT_ALONE}"))
@click.argument("run", required=False)
@_DRY_RUN
@_JSON
@click.pass_context
def undo(context: click.Context, run: str | None, dry_run: bool, as_json: bool) -> None:
    """Put back, on this replica, every path that RUN (default: the latest) changed.

    What comes back are new versions, which the next sync carries to the other replicas. A path that was
    changed since is left alone. An undo is a run too, and can be undone.
    """
    from p2psync import render_log
    from p2psync.undo import undo

    with _own(_root()) as replica:
        outcome = undo(replica, run, dry_run)
    render_log.report(outcome, "undone", dry_run, as_json)
    context.exit(outcome.exit_code)


@cli.command("gc", epilog=_exits(Exit.LOCKED))
@click.option("--days", type=_Number(0), help="Keep the history of so many days.  [default: 30]")
@click.option("--percent", type=_Number(0, 100), help="Keep at most that much of the disk.  [default: 10]")
@_DRY_RUN
def gc_command(days: float | None, percent: float | None, dry_run: bool) -> None:
    """Remove history that is too old or too much; the latest run always stays.

    Every sync does this once a day, or when there is too much. The defaults are set in .p2psync/config.toml,
    under [history].
    """
    from p2psync import config, render_log

    root = _root()
    limits = config.history_limits(root)
    limits = limits._replace(
        **{key: value for key, value in (("days", days), ("percent", percent)) if value is not None}
    )
    with _own(root) as replica:
        click.echo(render_log.collected(replica.collect(limits, dry_run), dry_run))


@cli.command(
    epilog=_exits(
        Exit.UNREACHABLE, Exit.LOCKED, ok="0 all is sound; 1 damage was found, also if it was repaired"
    )
)
@click.option("--peer", metavar="PEER-OR-ADDRESS", help="Compare files with a peer, which reads its own too.")
@click.option("--repair", is_flag=True, help="Put rotten files right, from wherever their bytes are found.")
@_connection_options
@_JSON
@click.pass_context
def fsck(
    context: click.Context,
    peer: str | None,
    repair: bool,
    ssh_command: str | None,
    port: int | None,
    remote_command: str | None,
    as_json: bool,
) -> None:
    """Read everything, and tell what is not as it should be.

    A file whose bytes changed although nobody wrote to it is rotten: the disk failed. --repair takes good
    bytes from the history, from another file or from the peer, verifies them and puts them in place; the
    rotten ones go to the history.
    """
    from p2psync import fsck, render, render_fsck
    from p2psync.local import LocalReplica

    root = _root()
    far = _peers(root, (peer,), ssh_command, port, remote_command)[0] if peer is not None else None
    talkative = _is_terminal(2) and not as_json
    with closing(LocalReplica(root, lock=False)):
        pass  # a damaged manifest must not be mended before it was checked
    with _own(root) as replica, render.Line() if talkative else render.Silent() as progress:
        report = fsck.fsck(root, replica, far, repair, progress)
    click.echo(render_fsck.as_json(report) if as_json else render_fsck.text(report, repair), nl=False)
    if report.error:
        _complain(report.error)
    context.exit(report.exit_code)


def _own(root: bytes) -> AbstractContextManager[LocalReplica]:
    """Open the replica for a command that changes it; waits a little for another run to finish."""
    from p2psync.run import open_when_free

    return closing(open_when_free(root, _LOCK_WAIT))


@cli.command(epilog=_exits(Exit.UNREACHABLE, Exit.LOCKED))
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
@click.pass_context
def serve(
    context: click.Context,
    root: bytes | None,
    create: bool,
    restrict_to: bytes | None,
    read_only: bool,
    append_only: bool,
) -> None:
    """Be the far end of a sync: speak to a p2psync elsewhere over stdin and stdout.

    Started by ssh; not meant to be typed, except into authorized_keys, to restrict what a key may do:

    \b
    restrict,command="p2psync serve --restrict-to /srv/notes" ssh-ed25519 AAAA...
    """
    from p2psync import restrict
    from p2psync.run import open_replica
    from p2psync.serve import Opener, serve_stdio

    opener: Opener = open_replica
    if restrict_to is not None or read_only or append_only:
        opener = restrict.Key(restrict_to, read_only, append_only).open
    if root is None:
        if restrict_to is None:
            raise click.UsageError("Missing argument 'ROOT'.", context)
        root, create = restrict.request(os.environb.get(b"SSH_ORIGINAL_COMMAND", b""))
    context.exit(serve_stdio(root, opener, create))


def main() -> int:
    """Run the command line; every error becomes one line and an exit code.

    Returns:
        The exit code.
    """
    gc.disable()  # a run makes many objects and hardly a cycle: looking for them cost a seventh of its time
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal may lack the letters of a name
    try:
        return int(cli.main(prog_name="p2psync", standalone_mode=False) or Exit.IN_STEP)
    except click.ClickException as error:
        error.show()
        return Exit.USAGE
    except click.Abort:
        raise KeyboardInterrupt from None
    except P2PSyncError as error:
        _complain(error)
        return error.exit_code
    except SystemExit:  # click's answer to a reader that has gone
        return Exit.FAILED
    except Exception as error:
        if "P2PSYNC_DEBUG" in os.environ:
            raise
        _complain(error if isinstance(error, OSError) else f"{type(error).__name__}: {error}")
        return Exit.FAILED


def _complain(error: Exception | str) -> None:
    from p2psync.core.paths import printable

    click.echo(f"p2psync: error: {printable(str(error))}", err=True)
