"""Fine-tuning the digits MobileNet with one scale for each weight tensor, batch norms folded: how much
comes back, what a step costs, and what taking the result over adds to an apply.

    python bench/qat.py

Top-1 is of the fake-quantized model on the 797 held-out images; its difference to the float network
has Tango's interval for pairs. Adam, 1e-4 at most in one cycle, on the labels of the 1,000 training
images, 10 at a time: 200 steps in two epochs, no image is changed. A step is forward, backward and
the optimizer's on 50 images; modelopt's own is mtq.quantize with INT8_DEFAULT_CFG. An apply is the
recipe's alone, held to ONNX Runtime, in a fresh run folder, of the float network and of the
fine-tuned checkpoint.
"""

from __future__ import annotations

import copy
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import HERE, Figure, main, of_latency, of_ratio
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import granplugin
from granplugin.measures.intervals import tango_interval
from granplugin.measures.timing import measure_interleaved, ratio
from granplugin.modelopt_bridge.library import mto, mtq

RECIPES = HERE.parent / "recipes"
sys.path.insert(0, str(RECIPES))  # bench has networks.py too
RULES: dict[str, Any] = {
    "version": 1,
    "defaults": "tensorrt@11",
    "rules": [
        {"match": {"type": ["Conv2d", "Linear"]}, "weight": "per_tensor", "half": "allow"},
        {"match": {"type": "Conv2d"}, "skip": "float"},
    ],
}
WAYS = {"ranges frozen": {}, "ranges learned": {"learn_ranges": True}}
EPOCHS, BATCH, RATE = 2, 10, 1e-4
TIMED = 50
"""Images of a step that is timed."""


def measure(rounds: int) -> Sequence[Figure]:
    torch.set_num_threads(1)
    with np.load(RECIPES / "data" / "digits.npz") as arrays:
        data = {name: torch.from_numpy(arrays[name]) for name in arrays}
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "trained.pth"
        for name, qat in WAYS.items():
            found, model = fine_tuned(name, qat, data)
            figures += found
            mto.save(model, checkpoint)
        figures += steps(data, rounds)
        return figures + applies(Path(folder), checkpoint, max(rounds // 5, 2))


def network() -> nn.Module:
    from networks import mobilenet_v2

    model = mobilenet_v2()
    model.load_state_dict(load_file(RECIPES / "weights" / "mobilenet_digits.safetensors"))
    return model


def quantized(data: dict[str, Tensor], qat: dict[str, Any]) -> nn.Module:
    loader = data["train_images"][:256].split(32)
    return granplugin.quantize(network().eval(), {**RULES, "qat": qat}, loader)


def fine_tuned(
    name: str, qat: dict[str, Any], data: dict[str, Tensor]
) -> tuple[list[Figure], nn.Module]:
    """Top-1 before, after each epoch, and after the last against the float network."""
    right = correct(network(), data)
    model = quantized(data, qat)
    figures = [Figure(f"{name}: top-1 lost before", lost(right, correct(model, data)), "points")]
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    steps = EPOCHS * math.ceil(len(data["train_images"]) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, RATE, total_steps=steps, pct_start=0.1, cycle_momentum=False
    )
    for epoch in range(EPOCHS):
        model.train()
        for chosen in torch.randperm(len(data["train_images"])).split(BATCH):
            step(model, optimizer, data["train_images"][chosen], data["train_labels"][chosen])
            schedule.step()
        now = correct(model, data)
        low, high = tango_interval(int((right & ~now).sum()), int((now & ~right).sum()), len(now))
        figures.append(
            Figure(
                f"{name}: top-1 lost after epoch {epoch + 1}",
                lost(right, now),
                "points",
                low,
                high,
                # Nothing is lost that 797 images show.
                goal=0.0,
            )
        )
    return figures, model


def step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor
) -> None:
    loss = cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@torch.inference_mode()
def correct(model: nn.Module, data: dict[str, Tensor]) -> np.ndarray:
    """Which of the held-out images the model gets right."""
    model.eval()
    found = torch.cat([model(batch).argmax(1) for batch in data["test_images"].split(100)])
    return (found == data["test_labels"]).numpy()


def lost(before: np.ndarray, now: np.ndarray) -> float:
    return 100 * float(before.mean() - now.mean())


def steps(data: dict[str, Tensor], rounds: int) -> list[Figure]:
    images, labels = data["train_images"][:TIMED], data["train_labels"][:TIMED]
    own = copy.deepcopy(mtq.INT8_DEFAULT_CFG)
    models = {
        "float": network(),
        "modelopt's own": mtq.quantize(network().eval(), own, lambda model: model(images)),
        **{name: quantized(data, qat) for name, qat in WAYS.items()},
    }

    def one(model: nn.Module) -> Callable[[], None]:
        optimizer = torch.optim.SGD(model.train().parameters(), 1e-6, momentum=0.9)
        return lambda: step(model, optimizer, images, labels)

    found = measure_interleaved(
        {name: one(model) for name, model in models.items()}, warmup=2, rounds=rounds
    )
    figures = [of_latency("a step of the float network", found["float"])]
    for name in models.keys() - {"float"}:
        goal = None if name == "modelopt's own" else 2.5
        figures.append(
            of_ratio(f"a step, {name}, over float", ratio(found[name], found["float"]), goal=goal)
        )
    return figures


def applies(folder: Path, checkpoint: Path, rounds: int) -> list[Figure]:
    recipe = granplugin.load(
        {
            **RULES,
            "model": {
                "callable": f"{RECIPES / 'networks.py'}:mobilenet_v2",
                "weights": str(RECIPES / "weights" / "mobilenet_digits.safetensors"),
            },
            "data": {
                "calibration": {
                    "npz": str(RECIPES / "data" / "digits.npz"),
                    "inputs": {"image": "train_images"},
                    "samples": 256,
                }
            },
            "engines": ["onnxruntime"],
            "baselines": ["fp32"],
        }
    )
    taken = granplugin.load(
        dict(recipe.document.value), [f"model.weights={checkpoint}", "model.quantized=keep"]
    )
    count = iter(range(99))
    found = measure_interleaved(
        {
            "apply": lambda: granplugin.apply(recipe, out=folder / f"{next(count)}"),
            "apply --from": lambda: granplugin.apply(taken, out=folder / f"{next(count)}"),
        },
        warmup=0,
        rounds=rounds,
    )
    return [
        of_latency("apply of the float network", found["apply"]),
        of_ratio("apply --from, over it", ratio(found["apply --from"], found["apply"]), goal=1.1),
    ]


if __name__ == "__main__":
    main(__doc__, measure, rounds=10)
