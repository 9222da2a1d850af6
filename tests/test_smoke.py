"""Real trees, edited on both sides, and compared to the last bit with what should have come of it."""

from __future__ import annotations

import os
import random
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli_support import Node, assert_same, contents, p2psync, replica, snapshot
from tests.sshd import Sshd

SEED = 20261123
DOC = Path("/usr/share/doc")
STDLIB = Path(sysconfig.get_path("stdlib"))


def copy(source: Path, target: Path) -> None:
    """Copy what can be read of a tree, links as links."""
    skip = shutil.ignore_patterns("__pycache__", "site-packages", "dist-packages", "*.sync-conflict-*")
    try:
        shutil.copytree(source, target, symlinks=True, ignore=skip, dirs_exist_ok=True)
    except shutil.Error as error:  # what an ordinary user may not read
        assert os.geteuid() != 0, error


class Editor:
    """Edits its own half of a tree at random, from a seed; the other half is another editor's."""

    def __init__(self, root: Path, half: int, seed: int) -> None:
        self._random = random.Random(seed + half)
        self._half = half
        self._made = 0
        tops = sorted(path for path in root.iterdir() if path.name != ".p2psync")
        self._tops = tops[half::2]

    def edit(self, times: int) -> None:
        kinds = (
            self._append,
            self._overwrite,
            self._create,
            self._delete,
            self._rename,
            self._chmod,
            self._touch,
            self._link,
            self._make_folder,
            self._delete_folder,
            self._replace_by_folder,
            self._replace_by_link,
        )
        for number in range(times):
            kinds[number % len(kinds)]()

    def _own(self) -> Iterator[Path]:
        for top in filter(os.path.lexists, self._tops):
            yield top
            if top.is_dir() and not top.is_symlink():
                yield from sorted(top.rglob("*"))

    def _file(self) -> Path:
        return self._random.choice([path for path in self._own() if path.is_file() and not path.is_symlink()])

    def _folder(self) -> Path:
        return self._random.choice([path for path in self._own() if path.is_dir() and not path.is_symlink()])

    def _fresh(self) -> Path:
        self._made += 1
        return self._folder() / f"new {self._half} {self._made}"

    def _append(self) -> None:
        with self._file().open("ab") as file:
            file.write(self._random.randbytes(100))

    def _overwrite(self) -> None:
        self._file().write_bytes(self._random.randbytes(self._random.choice([0, 10, 5000, 2_000_000])))

    def _create(self) -> None:
        self._fresh().write_bytes(self._random.randbytes(1000))

    def _delete(self) -> None:
        self._file().unlink()

    def _rename(self) -> None:
        self._file().rename(self._fresh())

    def _chmod(self) -> None:
        self._file().chmod(self._random.choice([0o600, 0o640, 0o755, 0o777]))

    def _touch(self) -> None:
        moment = self._random.randrange(2 * 10**18, 3 * 10**18)  # of two times the later one stays
        os.utime(self._file(), ns=(moment, moment))

    def _link(self) -> None:
        self._fresh().symlink_to(self._file().name)

    def _make_folder(self) -> None:
        self._fresh().mkdir(mode=0o750)

    def _delete_folder(self) -> None:
        """Delete one that holds no folder: a small one."""
        folders = [path for path in self._own() if path.is_dir() and not path.is_symlink()]
        lowest = [path for path in folders if not any(child.is_dir() for child in path.iterdir())]
        shutil.rmtree(self._random.choice(lowest))

    def _replace_by_folder(self) -> None:
        file = self._file()
        file.unlink()
        (file / "inner").mkdir(parents=True)
        (file / "inner" / "file").write_bytes(self._random.randbytes(10))

    def _replace_by_link(self) -> None:
        file = self._file()
        file.unlink()
        file.symlink_to("nowhere")


def edit_both(here: Path, there: Path, edits: int, texts: int) -> dict[bytes, Node]:
    """Edit two equal replicas; return what has to come of it, texts that both edited being merged."""
    base = assert_same(here, there)
    for half, root in enumerate((here, there)):
        Editor(root, half, SEED).edit(edits // 2)
    ours, theirs = snapshot(here), snapshot(there)
    untouched = [
        path
        for path, node in sorted(base.items())
        if ours.get(path) == theirs.get(path) == node and mergeable(node)
    ]
    wanted = {path: node for path, node in ours.items() if base.get(path) == theirs.get(path)}
    wanted |= {path: node for path, node in theirs.items() if base.get(path) == ours.get(path)}
    wanted |= {path: node for path, node in theirs.items() if node == ours.get(path)}
    for path in random.Random(SEED).sample(untouched, texts):
        text = base[path].content
        name = os.fsdecode(path)
        (here / name).write_bytes(b"first\n" + text)
        (there / name).write_bytes(text + b"last\n")
        times = [(root / name).lstat().st_mtime_ns for root in (here, there)]
        wanted[path] = base[path]._replace(content=b"first\n" + text + b"last\n", mtime_ns=max(times))
    return wanted


def mergeable(node: Node) -> bool:
    lines = node.content.count(b"\n")
    return (
        node.kind == "file"
        and 5 < lines < 5000
        and b"\0" not in node.content
        and node.content.endswith(b"\n")
    )


def check(here: Path, there: Path, edits: int, texts: int, *address: str) -> None:
    """Sync a full replica with a new one; edit both; sync again; compare."""
    before = snapshot(here)
    p2psync(here, "sync", "--create", *address)
    assert assert_same(here, there) == before
    wanted = edit_both(here, there, edits, texts)
    ran = p2psync(here, "sync", "--json", "--max-delete", "100%", *address)
    after = assert_same(here, there)
    unlike = {path for path in after.keys() | wanted.keys() if after.get(path) != wanted.get(path)}
    assert unlike == set()
    assert [conflict["resolution"] for conflict in ran.json["conflicts"]] == ["merged"] * texts
    assert p2psync(here, "sync", "--json", *address).json["plan"] == []


def test_a_few_hundred_files_edited_on_both_sides(tmp_path: Path) -> None:
    here = replica(tmp_path / "here")
    for part in ("asyncio", "email", "encodings", "json", "logging", "unittest", "xml"):
        copy(STDLIB / part, here / part)
    assert len(contents(here)) > 200
    check(here, tmp_path / "there", 72, 10, str(tmp_path / "there"))


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A replica of thousands of files of this machine."""
    here = replica(tmp_path / "here")
    if DOC.is_dir():
        copy(DOC, here)
    if len(contents(here)) < 5000:
        copy(STDLIB, here / "stdlib")
        copy(Path(sys.prefix) / "lib", here / "lib")
    assert len(contents(here)) > 2000
    return here


@pytest.mark.slow
def test_a_large_tree_edited_on_both_sides_of_a_path(tmp_path: Path, large: Path) -> None:
    check(large, tmp_path / "there", 204, 50, str(tmp_path / "there"))


@pytest.mark.slow
def test_a_large_tree_edited_on_both_sides_of_a_connection(tmp_path: Path, large: Path, sshd: Sshd) -> None:
    far = ["-e", sshd.ssh_command, "--remote-command", sshd.remote_command]
    check(large, tmp_path / "there", 204, 50, *far, f"{sshd.host}:{tmp_path}/there")
