"""What TensorRT-RTX makes of full-width networks: kernels, traffic, size, and the time it takes.

    python bench/rtx.py

At 224 and batch 1, the float part in float16. "moved" is what kernels read and write by the engine's
plan - activations, weights, scales and biases, other constants -, in MB; no GPU takes part. "build
and audit" is the child process that builds, reading its plan, and the verdicts.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

from measure import HERE, Figure, main, of_values

from granplugin import backends
from granplugin.audits.audit import audit
from granplugin.audits.audit_file import examine
from granplugin.backends.base import Engine
from granplugin.backends.nvidia.build import Options
from granplugin.backends.nvidia.plan_reader import read_layers_text
from granplugin.recipe.load import load_recipe
from granplugin.results.values import Built
from granplugin.runs.calibrated import calibrate
from granplugin.runs.jobs import plan_jobs
from granplugin.runs.session import Session
from granplugin.runs.variants import variant_task
from granplugin.store.run_folder import RunFolder, open_run

GOALS = {"resnet_50": 4.0, "mobilenet_v2": 2.0, "vit_b_16": 8.0}
"""Seconds for building and auditing the defaults."""
TIMED = "tensorrt@11"

RTX = backends.backend_of("tensorrt_rtx")


def measure(rounds: int) -> Sequence[Figure]:
    figures = []
    for network, goal in GOALS.items():
        with tempfile.TemporaryDirectory() as folder, open_run(Path(folder) / "run") as run:
            figures += of_network(network, goal, run, rounds)
    return figures


def of_network(network: str, goal: float, run: RunFolder, rounds: int) -> list[Figure]:
    session = Session(load_recipe(HERE / f"rtx_{network}.yaml"), run)
    jobs = plan_jobs([session.loaded], session.layers)
    calibrated = calibrate(session, jobs)
    figures, seconds = [], []
    for job in jobs:
        built = variant_task(session, job, calibrated).run(session.run.kept)
        figures.append(moved(network, built, run))
        if job.name == TIMED:
            seconds = [build_and_audit(built, run)[0] for _ in range(rounds)]
            text = (run.cache / "engine" / "layers.txt").read_text()
    figures.append(of_values(f"{network}: build and audit {TIMED}", seconds, "s", goal=goal))
    return [*figures, reading(network, text, rounds)]


def moved(network: str, built: Built, run: RunFolder) -> Figure:
    _, verdicts, engine = build_and_audit(built, run)
    plan = RTX.engine_plan(engine)
    kept = len(built.float32_nodes)
    honoured = sum(verdict.kind == "honoured" for verdict in verdicts)
    parts = ", ".join(f"{name} {size / 1e6:.1f}" for name, size in vars(plan.moved).items())
    note = (
        f"{parts}; {len(plan.kernels)} kernels, engine {engine.bytes / 1e6:.1f} MB, built in "
        f"{engine.build_seconds:.1f} s"
        + (f", {honoured} of {len(verdicts)} rows honoured" if verdicts else "")
        + (f", {kept} nodes in float32" if kept else "")
    )
    return Figure(f"{network}: {built.job.name}", plan.moved.total / 1e6, "MB moved", note=note)


def build_and_audit(built: Built, run: RunFolder) -> tuple[float, tuple, Engine]:
    folder = run.cache / "engine"
    shutil.rmtree(folder, ignore_errors=True)
    start = perf_counter()
    file = built.file("tensorrt_rtx").path
    engine = RTX.build(file, folder, Options(batch=1))
    rows = [row for row in built.job.plan.quantized if row.site in built.amax]
    sites, _ = examine("tensorrt_rtx", file, RTX.engine_plan(engine), rows)
    verdicts = audit(rows, (*RTX.layers(engine), *sites), {})
    return perf_counter() - start, verdicts, engine


def reading(network: str, text: str, rounds: int) -> Figure:
    """A plan as long as this one is read in this time for each 1,000 layers."""
    layers = len(read_layers_text(text).layers)
    seconds = []
    for _ in range(rounds):
        start = perf_counter()
        read_layers_text(text)
        seconds.append((perf_counter() - start) * 1000 / layers)
    name = f"{network}: read the plan, for 1,000 layers"
    return of_values(name, seconds, "s", goal=0.2, note=f"{layers} layers")


if __name__ == "__main__":
    main(__doc__, measure, rounds=5)
