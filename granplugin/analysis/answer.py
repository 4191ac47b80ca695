"""What was found, as analysis.json has it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, cast

import granplugin
from granplugin.analysis import effects, losses, why
from granplugin.analysis.costs import Cost
from granplugin.analysis.evidence import Evidence
from granplugin.analysis.facts import Facts
from granplugin.analysis.figures import Sqnr
from granplugin.analysis.losses import LayerLosses, SiteLosses
from granplugin.analysis.promised import Promised, pairs_of
from granplugin.analysis.settings import label
from granplugin.analysis.tried import START
from granplugin.capabilities import KINDS
from granplugin.planning.coverage import coverage
from granplugin.planning.rows import QuantizedRow
from granplugin.quant.site import Operand
from granplugin.recipe.settings import FLOAT
from granplugin.report.build.covered import covered
from granplugin.report.build.machine import machine
from granplugin.report.build.moved import moved_bytes
from granplugin.report.schema import analysis as model
from granplugin.runs.session import Session


def answer(
    session: Session,
    evidence: Evidence,
    facts: Mapping[str, Facts],
    why_each: Mapping[str, str],
    costs: Mapping[str, Sequence[Mapping[str, Cost]]],
    advice: model.Advice,
    local_samples: int,
    metric: str | None,
    seconds: Mapping[str, float],
    notes: Sequence[str],
) -> model.Analysis:
    """The analysis of a session's recipe; `facts`, `why_each` and `costs` are by layer."""
    outputs = evidence.outputs
    best, fp32 = outputs.whole(outputs.finest), outputs.whole(outputs.finest).fp32_metric
    return model.Analysis(
        granplugin=granplugin.__version__,
        recipe=str(session.loaded.path),
        machine=machine(),
        data="analysis" if session.recipe.data.analysis else "calibration",
        samples=session.analysis.samples,
        local_samples=local_samples,
        calibration_samples=session.calibration.samples,
        batch_size=session.recipe.data.batch_size,
        seconds=dict(seconds),
        loss=best.measured_by,
        metric=metric if best.measured_by == "metric" else None,
        tolerance=session.recipe.analyze.tolerance,
        fp32=None if fp32 is None else _share(fp32, "%"),
        start=network_effect(outputs.whole(outputs.start)) if outputs.quantizes else None,
        finest=network_effect(best),
        layers=[
            _layer(
                rank,
                each,
                facts[each.name],
                why_each[each.name],
                costs.get(each.name, ()),
                evidence,
            )
            for rank, each in enumerate(evidence.layers, start=1)
        ],
        sites=[_site(each, evidence.promised) for each in evidence.sites],
        skipped=[
            model.SkippedSetting(site=s.site, setting=s.setting, reason=s.reason)
            for s in evidence.questions.skipped
        ],
        advice=advice,
        notes=list(notes),
        coverage=covered(coverage(session.products, session.layers, evidence.questions.plan)),
    )


def _layer(
    rank: int,
    each: LayerLosses,
    facts: Facts,
    told: str,
    costs: Sequence[Mapping[str, Cost]],
    evidence: Evidence,
) -> model.LayerAnalysis:
    outputs, promised = evidence.outputs, evidence.promised
    layer, weight, given = each.tried.asked.layer, facts.weight, facts.given
    engines = [
        _engines(pair, costs[at] if costs else {})
        for at, pair in enumerate(promised.layers.get(each.name, ()))
    ]

    def setting(role: str, index: int) -> model.SettingFigures:
        return _setting(each, role, index, facts, evidence, engines)

    measured = each.name in outputs.top
    return model.LayerAnalysis(
        rank=rank,
        layer=each.name,
        type=layer.type,
        traits=sorted(layer.traits),
        calls=layer.calls,
        weights=[
            *(setting("weight", i) for i in range(len(each.tried.weights))),
            *_float("weight", each, evidence),
        ],
        inputs=[
            *(setting("input", j) for j in range(len(each.tried.inputs))),
            *_float("input", each, evidence),
        ],
        facts=model.Facts(
            spread_before=weight.spread_before,
            spread_after=weight.spread_after,
            widest_before=weight.widest_before,
            widest_after=weight.widest_after,
            dead_channels=len(weight.dead_after),
            outlier_channels=list(weight.outliers_after),
            input_spread=given.spread if given else None,
            widest_input=given.widest if given else None,
            input_outliers=list(given.outliers) if given else [],
            dead_inputs=given.dead if given else 0,
            sample_spread=given.sample_spread if given else None,
            outlier_samples=given.outlier_samples if given else 0,
        ),
        alone=network_effect(outputs.alone(each.name)) if measured else None,
        restored=network_effect(outputs.restored(each.name)) if measured else None,
        loss_in=why.loss_in(each),
        why=told,
    )


def _setting(
    each: LayerLosses,
    role: str,
    index: int,
    facts: Facts,
    evidence: Evidence,
    engines: Sequence[dict[str, model.EngineCost]],
) -> model.SettingFigures:
    tried = each.tried
    of_weight = role == "weight"
    row = (tried.asked.weights if of_weight else tried.asked.inputs)[index]
    loss = (each.weights if of_weight else each.inputs).get(index)
    shares, own = None, None
    if of_weight:
        own = losses.weight_sqnr(tried, index)
        if (amax := evidence.ranges.amax[row]) is not None:
            shares = losses.weight_shares(tried, index, amax)
    elif loss is not None:
        shares = facts.input_shares[index]
    at = pairs_of(tried).index((index, START) if of_weight else (START, index))
    effect = evidence.outputs.of_setting(each.name, role, index)
    return _figures(
        row,
        start=any(row is own_row for own_row in tried.asked.start),
        bn=row.bn if of_weight else None,
        weight=own,
        loss=loss,
        network=None if effect is None else network_effect(effect),
        shares=shares,
        zero_range=(tried.weights if of_weight else tried.inputs)[index] is None,
        costs=engines[at] if engines else {},
    )


def _float(role: Operand, each: LayerLosses, evidence: Evidence) -> Iterator[model.SettingFigures]:
    """The figures of float, where it is asked of this role: it changes nothing and has no scales."""
    asked = each.tried.asked
    if role not in asked.floats:
        return
    exact = model.Sqnr(db=math.inf, low=None, high=None, relative_error=0.0, samples=0)
    cost = model.EngineCost(
        promise="float", reason="left alone", kernels=None, mb=None, unmeasured=None
    )
    yield model.SettingFigures(
        setting=FLOAT,
        format=FLOAT,
        granularity=None,
        calibrator=None,
        bn=None,
        start=role not in {row.operand for row in asked.start},
        scales=0,
        scale_bytes=0,
        weight=exact if role == "weight" else None,
        alone=exact,
        both=None,
        network=None,
        channels_lost=0.0,
        clipped=0.0,
        zeroed=0.0,
        zero_range=False,
        costs=dict.fromkeys(evidence.promised.sites, cost),
    )


def _site(each: SiteLosses, promised: Promised) -> model.SiteAnalysis:
    own = each.tried.own
    told = {engine: of.get(own.site) for engine, of in promised.sites.items()}
    costs = {
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
    settings = [
        _figures(
            row,
            start=index == 0,
            bn=None,
            weight=None,
            loss=each.losses[index],
            network=None,
            shares=None,
            zero_range=each.losses[index] is None,
            costs=costs if row.block == own.block else {},
        )
        for index, row in enumerate(each.tried.rows)
    ]
    return model.SiteAnalysis(site=own.site, layer=own.layer, role=own.operand, settings=settings)


def _figures(
    row: QuantizedRow,
    *,
    start: bool,
    bn: str | None,
    weight: Sqnr | None,
    loss: losses.Loss | None,
    network: model.NetworkEffect | None,
    shares: tuple[float, float] | None,
    zero_range: bool,
    costs: dict[str, model.EngineCost],
) -> model.SettingFigures:
    scales = 0 if row.dynamic else row.scales
    return model.SettingFigures(
        setting=label(row),
        format=row.format,
        granularity=str(row.granularity),
        calibrator=None if row.dynamic else str(row.calibrator),
        bn=cast(Literal["fold", "keep"] | None, bn),
        start=start,
        scales=scales,
        scale_bytes=4 * scales,
        weight=None if weight is None else _sqnr(weight),
        alone=None if loss is None else _sqnr(loss.alone),
        both=None if loss is None or loss.both is None else _sqnr(loss.both),
        network=network,
        channels_lost=None if loss is None else loss.channels_lost,
        clipped=None if shares is None else shares[0],
        zeroed=None if shares is None else shares[1],
        zero_range=zero_range,
        costs=costs,
    )


def _engines(
    promises: Mapping[str, Sequence[Any]], measured: Mapping[str, Cost]
) -> dict[str, model.EngineCost]:
    """Engine -> the worst promise of a setting's two sites, and what it was measured to cost."""
    found = {}
    for engine, pair in promises.items():
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
            moved=moved_bytes(cost.moved) if cost and cost.moved else None,
            unmeasured=_unmeasured(cost),
        )
    return found


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


def network_effect(found: effects.Effect) -> model.NetworkEffect:
    return model.NetworkEffect(
        sqnr=_sqnr(found.sqnr),
        kl=None if found.kl is None else _share(found.kl, "nats"),
        agreement=None if found.agreement is None else _share(found.agreement, "%"),
        metric=None if found.metric is None else _share(found.metric, "%"),
        loss=_share(found.loss, "points"),
    )
