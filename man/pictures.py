"""Makes the pictures of the README: what the commands of its tour print on a terminal, as SVG.

`.venv/bin/python man/pictures.py` writes them to `man/pictures/`.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from rich.console import Console  # noqa: E402
from rich.terminal_theme import MONOKAI  # noqa: E402
from rich.text import Text  # noqa: E402

from tests.tour import README, plain, run, steps  # noqa: E402

PICTURES = {
    "status": "p2psync status",
    "dry-run": "p2psync sync -n",
    "sync": "p2psync sync",
    "conflicts": "p2psync conflicts",
}


def main() -> None:
    """Run the tour, and draw what is to be seen."""
    commands = [step.command for step in steps(README.read_text("utf-8"))]
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder, "ann")
        home.mkdir()
        coloured = [command.replace("p2psync ", "p2psync --color always ", 1) for command in commands]
        printed = [plain(output, home) for output in run(home, coloured)]
    for name, command in PICTURES.items():
        output = printed[commands.index(command)]
        width = max(len(Text.from_ansi(line)) for line in [*output.splitlines(), command + "  "])
        console = Console(record=True, width=width + 1, file=io.StringIO(), force_terminal=True)
        console.print(Text.assemble(("$ ", "bold green"), (command, "bold")))
        console.print(Text.from_ansi(output.rstrip("\n")))
        svg = console.export_svg(title="p2psync", theme=MONOKAI, unique_id=name)
        (HERE / "pictures" / f"{name}.svg").write_text(svg, "utf-8")


if __name__ == "__main__":
    main()
