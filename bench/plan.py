"""From rules to a Q/DQ file: planning 10,000 layers, inserting into MobileNetV2, and file sizes.

python bench/plan.py
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from measure import HERE, Figure, main, of_latency

from granplugin.capabilities.legality import decide
from granplugin.graph.edit.qdq import insert
from granplugin.graph.files import load_float, save
from granplugin.measures.timing import measure_interleaved
from granplugin.planning.plan import make_plan
from granplugin.quant.layers import Layer, sites_of
from granplugin.recipe.load import load_recipe
from granplugin.results.values import FP32
from granplugin.runs.calibrated import calibrate
from granplugin.runs.executor import run_tasks
from granplugin.runs.jobs import plan_jobs
from granplugin.runs.session import Session
from granplugin.runs.variants import variant_task
from granplugin.store.run_folder import RunFolder, open_run

LAYERS = 10_000
PARTS = ("attention.q", "attention.k", "attention.v", "attention.out", "mlp.down")
PRESET = "tensorrt@11"
SIZE_GOALS = {"bench/mobilenet_v2.yaml": 0.30, "recipes/digits_mobilenet.yaml": 0.35}


def measure(rounds: int) -> Sequence[Figure]:
    figures = [plan_many(rounds), promise_many(rounds)]
    for recipe, goal in SIZE_GOALS.items():
        with tempfile.TemporaryDirectory() as folder, open_run(Path(folder) / "run") as run:
            figures += write(HERE.parent / recipe, run, goal, rounds)
    return figures


def plan_many(rounds: int) -> Figure:
    call = {"plan": lambda: make_plan(load_recipe(HERE / "many_layers.yaml"), many())}
    found = measure_interleaved(call, warmup=1, rounds=rounds)["plan"]
    return of_latency(f"load a recipe of 6 rules, plan {LAYERS:,} layers", found, goal=1)


def promise_many(rounds: int) -> Figure:
    layers = many()
    plan = make_plan(load_recipe(HERE / "many_layers.yaml"), layers)
    call = {"promise": lambda: decide(plan, layers, ["tensorrt_rtx"], None)}
    found = measure_interleaved(call, warmup=1, rounds=rounds)["promise"]
    name = f"what tensorrt_rtx promises for its {len(plan.rows):,} rows"
    return of_latency(name, found, goal=0.5)


def many() -> list[Layer]:
    shapes = {"weight": (384, 384), "input": (1, 197, 384), "output": (1, 197, 384)}
    return [
        Layer(
            name,
            "Linear",
            sites_of(name, "Linear", shapes, tensors={"input": i, "output": i + 1}),
            traits=frozenset({"last"} if i == LAYERS - 1 else ()),
        )
        for i in range(LAYERS)
        for name in [f"blocks.{i // len(PARTS)}.{PARTS[i % len(PARTS)]}"]
    ]


def write(recipe: Path, run: RunFolder, goal: float, rounds: int) -> list[Figure]:
    loaded = load_recipe(recipe)
    session = Session(loaded, run)
    jobs = [job for job in plan_jobs([loaded], session.layers) if job.name in (FP32, PRESET)]
    calibrated = calibrate(session, jobs)
    fp32, int8 = run_tasks(
        [variant_task(session, job, calibrated) for job in jobs], session.run.kept
    )
    size = int8.onnx.path.stat().st_size / fp32.onnx.path.stat().st_size
    megabytes = (
        f"{int8.onnx.path.stat().st_size / 1e6:.2f} of {fp32.onnx.path.stat().st_size / 1e6:.2f} MB"
    )
    figures = [Figure(f"{recipe.stem}: ONNX, INT8 / FP32", size, "x", goal=goal, note=megabytes)]
    if recipe.parent == HERE:
        out = run.cache / "inserted.onnx"

        def write_qdq() -> None:
            save(insert(load_float(calibrated.floats), int8.job.plan.rows, int8.amax), out)

        found = measure_interleaved({"qdq": write_qdq}, warmup=1, rounds=rounds)["qdq"]
        name = f"{recipe.stem}: load the float model, insert Q/DQ, save"
        figures.append(of_latency(name, found, goal=0.3, note=f"{len(int8.quantized)} rows"))
    return figures


if __name__ == "__main__":
    main(__doc__, measure, rounds=15)
