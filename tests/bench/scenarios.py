"""What happens to a tree between two syncs. Each scenario changes the trees and is then measured."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.bench.workloads import MIB, SEED

FIRST, UNCHANGED = "first copy", "nothing changed"
EDITS = 100


@dataclass(frozen=True)
class Scenario:
    """A change to the source, or, where that is `both_sides`, half of it to the target of a two-way tool.

    Attributes:
        change: Is given a folder and which part of the whole it is to change: 0 and 1 of 2, or 0 of 1.
    """

    name: str
    change: Callable[[Path, int, int], None]
    both_sides: bool = False


def _nothing(root: Path, part: int, parts: int) -> None:
    pass


def _edit(root: Path, part: int, parts: int) -> None:
    """Rewrite a line in the middle of each file and add one, as an editor would."""
    files = [path for path in sorted(_files(root)) if 100 <= path.stat().st_size <= MIB]
    chosen = random.Random(SEED).sample(files, min(EDITS, len(files) // 2))
    for path in chosen[part::parts]:
        text = path.read_bytes()
        middle = len(text) // 2
        changed = b"edited: " + path.name.encode() + b"\n"
        path.write_bytes(text[:middle] + changed + text[middle + len(changed) :] + b"one more line\n")


def _files(root: Path) -> list[Path]:
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name != ".p2psync"]
        found += [Path(folder, name) for name in names if not os.path.islink(os.path.join(folder, name))]
    return found


def _rename_folder(root: Path, part: int, parts: int) -> None:
    (root / "area-3").rename(root / "renamed area")


def _delete_folder(root: Path, part: int, parts: int) -> None:
    shutil.rmtree(root / "area-4")


def _overwrite_big(root: Path, part: int, parts: int) -> None:
    size = (root / "big.data").stat().st_size
    _overwrite(root / "big.data", size // 3, min(MIB, size // 8))


def _insert(root: Path, part: int, parts: int) -> None:
    """100 bytes in the middle: all that follows moves, as when a document is saved."""
    big = root / "big.data"
    with big.open("rb+") as file:
        middle = big.stat().st_size // 2
        file.seek(middle)
        rest = file.read()
        file.seek(middle)
        file.write(random.Random(SEED + 1).randbytes(100))
        file.write(rest)


def _append(root: Path, part: int, parts: int) -> None:
    with (root / "big.data").open("ab") as file:
        file.write(random.Random(SEED + 2).randbytes(10 * MIB))


def _rename_big(root: Path, part: int, parts: int) -> None:
    (root / "big.data").rename(root / "renamed.data")


def _overwrite_in_four(root: Path, part: int, parts: int) -> None:
    for path in sorted(_files(root))[::5]:
        _overwrite(path, path.stat().st_size // 3, 4096)


def _overwrite(path: Path, offset: int, length: int) -> None:
    with path.open("rb+") as file:
        file.seek(offset)
        file.write(random.Random(f"{SEED} {path.name}").randbytes(length))


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario(FIRST, _nothing),
        Scenario(UNCHANGED, _nothing),
        Scenario("100 edits", _edit, both_sides=True),
        Scenario("rename folder", _rename_folder),
        Scenario("delete folder", _delete_folder),
        Scenario("1 MiB overwritten", _overwrite_big),
        Scenario("100 bytes inserted", _insert),
        Scenario("10 MiB appended", _append),
        Scenario("renamed", _rename_big),
        Scenario("4 KiB in 4 files", _overwrite_in_four),
    )
}
