"""How long convert takes of a calibrated checkpoint of 1,000 layers, in a process of its own.

python bench/convert.py
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from measure import Figure, main, of_latency, of_values, run

from granplugin.measures.timing import measure_interleaved

COMMAND = Path(sys.executable).with_name("granplugin")
LAYERS = 1000


def checkpoint() -> dict[str, torch.Tensor]:
    """As pytorch-quantization saves it: convolutions with one range a channel."""
    state = {}
    for number in range(LAYERS):
        weight = torch.randn(64, 64, 3, 3)
        state[f"layer{number}.weight"] = weight
        state[f"layer{number}._weight_quantizer._amax"] = weight.abs().amax((1, 2, 3), True)
        state[f"layer{number}._input_quantizer._amax"] = torch.tensor(1.5)
    return state


def measure(rounds: int) -> Sequence[Figure]:
    with TemporaryDirectory() as folder:
        source, out = Path(folder, "trained.pth"), Path(folder, "out")
        torch.save(checkpoint(), source)

        spent: list[float] = []

        def convert() -> None:
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            for file in out.parent.glob("out.*"):
                file.unlink()
            run([COMMAND, "convert", source, "--out", out.with_suffix(".yaml")])
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)

        found = measure_interleaved({"convert": convert}, warmup=1, rounds=rounds)
    return [
        of_latency(f"convert of {LAYERS:,} layers", found["convert"]),
        of_values("of that on a processor", spent, "s", goal=5.0),
    ]


if __name__ == "__main__":
    main(__doc__, measure, rounds=6)
