"""report.html of a finished run: how long it takes, how large it is, how soon a browser shows it.

Synthetic runs of 100 and 1,000 layers with an analysis, four variants and two engine plans. A page
is written by the command, process start included; Chromium, without a window, opens it, timed by
the page's own clock from the navigation until all is drawn.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from measure import HERE, Figure, main, of_latency, run

from granplugin.measures.timing import measure_interleaved

sys.path.insert(0, str(HERE.parent / "tests"))
from browser import CHROMIUM, browser
from page_values import big_run

COMMAND = Path(sys.executable).with_name("granplugin")
GOALS = {100: 2.0, 1000: 10.0}
_DRAWN = "performance.getEntriesByName('drawn')[0].startTime / 1000"


def measure(rounds: int) -> Sequence[Figure]:
    with tempfile.TemporaryDirectory() as scratch:
        folders = {layers: Path(scratch) / str(layers) for layers in GOALS}
        for layers, folder in folders.items():
            big_run(folder, layers)
        calls = {
            f"granplugin report, {layers} layers": partial(run, [COMMAND, "report", folder])
            for layers, folder in folders.items()
        }
        found = measure_interleaved(calls, warmup=1, rounds=rounds)
        goals = zip(found.items(), GOALS.values(), strict=True)
        figures = [of_latency(name, latency, goal=goal) for (name, latency), goal in goals]
        for layers, folder in folders.items():
            page = folder / "report.html"
            size = page.stat().st_size / 1e6
            goal = 6.0 if layers == 100 else None
            figures.append(Figure(f"report.html, {layers} layers", size, "MB", goal=goal))
            figures += _opened(page, layers, rounds, Path(scratch) / "profile")
        return figures


def _opened(page: Path, layers: int, rounds: int, profile: Path) -> Iterator[Figure]:
    if not CHROMIUM:
        return
    with browser(profile) as tab:
        tab.size(1400, 900)
        times = []
        for _ in range(rounds):
            tab.open(page)
            times.append(tab.ask(_DRAWN))
        yield Figure(
            f"open in Chromium, {layers} layers", float(np.median(times)), "s",
            min(times), max(times), goal=3.0 if layers == 1000 else None,
        )  # fmt: skip


if __name__ == "__main__":
    main(__doc__, measure, rounds=5)
