"""Networks that people deploy, from plan to engines: what is found, honoured and computed.

`python bench/sweep.py [NAME ...]` runs each network in a process of its own, with random weights and
batch-norm statistics of random images, and writes results/sweep.json and results/sweep.txt. It
takes what it finds installed of torchvision, timm, ultralytics and transformers, which need another
torch than the tests (`pip install torchvision timm ultralytics`), and adds to a saved result.

What the columns say stands below the table (sweep_table.py). Analyses are of 8 samples, without
costs, with the two worst layers tried at the output.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from sweep_networks import NAMES, STATIC, build, data
from sweep_table import table
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

HERE = Path(__file__).resolve()
NETWORKS = HERE.with_name("sweep_networks.py")
RESULTS = HERE.parent / "results"
ENGINES = ("openvino", "tensorrt_rtx")
LIMIT_S = 3000
PACKAGES = (
    "torch", "torchvision", "timm", "ultralytics", "transformers", "nvidia-modelopt", "onnxruntime",
    "openvino", "tensorrt_rtx_cu13",
)  # fmt: skip


class Count(TorchDispatchMode):
    """Counts the operators that multiply matrices or convolve; a grouped one as often as it has
    groups, which are products of matrices of their own."""

    NAMES = frozenset(
        "mm bmm addmm baddbmm mv addmv dot convolution _trilinear addbmm "
        "_scaled_dot_product_flash_attention_for_cpu mkldnn_rnn_layer".split()
    )

    def __init__(self) -> None:
        super().__init__()
        self.there = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name == "_grouped_mm":
            self.there += args[2].numel()
        else:
            self.there += name in self.NAMES
        return func(*args, **(kwargs or {}))


def one(name: str) -> Iterator[dict[str, Any]]:
    """What one network comes to, in this process: after apply, and after analyze."""
    from granplugin.__main__ import main
    from granplugin.network.computed import compute_once
    from granplugin.network.forward import evaluating
    from granplugin.network.trace import trace

    model = build(name)
    example = {key: torch.from_numpy(values[:2]) for key, values in next(data(name)).items()}
    count = Count()
    compute_once(model)
    with evaluating(model), sdpa_kernel(SDPBackend.MATH), count:
        model(**example)
    traced = trace(model, example)
    layers = [layer for layer in traced.layers if layer.multiplied != ("weight",)]
    found = sum(layer.calls for layer in layers if layer.multiplied and _ran(layer))
    told: dict[str, Any] = {
        "there": count.there,
        "found": found,
        "products": len(traced.products),
        "without": {
            f"{each.place or 'itself'}: {each.function}": "no layer"
            for each in traced.products
            if each.place not in {layer.name for layer in layers}
        },
    }
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        call = {"callable": f"{NETWORKS}:data", "args": {"name": name}}
        recipe = {
            "version": 1,
            "model": {
                "callable": f"{NETWORKS}:build",
                "args": {"name": name},
                "static_batch": name in STATIC,
            },
            "data": {
                "calibration": call,
                "evaluation": {**call, "args": {"name": name, "seed": 1}},
                "batch_size": 8,
            },
            "metrics": ["sqnr_db"],
            "engines": ["onnxruntime"],
            "optional_engines": list(ENGINES),
            "on_unsupported": ["lower", "coarsen", "simulate"],
            "baselines": ["fp32"],
            "latency": {"rounds": 6, "seconds": 0.05},
            "analyze": {"top": 2, "calibrators": ["max"]},
        }
        recipe["data"]["analysis"] = {**call, "args": {"name": name, "seed": 2, "samples": 8}}
        Path("recipe.yaml").write_text(json.dumps(recipe))
        told["exit"] = main(["apply", "recipe.yaml"])
        report = Path("runs/recipe/report.json")
        if report.exists():
            told |= _engines(json.loads(report.read_text()))
        yield told
        analyzed = main(["analyze", "recipe.yaml", "--no-costs"])
        analysis = Path("runs/recipe/analysis.json")
        told["analyze"] = {"exit": analyzed}
        if analysis.exists():
            answer = json.loads(analysis.read_text())
            advice = answer["advice"]
            told["analyze"] |= {
                "layers": len(answer["layers"]),
                "sites": len(answer["sites"]),
                "verdict": advice["verdict"],
                "changed": sum(len(each["layers"]) for each in advice["overrides"]),
                "promise": advice["promise"],
            }
        yield told


def _ran(layer: Any) -> bool:
    return "never" not in (layer.unusable or "") and "no output" not in (layer.unusable or "")


def _engines(report: dict[str, Any]) -> dict[str, Any]:
    variant = report["variants"][-1]
    covered, engines = variant["coverage"], {}
    for engine in variant["engines"]:
        kinds = [verdict["verdict"] for verdict in engine["verdicts"]]
        metric = engine["metrics"].get("sqnr_db")
        engines[engine["engine"]] = {
            "db": metric and metric["value"],
            "honoured": kinds.count("honoured"),
            "told": sum(kind != "unknown" for kind in kinds),
            "simulated": sum(
                (each["promise"], each["verdict"]) == ("simulated", "degraded")
                for each in engine["verdicts"]
            ),
            "wrong": kinds.count("wrong") or bool(engine["held"] and engine["held"]["wrong"]),
            "left_float": [part["name"] for part in (engine["traced"] or {}).get("left_float", [])],
            "refused": engine["refused"] or engine["cannot_run"],
        }
    floats = [f"{each['products']} {each['what']} ({each['reason']})" for each in covered["floats"]]
    return {
        "quantized": covered["quantized"],
        "of": covered["products"],
        "floats": floats,
        "engines": engines,
    }


def _versions() -> str:
    told = []
    for package in PACKAGES:
        try:
            told.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            told.append(f"no {package}")
    return ", ".join(told)


def _child(name: str) -> dict[str, Any]:
    command = [sys.executable, str(HERE), "--one", name]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        try:
            subprocess.run(
                command, stdout=out, stderr=err, timeout=LIMIT_S, env=environment, check=False
            )
            word = ""
        except subprocess.TimeoutExpired:
            word = f"more than {LIMIT_S} s"
        for file in (out, err):
            file.seek(0)
        told = [json.loads(line) for line in out if line.startswith('{"there"')]
        word = word or ([line.strip() for line in err if line.strip()] or ["no word"])[-1][:300]
    found: dict[str, Any] = told[-1] if told else {}
    if found.get("analyze", {}).get("exit") not in (None, 0, 4):
        found["analyze"]["said"] = word
    return found if "engines" in found else {**found, "failed": word}


def run(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--one", metavar="NAME", help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.one:
        for told in one(given.one):
            print(json.dumps(told), flush=True)
        return
    saved = RESULTS / "sweep.json"
    results = json.loads(saved.read_text()) if saved.exists() else {}
    results["with"] = _versions()
    for name in given.names or NAMES:
        results[name] = _child(name)
        saved.write_text(json.dumps(results, indent=1) + "\n")
        (RESULTS / "sweep.txt").write_text(table(results, ENGINES))
        print(name, json.dumps(results[name])[:400], flush=True)


if __name__ == "__main__":
    run()
