"""The quickstart from nothing, again with one rule changed, and again unchanged; stage by stage.

    python bench/quickstart.py

Each round starts in a fresh run folder. The stages are those of the round with the median time.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

from measure import HERE, Figure, main, of_values, run

RECIPE = HERE.parent / "recipes" / "digits_mobilenet.yaml"
CHANGE = ("--set", "rules.rescue.match=features.2.depthwise.conv")
RUNS = {"first run": ((), 60), "one rule changed": (CHANGE, 25), "unchanged": (CHANGE, None)}
SHOWN_SECONDS = 0.2


def measure(rounds: int) -> Sequence[Figure]:
    found: dict[str, list[tuple[float, dict[str, float]]]] = {name: [] for name in RUNS}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            for name, (settings, _) in RUNS.items():
                found[name].append(timed(Path(folder), settings))
    figures = []
    for name, (_, goal) in RUNS.items():
        walls = sorted(found[name], key=lambda wall_stages: wall_stages[0])
        figures.append(of_values(name, [wall for wall, _ in walls], "s", goal=goal))
        stages = walls[len(walls) // 2][1]
        for stage in sorted(stages, key=stages.get, reverse=True):
            if stages[stage] >= SHOWN_SECONDS:
                figures.append(Figure(f"  {stage}", stages[stage], "s"))
    return figures


def timed(folder: Path, settings: Sequence[str]) -> tuple[float, dict[str, float]]:
    stages = folder / "stages.json"
    command = [sys.executable, HERE / "stages.py", stages, "apply", RECIPE, *settings]
    start = perf_counter()
    run([*command, "--out", folder / "run"])
    return perf_counter() - start, json.loads(stages.read_text())


if __name__ == "__main__":
    main(__doc__, measure, rounds=1)
