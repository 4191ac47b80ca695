"""What was built, audited, measured and timed: frozen values, of files and arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from granplugin.backends.base import Engine, LayerPrecision
from granplugin.backends.engine_plan import EnginePlan
from granplugin.backends.gpu import Clocks
from granplugin.calibration.statistics import ranged
from granplugin.capabilities.legality import Written
from granplugin.measures.faithful import Faithful
from granplugin.measures.metrics import Score
from granplugin.measures.timing import Latency
from granplugin.planning.rows import Plan, QuantizedRow
from granplugin.recipe.loaded import Loaded
from granplugin.results.agreed import Agreement
from granplugin.results.audited import Finding, Verdict

FP32 = "fp32"
"""The baseline that every run has, and the precision of a graph that nothing was converted in."""


@dataclass(frozen=True)
class Job:
    """One variant to build: a baseline, a recipe, or a recipe's variant."""

    name: str
    kind: str
    loaded: Loaded
    plan: Plan
    precision: str
    """Of all that is not quantized."""
    written: Mapping[str, Written] = field(default_factory=dict)
    """Engine -> the plan as it is written for that engine."""

    @property
    def calibrated(self) -> tuple[QuantizedRow, ...]:
        """The rows of any file whose ranges are constants: the plan's, and those that engines get
        in their place."""
        files = [self.plan.rows, *(written.rows for written in self.written.values())]
        found = dict.fromkeys(row for rows in files for row in rows)
        return tuple(row for row in found if row.quantized and not row.dynamic)


@dataclass(frozen=True)
class OnnxFile:
    """A variant's ONNX file, and the key of the decisions, ranges and floats it was made of.
    `plain` is the same graph in ONNX's own operators, where it has an engine's."""

    path: Path
    key: str
    plain: Path | None = None

    @property
    def comparable(self) -> Path:
        """The file whose numbers the reference computes."""
        return self.plain or self.path


@dataclass(frozen=True, eq=False)
class Built:
    """A variant's ONNX file, with what is in it; `own` has the file of each engine that needs
    another. All were made of `floats`, the marked float model, with these `ranges` (amax, None
    where only zeros were seen). `float32_nodes` are computed in float32 in a file of float16: they
    could overflow. `float32` is the same graph in float32, before anything was converted."""

    job: Job
    floats: Path
    ranges: Mapping[QuantizedRow, np.ndarray | None]
    onnx: OnnxFile
    float32: OnnxFile
    amax: Mapping[str, np.ndarray]
    zero_sites: tuple[str, ...]
    agreement: Agreement | None
    own: Mapping[str, OnnxFile]
    float32_nodes: tuple[str, ...]

    @property
    def quantized(self) -> tuple[QuantizedRow, ...]:
        """The plan's rows that are quantized in the file: no layer that only saw zeros."""
        return ranged(self.job.plan.rows, self.amax)

    def quantized_for(self, engine: str) -> tuple[QuantizedRow, ...]:
        """The rows that are quantized in what this engine is built of."""
        rows = self.job.written.get(engine, self.job.plan).rows
        own = set(rows)
        found = {row.site for row, amax in self.ranges.items() if amax is not None and row in own}
        return ranged(rows, found)

    def file(self, engine: str) -> OnnxFile:
        """What this engine is built of."""
        return self.own.get(engine, self.onnx)


@dataclass(frozen=True)
class Audited:
    """What an engine does with a variant: what each layer ran in, its kernels where it tells them,
    and what they make of the variant's rows."""

    layers: tuple[LayerPrecision, ...] = ()
    plan: EnginePlan | None = None
    verdicts: tuple[Verdict, ...] = ()
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class WrongPart:
    """Q/DQ that an engine computes wrongly: of a layer's product, or of one other site. `where` is
    the rule's place, and `write` what leaves the `sites` float."""

    name: str
    sites: tuple[str, ...]
    where: str
    write: str


@dataclass(frozen=True)
class Traced:
    """Where an engine goes wrong with a variant's file, which it computes as `held` says.

    Each of `sets` is computed wrongly with nothing else quantized, and rightly without any one of
    its parts; the last of each is left float in the engine's own file. `note` says why there is no
    such file. It took so many `builds`.
    """

    held: Faithful
    sets: tuple[tuple[WrongPart, ...], ...]
    builds: int
    note: str = ""

    @property
    def floats(self) -> tuple[WrongPart, ...]:
        """What is left float; nothing where that does not help."""
        return () if self.note else tuple(parts[-1] for parts in self.sets)


@dataclass(frozen=True, eq=False)
class Measured:
    """A variant on one engine: what the engine is and does, its outputs on all evaluation samples
    and what they are worth (metric -> score) - none where it cannot run here, for the reason
    `cannot_run`, or where it `refused` the file or failed at it. `held` compares them with the
    reference's of the same file: None for the reference itself, and where it does not run that
    file. Where it computes that wrongly, `traced` says what; where parts are float for it, what is
    measured is the file with these. `untimed` says why a latency is missing that was asked for."""

    engine: Engine
    audited: Audited
    cannot_run: str | None = None
    refused: str | None = None
    untimed: str | None = None
    outputs: Mapping[str, np.ndarray] = field(default_factory=dict)
    values: Mapping[str, Score] = field(default_factory=dict)
    held: Faithful | None = None
    traced: Traced | None = None

    @property
    def ran(self) -> bool:
        """Whether it has outputs."""
        return self.cannot_run is None and self.refused is None


Results = Mapping[tuple[str, str], Measured]
"""By variant and engine."""


@dataclass(frozen=True)
class Timing:
    """A variant's latency at one batch size. The rest is for engines on a GPU: with its launches
    in a CUDA `graph`, where they can be captured; how far apart two builds of one network were
    (`build_spread`, as a part); and the GPU's clocks before and after.
    """

    latency: Latency
    graph: Latency | None = None
    build_spread: float = 0.0
    clocks: tuple[Clocks, ...] = ()


Timings = Mapping[tuple[str, str, int], Timing]
"""By variant, engine and batch size."""


@dataclass(frozen=True, eq=False)
class Ran:
    """What a run came to: the variants that were `built`; what each was on each engine; its
    latencies; and the folders with what an engine told of its
    layers' times, by variant and engine."""

    built: Sequence[Built]
    results: Results
    latencies: Timings
    profiles: Mapping[tuple[str, str], Path]
