"""Small networks for tests of analyze, faults to plant in them, and an analysis of a project."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from granplugin.report.schema.analysis import Analysis, LayerAnalysis

if TYPE_CHECKING:
    from granplugin.analysis.effects import Effect
    from granplugin.analysis.measuring import MeasureEffects
    from granplugin.analysis.tried import RoundedNetwork
    from granplugin.planning.rows import Plan, Row
    from granplugin.runs.session import Session

NETS = '''
import torch
from torch import nn


class Chain(nn.Module):
    """Seven convolutions, the fourth depthwise, with or without batch norms, and a classifier."""

    def __init__(self, norms, kind="none", layer=0, channel=0, factor=1.0, graded=(), outputs=10):
        super().__init__()
        torch.manual_seed(0)
        ends = [1, 8, 8, 8, 8, 8, 8, 8]
        groups = {3: 8}
        pairs = zip(ends, ends[1:])
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, 3, padding=1, groups=groups.get(n, 1)) for n, (i, o) in enumerate(pairs)
        )
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(8) if norms else nn.Identity() for _ in self.convs
        )
        self.head = nn.Linear(8, outputs)
        for conv in self.convs:
            nn.init.kaiming_normal_(conv.weight)
        if norms:
            for norm in self.norms:
                nn.init.uniform_(norm.weight, 0.8, 1.2)
                norm.momentum = None
            with torch.no_grad():
                self.train()(torch.randn(64, 1, 8, 8))
        self.eval()
        for fault in [(kind, layer, channel, factor), *graded]:
            with torch.no_grad():
                plant(self, *fault)

    def forward(self, image):
        x = image
        for conv, norm in zip(self.convs, self.norms):
            x = norm(conv(x)).relu()
        return self.head(x.mean((2, 3)))


def plant(net, kind, layer, channel, factor):
    """Scale one output channel, and what comes behind it so that the function stays."""
    if kind == "none":
        return
    conv, norm = net.convs[layer], net.norms[layer]
    if kind == "filter":  # the batch norm behind it divides again
        conv.weight[channel] *= factor
        conv.bias[channel] *= factor
        norm.running_mean[channel] *= factor
        norm.running_var[channel] *= factor ** 2
        return
    scaled = norm if kind == "gamma" else conv
    scaled.weight[channel] *= factor
    scaled.bias[channel] *= factor
    after = [*net.convs, net.head][layer + 1]
    if getattr(after, "groups", 1) > 1:
        after.weight[channel] /= factor
    else:
        after.weight[:, channel] /= factor


class Normed(nn.Module):
    """Linear layers behind layer norms; one norm's gain may be scaled in one channel. Each token
    is classified, or all of them together."""

    def __init__(self, layer=0, channel=0, factor=1.0, tokens=False):
        super().__init__()
        torch.manual_seed(1)
        self.tokens = tokens
        self.embed = nn.Linear(8, 16)
        self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(4))
        self.mixes = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))
        self.head = nn.Linear(16, 10)
        with torch.no_grad():
            self.norms[layer].weight[channel] *= factor
            self.norms[layer].bias[channel] *= factor
            self.mixes[layer].weight[:, channel] /= factor

    def forward(self, image):
        x = self.embed(image[:, 0])
        for norm, mix in zip(self.norms, self.mixes):
            x = x + mix(norm(x)).relu()
        return self.head(x if self.tokens else x.mean(1))


class Residual(nn.Module):
    """A stem, a residual block, a depthwise convolution, a layer that is called twice, a head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.stem = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(8)
        self.block = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.block_bn = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.depthwise_bn = nn.BatchNorm2d(8)
        self.twice = nn.Linear(8, 8)
        self.head = nn.Linear(8, 10)
        for bn in (self.stem_bn, self.block_bn, self.depthwise_bn):
            nn.init.uniform_(bn.weight, 0.3, 3)
            nn.init.uniform_(bn.running_var, 0.3, 1.5)
            nn.init.normal_(bn.running_mean, std=0.2)

    def forward(self, image):
        x = self.stem_bn(self.stem(image)).relu()
        x = (x + self.block_bn(self.block(x))).relu_()
        x = self.depthwise_bn(self.depthwise(x)).relu()
        x = x.mean((2, 3))
        x = self.twice(self.twice(x).relu()).relu()
        return self.head(x)


class LoudSkip(nn.Module):
    """A residual add whose skip input is 3,000 times louder in one channel, which is then cut."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.shortcut = nn.Conv2d(1, 8, 1)
        self.branch = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8 * 64, 10)
        gain = torch.ones(1, 8, 1, 1)
        gain[0, 3] = 3000
        self.register_buffer("gain", gain)

    def forward(self, image):
        x = self.branch(self.first(image).relu()) + self.shortcut(image) * self.gain
        return self.head(torch.tanh(x.flatten(1)))
'''


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 1, 8, 8), np.float32)


def write(project, callable_: str, args: dict[str, Any] | None = None, **changes: Any) -> Path:
    """A recipe of one of NETS on the project's arrays; `analyze` asks little, unless it says so."""
    project.write("nets.py", NETS)
    source = {"npz": "data.npz", "inputs": {"image": "images"}}
    quick = {"calibrators": ["max"], "inputs": ["per_tensor", "per_channel"]}
    changes["analyze"] = {**quick, **changes.get("analyze", {})}
    model = {"callable": f"nets.py:{callable_}", "args": args or {}}
    data = {"calibration": {**source, "samples": 32}, "batch_size": 32}
    return project.recipe(
        **{
            "model": model,
            "data": {
                **data,
                "analysis": {
                    **source,
                    **({"labels": "labels"} if "labels" in project.arrays else {}),
                },
            },
            "baselines": [],
            **changes,
        }
    )


@contextmanager
def session_of(recipe: Path, out: Path, settings: Sequence[str] = ()) -> Iterator[Any]:
    from granplugin.recipe.load import load_recipe
    from granplugin.runs.session import Session
    from granplugin.store.run_folder import open_run

    with open_run(out) as run:
        yield Session(load_recipe(recipe, settings), run)


def analyzed(recipe: Path, out: Path, settings: Sequence[str] = ()) -> Analysis:
    """The analysis of a recipe; no engine is built."""
    from granplugin.pipelines.analyze import analyze_in

    with session_of(recipe, out, settings) as session:
        found, _ = analyze_in(session, costs=False)
        return found


@dataclass(frozen=True)
class Rounded:
    """An analysis up to where everything is rounded."""

    plan: Plan
    ranges: Mapping[Row, np.ndarray | None]
    network: RoundedNetwork
    effects: Callable[..., dict[str, Effect]]
    task: Callable[..., MeasureEffects]


def rounded(session: Session) -> Rounded:
    from granplugin.analysis.measuring import effects_task, measure_effects
    from granplugin.analysis.questions import ask_all
    from granplugin.analysis.ranges import find_ranges, gather
    from granplugin.analysis.subject import Clock, open_subject
    from granplugin.analysis.tried import round_all
    from granplugin.planning.plan import make_plan

    plan, clock = make_plan(session.loaded, session.layers), Clock()
    questions = ask_all(session.layers, plan, session.recipe.analyze, session.calibration.samples)
    subject = open_subject(session, questions)
    statistics = gather(session, questions, subject, None, clock)
    ranges = find_ranges(questions, subject.analyst, statistics, None).amax
    network = round_all(questions, subject.analyst.held, ranges)

    task = partial(effects_task, subject, network)

    def effects(*asked: Any, **named: Any) -> dict[str, Effect]:
        return measure_effects(task(*asked, **named), clock)

    return Rounded(plan, ranges, network, effects, task)


def layer_of(analysis: Analysis, name: str) -> LayerAnalysis:
    return next(layer for layer in analysis.layers if layer.layer == name)
