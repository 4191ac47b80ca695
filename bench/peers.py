"""The same float ONNX through granplugin and its peers: nearness to float, time on OpenVINO, effort.

    python bench/peers.py

Each peer by its defaults, from the same calibration samples, in an environment of its own that is
made on the first run (GRANPLUGIN_BENCH, by default ~/.cache/granplugin-bench, holds them). SQNR is
that of the outputs to the float file's, both on OpenVINO, on samples that were not calibrated on.
All files of a network run in turns in one process, with the f32 hint. Lines are those of the
function that quantizes (peer_tools), or of the recipe. Random weights tell of times; the digits
network is trained (recipes/). A run that was cut off goes on with the networks that it lacks.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import site
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
from measure import HERE, Figure, machine, main, of_ratio

from granplugin import backends
from granplugin.data.batches import Batch
from granplugin.measures.timing import Latency, measure_interleaved, ratio
from granplugin.recipe.load import load_recipe
from granplugin.results.values import FP32
from granplugin.runs.calibrated import calibrate
from granplugin.runs.executor import run_tasks
from granplugin.runs.jobs import plan_jobs
from granplugin.runs.session import Session
from granplugin.runs.variants import variant_task, writer
from granplugin.store.keys import content_key
from granplugin.store.run_folder import RunFolder, open_run

FOLDER = Path(os.environ.get("GRANPLUGIN_BENCH", Path.home() / ".cache" / "granplugin-bench"))
FIGURES = FOLDER / "figures"
OURS = ("tensorrt@11", "openvino@2026.4")
CALIBRATION = 32
BATCHES = (1, 8)
Call = Callable[[Mapping[str, np.ndarray]], np.ndarray]
SETTINGS = ("precision=fp32", "baselines=[fp32, tensorrt@11, openvino@2026.4]")


NNCF = "NNCF 3.4.0"
# Of ours, at batch 1 and 8: the part of FP32's time, and of NNCF's.
GOALS = {"vit_s_16": (0.5, 0.33)}
BESIDE_NNCF = 1.0


@dataclass(frozen=True)
class Tool:
    """A script of peer_tools, what it writes, and what it needs beside the packages here."""

    script: str
    needs: tuple[str, ...]
    suffix: str = ".onnx"


PEERS = {
    NNCF: Tool("nncf_default", ("nncf==3.4.0",), ".xml"),
    "ONNX Runtime": Tool("onnxruntime_static", ()),
    "modelopt's ONNX path": Tool("modelopt_onnx", ("nvidia-modelopt[onnx]==0.47.0",)),
    # Its own requirements would bring another torch, and what runs on NVIDIA's cards.
    "AIMET 2.42.0": Tool(
        "aimet_default",
        ("--no-deps", "aimet-onnx==2.42.0", "bokeh==3.9.2", "tornado==6.6.1", "psutil==7.2.2"),
    ),
}


@dataclass(frozen=True)
class Network:
    """A recipe; and who writes the float file and the samples that it names, where it names any."""

    recipe: Path
    settings: tuple[str, ...] = ()
    written_by: Tool | None = None


YOLO11N = Tool(
    "yolo11n_float",
    ("torch==2.14.1", "torchvision==0.29.1", "ultralytics==8.4.190", "onnxscript==0.7.2"),
)
OTHER_IMAGES = ("data.evaluation.args={samples: 16, seed: 1000}",)
NETWORKS = {
    "digits MobileNet": Network(HERE.parent / "recipes" / "digits_mobilenet.yaml"),
    "mobilenet_v2": Network(HERE / "mobilenet_v2.yaml", OTHER_IMAGES),
    "resnet_50": Network(HERE / "resnet_50.yaml", OTHER_IMAGES),
    "vit_s_16": Network(HERE / "vit_s_16.yaml", OTHER_IMAGES),
    "yolo11n": Network(HERE / "yolo11n.yaml", written_by=YOLO11N),
}


def measure(rounds: int) -> Sequence[Figure]:
    """Of all networks; each one's are kept until all are there."""
    key = content_key(writer(), machine()["versions"], rounds)
    figures: list[Figure] = []
    for network, made_of in NETWORKS.items():
        kept = FIGURES / f"{network}.json"
        if kept.exists() and (found := json.loads(kept.read_text()))["key"] == key:
            print(f"{network}: of a run that was cut off, {kept}", file=sys.stderr)
            figures += [Figure(**each) for each in found["figures"]]
            continue
        with tempfile.TemporaryDirectory() as folder, open_run(Path(folder) / "run") as run:
            own = of_network(network, made_of, run, rounds)
        FIGURES.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps({"key": key, "figures": [asdict(each) for each in own]}))
        figures += own
    shutil.rmtree(FIGURES)
    return figures


def of_network(network: str, made_of: Network, run: RunFolder, rounds: int) -> list[Figure]:
    load = os.getloadavg()[0]
    settings = (*SETTINGS, *made_of.settings, *written(made_of, run.cache))
    session = Session(load_recipe(made_of.recipe, settings), run)
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
    with ExitStack() as stack:
        calls = {each: stack.enter_context(compiled(path)) for each, path in files.items()}
        near = nearness(calls, name, evaluation)
        for at, batch in enumerate(BATCHES):
            feeds = {name: np.resize(evaluation, (batch, *evaluation.shape[1:]))}
            runs = {each: partial(call, feeds) for each, call in calls.items()}
            figures += _times(network, at, measure_interleaved(runs, 5, rounds), near)
    return [
        *figures,
        *(
            Figure(f"{network}: {each}", value, "s to quantize", note=lines(each, made_of.recipe))
            for each, value in seconds.items()
        ),
        Figure(f"{network}: load before", load, "", note=f"{os.getloadavg()[0]:.1f} after"),
    ]


def _times(
    network: str, at: int, found: Mapping[str, Latency], near: Mapping[str, float]
) -> list[Figure]:
    """Each file's time as a part of the float one's, and ours of NNCF's."""
    batch, goals = BATCHES[at], GOALS.get(network)
    beside = [
        of_ratio(
            f"{network}, batch {batch}: {each} / {NNCF}",
            ratio(found[each], found[NNCF]),
            goal=BESIDE_NNCF,
            note=f"{near[each] - near[NNCF]:+.1f} dB",
        )
        for each in OURS
        if NNCF in found
    ]
    return [
        *(
            of_ratio(
                f"{network}, batch {batch}: {each} / {FP32}",
                ratio(found[each], found[FP32]),
                goal=goals[at] if goals and each in OURS else None,
                note=f"{near[each]:.1f} dB",
            )
            for each in found
            if each != FP32
        ),
        *beside,
    ]


def written(network: Network, folder: Path) -> tuple[str, ...]:
    """The settings that name the float file and its samples, once they are there."""
    tool = network.written_by
    if tool is None:
        return ()
    onnx, samples = folder / f"{tool.script}.onnx", folder / f"{tool.script}.npz"
    command = [environment(tool), HERE / "peer_tools" / f"{tool.script}.py", onnx, samples]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return (
        f"model.onnx={onnx}",
        f"data.calibration.npz={samples}",
        f"data.evaluation.npz={samples}",
    )


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


def first(batches: Iterable[Batch], count: int) -> tuple[str, np.ndarray]:
    """The first samples of the one input."""
    found, name = [], ""
    for batch in batches:
        name = next(iter(batch))
        found.append(batch[name])
        if sum(map(len, found)) >= count:
            break
    return name, np.concatenate(found)[:count]


def quantized(tool: Tool, onnx: Path, calibration: Path, out: Path) -> float:
    """The seconds that the peer took, without starting Python and its imports."""
    python = environment(tool)
    script = HERE / "peer_tools" / f"{tool.script}.py"
    command = [python, script, onnx, calibration, out]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=out.parent)
    return float(done.stdout.splitlines()[-1].split()[-1])


def environment(tool: Tool) -> Path:
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
def compiled(path: Path) -> Iterator[Call]:
    """A file as OpenVINO runs it: as our engine does, or NNCF's own model with the same hints."""
    openvino = backends.backend_of("openvino")
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


def nearness(calls: Mapping[str, Call], name: str, x: np.ndarray) -> dict[str, float]:
    """The SQNR of each file's outputs to the float file's, in dB."""
    outputs = {}
    most = max(BATCHES)
    for each, run in calls.items():
        chunks = [run({name: x[at : at + most]}).copy() for at in range(0, len(x), most)]
        outputs[each] = np.concatenate(chunks).astype(np.float64)
    signal = np.square(outputs[FP32]).sum()
    return {
        each: float(10 * np.log10(signal / np.square(found - outputs[FP32]).sum()))
        for each, found in outputs.items()
        if each != FP32
    }


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
