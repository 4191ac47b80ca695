"""Files that quantizers' own libraries write, audited: modelopt.onnx.quantization, ONNX Runtime, NNCF
and Olive, of small networks and of a YOLO11n that ultralytics exports; and whether modelopt's have
the verdicts that our file of the same network has.

    python bench/producers.py --save
    python bench/producers.py --files       # those that tests/test_producers.py audits

Environments are made as those of bench/peers.py, one a library. A file is audited on TensorRT-RTX,
which builds it without a GPU.
"""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import onnx
from peers import PEERS, Tool, environment

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from qdq_styles import PATTERNS, Built  # noqa: E402

from granplugin.__main__ import main as granplugin  # noqa: E402
from granplugin.audits.audit_file import FileAudit  # noqa: E402
from granplugin.errors import UserError  # noqa: E402
from granplugin.pipelines.audit import audit  # noqa: E402

NETWORKS = ("residual", "c2f", "attention", "gate", "depthwise", "linear")
OLIVE = ("olive-ai==0.13.0", "optuna", "questionary", "opentelemetry-sdk", "torchmetrics", "pandas")
MODELOPT = PEERS["modelopt's ONNX path"]
RTX = "tensorrt_rtx"
RECIPE = """
version: 1
name: ours
model: {{onnx: {file}}}
data:
  calibration: {{npz: calibration.npz, inputs: {{{name}: {name}}}}}
  evaluation: {{npz: calibration.npz, inputs: {{{name}: {name}}}}}
  batch_size: 1
defaults: tensorrt@11
engines: [onnxruntime]
baselines: [fp32]
"""


@dataclass(frozen=True)
class Producer:
    """A library's own way to write a file: its script in peer_tools, with what else it is told."""

    tool: Tool
    said: tuple[str, ...] = ()


PRODUCERS: Mapping[str, Producer] = {
    "modelopt int8": Producer(MODELOPT),
    "modelopt fp8": Producer(MODELOPT, ("fp8",)),
    "modelopt int4": Producer(MODELOPT, ("int4",)),
    "ONNX Runtime": Producer(PEERS["ONNX Runtime"]),
    "NNCF": Producer(Tool("nncf_onnx", ("nncf==3.4.0",))),
    "Olive": Producer(Tool("olive_onnx", ("--no-deps", *OLIVE))),
    "Olive symmetric": Producer(Tool("olive_onnx", ("--no-deps", *OLIVE)), ("--symmetric",)),
}
KEPT = ("modelopt int8", "modelopt fp8", "NNCF", "Olive symmetric")
YOLO = Tool("ultralytics_yolo", ("--no-deps", "ultralytics", "opencv-python-headless"))


class Float(Built):
    """The patterns' networks before anybody quantizes them."""

    def q(self, x: str, scale: float = 0.03) -> str:
        return x

    def of_weight(self, values: np.ndarray, scale: np.ndarray, axis: int) -> str:
        return self.held(values)


def floats(folder: Path) -> dict[str, Path]:
    """Network -> its float file, with calibration.npz beside it."""
    found = {}
    for name in NETWORKS:
        net = Float()
        found[name] = written(folder / name, net.model(PATTERNS[name](net)))
    try:
        path = folder / "yolo11n" / "float.onnx"
        path.parent.mkdir()
        ran(YOLO, path)
        found["yolo11n"] = written(path.parent, onnx.load(path))
    except subprocess.CalledProcessError as err:
        print(f"yolo11n: not exported: {last(err.stderr)}")
    return found


def small(b: Float) -> str:
    """Files of some kB, which tests/data keeps; of fewer channels modelopt makes no fp8."""
    first = b.node("Relu", b.conv("x", kernel=1))
    total = b.node("Relu", b.node("Add", b.conv(first), first))
    pooled = b.node("Flatten", b.node("GlobalAveragePool", total))
    return b.node("MatMul", pooled, b.held(b.numbers(32, 16)))


def kept(folder: Path) -> None:
    """What tests/test_producers.py audits: the small network as each producer writes it."""
    with tempfile.TemporaryDirectory() as scratch:
        net = Float()
        path = written(Path(scratch) / "small", net.model(small(net)))
        shutil.copyfile(ours(path), folder / "granplugin.onnx")
        for name in KEPT:
            out, producer = path.with_name(f"{name.replace(' ', '-')}.onnx"), PRODUCERS[name]
            ran(producer.tool, path, path.with_name("calibration.npz"), out, *producer.said)
            shutil.copyfile(out, folder / out.name)


def written(folder: Path, model: onnx.ModelProto) -> Path:
    folder.mkdir(exist_ok=True)
    model = onnx.shape_inference.infer_shapes(model)
    onnx.save(model, folder / "float.onnx")
    (given,) = model.graph.input
    shape = [dim.dim_value or 1 for dim in given.type.tensor_type.shape.dim]
    samples = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    np.savez(folder / "calibration.npz", **{given.name: samples})
    return folder / "float.onnx"


def ran(tool: Tool, *words: object) -> None:
    command = [environment(tool), HERE / "peer_tools" / f"{tool.script}.py", *map(str, words)]
    subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=Path(str(words[0])).parent
    )


def ours(onnx_path: Path) -> Path:
    """What `granplugin apply` writes of a network."""
    folder = onnx_path.parent
    (given,) = onnx.load(onnx_path).graph.input
    (folder / "ours.yaml").write_text(RECIPE.format(file=onnx_path.name, name=given.name))
    with contextlib.redirect_stdout(io.StringIO()):
        code = granplugin(
            ["--quiet", "apply", str(folder / "ours.yaml"), "--out", str(folder / "ours")]
        )
    if code not in (0, 4):
        raise SystemExit(f"{onnx_path}: apply ended with {code}")
    return folder / "ours" / "variants" / "ours" / "model.onnx"


def told(found: FileAudit) -> str:
    """An audit in a line: exit code, what the sites came to, what is in the way, what lint says."""
    kinds = Counter(site.verdict.kind if site.verdict else "not built" for site in found.sites)
    parts = [
        f"exit {found.exit_code}",
        ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items())),
    ]
    stops = Counter(stop.code for stop in found.refusals)
    parts += [f"refused: {code} ({count})" for code, count in sorted(stops.items())]
    parts += [f"lint: {code}" for code in sorted({each.code for each in found.findings})]
    return "; ".join(filter(None, parts))


def verdicts(found: FileAudit, own: bool = False) -> dict[str, str]:
    """Site -> verdict; in our `own` file a node is called node/Op."""
    kinds = {site.row.site: site.verdict.kind for site in found.sites if site.verdict}
    if own:
        kinds = {re.sub(r"/\w+(\.[\w ]+)$", r"\1", site): kind for site, kind in kinds.items()}
    return kinds


def last(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "no word")[:160]


def main() -> int:
    if "--files" in sys.argv:
        kept(HERE.parent / "tests" / "data" / "producers")
        return 0
    lines, wrong = [], 0
    with tempfile.TemporaryDirectory() as scratch:
        for network, path in floats(Path(scratch)).items():
            own = audit(ours(path), RTX)
            lines += ["", network, f"  {'granplugin':<18} {told(own)}"]
            for name, producer in PRODUCERS.items():
                out = path.parent / f"{name.replace(' ', '-')}.onnx"
                try:
                    ran(producer.tool, path, path.with_name("calibration.npz"), out, *producer.said)
                except subprocess.CalledProcessError as err:
                    lines.append(f"  {name:<18} wrote nothing: {last(err.stderr)}")
                    continue
                start = perf_counter()
                try:
                    found = audit(out, RTX)
                except UserError as err:
                    lines.append(f"  {name:<18} exit 2; {err}")
                    continue
                lines.append(f"  {name:<18} {told(found)}; {perf_counter() - start:.1f} s")
                if name == "modelopt int8":
                    a, b = verdicts(own, own=True), verdicts(found)
                    differ = [
                        f"{site}: {a[site]}, {b[site]}"
                        for site in a
                        if b.get(site, a[site]) != a[site]
                    ]
                    wrong += len(differ)
                    both = len(a.keys() & b.keys())
                    lines.append(
                        f"  {'':<18} {both} sites in both, {len(differ)} with another verdict"
                    )
                    lines += (f"  {'':<20} {each}" for each in differ)
            print("\n".join(lines[-12:]), flush=True)
    text = "\n".join(lines[1:]) + "\n"
    if "--save" in sys.argv:
        (HERE / "results" / "producers.txt").write_text(text, encoding="utf-8")
    else:
        print(text, end="")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
