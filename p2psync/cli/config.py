"""The commands about settings."""

from __future__ import annotations

import os

import click

from p2psync.cli.options import JSON, Commands, exits
from p2psync.errors import Exit

USER = click.option("--user", is_flag=True, help="In the file of the user, for all replicas.")


@click.group("config", cls=Commands, epilog=exits())
def config() -> None:
    """Show and change settings.

    A flag counts first, then the environment (P2PSYNC_SYNC_PREFER), then .p2psync/config.toml in the replica,
    then p2psync/config.toml in $XDG_CONFIG_HOME (by default ~/.config).
    """


@config.command("get", epilog=exits(ok="0 done; 1 it is not set"))
@click.argument("name")
@click.pass_context
def config_get(context: click.Context, name: str) -> None:
    """Print the value of NAME that counts."""
    from p2psync import render_config, settings
    from p2psync.config import known_name

    found = settings.load(_root()).values.get(known_name(name))
    if found is None or found.value is None:
        context.exit(Exit.CONFLICTS)
    click.echo(render_config.value_text(found.value))


@config.command("set", epilog=exits())
@click.argument("name")
@click.argument("value")
@USER
def config_set(name: str, value: str, user: bool) -> None:
    """Set NAME to VALUE in the replica here; a list is separated by commas."""
    from p2psync.config import set_value

    set_value(_file(user), name, value)


@config.command("unset", epilog=exits(ok="0 done; 1 it was not set"))
@click.argument("name")
@USER
@click.pass_context
def config_unset(context: click.Context, name: str, user: bool) -> None:
    """Remove NAME from the settings of the replica here."""
    from p2psync.config import unset_value

    context.exit(Exit.IN_STEP if unset_value(_file(user), name) else Exit.CONFLICTS)


@config.command("list", epilog=exits())
@JSON
def config_list(as_json: bool) -> None:
    """List all settings, each with the place that its value is from."""
    from p2psync import render_config, settings

    found = settings.load(_root())
    click.echo(render_config.as_json(found) if as_json else render_config.text(found), nl=False)


@config.command("edit", epilog=exits())
@USER
def config_edit(user: bool) -> None:
    """Open the file in $VISUAL or $EDITOR, and check it afterwards."""
    from pathlib import Path

    from p2psync import settings

    file = Path(_file(user))
    file.parent.mkdir(parents=True, exist_ok=True)
    click.edit(filename=str(file))
    settings.load(_root())


def _root() -> bytes | None:
    from p2psync.root import find_root

    return find_root(b".")


def _file(user: bool) -> str:
    from p2psync import settings
    from p2psync.cli.options import find_root

    return settings.user_file() if user else os.path.abspath(settings.root_file(find_root()))
