"""Run by hand: three replicas, each watched by a process of its own in a ring, under random edits and kills.

    .venv/bin/python tests/soak.py --minutes 30

At the end all three must be identical, nothing that was written and not overwritten by its own author may be
gone from trees and histories, no file that only one side ever edits may have a conflict copy, and the memory
of the processes must not have grown.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support import contents_of, history, new_replica, snapshot, sync
from tests.test_watch import same

P2PSYNC = [sys.executable, "-m", "p2psync"]
NAMES = ("a", "b", "c")


class Ring:
    """The replicas and their watches."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.rng = rng
        self.roots = [new_replica(folder / name) for name in NAMES]
        for other in self.roots[1:]:
            sync(self.roots[0], other)
        self.log = (folder / "log").open("ab")
        self.watches: list[subprocess.Popen[bytes]] = []
        self.latest: dict[tuple[int, str], bytes] = {}
        self.count = self.kills = 0
        self.watches = [self.watch(number) for number in range(len(NAMES))]

    def watch(self, number: int) -> subprocess.Popen[bytes]:
        here, there = self.roots[number], self.roots[(number + 1) % len(NAMES)]
        command = [*P2PSYNC, "-C", str(here), "watch", str(there)]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)

    def edit(self) -> None:
        """Do something to a file: mostly to one that only this replica ever writes to."""
        number = self.rng.randrange(len(NAMES))
        owner = NAMES[number] if self.rng.random() < 0.9 else "shared"
        path = f"{owner}/{self.rng.randrange(8)}/f{self.rng.randrange(30)}"
        file = self.roots[number] / path
        with contextlib.suppress(OSError):
            if self.rng.random() < 0.15:
                file.unlink()
                self.latest.pop((number, path), None)
                return
            self.count += 1
            data = b"%d by %s\n" % (self.count, NAMES[number].encode()) * self.rng.randrange(1, 200)
            file.parent.mkdir(parents=True, exist_ok=True)
            if self.rng.random() < 0.5:
                file.write_bytes(data)
            else:
                beside = file.with_name(".new-" + file.name)
                beside.write_bytes(data)
                beside.rename(file)
            self.latest[number, path] = data

    def kill(self) -> None:
        """Kill a watch, or a far end of one; a watch is begun again at once."""
        self.kills += 1
        number = self.rng.randrange(len(NAMES))
        watch = self.watches[number]
        if self.rng.random() < 0.5:
            subprocess.run(["pkill", "-KILL", "-P", str(watch.pid)], check=False)
            return
        watch.send_signal(signal.SIGKILL)
        watch.wait()
        self.watches[number] = self.watch(number)

    def memory(self) -> int:
        """Return what the watches and their far ends have resident, in KiB."""
        pids = ",".join(str(watch.pid) for watch in self.watches)
        listed = subprocess.run(
            ["ps", "-o", "rss=", "--pid", pids, "--ppid", pids], capture_output=True, text=True
        )
        return sum(map(int, listed.stdout.split()))

    def judge(self) -> list[str]:
        """Return what is wrong once all has come to rest."""
        deadline = time.monotonic() + 120
        while not same(*self.roots):
            if time.monotonic() > deadline:
                return ["the three never came to be the same"]
            time.sleep(0.1)
        kept = contents_of(self.roots) | {data for root in self.roots for data in history(root)}
        wrong = [f"lost: {path}" for (_, path), data in self.latest.items() if data not in kept]
        copies = [os.fsdecode(path) for path in snapshot(self.roots[0]) if b".sync-conflict-" in path]
        return wrong + [f"needless: {path}" for path in copies if not path.startswith("shared/")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument(
        "--kills", type=float, default=0.01, help="chance of a kill after each burst of edits"
    )
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**6)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="p2psync-soak-") as folder:
        ring = Ring(Path(folder), rng)
        end = time.monotonic() + arguments.minutes * 60
        sizes: list[int] = []
        while time.monotonic() < end:
            for _ in range(rng.randrange(1, 20)):
                ring.edit()
            time.sleep(rng.uniform(0.01, 0.3))
            if rng.random() < arguments.kills:
                ring.kill()
            sizes.append(ring.memory())
        wrong = ring.judge()
        for watch in ring.watches:
            watch.terminate()
            watch.wait()
        quarter = max(1, len(sizes) // 4)
        first, last = (sorted(part)[len(part) // 2] >> 10 for part in (sizes[:quarter], sizes[-quarter:]))
        print(f"seed {arguments.seed}: {ring.count} writes, {ring.kills} kills; memory {first} -> {last} MiB")
        for line in wrong[:20]:
            print(line)
        if wrong:
            print((Path(folder) / "log").read_text(errors="replace")[-3000:])
        return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
