"""The trees that the benchmark synchronizes, made from a seed.

Texts are made of words as frequent as in a language (Zipf's law), so that they compress about as text
does, and nothing is repeated between files, so that nothing can be saved by finding it twice.
"""

from __future__ import annotations

import os
import random
import shutil
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

SEED = 20240229
MIB = 1 << 20

SMALLEST, LARGEST = 200, 16 * 1024
_SKEW = 1.3
"""Sizes are log-uniform, a little more of them small: 100,000 files are 300 MB."""
FILES_PER_FOLDER = 50
AREAS = 10
"""Folders at the top: of 100,000 files each holds 10,000."""
_MODES = (0o644, 0o644, 0o644, 0o600, 0o755)
_OLD = (1_000_000_000, 1_600_000_000)  # mtimes between 2001 and 2020

_SOURCES = (
    *("/usr/include", "/usr/share/doc", sysconfig.get_path("stdlib"), "/usr/lib/python3", "/usr/share/perl"),
    *("/usr/share/vim", "/usr/share/locale", "/usr/lib/gcc", "/usr/local", "/usr/share", "/usr/lib"),
)
_SOURCE_FILES, _SOURCE_BYTES = 33_000, 930_000_000


@dataclass(frozen=True)
class Workload:
    """A tree to synchronize.

    Attributes:
        make: Writes it into a folder that does not exist, `scale` times as large as it is described.
        scenarios: What is done to it, by name, in this order; the first copy always comes first.
        ours_only: It is for p2psync alone, unless tools are asked for by name.
        links: Where it runs.
        bytes_per_inode: For making a disk that has room for its files.
        compressed: rsync's `-z` is compared too.
        keeps: p2psync is run with a kept connection too.
    """

    name: str
    description: str
    make: Callable[[Path, float], None]
    scenarios: tuple[str, ...]
    ours_only: bool = False
    links: tuple[str, ...] = ("local", "ssh")
    bytes_per_inode: int = 16384
    compressed: bool = False
    keeps: bool = False


def make_small_files(root: Path, files: int, seed: int) -> None:
    """Write so many small texts into `root`, which must not exist: the same for the same seed."""
    rng = random.Random(seed)
    words = _vocabulary(rng)
    for path in _small_files(root, files):
        size = int(SMALLEST * (LARGEST / SMALLEST) ** (rng.random() ** _SKEW))
        path.write_bytes(_text(rng, words, size))
        path.chmod(rng.choice(_MODES))
        _age(path, rng)


def _make_million(root: Path, scale: float) -> None:
    rng = random.Random(SEED)
    for number, path in enumerate(_small_files(root, int(1_000_000 * scale))):
        path.write_bytes(b"" if number % 2 else b"%d\n" % number)
        _age(path, rng)


def _small_files(root: Path, files: int) -> Iterator[Path]:
    """Paths in folders that exist: `AREAS` at the top with as many files each."""
    for number in range(files):
        area, topic = number * AREAS // files, number // FILES_PER_FOLDER
        folder = root / f"area-{area}/topic-{topic:05d}"
        folder.mkdir(parents=True, exist_ok=True)
        yield folder / f"note-{number:06d}.txt"


def _make_few_large(root: Path, scale: float) -> None:
    """Every other file is random, the rest are logs, which get four times smaller when compressed."""
    rng = random.Random(SEED)
    words = _vocabulary(rng)
    for number in range(20):
        pieces = _logs(rng, words) if number % 2 else _noise(rng)
        kind = "log" if number % 2 else "data"
        _write(root / f"{kind}/large-{number:02d}.{kind}", pieces, int(100 * MIB * scale))
    _age_all(root, rng)


def _make_one_big(root: Path, scale: float) -> None:
    rng = random.Random(SEED)
    _write(root / "big.data", _noise(rng), int(2048 * MIB * scale))
    _age_all(root, rng)


def _make_tiny(root: Path, scale: float) -> None:
    rng = random.Random(SEED)
    words = _vocabulary(rng)
    for number in range(10):
        _write(root / f"folder-{number % 2}/file-{number}", _texts(rng, words), rng.randrange(LARGEST))
    _age_all(root, rng)


def _make_source_tree(root: Path, scale: float) -> None:
    """Real files of this machine, as they come, until there are enough; links stay links."""
    files, room = int(_SOURCE_FILES * scale), int(_SOURCE_BYTES * scale)
    root.mkdir()
    for number, source in enumerate(_SOURCES):
        for entry in _sorted_walk(source):
            if files <= 0 or room <= 0:
                return
            size = entry.stat(follow_symlinks=False).st_size
            target = root / f"{number}-{Path(source).name}" / os.path.relpath(entry.path, source)
            if size > _SOURCE_BYTES // 50 or target.is_symlink() or target.exists():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(entry.path, target, follow_symlinks=False)
            files, room = files - 1, room - size


def _sorted_walk(folder: str) -> Iterator[os.DirEntry[str]]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _sorted_walk(entry.path)
        elif entry.is_symlink() or (entry.is_file() and os.access(entry.path, os.R_OK)):
            yield entry


_SMALL_SCENARIOS = ("first copy", "nothing changed", "100 edits", "rename folder", "delete folder")
_BIG_SCENARIOS = (
    *("first copy", "nothing changed", "1 MiB overwritten", "100 bytes inserted", "10 MiB appended"),
    "renamed",
)
WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("tiny", "10 files up to 16 KiB", _make_tiny, ("first copy", "nothing changed"), keeps=True),
        Workload(
            "many-small",
            "100,000 files of 200 B to 16 KiB in 2,000 folders, 300 MB",
            lambda root, scale: make_small_files(root, int(100_000 * scale), SEED),
            _SMALL_SCENARIOS,
            compressed=True,
        ),
        Workload(
            "source-tree",
            "up to 33,000 files or 930 MB of this machine's /usr",
            _make_source_tree,
            ("first copy", "nothing changed", "100 edits"),
            compressed=True,
        ),
        Workload(
            "few-large",
            "20 files of 100 MiB, half of them random, half logs",
            _make_few_large,
            ("first copy", "nothing changed", "4 KiB in 4 files"),
            compressed=True,
        ),
        Workload("one-big", "one random file of 2 GiB", _make_one_big, _BIG_SCENARIOS),
        Workload(
            "million",
            "1,000,000 files, empty or of a few bytes",
            _make_million,
            ("first copy", "nothing changed"),
            ours_only=True,
            links=("local",),
            bytes_per_inode=4096,
        ),
    )
}


# -- contents


def _write(path: Path, pieces: Iterator[bytes], size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        while size > 0:
            piece = next(pieces)[:size]
            file.write(piece)
            size -= len(piece)


def _noise(rng: random.Random) -> Iterator[bytes]:
    while True:
        yield rng.randbytes(4 * MIB)


def _texts(rng: random.Random, vocabulary: list[bytes]) -> Iterator[bytes]:
    while True:
        yield _text(rng, vocabulary, MIB)


def _logs(rng: random.Random, vocabulary: list[bytes]) -> Iterator[bytes]:
    """Lines of a few hundred messages, each with a time and a random identity of its own."""
    messages = [_text(rng, vocabulary, rng.randrange(20, 90)).replace(b"\n", b" ") for _ in range(300)]
    milliseconds = _OLD[0] * 1000
    while True:
        lines = []
        for message in rng.choices(messages, k=8000):
            milliseconds += rng.randrange(50)
            lines.append(b"%d %s id=%024x\n" % (milliseconds, message, rng.getrandbits(96)))
        yield b"".join(lines)


def _vocabulary(rng: random.Random) -> list[bytes]:
    """65,536 slots for a 16-bit index; the word of rank r fills about 1/r of what the first fills."""
    slots: list[bytes] = []
    rank = 0
    while len(slots) < 65_536:
        rank += 1
        letters = rng.choices("etaoinshrdlucmfw", k=min(2 + rank.bit_length() // 2, 9))
        slots += ["".join(letters).encode() + b" "] * max(1, 6_000 // rank)
    # One word in twelve ends its line.
    return [word[:-1] + b"\n" if rng.randrange(12) == 0 else word for word in slots[:65_536]]


def _text(rng: random.Random, vocabulary: list[bytes], size: int) -> bytes:
    shortest_word = 3
    indexes = memoryview(rng.randbytes(2 * (size // shortest_word + 1))).cast("H")
    return b"".join(map(vocabulary.__getitem__, indexes))[:size]


def _age(path: Path, rng: random.Random) -> None:
    mtime_ns = rng.randrange(*_OLD) * 1_000_000_000 + rng.randrange(1_000_000_000)
    os.utime(path, ns=(mtime_ns, mtime_ns))


def _age_all(root: Path, rng: random.Random) -> None:
    for path in sorted(root.rglob("*")):
        if path.is_file():
            _age(path, rng)
