"""How far two right computations of one INT8 network differ: roundings that flip, and add up.

    python bench/rounding_chaos.py
    python bench/rounding_chaos.py --save

With ImageNet's weights too where bench/imagenet/prepare.py has fetched them.

One Q/DQ file in ONNX Runtime (optimizations off) is compared with modelopt's fake-quant of the same
plan, and with itself where values are moved by units in the last place (ulp): all of the
network's input, or all that convolutions put out, as another order of their sums might. The float
network moved alike is the control. SQNR of the outputs, in dB, of 32 samples (digits) or 4;
infinite where no bit differs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml
from imagenet.nets import FETCHED
from measure import HERE, Figure, main
from onnx import numpy_helper

from granplugin.graph import reference
from granplugin.measures.metrics import METRICS
from granplugin.recipe.load import load_recipe
from granplugin.results.values import Built
from granplugin.runs.calibrated import calibrate
from granplugin.runs.executor import run_tasks
from granplugin.runs.jobs import plan_jobs
from granplugin.runs.session import Session
from granplugin.runs.variants import variant_task
from granplugin.store.run_folder import RunFolder, open_run

RECIPES = HERE.parent / "recipes"
DIGITS = {"npz": str(RECIPES / "data/digits.npz"), "inputs": {"image": "test_images"}}
IMAGES = {"callable": f"{HERE / 'networks.py'}:images"}
IMAGENET = HERE / "imagenet" / "nets.py"
PICTURES, SCALE = {"callable": f"{IMAGENET}:pictures"}, {"scale": "imagenet"}
NETWORKS: dict[str, dict[str, Any]] = {
    "digits, trained": {
        "model": {
            "callable": f"{RECIPES / 'networks.py'}:mobilenet_v2",
            "weights": str(RECIPES / "weights/mobilenet_digits.safetensors"),
        },
        "data": {
            "calibration": {**DIGITS, "inputs": {"image": "train_images"}, "samples": 64},
            "evaluation": {**DIGITS, "samples": 32},
            "batch_size": 32,
        },
    },
    "224, random": {
        "model": {"callable": f"{HERE / 'networks.py'}:mobilenet_v2"},
        "data": {
            "calibration": {**IMAGES, "args": {"samples": 8}},
            "evaluation": {**IMAGES, "args": {"samples": 4}},
            "batch_size": 4,
        },
    },
}
if FETCHED.exists():
    NETWORKS["224, ImageNet"] = {
        "model": {"callable": f"{IMAGENET}:mobilenet_v2"},
        "data": {
            "calibration": {**PICTURES, "args": {**SCALE, "part": "calibration", "samples": 32}},
            "evaluation": {**PICTURES, "args": {**SCALE, "part": "evaluation", "samples": 4}},
            "batch_size": 4,
        },
    }
"""MobileNetV2 x0.5 at 32x32 and x1.0 at 224, with their data."""
WEIGHTS = ("per_channel", "per_tensor")
ULPS = (1, 8)
"""How far at most what convolutions put out is moved, towards zero: by one, or by 4 to 8."""


def measure(rounds: int) -> Sequence[Figure]:
    figures: list[Figure] = []
    for network, recipe in NETWORKS.items():
        with tempfile.TemporaryDirectory() as folder, open_run(Path(folder) / "run") as run:
            figures += _of_network(network, recipe, Path(folder) / "recipe.yaml", run)
    return figures


def _of_network(
    network: str, recipe: Mapping[str, Any], path: Path, run: RunFolder
) -> Iterator[Figure]:
    shared = {"version": 1, "metrics": ["sqnr_db"], "engines": ["onnxruntime"], "name": WEIGHTS[0]}
    rules = {w: [{"match": {"type": ["Conv2d", "Linear"]}, "weight": w}] for w in WEIGHTS}
    variants = {w: {"rules": rules[w]} for w in WEIGHTS[1:]}
    whole = {**recipe, **shared, "baselines": ["fp32"], "rules": rules[WEIGHTS[0]]}
    path.write_text(yaml.safe_dump({**whole, "variants": variants}), encoding="utf-8")
    session = Session(load_recipe(path), run)
    jobs = plan_jobs([session.loaded], session.layers)
    calibrated = calibrate(session, jobs)
    fp32, *built = run_tasks([variant_task(session, job, calibrated) for job in jobs], run.kept)
    batch = next(iter(session.evaluation))
    floats, moved = _computed(fp32, batch)
    for name, (outputs, _) in moved.items():
        yield Figure(f"{network}, float: {name} off", _sqnr(outputs, floats), "dB")
    for each in built:
        yield from _of_variant(f"{network}, {each.job.name}", session, each, batch, floats)


def _of_variant(
    title: str,
    session: Session,
    built: Built,
    batch: Mapping[str, np.ndarray],
    floats: Mapping[str, np.ndarray],
) -> Iterator[Figure]:
    ours, moved = _computed(built, batch)
    theirs = session.network.quantized(built.job.plan, built.amax, session.layers, session.example)(
        batch
    )
    yield Figure(f"{title}: quantized, against float", _sqnr(ours, floats), "dB")
    yield Figure(f"{title}: modelopt's, against float", _sqnr(theirs, floats), "dB")
    yield Figure(f"{title}: modelopt's, against this", _sqnr(theirs, ours), "dB")
    for name, (outputs, flips) in moved.items():
        shares = ", ".join(f"{100 * share:.2g}" for share in _spread(flips))
        note = f"roundings flipped at first, middle, last site of {len(flips)}: {shares} %"
        yield Figure(f"{title}: {name} off", _sqnr(outputs, ours), "dB", note=note)


def _computed(
    built: Built, batch: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, tuple[dict[str, np.ndarray], list[float]]]]:
    """The file's outputs, and by what is moved: the outputs, and the share of stored
    numbers that became others, by activation site in the file's order."""
    model = onnx.load(built.float32.path)
    (given,) = batch
    off = np.nextafter(batch[given], np.float32(np.inf))
    outputs, stored = _run(model, batch)
    again = {
        "input 1 ulp": _run(model, {given: off}),
        **{f"convolutions {ulps} ulp": _run(_moved(model, ulps), batch) for ulps in ULPS},
    }
    return outputs, {
        name: (there, [float(np.mean(x != y)) for x, y in zip(stored, others, strict=True)])
        for name, (there, others) in again.items()
    }


def _run(
    model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    exposing = onnx.ModelProto()
    exposing.CopyFrom(model)
    outputs = [value.name for value in model.graph.output]
    stored = [node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    exposing.graph.output.extend(onnx.ValueInfoProto(name=name) for name in stored)
    found = reference.run(exposing, [*outputs, *stored], feeds)
    return dict(zip(outputs, found, strict=False)), found[len(outputs) :]


def _moved(model: onnx.ModelProto, ulps: int) -> onnx.ModelProto:
    """The model with every value that a convolution puts out moved by at most so many ulp."""
    moved = onnx.ModelProto()
    moved.CopyFrom(model)
    factor = np.float32(1 - ulps * 2**-24)
    moved.graph.initializer.append(numpy_helper.from_array(factor, "moved"))
    del moved.graph.node[:]
    for node in model.graph.node:
        own = moved.graph.node.add()
        own.CopyFrom(node)
        if node.op_type == "Conv":
            (name,) = node.output
            own.output[0] = f"{name}_exact"
            moved.graph.node.append(onnx.helper.make_node("Mul", [own.output[0], "moved"], [name]))
    return moved


def _spread(shares: Sequence[float]) -> Sequence[float]:
    return shares[0], shares[len(shares) // 2], shares[-1]


def _sqnr(outputs: Mapping[str, np.ndarray], against: Mapping[str, np.ndarray]) -> float:
    return float(METRICS["sqnr_db"].measure(outputs, against, None).value)


if __name__ == "__main__":
    main(__doc__, measure, rounds=1)
