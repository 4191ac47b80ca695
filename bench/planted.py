"""What analyze promises of networks with planted faults, held to fresh data.

    python bench/planted.py
    python bench/planted.py --rounds 8 --save

Each of eight faults, of a strength drawn anew, is analyzed on 8, 64 and 512 samples with labels and
without, in turns on data of their own and on those it is calibrated with. What the analysis says is
then measured on 8,192 fresh samples: the recipe as it was, and the one that it suggests.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import planted_nets
import yaml
from measure import Figure, main
from planted_nets import FAULTS, samples

from granplugin.measures.intervals import proportion_interval
from granplugin.pipelines.analyze import Analyzed, analyze
from granplugin.recipe.load import load_recipe
from granplugin.report.schema.analysis import Analysis, Share

SAMPLES = (8, 64, 512)
FRESH = 8192
TOLERANCE = 2.0
HARM = 3 * TOLERANCE
"""A fault that costs more than this has to be named."""


@dataclass(frozen=True)
class Case:
    """One analysis, in what is drawn for it; `strength` of the fault is from 0 to 1, None: drawn."""

    kind: str
    samples: int
    labels: bool
    own_data: bool
    seed: int
    strength: float | None = None

    @property
    def factor(self) -> float:
        low, high = np.log(FAULTS[self.kind].factors)
        drawn = np.random.default_rng([self.seed, len(self.kind)]).uniform()
        share = drawn if self.strength is None else self.strength
        return float(np.exp(low + share * (high - low)))


@dataclass(frozen=True)
class Outcome:
    """What was said of a case, and what fresh data show of it; `suggested` is None where nothing
    else was suggested."""

    case: Case
    said: Analysis
    start: Share
    suggested: Share | None

    @property
    def promises(self) -> list[tuple[Share, Share]]:
        """Loss with its interval, and the fresh one."""
        found = [(self.said.start.loss, self.start)]
        if self.suggested is not None:
            found.append((self.said.advice.suggested.loss, self.suggested))
        return found

    @property
    def kept(self) -> list[bool]:
        """Of each promise, whether the fresh value is in its interval; one without promises none."""
        return [
            said.low <= fresh.value <= said.high
            for said, fresh in self.promises
            if said.low is not None and said.high is not None
        ]

    @property
    def false_nothing(self) -> bool:
        """Nothing needs to change, it said, and the recipe loses more than is tolerated."""
        return self.said.advice.verdict == "within" and self.start.value > TOLERANCE

    @property
    def false_reached(self) -> bool:
        """With what it suggests the loss is within the tolerance, it said, and is not."""
        suggested = self.suggested
        return self.said.advice.promise == "within" and suggested.value > TOLERANCE

    @property
    def named(self) -> bool:
        """Whether a planted layer is among the two worst, with a right reason; where none is to
        blame, whether none is changed for it."""
        fault = FAULTS[self.case.kind]
        if not fault.layers:
            (dead,) = [each for each in self.said.layers if each.layer == "mid"]
            return dead.facts.dead_channels == 1 and not self.said.advice.overrides
        return any(
            each.layer in fault.layers
            and each.loss_in in fault.loss_in
            and any(word in each.why for word in fault.words)
            for each in self.said.layers[:2]
        )


def cases(rounds: int) -> Iterator[Case]:
    for seed in range(rounds):
        for kind in FAULTS:
            for count in SAMPLES:
                for labels in (True, False):
                    yield Case(kind, count, labels, (seed + labels) % 2 == 0, seed)


def outcome(case: Case, folder: Path, fresh: int = FRESH) -> Outcome:
    """Analyze a case in a folder, and measure what it says on `fresh` samples."""
    bad = int(case.kind == "one bad sample")
    data: dict[str, Any] = {}
    for name, count, spoiled in (
        ("calibration", case.samples, bad),
        ("analysis", case.samples, 0),
        ("fresh", fresh, 0),
    ):
        images, classes = samples(count, case.seed, name, spoiled)
        np.savez(folder / f"{name}.npz", image=images, classes=classes)
        source = {"npz": f"{name}.npz", "inputs": {"image": "image"}}
        data[name] = source | ({"labels": "classes"} if case.labels else {})
    unseen = data.pop("fresh")
    if not case.own_data:
        del data["analysis"]
    net = {"kind": case.kind, "seed": case.seed, "factor": case.factor}
    recipe = {
        "version": 1,
        "model": {"callable": f"{planted_nets.__file__}:Planted", "args": net},
        "data": {**data, "batch_size": 512},
        "metrics": ["top1"] if case.labels else ["agreement"],
        "defaults": {"weight": "per_tensor", "input": "per_tensor"},
        "engines": ["onnxruntime"],
        "baselines": ["fp32"],
        "analyze": {
            "inputs": ["per_tensor", "per_channel"],
            "calibrators": ["max", {"percentile": 99.9}],
            "top": 4,
            "tolerance": TOLERANCE,
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    found = _analyzed(path, folder)
    said, better = found.analysis, folder / "better.yaml"
    suggested = None
    if said.advice.suggested is not None:
        found.write_recipe(better)
        suggested = _on(better, unseen, folder)
    return Outcome(case, said, _on(path, unseen, folder), suggested)


def _on(path: Path, data: dict[str, Any], folder: Path) -> Share:
    """The loss of a recipe as it is, on these data."""
    text = yaml.safe_load(path.read_text(encoding="utf-8"))
    text.setdefault("data", {})["analysis"] = data
    text["analyze"] = {"weights": "per_tensor", "inputs": "per_tensor", "calibrators": "max"}
    text["analyze"] |= {"top": 0, "tolerance": TOLERANCE, "bn": "fold"}
    fresh = folder / "fresh.yaml"
    fresh.write_text(yaml.safe_dump(text), encoding="utf-8")
    start = _analyzed(fresh, folder).analysis.start
    # A suggestion may leave all layers float.
    return Share(value=0.0, low=0.0, high=0.0, unit="points") if start is None else start.loss


def _analyzed(path: Path, folder: Path) -> Analyzed:
    return analyze(load_recipe(path), costs=False, out=folder / "run")


def outcomes(wanted: Sequence[Case], tell: Callable[[Outcome], None]) -> list[Outcome]:
    found = []
    for case in wanted:
        with tempfile.TemporaryDirectory() as folder:
            found.append(outcome(case, Path(folder)))
        tell(found[-1])
    return found


def measure(rounds: int) -> Sequence[Figure]:
    def tell(each: Outcome) -> None:
        c, advice = each.case, each.said.advice
        print(
            f"{c.kind:22} n={c.samples:3} {'labels' if c.labels else 'none  '} "
            f"{'own' if c.own_data else 'cal'} seed {c.seed} x{c.factor:8.1f} {advice.verdict:11} "
            f"{advice.promise or '-':11} "
            + " ".join(
                f"{s.value:6.2f} [{s.low:6.2f},{s.high:6.2f}] {f.value:6.2f}{'' if k else ' MISS'}"
                for (s, f), k in zip(each.promises, each.kept, strict=True)
            )
            + (" FALSE NOTHING" if each.false_nothing else "")
            + (" FALSE REACHED" if each.false_reached else "")
            + ("" if each.named or each.start.value <= HARM else " NOT NAMED"),
            flush=True,
        )

    return figures(outcomes(list(cases(rounds)), tell))


def figures(found: Sequence[Outcome]) -> list[Figure]:
    def share(name: str, right: Sequence[bool]) -> Figure:
        if not right:
            return Figure(name, float("nan"), "%")
        low, high = proportion_interval(sum(right), len(right))
        return Figure(name, 100 * sum(right) / len(right), "%", low, high, note=f"of {len(right)}")

    groups = {"all": lambda case: True}
    groups |= {f"{n} samples": lambda case, n=n: case.samples == n for n in SAMPLES}
    groups |= {"with labels": lambda case: case.labels, "without": lambda case: not case.labels}
    groups |= {kind: lambda case, kind=kind: case.kind == kind for kind in FAULTS}
    result = []
    for title, belongs in groups.items():
        of = [each for each in found if belongs(each.case)]
        result.append(share(f"{title}: promises kept", [kept for each in of for kept in each.kept]))
        nothing = [each for each in of if each.said.advice.verdict == "within"]
        result.append(
            share(f"{title}: 'nothing' rightly", [not each.false_nothing for each in nothing])
        )
        reached = [each for each in of if each.said.advice.promise == "within"]
        result.append(
            share(f"{title}: 'within' rightly", [not each.false_reached for each in reached])
        )
        harmed = [each for each in of if each.start.value > HARM]
        result.append(share(f"{title}: fault named", [each.named for each in harmed]))
        told = [each.said.advice.verdict == "cannot tell" for each in of]
        result.append(share(f"{title}: cannot tell", told))
    return result


if __name__ == "__main__":
    main(__doc__, measure, rounds=8)
