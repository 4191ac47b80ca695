"""INT8 against FP32 on OpenVINO at batch 1, and against what modelopt itself exports.

    python bench/latency.py

Full-width networks at 224. The configurations of one network are timed in turns. "modelopt's own"
is mtq.quantize with INT8_DEFAULT_CFG and modelopt's exporter, torch.onnx.export(dynamo=False);
modelopt@0.47 is the same configuration, planned and written by granplugin.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import modelopt.torch.quantization as mtq
import numpy as np
import torch
from measure import HERE, Figure, forward_loop, main, of_latency, of_ratio, torch_network

from granplugin import backends
from granplugin.measures.timing import measure_interleaved, ratio
from granplugin.modelopt_bridge.chatter import quiet
from granplugin.recipe.load import load_recipe
from granplugin.results.values import FP32
from granplugin.runs.calibrated import calibrate
from granplugin.runs.executor import run_tasks
from granplugin.runs.jobs import plan_jobs
from granplugin.runs.session import Session
from granplugin.runs.variants import variant_task
from granplugin.store.run_folder import RunFolder, open_run

GOALS = {"mobilenet_v2": 0.65, "resnet_50": 0.40}
OURS, OWN = "modelopt@0.47", "modelopt's own export"


def measure(rounds: int) -> Sequence[Figure]:
    figures = []
    for network, goal in GOALS.items():
        with tempfile.TemporaryDirectory() as folder, open_run(Path(folder) / "run") as run:
            figures += time_network(network, goal, run, rounds)
    return figures


def time_network(network: str, goal: float, run: RunFolder, rounds: int) -> list[Figure]:
    session = Session(load_recipe(HERE / f"{network}.yaml"), run)
    image = next(iter(session.evaluation))
    own = run.cache / "own.onnx"
    export_own(session, image, own)
    files = write_variants(session) | {OWN: own}
    with ExitStack() as stack:
        calls: dict[str, Callable[[], object]] = {}
        int8 = {}
        for name, onnx in files.items():
            openvino = backends.backend_of("openvino")
            engine = openvino.build(onnx, run.cache / f"engine-{name}")
            ran = [layer.precision for layer in openvino.layers(engine)]
            int8[name] = f"{ran.count('int8')} of {len(ran)} layers in INT8"
            runner = stack.enter_context(openvino.open(engine, batch=1))
            calls[name] = partial(runner.run, image)
        found = measure_interleaved(calls, warmup=5, rounds=rounds, inner=2)
    figures = [of_latency(f"{network}: {FP32}", found[FP32], "ms")]
    figures += [
        of_ratio(
            f"{network}: {name} / {FP32}",
            ratio(found[name], found[FP32]),
            goal=None if name == OWN else goal,
            note=int8[name],
        )
        for name in files
        if name != FP32
    ]
    against = ratio(found[OURS], found[OWN])
    return [*figures, of_ratio(f"{network}: {OURS} / {OWN}", against, goal=1.0)]


def write_variants(session: Session) -> dict[str, Path]:
    jobs = plan_jobs([session.loaded], session.layers)
    calibrated = calibrate(session, jobs)
    tasks = [variant_task(session, job, calibrated) for job in jobs]
    return {each.job.name: each.onnx.path for each in run_tasks(tasks, session.run.kept)}


def export_own(session: Session, image: dict[str, np.ndarray], path: Path) -> None:
    """INT8_DEFAULT_CFG, calibrated on the same data, through modelopt's exporter."""
    model = copy.deepcopy(torch_network(session).module())
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = mtq.quantize(model, mtq.INT8_DEFAULT_CFG, forward_loop(session))
        model.config.return_dict = False
        torch.onnx.export(
            model,
            tuple(map(torch.from_numpy, image.values())),
            path,
            dynamo=False,
            opset_version=20,
            input_names=list(image),
            output_names=["logits"],
            dynamic_axes={name: {0: "batch"} for name in image},
        )


if __name__ == "__main__":
    main(__doc__, measure, rounds=30)
