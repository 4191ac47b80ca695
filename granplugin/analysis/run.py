"""analyze: from a recipe to what each layer loses, why, and what to do; the stages in order.

recipe -> layers, what is asked -> ranges (one pass) -> local errors (one pass over a random part of
the data) -> effects on the network's output, of the worst layers -> advice -> analysis.json.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

import granplugin
from granplugin.analysis.collect import PEAK, collect
from granplugin.analysis.effects import (
    Effect,
    Effects,
    alone_name,
    choice_name,
    effect,
    restored_name,
)
from granplugin.analysis.local import LocalErrors, Tried, key, try_settings
from granplugin.analysis.network import Choice, Network, analysis_copy, run
from granplugin.analysis.passes import Figures, Kept, accumulate
from granplugin.analysis.rounding import rounding
from granplugin.analysis.settings import Asked, Skipped, ask, ask_of_site, label
from granplugin.analysis.tensors import TensorErrors, TriedSite, module_of
from granplugin.calibration.statistics import (
    Need,
    Statistics,
    find_amax,
    import_amax,
    needs_of,
    share_amax,
)
from granplugin.data.batches import Batch
from granplugin.errors import DataError, RunError
from granplugin.measures.metrics import METRICS
from granplugin.planning.plan import make_plan
from granplugin.planning.rows import Plan, Row
from granplugin.progress import track
from granplugin.quant.calibrators import BINS
from granplugin.recipe.loaded import located
from granplugin.runs.session import CALIBRATION_BATCH, Session, whole
from granplugin.store.keys import content_key, file_key
from granplugin.store.maker import made_by

log = logging.getLogger(__name__)

STATISTICS = "statistics.safetensors"
"""What an analysis leaves in its run folder for others of the same model and data."""
LOCAL_SHARE = 4
"""Local errors are measured on one sample in so many, drawn at random, unless all are asked for."""
LEAST_SAMPLES = 32
"""Fewer are all measured."""
_LABELS = ""
"""Where a batch has its labels; no argument of forward is called so."""


class Analyzer:
    """The stages of one analysis, on one session; each is run once, when first needed."""

    def __init__(self, session: Session, given: Path | None = None) -> None:
        """`given` is a file of statistics that an analysis left. Raises UserError."""
        self.session = session
        self.given = self._read(given) if given else None
        self.wanted = session.recipe.analyze
        self.seconds: dict[str, float] = {}
        self.plan: Plan = make_plan(session.loaded, session.layers)
        calibration = session.calibration.samples
        asked, skipped = ask(session.layers, self.plan, self.wanted, calibration)
        self.asked, over = _within_budget(asked, self.wanted.memory_mb)
        self.skipped: tuple[Skipped, ...] = (*skipped, *over)
        analyzed = {each.layer.name for each in self.asked}
        self.others = [
            row
            for row in self.plan.quantized
            if row.operand not in ("weight", "input") or row.layer not in analyzed
        ]
        self.by_name = {layer.name: layer for layer in session.layers}
        self.sites: dict[str, tuple[Row, ...]] = {}
        """Site -> rows, of what is no factor of an analyzed layer's product."""
        for row in self.others:
            rows, over = ask_of_site(self.by_name[row.layer], row, self.wanted, calibration)
            self.sites[row.site] = rows
            self.skipped += over
        skips = [row.layer for row in self.others if row.operand == "skip"]
        self.model = analysis_copy(session.network.module(), skips)

    @cached_property
    def device(self) -> Any:
        return next(self.model.parameters()).device

    @cached_property
    def statistics(self) -> Statistics:
        """Ranges and histograms of every input asked about, kept where `apply` keeps its own."""
        session, run_folder = self.session, self.session.run
        rows = [row for each in self.asked for row in each.inputs]
        needs = set(needs_of([*rows, *(row for rows in self.sites.values() for row in rows)]))
        for each in self.asked:
            described = input_needs(each)
            if described is not None:
                needs |= {described.channels, described.values, described.peaks}
        key = session.statistics_key
        path = run_folder.cache / f"statistics-{key}.safetensors"
        found = Statistics.load(path, key) if path.exists() else self.given
        missing = {n for n in needs if found is None or not found.covers([n])}
        if missing:
            partial = path.with_suffix(".partial.safetensors")
            whose = content_key(key, sorted(map(str, missing)))
            count = max(session.calibration.samples // CALIBRATION_BATCH, 1)
            batches = track(whole(session.calibration), "ranges", count)
            with located(session.loaded, "data", "calibration"), self.timed("ranges"):
                seen = collect(self.model, missing, batches, self._forward, partial, whose)
            found = found.join(seen) if found else seen
            found.save(path, key)
            partial.unlink(missing_ok=True)
        found.save(run_folder.path / STATISTICS, json.dumps(self._of))
        return found

    @cached_property
    def _of(self) -> dict[str, str]:
        """What statistics are of."""
        session = self.session
        return {
            "model": session.key,
            "data": session.calibration.key(),
            "version": granplugin.__version__,
        }

    def _read(self, path: Path) -> Statistics:
        key = Statistics.key_of(path)
        try:
            told = dict(json.loads(key))
        except (ValueError, TypeError):
            told = {}
        names = {
            "model": "another model (its weights, code or arguments differ)",
            "data": "other calibration data",
            "version": f"another version of granplugin ({told.get('version', 'unknown')})",
        }
        differ = [names[part] for part, value in self._of.items() if told.get(part) != value]
        if differ:
            raise DataError(
                f"{path}: these statistics are of {' and of '.join(differ)}; leave --statistics "
                "out to collect them anew"
            )
        return Statistics.load(path, key)

    @cached_property
    def ranges(self) -> dict[Row, np.ndarray | None]:
        """The amax of every row that is tried; None where it saw only zeros."""
        from granplugin.network.modules import folded

        found: dict[Row, np.ndarray | None] = {}
        with self.timed("calibrators"):
            for each in self.asked:
                module = self.model.get_submodule(each.layer.name)
                own = module.weight.detach().float().cpu().numpy()
                bn = self.model.get_submodule(each.layer.bn) if each.layer.bn else None
                behind = own if bn is None else folded(module, bn)[0]
                for row in each.weights:
                    found[row] = find_amax(row, None, behind if row.bn == "fold" else own)
                for row in each.inputs:
                    if not row.dynamic:
                        found[row] = find_amax(row, self.statistics)
            for row in (row for rows in self.sites.values() for row in rows):
                if not row.dynamic:
                    found[row] = find_amax(row, self.statistics)
        start = [row for row in self.plan.quantized if row in found]
        imported = self.session.recipe.statistics.import_
        if imported:
            by_site = import_amax(imported, start)
            found |= {row: by_site[row.site] for row in start if row.site in by_site}
        shared = share_amax(start, {row.site: found[row] for row in start})
        return found | {row: shared[row.site] for row in start}

    @cached_property
    def tried(self) -> tuple[Tried, ...]:
        return try_settings(self.asked, self.model, self.ranges, self.device)

    @cached_property
    def network(self) -> Network:
        return Network(self.model, self.tried, self.tried_sites)

    @cached_property
    def tried_sites(self) -> tuple[TriedSite, ...]:
        found = []
        for rows in self.sites.values():
            roundings = tuple(
                rounding(row, self.ranges.get(row), self.device)
                if row.dynamic or self.ranges[row] is not None
                else None
                for row in rows
            )
            axis = rows[0].at.channel_axis
            axis = len(rows[0].shape) - 1 if axis is None else axis
            found.append(TriedSite(rows, roundings, module_of(self.model, rows[0]), axis))
        return tuple(found)

    @cached_property
    def drawn(self) -> np.ndarray:
        """The samples that local errors are measured on, by number, in order."""
        samples = self.session.analysis.samples
        part = samples if self.wanted.exact else max(samples // LOCAL_SHARE, LEAST_SAMPLES)
        if part >= samples:
            return np.arange(samples)
        random = np.random.default_rng(self.session.recipe.data.seed)
        return np.sort(random.choice(samples, part, replace=False))

    @cached_property
    def local(self) -> Figures:
        """The local errors of all settings, by the names of Tried.figures and TriedSite.figures."""
        names = [name for each in (*self.tried, *self.tried_sites) for name in each.figures()]
        kept = self._kept("local", content_key(self.drawn.tolist()))
        made: list[tuple[LocalErrors, TensorErrors]] = []

        def step(batch: Batch, wanted: frozenset[str]) -> Mapping[str, np.ndarray]:
            if not made:
                layers = LocalErrors(self.model, self.tried, wanted)
                made.append((layers, TensorErrors(self.tried_sites, wanted)))
            ((layers, tensors),) = made
            with tensors.watched(_length(batch)):
                found = layers.run(lambda: self._forward(batch), _length(batch))
            return {**found, **tensors.flush()}

        count = -(-len(self.drawn) // self._batch)
        with self._located(), self.timed("local errors"):
            batches = track(self._batches(self.drawn), "local errors", count)
            return accumulate(kept, names, batches, step)

    def effects(
        self,
        choices: Sequence[Choice] = (),
        alone: Sequence[tuple[str, tuple[int | None, int | None]]] = (),
        restored: Sequence[str] = (),
        what: str = "effects",
    ) -> dict[str, Effect]:
        """What these do to the network's output, by choice_name, alone_name and restored_name."""
        network = self.network
        by_choice = {choice_name(network, choice): choice for choice in choices}
        by_alone = {alone_name(network, *each): each for each in alone}
        by_restored = {restored_name(network, layer): layer for layer in restored}
        kept = self._kept("effects", str(self.metric))
        made: list[Effects] = []
        example = self.session.network.tensors(self.session.example)

        def step(batch: Batch, wanted: frozenset[str]) -> Mapping[str, np.ndarray]:
            if not made:
                made.append(
                    Effects(network, by_choice, by_alone, by_restored, self.metric, example)
                )
            labels = batch.get(_LABELS)
            return made[0].run(self._tensors(batch), labels, wanted)

        names = [*by_choice, *by_alone, *by_restored]
        everything = np.arange(self.session.analysis.samples)
        count = -(-len(everything) // self._batch)
        with self._located(), self.timed(what):
            batches = track(self._batches(everything), what, count)
            found = accumulate(kept, names, batches, step)
        return {name: effect(figure) for name, figure in found.items()}

    @cached_property
    def metric(self) -> str | None:
        """The metric that labels serve, where the data have labels."""
        if self.session.analysis.labels() is None:
            return None
        wanted = [name for name in self.session.recipe.metrics if METRICS[name].needs_labels]
        return wanted[0] if wanted else None

    @cached_property
    def _key(self) -> str:
        session = self.session
        imported = session.recipe.statistics.import_
        return content_key(
            session.key,
            session.calibration.key(),
            session.analysis.key(),
            [(row.site, key(row)) for row in self.others],
            [(row.site, row.share) for row in self.plan.quantized if row.share],
            file_key(imported) if imported else None,
            made_by("granplugin.analysis.run", libraries=("nvidia-modelopt", "torch")),
        )

    @property
    def _batch(self) -> int:
        return max(self.session.recipe.data.batch_size, CALIBRATION_BATCH)

    def _kept(self, what: str, of: str) -> Kept:
        """Figures of this model and these data; those of others that are in the way go."""
        folder = self.session.run.path / "analysis"
        try:
            folder.mkdir(exist_ok=True)
            for old in folder.glob(f"{what}-*"):
                if not old.name.startswith(f"{what}-{self._key}-"):
                    old.unlink()
        except OSError as err:
            raise RunError(f"{folder}: cannot be written: {err.strerror}; give --out") from err
        return Kept(folder / f"{what}-{self._key}-{of}.safetensors")

    def _batches(self, numbers: np.ndarray) -> Iterator[Batch]:
        """These samples of the analysis data, with their labels, in full batches."""
        labels = self.session.analysis.labels()
        held: list[Batch] = []
        first, at = 0, 0
        for batch in self.session.analysis:
            length = _length(batch)
            last = np.searchsorted(numbers, first + length)
            rows = numbers[at:last] - first
            at, first = int(last), first + length
            if not len(rows):
                continue
            part = {name: array[rows] for name, array in batch.items()}
            if labels is not None:
                part[_LABELS] = labels[rows + first - length]
            held.append(part)
            while sum(map(_length, held)) >= self._batch:
                joined = _joined(held)
                yield {name: array[: self._batch] for name, array in joined.items()}
                rest = {name: array[self._batch :] for name, array in joined.items()}
                held = [rest] if _length(rest) else []
        if held:
            yield _joined(held)

    def _tensors(self, batch: Batch) -> dict[str, Any]:
        return self.session.network.tensors(
            {n: array for n, array in batch.items() if n != _LABELS}
        )

    def _forward(self, batch: Batch) -> Any:
        return run(self.model, self._tensors(batch))

    def _located(self) -> Any:
        role = "analysis" if self.session.recipe.data.analysis else "calibration"
        return located(self.session.loaded, "data", role)

    def timed(self, stage: str) -> _Timed:
        return _Timed(self.seconds, stage)


@dataclass
class _Timed:
    seconds: dict[str, float]
    stage: str
    since: float = 0.0

    def __enter__(self) -> None:
        self.since = time.perf_counter()

    def __exit__(self, *raised: object) -> None:
        spent = time.perf_counter() - self.since
        self.seconds[self.stage] = round(self.seconds.get(self.stage, 0.0) + spent, 3)


def _within_budget(
    asked: Sequence[Asked], memory_mb: int
) -> tuple[tuple[Asked, ...], list[Skipped]]:
    """What is asked, without the inputs whose histograms do not fit: those with the fewest scales
    are served first. The recipe's own are always served."""
    sizes: dict[Need, float] = {}
    for each in asked:
        for row in each.inputs:
            for need in needs_of([row]):
                if need.histogram:
                    sizes[need] = row.scales * BINS * 8 / 2**20
    own = {n for each in asked for row in each.start for n in needs_of([row])}
    served: set[Need] = set()
    left = float(memory_mb)
    for need, size in sorted(sizes.items(), key=lambda item: (item[0] not in own, item[1])):
        if size <= left or need in own:
            served.add(need)
            left -= size
    kept, over = [], []
    for each in asked:
        inputs = []
        for row in each.inputs:
            if all(not need.histogram or need in served for need in needs_of([row])):
                inputs.append(row)
            else:
                need = row.scales * BINS * 8 / 2**20
                reason = f"its histograms take {need:.0f} MB more than analyze.memory_mb leaves"
                over.append(Skipped(row.site, label(row), reason))
        kept.append(Asked(each.layer, each.weights, tuple(inputs), each.start))
    return tuple(kept), over


@dataclass(frozen=True, slots=True)
class InputNeeds:
    """What describes a layer's input: the range of each channel, the histogram of all values, and
    that of the samples' peaks."""

    channels: Need
    values: Need
    peaks: Need


def input_needs(asked: Asked) -> InputNeeds | None:
    """None for a layer of whose input nothing is asked."""
    if not asked.inputs:
        return None
    row = asked.inputs[0]
    axis = row.at.channel_axis
    channels = tuple(1 if at == axis else n for at, n in enumerate(row.shape))
    return InputNeeds(
        Need(row.observed, channels, False, row.shape),
        Need(row.observed, row.shape, True, row.shape),
        Need(f"{row.layer}.{PEAK}", (1, 1), True, (1, 1)),
    )


def _joined(parts: Sequence[Batch]) -> Batch:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _length(batch: Batch) -> int:
    return len(next(iter(batch.values())))
