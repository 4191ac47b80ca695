"""What calibration costs beyond running the model: time, and memory for more and more samples.

    python bench/calibration.py

Bare is the unconverted model run over the same data in the same batches; `max` collects the
largest |x| at every input, `every calibrator` the histograms of which percentile, entropy and mse
are taken as well, per_tensor at every input, and finds the amax of all three.
"""

from __future__ import annotations

import copy
import json
import resource
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from measure import HERE, Figure, main, of_latency, of_ratio, run

from granplugin import modelopt_bridge
from granplugin.calibrators import Calibrator
from granplugin.modelopt_bridge.observe import observe
from granplugin.plan import Row, preset_plan
from granplugin.recipe.load import load
from granplugin.run_folder import open_run
from granplugin.session import Session
from granplugin.statistics import find_amax, needs_of
from granplugin.timing import measure_interleaved, ratio

SAMPLES = {"mobilenet_v2": 64, "resnet_50": 32}
MEMORY_SAMPLES = (16, 64, 256)
CALIBRATORS = (Calibrator("percentile", 99.99), Calibrator("entropy"), Calibrator("mse"))


def measure(rounds: int) -> Sequence[Figure]:
    figures = []
    for network, samples in SAMPLES.items():
        figures += time_network(network, samples, rounds)
        figures += memory_of(network)
    return figures


def time_network(network: str, samples: int, rounds: int) -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder, open_run(Path(folder) / "run") as run_folder:
        source = open_source(network, samples, run_folder)
        rows = input_rows(source)
        every = [replace(row, calibrator=c) for row in rows for c in CALIBRATORS]
        bare = copy.deepcopy(source.model)
        converted, _ = modelopt_bridge.collect(source.model, (), source.forward_loop)
        found = measure_interleaved(
            {
                "bare": lambda: source.forward_loop(bare),
                "max": lambda: observe(converted, needs_of(rows), source.forward_loop),
                "every": lambda: calibrate_all(converted, every, source.forward_loop),
            },
            warmup=1,
            rounds=rounds,
        )
    inputs = f"{len(rows)} inputs, {samples} samples"
    return [
        of_latency(f"{network}: bare forward passes", found["bare"], note=inputs),
        of_ratio(f"{network}: max / bare", ratio(found["max"], found["bare"]), goal=1.5),
        of_ratio(
            f"{network}: every calibrator / bare", ratio(found["every"], found["bare"]), goal=3
        ),
    ]


def open_source(network: str, samples: int, run_folder: object) -> Source:
    settings = [f"data.calibration.args.samples={samples}"]
    return Session(load(HERE / f"{network}.yaml", settings), run_folder)


def input_rows(source: Source) -> list[Row]:
    plan = preset_plan("tensorrt@11", source.layers, source.loaded)
    return [row for row in plan.quantized if row.role == "input"]


def calibrate_all(model: object, rows: Sequence[Row], forward_loop: Callable) -> None:
    statistics = observe(model, needs_of(rows), forward_loop)
    for row in rows:
        find_amax(row, statistics)


def memory_of(network: str) -> list[Figure]:
    peaks = [
        float(run([sys.executable, __file__, "--child", network, samples]))
        for samples in MEMORY_SAMPLES
    ]
    figures = [
        Figure(f"{network}: peak memory, {samples} samples", peak, "MB")
        for samples, peak in zip(MEMORY_SAMPLES, peaks, strict=True)
    ]
    growth = f"{network}: peak memory, {MEMORY_SAMPLES[-1]} / {MEMORY_SAMPLES[0]} samples"
    return [*figures, Figure(growth, peaks[-1] / peaks[0], "x", goal=1.05)]


def child(network: str, samples: int) -> None:
    """The peak memory in MB of a process that calibrates once with every calibrator."""
    with tempfile.TemporaryDirectory() as folder, open_run(Path(folder) / "run") as run_folder:
        source = open_source(network, samples, run_folder)
        every = [replace(row, calibrator=c) for row in input_rows(source) for c in CALIBRATORS]
        _, statistics = modelopt_bridge.collect(source.model, needs_of(every), source.forward_loop)
        for row in every:
            find_amax(row, statistics)
    print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], int(sys.argv[3]))
    else:
        main(__doc__, measure, rounds=7)
