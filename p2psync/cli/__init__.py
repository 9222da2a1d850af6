"""The command line: parses, calls one function, renders. A command imports what it uses, when it runs."""

from __future__ import annotations

import os
from importlib import import_module

import click

from p2psync import __version__
from p2psync.cli.options import EXIT_CODES, Commands, Directory, complain, exits
from p2psync.errors import Exit, P2PSyncError

SECTIONS = {
    "Begin": {"init": "peers", "clone": "clone", "peer": "peers"},
    "Keep in step": {"sync": "sync", "watch": "watch", "service": "watch", "status": "peers", "diff": "diff"},
    "Settle": {"conflicts": "conflicts", "resolve": "conflicts"},
    "Take back": dict.fromkeys(("log", "show", "restore", "undo", "gc", "fsck"), "history"),
    "Set up": {
        "ignore": "rules",
        "why": "rules",
        "config": "config",
        "completion": "completion",
        "serve": "peers",
    },
}
"""All commands as the help has them, each with the module that it is in."""
_MODULES = {name: module for members in SECTIONS.values() for name, module in members.items()}


class _All(Commands):
    """Loads a command when it is asked for: all of them take some milliseconds."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _MODULES and cmd_name not in self.commands:
            self.add_command(getattr(import_module(f"p2psync.cli.{_MODULES[cmd_name]}"), cmd_name))
        return super().get_command(ctx, cmd_name)


@click.group(
    cls=_All,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=exits(Exit.CONFLICTS, Exit.GUARD, Exit.UNREACHABLE, Exit.LOCKED, ok=EXIT_CODES[Exit.IN_STEP]),
)
@click.version_option(__version__, "-V", "--version", message="p2psync %(version)s")
@click.option(
    "-C", "directory", type=Directory(), default=b".", metavar="DIR", help="Run as if started in DIR."
)
@click.option(
    "--color",
    type=click.Choice(["auto", "always", "never"]),
    help="Colour what is printed; 'auto': on a terminal, unless NO_COLOR is set.  [default: auto]",
)
@click.option("--debug", is_flag=True, help="Show where in the program an error came from.")
def cli(directory: bytes | None, color: str | None, debug: bool) -> None:
    """Keep directories identical, in both directions, over SSH or local paths.

    A directory becomes a replica with `init`; `sync` makes it and its peers the same.
    """
    if debug:
        os.environ["P2PSYNC_DEBUG"] = "1"
    if directory is not None:
        os.chdir(directory)


cli.sections = {name: section for section, members in SECTIONS.items() for name in members}


def main() -> int:
    """Run the command line; every error becomes one line and an exit code.

    Returns:
        The exit code.

    Raises:
        BrokenPipeError: who was to read what it says has gone.
    """
    try:
        return int(cli.main(prog_name="p2psync", standalone_mode=False) or Exit.IN_STEP)
    except click.ClickException as error:
        error.show()
        return Exit.USAGE
    except click.Abort as abort:
        why = abort.__cause__
        raise why if isinstance(why, KeyboardInterrupt) else KeyboardInterrupt() from None
    except P2PSyncError as error:
        complain(error)
        return error.exit_code
    except SystemExit:  # click's answer to a reader that has gone
        raise BrokenPipeError from None
    except Exception as error:
        if "P2PSYNC_DEBUG" in os.environ:
            raise
        complain(error if isinstance(error, OSError) else f"{type(error).__name__}: {error}")
        return Exit.FAILED
