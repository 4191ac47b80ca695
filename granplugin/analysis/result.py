"""An analysis from beginning to end: what was measured, put together as analysis.json has it."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import granplugin
from granplugin import backends
from granplugin.analysis import effects, losses, suggestion, why
from granplugin.analysis.advice import Advice, advise, finest
from granplugin.analysis.costs import Cost, named_engines, promises, setting_costs, whole_plans
from granplugin.analysis.figures import Sqnr, sqnr
from granplugin.analysis.local import START, Tried
from granplugin.analysis.losses import LayerLosses, layer_losses
from granplugin.analysis.network import FLOATING, Choice, Pair
from granplugin.analysis.run import Analyzer, input_needs
from granplugin.analysis.settings import label, same
from granplugin.analysis.tensors import TriedSite
from granplugin.calibration.statistics import import_amax
from granplugin.capabilities import KINDS
from granplugin.engines import ENGINES
from granplugin.errors import UserError
from granplugin.network.modules import module_facts
from granplugin.network.weight_facts import WeightFacts
from granplugin.planning.plan import make_plan
from granplugin.planning.rows import Row
from granplugin.recipe.forms import IN_MEMORY
from granplugin.recipe.load import load_recipe
from granplugin.recipe.loaded import Loaded
from granplugin.report.schema import analysis as model
from granplugin.report.build.machine import machine
from granplugin.runs.session import Session
from granplugin.runs.variants import calibrate

log = logging.getLogger(__name__)

LOUD_DB = 20.0
"""A layer that alone leaves less of the network's output is not called harmless."""
ALLOWED = ("native", "lowered")
"""Promises that a suggestion may rely on."""


def analyze(
    session: Session, measure_costs: bool = True, statistics: Path | None = None
) -> model.Analysis:
    """The analysis of a session's recipe.

    Without `measure_costs` no engine is built; `statistics` is a file that an analysis of the same
    model and data left. Raises UserError for what the user must change.
    """
    found = _Found(Analyzer(session, statistics), measure_costs)
    return found.analysis()


def check_target(target: Path, loaded: Loaded) -> None:
    """UserError where no file can be written there, or the recipe stands there that it would
    extend, or that is in no file, before the work that fills it."""
    if loaded.path == IN_MEMORY:
        raise UserError(
            f"{target}: the suggested recipe extends the analyzed one, which is in no file; write "
            "that to one first"
        )
    if target.is_dir():
        raise UserError(f"{target}: is a folder; give the suggested recipe a file name")
    if not target.parent.is_dir():
        raise UserError(f"{target}: there is no folder {target.parent}")
    read = {loaded.path, *(Path(mark.file) for mark in loaded.document.marks.values())}
    if target.resolve() in {path.resolve() for path in read}:
        raise UserError(f"{target}: the suggested recipe extends it; give it another file name")
    if not os.access(target if target.exists() else target.parent, os.W_OK):
        raise UserError(f"{target}: cannot be written: permission denied")


def write_recipe(
    found: model.Analysis, session: Session, target: Path, settings: Sequence[str] = ()
) -> None:
    """Write the suggested recipe, whole or not at all; it extends the analyzed one, which was
    loaded with these `--set` settings.

    Raises UserError where the file cannot be written, and where a suggested rule would change a
    layer that it is not for.
    """
    advice = found.advice
    rules = [suggestion.Suggested(tuple(o.layers), o.rule, o.reason) for o in advice.overrides]
    text = suggestion.recipe_text(session.loaded.path, target, rules, advice.said, settings)
    scratch = target.with_name(f".{target.name}.new")
    try:
        scratch.write_text(text, encoding="utf-8")
        suggested = make_plan(load_recipe(scratch, settings), session.layers)
        changed = {name for override in advice.overrides for name in override.layers}
        before = make_plan(session.loaded, session.layers)
        for old, new in zip(before.rows, suggested.rows, strict=True):
            if old.layer not in changed and not same(old, new):
                raise UserError(f"{target}: a suggested rule would change {old.site} too")
        os.replace(scratch, target)
    except OSError as err:
        raise UserError(f"{target}: cannot be written: {err.strerror or err}") from err
    finally:
        scratch.unlink(missing_ok=True)


class _Found:
    def __init__(self, analyzer: Analyzer, measure_costs: bool) -> None:
        self.analyzer, self.session = analyzer, analyzer.session
        self.network, self.start = analyzer.network, analyzer.network.start()
        population = self.session.analysis.samples
        local = analyzer.local
        every = [layer_losses(each, local, population) for each in analyzer.tried]
        self.sites = sorted(
            analyzer.tried_sites, key=lambda each: (self._site_db(each, 0), each.own.site)
        )
        harm = {each.name: each.both for each in every}
        for each in self.sites:
            if each.own.layer in harm:
                harm[each.own.layer] = max(harm[each.own.layer], self._site_lost(each, 0) or 0.0)
        by_local = sorted(every, key=lambda each: -harm[each.name])
        quantized = [each for each in by_local if each.name in self.start]
        self.top = [each.name for each in quantized[: analyzer.wanted.top]]
        self.promises, self.site_promises = self._promises()
        self.allowed = {each.name: self._allowed(each) for each in every}
        best = finest(every, self.start, {each.name: self._had(each) for each in every})
        floating = {each.own.site: FLOATING for each in self.sites}
        alone = [(name, pair) for name in self.top for pair in self._measured(name)]
        candidates: list[Choice] = [best, {**best, **floating}, self.start]
        self.effects = analyzer.effects(candidates, alone, self.top)
        # Of what is locally best the whole is not always better than what the recipe has.
        self.finest = min(candidates, key=self._harm)
        noise = {name: self._alone(name).sqnr.db for name in self.top}
        # Measured ones by what they do to the network, the others behind them by the layer's loss.
        self.ranked = sorted(
            by_local, key=lambda each: (each.name not in noise, noise.get(each.name, 0.0))
        )
        self.why = {each.name: self._why(each) for each in every}
        self.advice = self._advice()
        self.costs = self._costs(measure_costs)

    def _harm(self, choice: Choice) -> tuple[float, float]:
        found = self._whole(choice)
        return found.loss.value, -found.sqnr.db

    def _measured(self, name: str) -> list[Pair]:
        """The settings of a layer whose effect on the network is measured: the first is its own."""
        own, tried = self.start[name], self.network.tried[name]
        found = [own]
        if self.analyzer.wanted.effects == "all":
            found += [(i, own[1]) for i, weight in enumerate(tried.weights) if weight is not None]
            found += [(own[0], j) for j, given in enumerate(tried.inputs) if given is not None]
        return list(dict.fromkeys(found))

    def _effect(self, name: str, role: str, index: int) -> model.NetworkEffect | None:
        if name not in self.start:
            return None
        own = self.start[name]
        pair = (index, own[1]) if role == "weight" else (own[0], index)
        found = self.effects.get(effects.alone_name(self.network, name, pair))
        return None if found is None else _network(found)

    def _alone(self, name: str) -> effects.Effect:
        return self.effects[effects.alone_name(self.network, name, self.start[name])]

    def _whole(self, choice: Choice) -> effects.Effect:
        return self.effects[effects.choice_name(self.network, choice)]

    def _pairs(self, each: LayerLosses | Tried) -> list[Pair]:
        """All settings of a layer: each of the weight, then each of the input."""
        asked = (each.tried if isinstance(each, LayerLosses) else each).asked
        return [(i, START) for i in range(len(asked.weights))] + [
            (START, j) for j in range(len(asked.inputs))
        ]

    def _rows(self, tried: Tried, pair: Pair) -> tuple[Row, Row]:
        return tried.asked.weights[pair[0]], tried.asked.inputs[pair[1]]

    def _settings(self) -> dict[str, list[tuple[Row, Row]]]:
        return {
            each.name: [self._rows(each, pair) for pair in self._pairs(each)]
            for each in self.analyzer.tried
            if each.asked.weights and each.asked.inputs
        }

    def _promises(self) -> tuple[dict[str, list[dict[str, list]]], dict[str, dict[str, Any]]]:
        """Layer -> for each of its settings, engine -> promises of its weight and its input; and
        engine -> site -> promise of the recipe as it is."""
        session, settings = self.session, self._settings()
        plans = whole_plans(self.analyzer.plan, session.layers, settings)
        named = {str(j): plan for j, plan in enumerate(plans)} | {"own": self.analyzer.plan}
        told = promises(session, named)
        return {
            name: [
                {engine: [of.get(row.site) for row in pair] for engine, of in told[str(j)].items()}
                for j, pair in enumerate(each)
            ]
            for name, each in settings.items()
        }, told["own"]

    def _fixed(self, row: Row) -> bool:
        """Whether the recipe says the row's range: a rule on top of it could not change that."""
        imported = self.session.recipe.statistics.import_
        return (
            row.amax is not None
            or row.share is not None
            or (imported is not None and bool(import_amax(imported, [row])))
        )

    def _had(self, each: LayerLosses) -> dict[str, set[int]]:
        """Which settings every engine has, natively or rewritten; and the recipe's own."""
        weights, inputs = {START}, {START}
        told = self.promises.get(each.name, [])
        for (i, j), engines in zip(self._pairs(each), told, strict=False):
            kinds = {p.kind for of in engines.values() for p in of if p is not None}
            if kinds <= set(ALLOWED):
                (weights if j == START else inputs).add(i if j == START else j)
                if i == START:
                    inputs.add(j)
        return {"weight": weights & each.weights.keys(), "input": inputs & each.inputs.keys()}

    def _allowed(self, each: LayerLosses) -> dict[str, set[int]]:
        """The same; of a site whose range the recipe says, its own alone."""
        fixed = {row.operand for row in each.tried.asked.start if self._fixed(row)}
        return {
            role: had & {START} if role in fixed else had for role, had in self._had(each).items()
        }

    def _lowered(self, name: str, pair: Pair) -> bool:
        pairs = self._pairs(self.network.tried[name])
        weight, given = (START if at is None else at for at in pair)
        return any(
            promise is not None and promise.kind == "lowered"
            for one in ((weight, START), (START, given))
            for of in self.promises[name][pairs.index(one)].values()
            for promise in of
        )

    def _advice(self) -> Advice | None:
        if not self.start:
            return None
        by_name = {each.name: each for each in self.ranked}
        worst = [by_name[each.name] for each in self.ranked if each.name in set(self.top)]

        def measure(choices: Sequence[Choice]) -> list[effects.Effect]:
            found = self.analyzer.effects(choices, what="suggestions")
            return [found[effects.choice_name(self.network, choice)] for choice in choices]

        return advise(
            worst, self.start, self._whole(self.start), self._whole(self.finest),
            self.analyzer.wanted.tolerance, self.allowed, measure,
            {each.own.site: self._site_options(each) for each in self.sites},
        )  # fmt: skip

    def _site_options(self, each: TriedSite) -> list[Pair]:
        """Other calibrators with the same blocks, the best first; then float."""
        dbs = {
            index: self._site_db(each, index)
            for index, row in enumerate(each.rows)
            if index and row.block == each.own.block and each.roundings[index] is not None
        }
        better = [index for index, db in dbs.items() if db > self._site_db(each, 0)]
        better = [] if self._fixed(each.own) else better
        return [*((None, n) for n in sorted(better, key=lambda n: -dbs[n])[:2]), FLOATING]

    def _costs(self, measured: bool) -> Mapping[str, list[dict[str, Cost]]]:
        engines = named_engines(self.session.recipe)
        builds = measured and any(
            ENGINES[engine].tells_plan and backends.load(engine).unavailable() is None
            for engine in engines
        )
        with self.analyzer.timed("costs"):
            # Exporting takes longer than all the rest where nothing is built of the file.
            float_onnx = calibrate(self.session, [])[0] if builds else Path()
            return setting_costs(
                self.session, self.analyzer.plan, self._settings(), float_onnx,
                self.analyzer.statistics, engines if builds else [],
            )  # fmt: skip

    def _input_facts(self, each: LayerLosses) -> why.InputFacts | None:
        needs = input_needs(each.tried.asked)
        if needs is None:
            return None
        channels, _ = self.analyzer.statistics.of(needs.channels)
        largest, counts = self.analyzer.statistics.of(needs.peaks)
        shares = self._input_shares(each, START)
        clipped = shares[0] if shares and START in each.inputs else None
        samples = why.sample_facts(counts.reshape(-1), float(largest.max()))
        return why.InputFacts(channels.reshape(-1), clipped, *samples)

    def _input_shares(self, each: LayerLosses, index: int) -> tuple[float, float] | None:
        row, needs = each.tried.asked.inputs[index], input_needs(each.tried.asked)
        amax = self.analyzer.ranges.get(row)
        if row.dynamic or amax is None:
            return None
        _, counts = self.analyzer.statistics.of(needs.values)
        return losses.input_shares(row, amax, counts.reshape(-1))

    def _why(self, each: LayerLosses) -> str:
        told = why.why(each, self._weight_facts(each), self._input_facts(each))
        sites = [site for site in self.sites if site.own.layer == each.name]
        lost = {site.own.operand: self._site_lost(site, 0) or 0.0 for site in sites}
        role = max(lost, key=lost.get, default=None)
        if role is not None and lost[role] >= why.MATTERS and why.loss_in(each) == "neither":
            return (
                f"its {role} loses, not its weight or input: rounding takes "
                f"{100 * lost[role]:.2g} % of that tensor's channels' signal"
            )
        own = {row.operand: row for row in each.tried.asked.start}
        where = why.loss_in(each)
        if where == "neither" and each.name in self.top:
            db = self._alone(each.name).sqnr.db
            if db < LOUD_DB:
                return (
                    f"rounding takes only {100 * each.both:.2g} % of its channels' signal, but the "
                    f"layers behind make much of it: {db:.0f} dB are left at the network's output"
                )
        if where in own and self._fixed(own[where]):
            told += f"; the recipe itself says that {where}'s range, so nothing else is suggested"
        return told

    def _reasons(self, overrides: Mapping[str, Pair]) -> dict[str, str]:
        """Why each override is made."""
        losses_of = {each.name: each for each in self.ranked}
        sites = {each.own.site: each for each in self.sites}
        found = {}
        for name, pair in overrides.items():
            if name in sites:
                site = sites[name]
                index = pair[1]
                then = "float" if index is None else label(site.rows[index])
                db = "" if index is None else f" leaves {self._site_db(site, index):.0f} dB"
                found[name] = (
                    f"{label(site.own)} leaves {self._site_db(site, 0):.0f} dB of this tensor and "
                    f"{100 * (1 - (self._site_lost(site, 0) or 0.0)):.2g} % of its channels' "
                    f"signal; {then}{db or ' keeps it'}"
                )
            else:
                each = losses_of[name]
                facts = self._weight_facts(each), self._input_facts(each)
                own = self.start[name]
                changed = tuple(n if n != o else None for n, o in zip(pair, own, strict=True))
                found[name] = why.reason(each, *facts, changed)
        return found

    def _weight_facts(self, each: LayerLosses) -> WeightFacts:
        tried = each.tried
        return module_facts(tried.module, tried.bn, tried.asked.layer)

    def analysis(self) -> model.Analysis:
        analyzer, session = self.analyzer, self.session
        start = self._whole(self.start) if self.start else None
        best = self._whole(self.finest)
        fp32 = best.fp32_metric
        return model.Analysis(
            granplugin=granplugin.__version__,
            recipe=str(session.loaded.path),
            machine=machine(),
            data="analysis" if session.recipe.data.analysis else "calibration",
            samples=session.analysis.samples,
            local_samples=len(analyzer.drawn),
            calibration_samples=session.calibration.samples,
            seconds=analyzer.seconds,
            loss=best.measured_by,
            metric=analyzer.metric if best.measured_by == "metric" else None,
            tolerance=analyzer.wanted.tolerance,
            fp32=None if fp32 is None else _share(fp32, "%"),
            start=None if start is None else _network(start),
            finest=_network(best),
            layers=[self._layer(n, each) for n, each in enumerate(self.ranked, start=1)],
            sites=[self._site(each) for each in self.sites],
            skipped=[
                model.SkippedSetting(site=s.site, setting=s.setting, reason=s.reason)
                for s in analyzer.skipped
            ],
            advice=self._told(),
            notes=list(analyzer.plan.notes),
        )

    def _layer(self, rank: int, each: LayerLosses) -> model.LayerAnalysis:
        layer, facts, given = (
            each.tried.asked.layer,
            self._weight_facts(each),
            self._input_facts(each),
        )
        measured = each.name in set(self.top)
        return model.LayerAnalysis(
            rank=rank,
            layer=each.name,
            type=layer.type,
            traits=sorted(layer.traits),
            calls=layer.calls,
            weights=[self._setting(each, "weight", i) for i in range(len(each.tried.weights))],
            inputs=[self._setting(each, "input", j) for j in range(len(each.tried.inputs))],
            facts=model.Facts(
                spread_before=facts.spread_before,
                spread_after=facts.spread_after,
                widest_before=facts.widest_before,
                widest_after=facts.widest_after,
                dead_channels=len(facts.dead_after),
                outlier_channels=list(facts.outliers_after),
                input_spread=given.spread if given else None,
                widest_input=given.widest if given else None,
                input_outliers=list(given.outliers) if given else [],
                dead_inputs=given.dead if given else 0,
                sample_spread=given.sample_spread if given else None,
                outlier_samples=given.outlier_samples if given else 0,
            ),
            alone=_network(self._alone(each.name)) if measured else None,
            restored=_network(self._restored(each.name)) if measured else None,
            loss_in=why.loss_in(each),
            why=self.why[each.name],
        )

    def _site_sqnr(self, each: TriedSite, index: int) -> Sqnr | None:
        if each.roundings[index] is None:
            return None
        name = next(n for n, made in each.figures().items() if made is each.roundings[index])
        return sqnr(self.analyzer.local[name], self.session.analysis.samples)

    def _site_db(self, each: TriedSite, index: int) -> float:
        found = self._site_sqnr(each, index)
        return math.inf if found is None or found.db is None else found.db

    def _site_lost(self, each: TriedSite, index: int) -> float | None:
        if each.roundings[index] is None:
            return None
        name = next(n for n, made in each.figures().items() if made is each.roundings[index])
        return losses.channels_lost(self.analyzer.local[name])

    def _site(self, each: TriedSite) -> model.SiteAnalysis:
        settings = []
        for index, row in enumerate(each.rows):
            found = self._site_sqnr(each, index)
            scales = 0 if row.dynamic else row.scales
            settings.append(
                model.SettingFigures(
                    setting=label(row),
                    format=row.format,
                    granularity=str(row.granularity),
                    calibrator=None if row.dynamic else str(row.calibrator),
                    bn=None,
                    start=index == 0,
                    scales=scales,
                    scale_bytes=4 * scales,
                    weight=None,
                    alone=None if found is None else _sqnr(found),
                    both=None,
                    network=None,
                    channels_lost=self._site_lost(each, index),
                    clipped=None,
                    zeroed=None,
                    zero_range=each.roundings[index] is None,
                    costs=self._site_costs(each) if row.block == each.own.block else {},
                )
            )
        own = each.own
        return model.SiteAnalysis(
            site=own.site, layer=own.layer, role=own.operand, settings=settings
        )

    def _site_costs(self, each: TriedSite) -> dict[str, model.EngineCost]:
        told = {engine: of.get(each.own.site) for engine, of in self.site_promises.items()}
        return {
            engine: model.EngineCost(
                promise=promise.kind,
                reason=promise.reason,
                kernels=None,
                mb=None,
                unmeasured="it is part of its layer's kernels",
            )
            for engine, promise in told.items()
            if promise is not None
        }

    def _restored(self, name: str) -> effects.Effect:
        return self.effects[effects.restored_name(self.network, name)]

    def _setting(self, each: LayerLosses, role: str, index: int) -> model.SettingFigures:
        tried = each.tried
        rows = tried.asked.weights if role == "weight" else tried.asked.inputs
        row = rows[index]
        loss = (each.weights if role == "weight" else each.inputs).get(index)
        shares, own = None, None
        if role == "weight":
            own = losses.weight_sqnr(tried, index)
            if tried.weights[index] is not None:
                shares = losses.weight_shares(tried, index, self.analyzer.ranges[row])
        elif loss is not None:
            shares = self._input_shares(each, index)
        pair = (index, START) if role == "weight" else (START, index)
        at = self._pairs(each).index(pair)
        scales = 0 if row.dynamic else row.scales
        start = any(row is own_row for own_row in tried.asked.start)
        return model.SettingFigures(
            setting=label(row),
            format=row.format,
            granularity=str(row.granularity),
            calibrator=None if row.dynamic else str(row.calibrator),
            bn=row.bn if role == "weight" else None,
            start=start,
            scales=scales,
            scale_bytes=4 * scales,
            weight=None if own is None else _sqnr(own),
            alone=None if loss is None else _sqnr(loss.alone),
            both=None if loss is None or loss.both is None else _sqnr(loss.both),
            network=self._effect(each.name, role, index),
            channels_lost=None if loss is None else loss.channels_lost,
            clipped=None if shares is None else shares[0],
            zeroed=None if shares is None else shares[1],
            zero_range=(tried.weights if role == "weight" else tried.inputs)[index] is None,
            costs=self._engines(each.name, at),
        )

    def _engines(self, name: str, at: int) -> dict[str, model.EngineCost]:
        found = {}
        measured = self.costs[name][at] if name in self.costs else {}
        for engine, pair in self.promises[name][at].items() if name in self.promises else ():
            told = [promise for promise in pair if promise is not None]
            if not told:
                continue
            worst = max(told, key=lambda promise: KINDS.index(promise.kind))
            cost = measured.get(engine)
            found[engine] = model.EngineCost(
                promise=worst.kind,
                reason=worst.reason,
                kernels=cost.kernels if cost else None,
                mb=cost.mb if cost else None,
                unmeasured=_unmeasured(cost),
            )
        return found

    def _told(self) -> model.Advice:
        advice, tried = self.advice, self.network.tried
        if advice is None:
            said = "The recipe quantizes no layer that has a weight: there is nothing to advise."
            return model.Advice(
                said=said, overrides=[], suggested=None, reached=True, per_tensor=0, layers=0
            )
        final = {**self.start, **{n: p for n, p in advice.overrides.items() if n in tried}}
        weights = [
            tried[name].asked.weights[weight]
            for name, (weight, _) in final.items()
            if weight is not None
        ]
        per_tensor = sum(row.scales == 1 for row in weights)
        rules = suggestion.suggest(
            advice.overrides, self.start, self.network,
            {
                name: self._lowered(name, pair)
                for name, pair in advice.overrides.items()
                if name in tried
            },
            self._reasons(advice.overrides), self.session.layers,
        )  # fmt: skip
        return model.Advice(
            said=self._said(advice, per_tensor, len(weights)),
            overrides=[
                model.Override(layers=list(r.layers), rule=r.rule, reason=r.reason) for r in rules
            ],
            suggested=None if advice.final is None else _network(advice.final),
            reached=advice.reached,
            per_tensor=per_tensor,
            layers=len(weights),
        )

    def _said(self, advice: Advice, per_tensor: int, count: int) -> str:
        at_start, best = self._whole(self.start), self._whole(self.finest)
        of = {
            "metric": f"points of {self.analyzer.metric}",
            "decisions": "% of its decisions",
            "outputs": "% of its outputs (relative error)",
        }[best.measured_by]
        count_of = self.session.analysis.samples
        samples = "1 sample" if count_of == 1 else f"{count_of:,} samples"
        lost = f"{at_start.loss.value:.2f} {of}"
        if not advice.overrides and advice.reached:
            return (
                f"Nothing needs to change: on {samples} the recipe loses {lost}, which is "
                f"within {self.analyzer.wanted.tolerance:g} of the finest settings' "
                f"{best.loss.value:.2f} or cannot be told from it."
            )
        fixed = [
            f"{each.name}.{where}"
            for each in self.ranked
            if (where := why.loss_in(each)) != "neither"
            for row in each.tried.asked.start
            if row.operand == where and self._fixed(row)
        ]
        first = ""
        if fixed and not advice.reached:
            first = (
                f" The recipe itself says the range of {', '.join(fixed[:3])}"
                f"{' and others' if len(fixed) > 3 else ''} (amax, share or an imported file): "
                "mend that first."
            )
        if not advice.overrides and not self.top:
            return f"The recipe loses {lost}; with analyze.top at 0 nothing else was measured."
        if not advice.overrides:
            return (
                f"The recipe loses {lost}, and no setting that was tried on its "
                f"{len(self.top)} worst layers wins any of it back.{first}"
            )
        many = f"{len(advice.overrides)} layer{'s' if len(advice.overrides) > 1 else ''}"
        now = f"{advice.final.loss.value:.2f}"
        interval = ""
        if advice.final.loss.low is not None:
            interval = f" ({advice.final.loss.low:.2f} to {advice.final.loss.high:.2f})"
        reaches = "" if advice.reached else ", still more than is accepted"
        return (
            f"The recipe loses {lost}; with {many} changed it loses {now}{interval} on "
            f"{samples}{reaches}. {per_tensor} of {count} weights are per_tensor then."
            f"{first}"
        )


def _unmeasured(cost: Cost | None) -> str | None:
    if cost is None or cost.kernels is not None or cost.note is None:
        return None
    return cost.note.removeprefix("not measured: ")


def _share(mean: effects.Mean, unit: str) -> model.Share:
    return model.Share(value=mean.value, low=mean.low, high=mean.high, unit=unit)


def _sqnr(found: Sqnr) -> model.Sqnr:
    error = found.relative_error
    return model.Sqnr(
        db=found.db, low=found.low, high=found.high, relative_error=error, samples=found.samples
    )


def _network(found: effects.Effect) -> model.NetworkEffect:
    return model.NetworkEffect(
        sqnr=_sqnr(found.sqnr),
        kl=None if found.kl is None else _share(found.kl, "nats"),
        agreement=None if found.agreement is None else _share(found.agreement, "%"),
        metric=None if found.metric is None else _share(found.metric, "%"),
        loss=_share(found.loss, "points"),
    )
