"""What calibration costs beyond running the model: time, and memory for more and more samples.

    python bench/calibration.py

Bare is the unconverted model run over the same data in the same batches, of 16 samples or as noted
(calibration has none larger than data.batch_size); `max` collects the largest |x| at every input,
`every calibrator` the histograms of which percentile, entropy and mse are taken as well, per_tensor
at every input, and finds the amax of all three.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from measure import (
    HERE,
    Figure,
    forward_loop,
    main,
    of_latency,
    of_ratio,
    of_values,
    run,
    torch_network,
)

from granplugin import modelopt_bridge
from granplugin.calibration.statistics import find_amax, needs_of
from granplugin.measures.timing import measure_interleaved, ratio
from granplugin.modelopt_bridge.observe import observe
from granplugin.planning.plan import preset_plan
from granplugin.planning.rows import Row
from granplugin.quant.calibrators import Calibrator
from granplugin.recipe.load import load_recipe
from granplugin.runs.session import Session
from granplugin.store.run_folder import open_run

SAMPLES = {"mobilenet_v2": 64, "resnet_50": 16}
BATCH = 16
MEMORY_SAMPLES = (64, 1024)
MEMORY_ROUNDS = 2
CALIBRATORS = (Calibrator("percentile", 99.99), Calibrator("entropy"), Calibrator("mse"))


def measure(rounds: int) -> Sequence[Figure]:
    figures = []
    for network, samples in SAMPLES.items():
        figures += time_network(network, samples, rounds)
    figures += time_network("mobilenet_v2", 16, rounds, batch=1)
    return figures + memory_of("mobilenet_v2")


def time_network(network: str, samples: int, rounds: int, batch: int = BATCH) -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder, open_run(Path(folder) / "run") as run_folder:
        session = open_session(network, samples, run_folder, batch)
        rows = input_rows(session)
        every = [replace(row, calibrator=c) for row in rows for c in CALIBRATORS]
        bare = copy.deepcopy(torch_network(session).module())
        converted, _ = modelopt_bridge.convert(
            torch_network(session).module(), (), forward_loop(session)
        )
        found = measure_interleaved(
            {
                "bare": lambda: forward_loop(session)(bare),
                "max": lambda: observe(converted, needs_of(rows), forward_loop(session)),
                "every": lambda: calibrate_all(converted, every, forward_loop(session)),
            },
            warmup=1,
            rounds=rounds,
        )
    name = network if batch == BATCH else f"{network}, batches of {batch}"
    inputs = f"{len(rows)} inputs, {samples} samples"
    return [
        of_latency(f"{name}: bare forward passes", found["bare"], note=inputs),
        of_ratio(f"{name}: max / bare", ratio(found["max"], found["bare"]), goal=1.5),
        of_ratio(f"{name}: every calibrator / bare", ratio(found["every"], found["bare"]), goal=3),
    ]


def open_session(network: str, samples: int, run_folder: object, batch: int = BATCH) -> Session:
    settings = [f"data.calibration.args.samples={samples}", f"data.batch_size={batch}"]
    return Session(load_recipe(HERE / f"{network}.yaml", settings), run_folder)


def input_rows(session: Session) -> list[Row]:
    plan = preset_plan("tensorrt@11", session.layers, session.loaded)
    return [row for row in plan.quantized if row.operand == "input"]


def calibrate_all(model: object, rows: Sequence[Row], forward_loop: Callable) -> None:
    statistics = observe(model, needs_of(rows), forward_loop)
    for row in rows:
        find_amax(row, statistics)


def memory_of(network: str) -> list[Figure]:
    """Allocators leave a tenth to chance, so each process is run several times, in turns."""
    peaks: dict[int, list[float]] = {samples: [] for samples in MEMORY_SAMPLES}
    for samples in MEMORY_SAMPLES * MEMORY_ROUNDS:
        peaks[samples].append(float(run([sys.executable, __file__, "--child", network, samples])))
    figures = [
        of_values(f"{network}: peak memory, {samples} samples", peaks[samples], "MB")
        for samples in MEMORY_SAMPLES
    ]
    few, many = peaks[MEMORY_SAMPLES[0]], peaks[MEMORY_SAMPLES[-1]]
    name = f"{network}: peak memory, {MEMORY_SAMPLES[-1]} / {MEMORY_SAMPLES[0]} samples"
    growth = float(np.median(many) / np.median(few))
    extremes = min(many) / max(few), max(many) / min(few)
    return [*figures, Figure(name, growth, "x", *extremes, goal=1.05)]


def child(network: str, samples: int) -> None:
    """The peak memory in MB of a process that calibrates once with every calibrator."""
    with tempfile.TemporaryDirectory() as folder, open_run(Path(folder) / "run") as run_folder:
        session = open_session(network, samples, run_folder)
        every = [replace(row, calibrator=c) for row in input_rows(session) for c in CALIBRATORS]
        _, statistics = modelopt_bridge.convert(
            torch_network(session).module(), needs_of(every), forward_loop(session)
        )
        for row in every:
            find_amax(row, statistics)
    # Not ru_maxrss: a child's begins at its parent's.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(int(status["VmHWM"].split()[0]) / 1024)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], int(sys.argv[3]))
    else:
        main(__doc__, measure, rounds=6)
