"""The same float ONNX through granplugin and its peers: nearness to float, time on OpenVINO, effort.

    python bench/peers.py

Each peer by its defaults, from the same calibration samples, in an environment of its own that is
made on the first run (GRANPLUGIN_BENCH, by default ~/.cache/granplugin-bench, holds them). SQNR is
that of the class scores to the float file's, both on OpenVINO. All files of a network run in turns
in one process, with the f32 hint. Lines are those of the function that quantizes (peer_tools), or
of the recipe. Random weights tell of times; the digits network is trained (recipes/).
"""

from __future__ import annotations

import ast
import os
import site
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
from measure import HERE, Figure, main, of_ratio

from granplugin import backends
from granplugin.measures.timing import measure_interleaved, ratio
from granplugin.recipe.load import load_recipe
from granplugin.results.values import FP32
from granplugin.runs.calibrated import calibrate
from granplugin.runs.executor import run_tasks
from granplugin.runs.jobs import plan_jobs
from granplugin.runs.session import Session
from granplugin.runs.variants import variant_task
from granplugin.store.run_folder import RunFolder, open_run

FOLDER = Path(os.environ.get("GRANPLUGIN_BENCH", Path.home() / ".cache" / "granplugin-bench"))
OURS = ("tensorrt@11", "openvino@2026.4")
CALIBRATION = 32
BATCHES = (1, 8)
SETTINGS = ("precision=fp32", "baselines=[fp32, tensorrt@11, openvino@2026.4]")


@dataclass(frozen=True)
class Peer:
    """A script of peer_tools, what it writes, and what it needs beside the packages here."""

    script: str
    needs: tuple[str, ...]
    suffix: str = ".onnx"


PEERS = {
    "NNCF 3.4.0": Peer("nncf_default", ("nncf==3.4.0",), ".xml"),
    "ONNX Runtime": Peer("onnxruntime_static", ()),
    "modelopt's ONNX path": Peer("modelopt_onnx", ("nvidia-modelopt[onnx]==0.47.0",)),
    # Its own requirements would bring another torch, and what runs on NVIDIA's cards.
    "AIMET 2.42.0": Peer(
        "aimet_default",
        ("--no-deps", "aimet-onnx==2.42.0", "bokeh==3.9.2", "tornado==6.6.1", "psutil==7.2.2"),
    ),
}
RECIPES = {
    "digits MobileNet": HERE.parent / "recipes" / "digits_mobilenet.yaml",
    "mobilenet_v2": HERE / "mobilenet_v2.yaml",
    "resnet_50": HERE / "resnet_50.yaml",
    "vit_s_16": HERE / "vit_s_16.yaml",
}


def measure(rounds: int) -> Sequence[Figure]:
    figures: list[Figure] = []
    for network, recipe in RECIPES.items():
        with tempfile.TemporaryDirectory() as folder, open_run(Path(folder) / "run") as run:
            figures += of_network(network, recipe, run, rounds)
    return figures


def of_network(network: str, recipe: Path, run: RunFolder, rounds: int) -> list[Figure]:
    session = Session(load_recipe(recipe, SETTINGS), run)
    start = perf_counter()
    files = ours(session)
    seconds: dict[str, float] = {"granplugin": perf_counter() - start}
    name, samples = first(session.calibration, CALIBRATION)
    calibration = run.cache / "calibration.npz"
    np.savez(calibration, **{name: samples})
    said: dict[str, str] = {}
    for peer, tool in PEERS.items():
        out = run.cache / f"{tool.script}{tool.suffix}"
        try:
            seconds[peer] = quantized(tool, files[FP32], calibration, out)
            files[peer] = out
        except subprocess.CalledProcessError as err:
            said[peer] = (err.stderr.strip() or "no word").splitlines()[-1]
    _, evaluation = first(session.evaluation, 64)
    figures = [
        Figure(f"{network}: {peer}", 0, "of 1 files", note=f"failed: {why}")
        for peer, why in said.items()
    ]
    near = nearness(files, name, evaluation)
    for batch in BATCHES:
        found = timed(files, {name: np.resize(evaluation, (batch, *evaluation.shape[1:]))}, rounds)
        figures += [
            of_ratio(
                f"{network}, batch {batch}: {each} / {FP32}",
                ratio(found[each], found[FP32]),
                note=f"{near[each]:.1f} dB",
            )
            for each in files
            if each != FP32
        ]
    return [
        *figures,
        *(
            Figure(f"{network}: {each}", value, "s to quantize", note=lines(each, recipe))
            for each, value in seconds.items()
        ),
    ]


def ours(session: Session) -> dict[str, Path]:
    """The float file, and what OpenVINO is built of for each of our presets."""
    jobs = [
        job
        for job in plan_jobs([session.loaded], session.layers, ["openvino"])
        if job.name in (FP32, *OURS)
    ]
    calibrated = calibrate(session, jobs)
    tasks = [variant_task(session, job, calibrated, ["openvino"]) for job in jobs]
    built = run_tasks(tasks, session.run.kept)
    return {each.job.name: each.own.get("openvino", each.onnx).path for each in built}


def first(batches: object, count: int) -> tuple[str, np.ndarray]:
    """The first samples of the one input."""
    found, name = [], ""
    for batch in batches:
        name = next(iter(batch))
        found.append(batch[name])
        if sum(map(len, found)) >= count:
            break
    return name, np.concatenate(found)[:count]


def quantized(tool: Peer, onnx: Path, calibration: Path, out: Path) -> float:
    """The seconds that the peer took, without starting Python and its imports."""
    python = environment(tool)
    script = HERE / "peer_tools" / f"{tool.script}.py"
    command = [python, script, onnx, calibration, out]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=out.parent)
    return float(done.stdout.splitlines()[-1].split()[-1])


def environment(tool: Peer) -> Path:
    """An environment that sees the packages of this one behind its own."""
    folder = FOLDER / tool.script
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        (own,) = folder.glob("lib/python*/site-packages")
        (own / "behind.pth").write_text("\n".join(site.getsitepackages()) + "\n")
        if tool.needs:
            command = [python, "-m", "pip", "install", "-q", *tool.needs]
            subprocess.run(command, check=True, capture_output=True, text=True)
    return python


@contextmanager
def compiled(path: Path) -> Iterator[Callable[[Mapping[str, np.ndarray]], np.ndarray]]:
    """A file as OpenVINO runs it: as our engine does, or NNCF's own model with the same hints."""
    openvino = backends.load("openvino")
    if path.suffix == ".onnx":
        with tempfile.TemporaryDirectory() as folder:
            engine = openvino.build(path, Path(folder) / "engine")
            with ExitStack() as stack:
                runners = {b: stack.enter_context(openvino.open(engine, batch=b)) for b in BATCHES}

                def run(feeds: Mapping[str, np.ndarray]) -> np.ndarray:
                    outputs = runners[len(next(iter(feeds.values())))].run(feeds)
                    return next(iter(outputs.values()))

                yield run
        return
    ov = openvino.library()
    requests = {}
    for batch in BATCHES:
        model = ov.Core().read_model(path)
        shape = model.inputs[0].get_partial_shape()
        shape[0] = batch
        model.reshape({model.inputs[0]: shape})
        hints = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        hints |= {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
        requests[batch] = ov.Core().compile_model(model, "CPU", hints).create_infer_request()

    def run_own(feeds: Mapping[str, np.ndarray]) -> np.ndarray:
        request = requests[len(next(iter(feeds.values())))]
        return next(iter(request.infer(dict(feeds), share_inputs=True).values()))

    yield run_own


def nearness(files: Mapping[str, Path], name: str, x: np.ndarray) -> dict[str, float]:
    """The SQNR of each file's outputs to the float file's, in dB."""
    outputs = {}
    most = max(BATCHES)
    for each, path in files.items():
        with compiled(path) as run:
            chunks = [run({name: x[at : at + most]}).copy() for at in range(0, len(x), most)]
            outputs[each] = np.concatenate(chunks).astype(np.float64)
    signal = np.square(outputs[FP32]).sum()
    return {
        each: float(10 * np.log10(signal / np.square(found - outputs[FP32]).sum()))
        for each, found in outputs.items()
        if each != FP32
    }


def timed(files: Mapping[str, Path], feeds: Mapping[str, np.ndarray], rounds: int) -> dict:
    with ExitStack() as stack:
        calls = {
            each: partial(stack.enter_context(compiled(path)), feeds)
            for each, path in files.items()
        }
        return measure_interleaved(calls, warmup=5, rounds=rounds)


def lines(name: str, recipe: Path) -> str:
    if name == "granplugin":
        text = recipe.read_text().splitlines()
        return f"{sum(bool(line.strip()) and line[0] != '#' for line in text)} lines of recipe"
    tree = ast.parse((HERE / "peer_tools" / f"{PEERS[name].script}.py").read_text())
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    body = next(node for node in functions if node.name == "quantize")
    return f"{body.end_lineno - body.lineno} lines of Python"


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent / "recipes"))
    main(__doc__, measure, rounds=30)
