"""What each default of `tensorrt@11` does to a network: accuracy, rows honoured, bytes moved.

`python bench/defaults.py [NAME ...]` applies each of eight networks of sweep.py (random weights, random
samples) with the defaults as they are and, where it has layers that a default is about, with that
one turned round; it writes results/defaults.json and results/defaults.txt and adds to a saved result. It
needs what sweep.py needs.

dB: of ONNX Runtime's outputs against FP32. OpenVINO and RTX: rows that the engine's plan shows to be
computed as asked, of those it tells of. moved: bytes that TensorRT-RTX's kernels read and write for
a batch of 8, by its plan; weights: the file's bytes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parent))
import sweep  # noqa: E402
import sweep_networks  # noqa: E402

RESULTS = HERE.parent / "results"
NETWORKS = ("bert", "vit", "clip", "gpt2", "llama", "mixtral", "t5", "yolo11n")
LIMIT_S = 3000


def _of_trait(format: str, *traits: str) -> list[dict[str, Any]]:
    return [{"match": {"trait": t}, "format": format, "optional": True} for t in traits]


TURNED: dict[str, tuple[str, tuple[str, ...], list[dict[str, Any]]]] = {
    "attention float": (
        "attention products INT8",
        ("attention_scores", "attention_values"),
        _of_trait("float", "attention_scores", "attention_values"),
    ),
    "vocabulary int8": ("vocabulary float", ("vocabulary",), _of_trait("int8", "vocabulary")),
    "router int8": ("routers float", ("router",), _of_trait("int8", "router")),
    "embedding int8": ("embeddings float", ("embedding",), _of_trait("int8", "embedding")),
    "detection int8": ("detector's head float", ("detection",), _of_trait("int8", "detection")),
    "skip float": ("skip inputs INT8", ("skip",), [{"match": "**", "skip": "float"}]),
}
"""Variant -> the default that it turns round, the traits or operands it is about, and its rules."""


def one(name: str) -> dict[str, Any]:
    """What one network comes to with each default turned round, in this process."""
    from granplugin.__main__ import main
    from granplugin.network.trace import trace

    model = sweep_networks.build(name)
    example = {key: torch.from_numpy(x[:2]) for key, x in next(sweep_networks.data(name)).items()}
    layers = trace(model, example).layers
    there = Counter(trait for layer in layers for trait in layer.traits)
    there["skip"] = sum(map(_adds, layers))
    turned = {
        variant: rules
        for variant, (_, about, rules) in TURNED.items()
        if any(there[trait] for trait in about)
    }
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        call = {"callable": f"{sweep.NETWORKS}:data", "args": {"name": name}}
        recipe = {
            "version": 1,
            "model": {"callable": f"{sweep.NETWORKS}:build", "args": {"name": name}},
            "data": {
                "calibration": {**call, "args": {"name": name, "samples": 64}},
                "evaluation": {**call, "args": {"name": name, "seed": 1, "samples": 64}},
                "batch_size": 8,
            },
            "metrics": ["sqnr_db"],
            "engines": ["onnxruntime"],
            "optional_engines": list(sweep.ENGINES),
            "on_unsupported": ["lower", "coarsen", "simulate"],
            "baselines": ["fp32"],
            "latency": {"rounds": 6, "seconds": 0.05},
            "variants": {
                each.replace(" ", "-"): {"rules": rules} for each, rules in turned.items()
            },
        }
        Path("recipe.yaml").write_text(json.dumps(recipe))
        code = main(["apply", "recipe.yaml"])
        report = json.loads(Path("runs/recipe/report.json").read_text())
    names = {each.replace(" ", "-"): each for each in turned} | {"recipe": "as they are"}
    return {
        "exit": code,
        "layers": {each: sum(there[t] for t in TURNED[each][1]) for each in turned},
        "variants": {
            names.get(variant["name"], variant["name"]): _figures(variant)
            for variant in report["variants"]
        },
    }


def _adds(layer: Any) -> bool:
    """Whether the default quantizes its skip input."""
    return layer.site("skip") is not None and layer.kind.operation == "convolution"


def _figures(variant: dict[str, Any]) -> dict[str, Any]:
    engines = {engine["engine"]: engine for engine in variant["engines"]}
    told: dict[str, Any] = {"onnx_bytes": variant["onnx_bytes"]}
    for name, engine in engines.items():
        kinds = [verdict["verdict"] for verdict in engine["verdicts"]]
        metric, moved = engine["metrics"].get("sqnr_db"), engine["moved"]
        told[name] = {
            "db": metric and metric["value"],
            "honoured": kinds.count("honoured"),
            "told": sum(kind != "unknown" for kind in kinds),
            "moved": moved and moved["total"],
        }
    return told


def table(results: dict[str, Any]) -> str:
    """The results as text, a network's defaults beneath one another."""
    lines = [
        results.get("with", ""), "",
        f"{'network':9} {'default turned round':28} {'layers':>6} {'dB':>6} {'OpenVINO':>9} "
        f"{'RTX':>9} {'moved kB':>9} {'file kB':>8}",
    ]  # fmt: skip
    for name in NETWORKS:
        told = results.get(name)
        if told is None or "variants" not in told:
            lines.append(f"{name:9} {'not run' if told is None else told['failed']}")
            continue
        order = ["fp32", "as they are", *TURNED]
        for variant in (each for each in order if each in told["variants"]):
            found = told["variants"][variant]
            count = told["layers"].get(variant, "")
            lines.append(f"{name:9} {variant:28} {count:>6} {_cells(found)}".rstrip())
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _cells(found: dict[str, Any]) -> str:
    def rows(engine: str) -> str:
        of = found.get(engine)
        return f"{of['honoured']}/{of['told']}" if of and of["told"] else ""

    db = found.get("onnxruntime", {}).get("db")
    moved = found.get("tensorrt_rtx", {}).get("moved")
    return (
        f"{'' if db is None else f'{db:.1f}':>6} {rows('openvino'):>9} {rows('tensorrt_rtx'):>9} "
        f"{'' if moved is None else f'{moved / 1000:,.0f}':>9} {found['onnx_bytes'] / 1000:>8,.0f}"
    )


def run() -> None:
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(one(sys.argv[2])))
        return
    saved = RESULTS / "defaults.json"
    results = json.loads(saved.read_text()) if saved.exists() else {}
    results["with"] = sweep._versions()
    for name in sys.argv[1:] or NETWORKS:
        command = [sys.executable, str(HERE), "--one", name]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=LIMIT_S, check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        last = (done.stdout.strip().splitlines() or [""])[-1]
        word = (done.stderr.strip().splitlines() or ["no word"])[-1][:300]
        results[name] = json.loads(last) if last.startswith('{"exit"') else {"failed": word}
        saved.write_text(json.dumps(results, indent=1) + "\n")
        (RESULTS / "defaults.txt").write_text(table(results))
        print(name, json.dumps(results[name])[:300], flush=True)


if __name__ == "__main__":
    run()
