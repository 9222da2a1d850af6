"""The tour of the README: its commands, and what they print when they are really run."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

README = Path(__file__).resolve().parents[1] / "README.md"
START, END = "<!-- tour -->", "<!-- end of tour -->"


class Step(NamedTuple):
    """A command, and what is said that it prints."""

    command: str
    output: str


def steps(text: str) -> Iterator[Step]:
    """Yield the steps of the tour in the text of a README."""
    tour = text.partition(START)[2].partition(END)[0]
    for block in re.findall(r"```console\n(.*?)```", tour, re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            yield Step(command, output)


def run(home: Path, commands: list[str], more: Mapping[str, str] | None = None) -> list[str]:
    """Run commands one after the other in one shell, as its user would; return what each prints."""
    mark = "--- next ---"
    program = home.parent / "bin"
    program.mkdir(exist_ok=True)
    script = program / "p2psync"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m p2psync "$@"\n')
    script.chmod(0o755)
    environment = {
        **os.environ,
        **(more or {}),
        "HOME": str(home),
        "PATH": f"{program}:{os.environ['PATH']}",
        "TZ": "UTC",
        "LC_ALL": "C.UTF-8",
    }
    text = "".join(f"{command}\necho '{mark}'\n" for command in commands)
    done = subprocess.run(
        ["bash"],
        input=text,
        cwd=home,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return done.stdout.split(f"{mark}\n")[: len(commands)]


def plain(text: str, home: Path) -> str:
    """Take out of an output what is not the same each time: times, digests, runs, and where it was run."""
    text = text.replace(str(home), "/home/ann").replace(socket.gethostname() + ":", "vega:")
    for pattern, stands_for in (
        (r"\.sync-conflict-\d{8}-\d{6}-[A-Z2-7]{7}", ".sync-conflict-20261126-090000-A4SAJFN"),
        (r"\d{4}-\d{2}-\d{2} \d{2}:\d{2}:\d{2}", "2026-11-26 09:00:00"),
        (r"\b\d{8}-\d{6}(-\d+)?\b", "20261126-090000"),
        (r"\b\d+ seconds? ago", "0 seconds ago"),
        (r"\b\d+\.\d s\b", "0.1 s"),
    ):
        text = re.sub(pattern, stands_for, text)
    return text


if __name__ == "__main__":  # writes into the README what is printed now
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder, "ann")
        home.mkdir()
        text = README.read_text("utf-8")
        known = list(steps(text))
        found = [plain(out, home) for out in run(home, [step.command for step in known])]
        before, _, rest = text.partition(START)
        tour, _, after = rest.partition(END)
        for step, output in zip(known, found, strict=True):
            tour = tour.replace(f"$ {step.command}\n{step.output}", f"$ {step.command}\n{output}\0", 1)
        README.write_text(before + START + tour.replace("\0", "") + END + after, "utf-8")
