"""A decoder of 1.1 billion parameters: plan, export, int4 from the file, and whole applies.

    python bench/large.py --save

The applies are of the module, and of the ONNX file that the export leaves, on one batch of 2 samples
of 8 tokens, on ONNX Runtime alone. float32 takes 4.4 GB; 25 GB of disk and 16 GB of memory are
needed. Each stage is a process of its own; its peak is that of all its resident memory (VmHWM),
pages of files included.
"""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import measure
from measure import Figure, torch_network

NET = '''
import numpy as np
import torch
import transformers


def decoder(layers=22, hidden=2048, vocabulary=32000):
    """As TinyLlama has them, with random weights."""
    config = transformers.LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers, num_attention_heads=hidden // 64,
        num_key_value_heads=max(hidden // 512, 1), use_cache=False,
    )
    return transformers.LlamaForCausalLM(config)


def data():
    yield {"input_ids": np.random.default_rng(0).integers(0, 100, (2, 8))}
'''
RECIPE = """
version: 1
model: {callable: nets.py:decoder, args: ARGS}
data: {calibration: {callable: nets.py:data}, batch_size: 2}
metrics: [sqnr_db]
engines: [onnxruntime]
baselines: []
defaults: {weight: {format: int4, granularity: {per_block: {size: 128, axis: 1}}}}
rules: [{id: half, match: {type: Linear}, half: allow}]
"""


def peak_gb() -> float:
    """The most memory this process ever had."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 2**20 * 1.073741824


def plan(folder: Path) -> dict[str, Any]:
    from granplugin.recipe.load import load_recipe
    from granplugin.runs.jobs import plan_jobs
    from granplugin.runs.session import Session
    from granplugin.store.run_folder import open_run

    with open_run(folder / "planned") as run:
        start = perf_counter()
        loaded = load_recipe(folder / "large.yaml")
        session = Session(loaded, run)
        opened = perf_counter()
        jobs = plan_jobs([loaded], session.layers)
        found = {"loaded": opened - start, "planned": perf_counter() - opened}
        model = torch_network(session).module()
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return {**found, "weights": weights, "quantized": len(jobs[-1].plan.quantized)}


def export(folder: Path) -> dict[str, Any]:
    from granplugin.recipe.load import load_recipe
    from granplugin.runs.calibrated import calibrate
    from granplugin.runs.jobs import plan_jobs
    from granplugin.runs.session import Session
    from granplugin.runs.variants import variant_task
    from granplugin.store.run_folder import open_run

    with open_run(folder / "run") as run:
        loaded = load_recipe(folder / "large.yaml")
        session = Session(loaded, run)
        jobs = plan_jobs([loaded], session.layers)
        start = perf_counter()
        calibrated = calibrate(session, jobs)
        seconds = perf_counter() - start
        task = variant_task(session, jobs[-1], calibrated)
        (folder / "task.pickle").write_bytes(pickle.dumps(task))
        model = torch_network(session).module()
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        return {"seconds": seconds, "peak": peak_gb() * 1e9 / weights}


def quantize(folder: Path) -> dict[str, Any]:
    from granplugin.store.cache import Cache
    from granplugin.store.companions import companions

    task = pickle.loads((folder / "task.pickle").read_bytes())
    (folder / "quantized").mkdir()
    start = perf_counter()
    built = task.run(Cache(folder / "quantized"))
    path = built.onnx.path
    size = path.stat().st_size + sum(each.stat().st_size for each in companions(path))
    return {"seconds": perf_counter() - start, "peak": peak_gb(), "bytes": size}


def apply(folder: Path) -> dict[str, Any]:
    for made in ("run", "quantized"):  # room for what comes
        shutil.rmtree(folder / made)
    found = _applied(folder / "large.yaml", folder / "applied")
    (folder / "applied/variants/fp32").rename(folder / "file")
    shutil.rmtree(folder / "applied")
    return found


def file(folder: Path) -> dict[str, Any]:
    text = (folder / "large.yaml").read_text().replace("type: Linear", "type: MatMul")
    model = next(line for line in text.splitlines() if line.startswith("model:"))
    (folder / "file.yaml").write_text(text.replace(model, "model: {onnx: file/model.onnx}"))
    return _applied(folder / "file.yaml", folder / "applied")


def _applied(recipe: Path, out: Path) -> dict[str, Any]:
    """What a whole apply took and found."""
    from granplugin.__main__ import main

    start = perf_counter()
    code = main(["apply", str(recipe), "--out", str(out), "--quiet"])
    seconds = perf_counter() - start
    variant = json.loads((out / "report.json").read_text())["variants"][-1]
    agreed = variant["agreement"]
    return {
        "exit": code,
        "seconds": seconds,
        "cpu": process_time(),
        "peak": peak_gb(),
        "values": agreed["values"],
        "differ": agreed["oracle_differs"],
        "networks_db": agreed["network_sqnr_db"],
    }


STAGES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "plan": plan,
    "export": export,
    "quantize": quantize,
    "apply": apply,
    "file": file,
}


def stages(args: dict[str, int]) -> dict[str, dict[str, Any]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "nets.py").write_text(NET)
        (folder / "large.yaml").write_text(RECIPE.replace("ARGS", json.dumps(args)))
        found = {}
        for stage in STAGES:
            command = [sys.executable, __file__, stage, str(folder)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[stage] = json.loads(done.stdout.splitlines()[-1])
        return found


def figures(rounds: int) -> list[Figure]:
    found = stages({})
    planned, exported, quantized, applied, of_file = (found[stage] for stage in STAGES)
    share = quantized["bytes"] / planned["weights"]
    giga = planned["weights"] / 1e9
    return [
        Figure("load: build, hash every weight", planned["loaded"], "s"),
        Figure(
            "plan, once it is loaded", planned["planned"], "s", goal=10,
            note=f"{planned['quantized']} weights are quantized",
        ),
        Figure("export the float file", exported["seconds"], "s"),
        Figure("peak of load, plan and export", exported["peak"], "x float32 weights", goal=1.2),
        Figure("int4, per_block 128, from the file", quantized["seconds"], "s"),
        Figure("peak of it", quantized["peak"], "GB", goal=1),
        Figure("the file and its weights", share, "x float32 weights", goal=0.19),
        *_of_apply("apply", applied, giga),
        *_of_apply("apply of its ONNX file", of_file, giga),
    ]  # fmt: skip


def _of_apply(name: str, found: dict[str, Any], giga: float) -> list[Figure]:
    told = (
        f"{found['differ']} of {found['values']:,} values differ from the oracle; whole networks: "
        f"{float(found['networks_db']):.0f} dB"
    )
    return [
        Figure(name, found["seconds"], "s", note=told),
        Figure("CPU of it, on one thread", found["cpu"], "s"),
        Figure("peak of it", found["peak"] / giga, "x float32 weights"),
    ]


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in STAGES:
        print(json.dumps(STAGES[sys.argv[1]](Path(sys.argv[2]))))
    else:
        measure.main(__doc__, figures, 1)
