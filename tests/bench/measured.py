"""`measured.py [--leave] RECORD COMMAND...`: run a command and append what it cost to the file RECORD.

One line of JSON: wall seconds until the command ended, CPU seconds and peak resident KiB of it and
all its descendants; with --leave without those that it leaves running. Runs with the standard library
alone, and is kept small: Linux counts the memory of the parent that forks a process as that process's
own peak, so this program's size (about 10 MiB) is the least that can be measured.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def main() -> int:
    leave = sys.argv[1] == "--leave"
    record, *command = sys.argv[2 if leave else 1 :]
    # What a tool leaves behind without waiting for it (an ssh, a server) comes back to us to be counted.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    started = time.monotonic()
    child = os.posix_spawnp(command[0], command, os.environ)
    wall = cpu = 0.0
    peak = exit_code = 0
    while True:
        try:
            ended, status, usage = os.wait4(-1, os.WNOHANG if leave and wall else 0)
        except ChildProcessError:
            break
        if not ended:
            break
        cpu += usage.ru_utime + usage.ru_stime
        peak = max(peak, usage.ru_maxrss)
        if ended == child:
            wall = time.monotonic() - started
            exit_code = os.waitstatus_to_exitcode(status)
    with open(record, "a") as file:
        file.write(json.dumps({"wall": wall, "cpu": cpu, "peak_kib": peak}) + "\n")
    return exit_code if exit_code >= 0 else 128 - exit_code


if __name__ == "__main__":
    sys.exit(main())
