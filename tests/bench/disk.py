"""The disk that is measured: a new journalled ext4 in an image file."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

IMAGE_BYTES = 12 << 30  # sparse: only what is written takes space


@contextlib.contextmanager
def measured_disk(workdir: Path) -> Iterator[Path]:
    """A new journalled ext4 in an image file, mounted below `workdir`; a plain folder without root."""
    with tempfile.TemporaryDirectory(prefix="p2psync-bench-", dir=workdir) as folder:
        disk, image = Path(folder) / "disk", Path(folder) / "disk.img"
        disk.mkdir()
        if os.geteuid() != 0:
            print("Not root: the times are those of a plain folder, not of a new ext4 image.\n")
            yield disk
            return
        with image.open("wb") as file:
            file.truncate(IMAGE_BYTES)
        # Else the kernel goes on making the inode tables during the first measurements.
        now = "lazy_itable_init=0,lazy_journal_init=0"
        subprocess.run(["mkfs.ext4", "-q", "-F", "-E", now, str(image)], check=True)
        subprocess.run(["mount", "-o", "loop", str(image), str(disk)], check=True)
        try:
            yield disk
        finally:
            subprocess.run(["umount", str(disk)], check=True)
