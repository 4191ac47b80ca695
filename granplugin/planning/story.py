"""One layer's story: what each rule said of it, and what came of it in the finished plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from granplugin.errors import UserError
from granplugin.planning.rows import Plan
from granplugin.planning.settle import PRESET, Sayings, Settled
from granplugin.quant.layers import Layer
from granplugin.recipe.loaded import LoadedPart
from granplugin.recipe.match import select
from granplugin.suggest import did_you_mean


def why(loaded: LoadedPart, layers: Sequence[Layer], plan: Plan, name: str) -> tuple[str, ...]:
    """The story of the layer called `name` in `plan`, which the recipe makes of these layers.

    Raises UserError where no layer has that name.
    """
    layer = next((layer for layer in layers if layer.name == name), None)
    if layer is None:
        raise UserError(
            f"no layer is called {name!r}{did_you_mean(name, [x.name for x in layers])}"
        )
    if layer.unusable:
        return (f"=> float: {layer.unusable}",)
    sayings = Sayings(loaded)
    rules = [n for n, rule in enumerate(sayings.rules) if select(rule.match, [layer])]
    settled = sayings.settle(layer, rules)
    return (*_said(sayings, settled), *_moved(sayings, rules), *_came_of_it(plan, layer, settled))


def _moved(sayings: Sayings, rules: Sequence[int]) -> Iterator[str]:
    said = [index for index in rules if sayings.rules[index].algorithm is not None]
    for index in said:
        rule, where = sayings.name(index)
        lost = "" if index == said[-1] else "  (a later rule says otherwise)"
        yield f"{where}  {rule}: algorithm = {sayings.rules[index].algorithm}{lost}"


def _said(sayings: Sayings, settled: Settled) -> Iterator[str]:
    of_layer = {
        "bn": settled.bn_rule,
        "on_unsupported": settled.unsupported_rule,
        "half": settled.half_rule,
    }
    for operand, key, index, value in settled.history:
        rule, where = sayings.name(index)
        last = settled.source(operand, key) if operand else of_layer[key]
        lost = "" if last == index else "  (a later rule says otherwise)"
        what = f"{operand}.{key}" if operand else key
        yield f"{where}  {rule}: {what} = {value}{lost}"


def _came_of_it(plan: Plan, layer: Layer, settled: Settled) -> Iterator[str]:
    rows = [row for row in plan.rows if row.layer == layer.name]
    for each in plan.moved:
        if each.layer == layer.name:
            yield f"=> its weight is changed first: {each.algorithm}"
    for row in rows:
        if row.quantized:
            yield (
                f"=> {row.operand}: {row.format} {row.granularity}, {row.scales} "
                f"scale{'s' if row.scales > 1 else ''}, {row.ranges}"
                + (f", amax {row.amax:g}" if row.amax else "")
                + (f" ({row.note})" if row.note else "")
            )
        elif row.operand != "output":
            yield f"=> {row.operand}: float" + (f" ({row.note})" if row.note else "")
    if rows and rows[0].bn:
        kept = rows[0].bn == "keep" and (settled.bn, settled.bn_rule) == ("fold", PRESET)
        why_kept = ": the preset folds it where the layer is quantized" if kept else ""
        yield f"=> bn: {rows[0].bn} ({layer.bn}){why_kept}"
