"""The disk on which the benchmark works: a new file system in an image file, so that all begin alike."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NONE = "none"
"""No file system of its own."""
IMAGE_BYTES = 24 << 30  # sparse: only what is written takes space


@dataclass(frozen=True)
class Disk:
    """Where to work; without root it is a plain folder and has no image."""

    folder: Path
    image: Path | None

    def settle(self) -> None:
        """Write back all data, so that no command pays for the former; hold none of it in memory twice."""
        os.sync()
        if self.image:
            with self.image.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def flush(self) -> None:
        """Write back what a command left in memory."""
        subprocess.run(["sync", "-f", str(self.folder)], check=True)


@contextlib.contextmanager
def measured_disk(workdir: Path, filesystem: str = "ext4", bytes_per_inode: int = 16384) -> Iterator[Disk]:
    """A new file system in an image file, mounted below `workdir`; a plain folder without one, or root."""
    with tempfile.TemporaryDirectory(prefix="p2psync-bench-", dir=workdir) as own:
        folder, image = Path(own, "disk"), Path(own, "disk.img")
        folder.mkdir()
        if filesystem == NONE or os.geteuid() != 0:
            yield Disk(folder, None)
            return
        with image.open("wb") as file:
            file.truncate(IMAGE_BYTES)
        mkfs = [*_mkfs(filesystem, bytes_per_inode), str(image)]
        subprocess.run(mkfs, check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["mount", "-o", "loop", str(image), str(folder)], check=True)
        try:
            yield Disk(folder, image)
        finally:
            subprocess.run(["umount", str(folder)], check=True)


def _mkfs(filesystem: str, bytes_per_inode: int) -> list[str]:
    if filesystem != "ext4":
        return [f"mkfs.{filesystem}", "-q"]
    # Else the kernel goes on making the inode tables during the first measurements.
    now = "lazy_itable_init=0,lazy_journal_init=0"
    return ["mkfs.ext4", "-q", "-F", "-i", str(bytes_per_inode), "-E", now]
