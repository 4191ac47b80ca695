"""What every benchmark shares: its arguments, its figures held to their goals, and the machine."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from granplugin.measures.timing import Latency, Ratio

if TYPE_CHECKING:
    from granplugin.runs.session import Session
    from granplugin.sources.torch_network import TorchNetwork

HERE = Path(__file__).parent
_PACKAGES = ("granplugin", "torch", "nvidia-modelopt", "onnxruntime", "openvino", "transformers")


@dataclass(frozen=True)
class Figure:
    """One measured value; `low` to `high` is a 95 % interval of a ratio's median, or the range of
    repeated values. `goal` is the most it should be."""

    name: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    goal: float | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        if self.goal is None:
            return ""
        if self.value <= self.goal:
            return "PASS"
        reaches = self.low is not None and self.low <= self.goal
        return "not measurably over the goal" if reaches else "OVER THE GOAL"


def torch_network(session: Session) -> TorchNetwork:
    """The network of a recipe that has a torch model."""
    from granplugin.sources.torch_network import TorchNetwork

    assert isinstance(session.network, TorchNetwork)
    return session.network


def forward_loop(session: Session) -> Callable[[object], None]:
    """What mtq.quantize runs a model with: the calibration data, in calibration's own batches."""
    from granplugin.network.forward import call
    from granplugin.runs.session import calibration_batches

    network = torch_network(session)

    def loop(model: object) -> None:
        for batch in calibration_batches(session.calibration, session.recipe.data.batch_size):
            call(model, network.tensors(batch))

    return loop


def of_values(name: str, values: Sequence[float], unit: str, **more: object) -> Figure:
    """The median of repeated values, with their range."""
    return Figure(name, float(np.median(values)), unit, min(values), max(values), **more)


def of_latency(name: str, latency: Latency, unit: str = "s", **more: object) -> Figure:
    scale = 1000 if unit == "s" else 1
    return of_values(name, [value / scale for value in latency.samples_ms], unit, **more)


def of_ratio(name: str, ratio: Ratio, **more: object) -> Figure:
    return Figure(name, ratio.value, "x", ratio.low, ratio.high, **more)


def main(doc: str, measure: Callable[[int], Sequence[Figure]], rounds: int) -> None:
    """Parse the command line, measure, print the table and, with --save, keep it in results/."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=rounds, help="repetitions (%(default)s)")
    parser.add_argument("--save", action="store_true", help="write bench/results/<name>.json, .txt")
    args = parser.parse_args()
    before = os.getloadavg()[0]
    figures = measure(args.rounds)
    about = machine() | {"load_before": before, "load_after": os.getloadavg()[0]}
    name = Path(sys.argv[0]).stem
    text = table(doc.splitlines()[0], figures, about)
    print(text)
    if args.save:
        (HERE / "results").mkdir(exist_ok=True)
        result = {
            "machine": about,
            "figures": [_as_json(figure) for figure in figures],
        }
        (HERE / "results" / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
        (HERE / "results" / f"{name}.txt").write_text(text + "\n")


def _as_json(figure: Figure) -> dict[str, object]:
    """With infinity as a word, which JSON has no number for."""
    value = figure.value if np.isfinite(figure.value) else str(figure.value)
    return asdict(figure) | {"value": value, "verdict": figure.verdict}


def machine() -> dict[str, Any]:
    """Processor, cores, versions, and the command that was run."""
    return {
        "command": shlex.join(["python", f"bench/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in _PACKAGES},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((x.split(": ")[1] for x in lines if x.startswith("model name")), "unknown")


def table(title: str, figures: Sequence[Figure], about: Mapping[str, Any]) -> str:
    rows = [("", "value", "spread", "goal", "")]
    for figure in figures:
        spread = "" if figure.low is None else f"{_number(figure.low)} .. {_number(figure.high)}"
        goal = "" if figure.goal is None else f"<= {figure.goal:g}"
        said = "; ".join(filter(None, (figure.verdict, figure.note)))
        rows.append((figure.name, f"{_number(figure.value)} {figure.unit}", spread, goal, said))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:4], widths[1:]), row[4]]).rstrip()
        for row in rows
    ]
    load = f"load {about['load_before']:.1f} before, {about['load_after']:.1f} after"
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return "\n".join(
        [
            f"{title}",
            f"$ {about['command']}",
            f"{about['processor']}, {about['cores']} cores, {about['memory_gb']} GB, "
            f"Python {about['python']}; {load}",
            versions,
            "",
            *lines,
        ]
    )


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def run(command: Sequence[object]) -> str:
    """The standard output of a command; what it says if it fails is shown."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    # 1 and 4 are limits of the recipe, missed or not decided, which a slow machine may cause.
    if done.returncode not in (0, 1, 4):
        raise SystemExit(f"{shlex.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout
