"""The command `completion`."""

from __future__ import annotations

from pathlib import Path

import click

from p2psync.cli.options import exits

FILES = {"bash": "p2psync.bash", "zsh": "_p2psync", "fish": "p2psync.fish"}


@click.command(epilog=exits())
@click.argument("shell", type=click.Choice(list(FILES)))
def completion(shell: str) -> None:
    """Print the completion script for a shell; an installation has put it in its place already."""
    package = Path(__file__).resolve().parents[1]
    places = (package / "completions", package.parent / "completions")  # installed; in the repository
    file = next(folder / FILES[shell] for folder in places if folder.is_dir())
    click.echo(file.read_text("utf-8"), nl=False)
