"""The command `completion`."""

from __future__ import annotations

import os

import click

from p2psync.cli.options import exits

FILES = {"bash": "p2psync.bash", "zsh": "_p2psync", "fish": "p2psync.fish"}


@click.command(epilog=exits())
@click.argument("shell", type=click.Choice(list(FILES)))
def completion(shell: str) -> None:
    """Print the completion script for a shell; an installation has put it in its place already."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    places = (package, os.path.dirname(package))  # installed; in the repository
    files = (os.path.join(place, "completions", FILES[shell]) for place in places)
    with open(next(file for file in files if os.path.exists(file)), encoding="utf-8") as script:
        click.echo(script.read(), nl=False)
