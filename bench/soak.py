"""A hundred runs in one process: memory and descriptors stay where they were.

python bench/soak.py --count 100 --save
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import tempfile
import threading
from pathlib import Path

from campaign import save
from tiny import write

from granplugin.__main__ import main

WARM_UP = 0.2
"""Of the runs, after which nothing may grow any more."""
GROWTH_MB = 50


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def soak(count: int) -> dict[str, object]:
    memory, descriptors, threads = [], [], []
    for number in range(count):
        recipe = ("coarse.yaml", "fine.yaml")[number % 2]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            code = main(["apply", recipe, "--out", "run"])
        if code not in (0, 1, 4):
            raise SystemExit(f"run {number} ended with {code}")
        memory.append(round(resident_mb()))
        descriptors.append(len(os.listdir("/proc/self/fd")))
        threads.append(threading.active_count())
    warm = int(count * WARM_UP)
    return {
        "runs": count,
        "MB after the first, when warm, at the end": [memory[0], memory[warm], memory[-1]],
        "descriptors": [descriptors[0], descriptors[warm], descriptors[-1]],
        "threads": [threads[0], threads[warm], threads[-1]],
        "flat": memory[-1] - memory[warm] < GROWTH_MB
        and descriptors[-1] <= descriptors[warm]
        and threads[-1] <= threads[warm],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--save", action="store_true", help="into bench/results")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="granplugin-soak-") as scratch:
        os.chdir(scratch)
        write(Path(scratch))
        found = soak(given.count)
        os.chdir("/")
    told = "\n".join(f"{key}: {value}" for key, value in found.items())
    print(told)
    if given.save:
        save("soak", told, found)
    sys.exit(not found["flat"])
