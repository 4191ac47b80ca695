"""What an audit costs beside the build: reading a plan of 1,000 engine layers, and auditing files.

python bench/engine_plans.py
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from measure import HERE, Figure, main, of_latency

from granplugin.backends.nvidia.plan_reader import read_plan
from granplugin.capabilities import Cell
from granplugin.capabilities.networks import network
from granplugin.measures.timing import measure_interleaved
from granplugin.pipelines.audit import audit

LAYERS = 1_000
RECORDED = HERE.parent / "tests" / "data" / "engine_plans" / "rtx_conv_per_channel.txt"


def measure(rounds: int) -> Sequence[Figure]:
    text = many(RECORDED.read_text(encoding="utf-8"))
    count = len(read_plan(text).layers)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.onnx"
        model.write_bytes(
            network(Cell("conv", "int8", "per_channel", "per_tensor")).SerializeToString()
        )
        layers = Path(folder) / "layers.txt"
        layers.write_text(text, encoding="utf-8")
        calls = {
            f"read a plan of {count:,} layers": partial(read_plan, text),
            "audit one convolution in that plan": partial(audit, model, "tensorrt_rtx", layers),
        }
        found = measure_interleaved(calls, warmup=1, rounds=rounds)
    goals = dict.fromkeys(calls) | {next(iter(calls)): 0.2}
    return [of_latency(name, found[name], goal=goals[name]) for name in calls]


def many(text: str) -> str:
    """A recorded plan, its layers repeated under other names until there are enough."""
    head, body, rest = re.fullmatch(
        r"(Layers:\n)(.*?)(\n\nI/O Tensors.*)", text, re.DOTALL
    ).groups()
    lines = body.split("\n")
    copies = -(-LAYERS // len(lines))
    renamed = [
        re.sub(r"Name: (\w)", rf"Name: c{n}_\1", line) for n in range(copies) for line in lines
    ]
    return head + "\n".join(renamed[:LAYERS]) + rest


if __name__ == "__main__":
    main(__doc__, measure, rounds=15)
