"""How long the command takes to answer: --help and check, beside an empty Python.

python bench/startup.py
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from measure import HERE, Figure, main, of_latency, run

from granplugin.measures.timing import measure_interleaved

COMMAND = Path(sys.executable).with_name("granplugin")
RECIPE = HERE.parent / "recipes" / "digits_mobilenet.yaml"
CALLS = {
    "python -c pass": ([sys.executable, "-c", "pass"], None),
    "granplugin --help": ([COMMAND, "--help"], 0.3),
    "granplugin check recipes/digits_mobilenet.yaml": ([COMMAND, "check", RECIPE], 0.6),
}


def measure(rounds: int) -> Sequence[Figure]:
    calls = {name: partial(run, command) for name, (command, _) in CALLS.items()}
    found = measure_interleaved(calls, warmup=2, rounds=rounds)
    return [of_latency(name, found[name], goal=goal) for name, (_, goal) in CALLS.items()]


if __name__ == "__main__":
    main(__doc__, measure, rounds=15)
