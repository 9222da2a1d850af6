"""The commands that keep replicas in step by themselves: `watch`, and the `service` that runs it."""

from __future__ import annotations

import signal
from typing import NoReturn

import click

from p2psync.cli.options import (
    JSON,
    LOCK_WAIT,
    Connection,
    Seconds,
    chosen_peers,
    connection_options,
    drivers,
    exits,
    find_root,
    max_delete_of,
    prefer_option,
)
from p2psync.errors import Exit


class _Stopped(KeyboardInterrupt):
    """SIGTERM: whoever started it in the background wants it to end."""


def _stop(number: int, frame: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _Stopped


@click.command(epilog=exits(Exit.LOCKED, ok="0 ended by SIGTERM"))
@click.argument("peers", nargs=-1, metavar="[PEER-OR-ADDRESS]...")
@prefer_option
@click.option(
    "--settle",
    type=Seconds(0, 60),
    default=0.05,
    show_default=True,
    metavar="SECONDS",
    help="Take a file that is being written to as finished after so long without a change. What was closed or"
    " renamed is taken at once.",
)
@click.option(
    "--poll",
    type=Seconds(1),
    metavar="SECONDS",
    help="Look at everything that often, on both sides, instead of waiting for events: for network mounts.",
)
@click.option(
    "--full-every",
    type=Seconds(1),
    default=600,
    show_default=True,
    metavar="SECONDS",
    help="Look at everything that often, whatever the events tell.",
)
@connection_options
@JSON
@click.pass_context
def watch(
    context: click.Context,
    peers: tuple[str, ...],
    prefer: str | None,
    settle: float,
    poll: float | None,
    full_every: float,
    connection: Connection,
    as_json: bool,
) -> None:
    """Sync whenever something changes, here or on a peer, until it is stopped.

    It stays in the foreground and prints a line for each sync. A peer that is not there is tried again; other
    commands work beside it. With --json each event is one line of JSON.
    """
    import gc

    from p2psync import config, render_watch, run, settings
    from p2psync.core.model import Prefer
    from p2psync.hooks import Hooks
    from p2psync.manager import Manager
    from p2psync.progress import Silent
    from p2psync.watch import Event, Settings, Warned, Watch

    gc.enable()  # it runs for weeks
    root = find_root()
    chosen = chosen_peers(root, peers, connection)

    render = render_watch.as_json if as_json else render_watch.text

    def tell(event: Event) -> None:
        for line in render(event):
            click.echo(line)
        for name, about in render_watch.for_hooks(event).items():
            hooks.run(name, about)

    hooks = Hooks(config.hooks(root), root, lambda why: tell(Warned(why)))
    found = settings.load(root)
    options = run.Options(
        Prefer(prefer or found["sync.prefer"]),
        lock_wait=LOCK_WAIT,
        max_delete=max_delete_of(found),
        drivers=drivers(found, prefer is None),
    )
    watching = Watch(
        root, chosen, options, Settings(settle, poll or 0, full_every), tell, Silent(), Manager()
    )
    signal.signal(signal.SIGTERM, _stop)
    try:
        watching.run()
    except _Stopped:
        context.exit(Exit.IN_STEP)
    finally:
        hooks.finish(seconds=5)


@click.group(epilog=exits())
def service() -> None:
    """Have `watch` run for this replica by itself: a systemd user unit, or a launchd agent on macOS."""


@service.command("install", epilog=exits())
def service_install() -> None:
    """Make the service, and start it."""
    from p2psync import service

    file = service.install(find_root())
    click.echo(f"installed {file}, and started")
    if file.endswith(".service"):
        click.echo("to have it run while you are not logged in: loginctl enable-linger")


@service.command("status", epilog=exits(ok="0 it is running; 1 there is none"))
@click.pass_context
def service_status(context: click.Context) -> None:
    """Show what the service manager says of it; its exit code is passed on."""
    from p2psync import service

    code = service.status(find_root())
    if code is None:
        click.echo("there is no service for this replica: `p2psync service install` makes one")
        context.exit(1)
    context.exit(code)


@service.command("uninstall", epilog=exits())
def service_uninstall() -> None:
    """Stop the service, and remove it."""
    from p2psync import service

    removed = service.uninstall(find_root())
    click.echo("removed" if removed else "there is no service for this replica")
