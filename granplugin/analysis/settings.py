"""What is asked of each layer: settings of its weight and of its input, as rows of a plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from granplugin.planning.plan import check_varying
from granplugin.planning.rows import Plan, QuantizedRow, Row, as_quantized
from granplugin.quant.calibrators import Calibrator, refusal
from granplugin.quant.formats import FORMATS, block_of
from granplugin.quant.granularity import DoesNotApply, PerTensor
from granplugin.quant.layers import Layer
from granplugin.quant.site import Operand
from granplugin.recipe.analyze import Analyze
from granplugin.recipe.settings import FLOAT, Settings


@dataclass(frozen=True, slots=True)
class Asked:
    """One layer with the rows to try for its weight and its input.

    The first of each is the recipe's own where the recipe quantizes the site. `start` are all rows
    of the layer that the recipe quantizes, other roles' too. `floats` are the roles for which
    float is asked: it has no row, since it rounds nothing.
    """

    layer: Layer
    weights: tuple[QuantizedRow, ...]
    inputs: tuple[QuantizedRow, ...]
    start: tuple[QuantizedRow, ...]
    floats: frozenset[Operand] = frozenset()


@dataclass(frozen=True, slots=True)
class Skipped:
    """A setting that a site cannot have, and why."""

    site: str
    setting: str
    reason: str


def ask(
    layers: Sequence[Layer], plan: Plan, wanted: Analyze, samples: int
) -> tuple[tuple[Asked, ...], tuple[Skipped, ...]]:
    """What to try at each layer that multiplies by its weight, in the plan's order, and what does
    not apply there. Operands of products of two activations, and embeddings, are sites of their own
    (ask_of_site). A batch norm behind a call is as the recipe has it.

    `samples` is the number of calibration samples. A layer that cannot be quantized is skipped
    whole, with its reason.
    """
    wanted_of: dict[Operand, Sequence[Settings]] = {
        "weight": wanted.weights,
        "input": wanted.inputs,
    }
    rows: dict[str, dict[Operand, Row]] = {}
    for row in plan.rows:
        rows.setdefault(row.layer, {})[row.operand] = row
    asked, skipped = [], []
    for layer in layers:
        if not layer.weighs:
            continue
        if layer.unusable or layer.name not in rows:
            reason = layer.unusable or "the recipe has no row for it"
            skipped.append(Skipped(layer.name, "all", reason))
            continue
        of_layer = rows[layer.name]
        found: dict[Operand, tuple[QuantizedRow, ...]] = {}
        for role, entries in wanted_of.items():
            own = of_layer[role]
            tried: list[QuantizedRow] = [own] if own.quantized else []
            for settings in _crossed(entries, wanted.calibrators):
                norms = layer.bn and role == "weight" and not layer.call
                for bn in wanted.bn if norms else [own.bn]:
                    made = _row(layer, own, settings, bn, samples)
                    if isinstance(made, Skipped):
                        skipped.append(made)
                    else:
                        tried.append(made)
            found[role] = _distinct(tried)
        start = tuple(row for row in of_layer.values() if row.quantized)
        floats: frozenset[Operand] = frozenset(
            role for role in found if any(map(_is_float, wanted_of[role]))
        )
        asked.append(Asked(layer, found["weight"], found["input"], start, floats))
    return tuple(asked), tuple(dict.fromkeys(skipped))


def ask_of_site(
    layer: Layer, own: QuantizedRow, wanted: Analyze, samples: int
) -> tuple[tuple[QuantizedRow, ...], tuple[Skipped, ...]]:
    """What to try at a site that is no factor of a layer's product: the recipe's own row `own`,
    then what is asked of inputs, or for the weight of a lookup of weights."""
    entries = wanted.weights if own.at.constant else wanted.inputs
    found = [
        _row(layer, own, settings, own.bn, samples)
        for settings in _crossed(entries, wanted.calibrators)
    ]
    rows = _distinct([own, *(row for row in found if isinstance(row, QuantizedRow))])
    return rows, tuple(skip for skip in found if isinstance(skip, Skipped))


def label(row: Row) -> str:
    """A setting in a few words: `per_channel, bn keep`, `per_tensor, percentile 99.9`, `per_tensor, as
    given` of a network that came with its ranges."""
    parts = [str(row.granularity) if row.quantized else FLOAT]
    if row.quantized:
        if row.format != "int8":
            parts.append(row.format)
        if row.given is not None:
            parts.append(row.ranges)
        elif row.amax is not None:
            parts.append(f"amax {row.amax:g}")
        elif not row.dynamic and row.calibrator.kind != "max":
            parts.append(str(row.calibrator))
    if row.operand == "weight" and row.bn:
        parts.append(f"bn {row.bn}")
    return ", ".join(parts)


def same(a: Row, b: Row) -> bool:
    """Whether two rows of a site round it alike."""
    return _meaning(a) == _meaning(b)


def _meaning(row: Row) -> tuple[Any, ...]:
    bn = row.bn if row.operand == "weight" else None
    ranges = (row.calibrator, row.amax) if row.quantized else ()
    return row.site, bn, *row.form, *ranges


def _distinct(rows: Sequence[QuantizedRow]) -> tuple[QuantizedRow, ...]:
    found: dict[tuple[Any, ...], QuantizedRow] = {}
    for row in rows:
        found.setdefault(_meaning(row), row)
    return tuple(found.values())


def _is_float(entry: Settings) -> bool:
    return entry.format == FLOAT


def _crossed(entries: Sequence[Settings], calibrators: Sequence[Calibrator]) -> Iterator[Settings]:
    """The settings that round, each with every calibrator it may have."""
    for entry in entries:
        if _is_float(entry):
            continue
        at_run_time = entry.granularity is not None and entry.granularity.at_run_time
        if entry.calibrator or entry.amax or at_run_time:
            yield entry
        else:
            for calibrator in calibrators:
                yield entry.model_copy(update={"calibrator": calibrator})


def _row(
    layer: Layer, own: Row, settings: Settings, bn: str | None, samples: int
) -> QuantizedRow | Skipped:
    granularity = settings.granularity or PerTensor()
    form = settings.format or (own.format if own.quantized else next(iter(FORMATS)))
    calibrator = settings.calibrator or Calibrator()
    said = f"{granularity} {calibrator}" if calibrator.kind != "max" else str(granularity)
    try:
        block = block_of(FORMATS[form], granularity, own.at)
        if not granularity.at_run_time:
            check_varying(layer, own.at, block)
    except DoesNotApply as err:
        return Skipped(own.site, said, str(err))
    if own.operand == "weight" or not granularity.at_run_time:
        seen = None if own.operand == "weight" else samples
        if refused := refusal(calibrator, own.shape, block, seen):
            return Skipped(own.site, said, refused)
    ranges = {"calibrator": calibrator, "amax": settings.amax}
    return as_quantized(own, form, granularity, **ranges, bn=bn, rule="analyze", note=None)
