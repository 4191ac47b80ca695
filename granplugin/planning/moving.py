"""Which layers' weights an algorithm changes, by what rule, and on which ones it would change nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from granplugin.errors import RecipeError
from granplugin.planning.rows import Moved, QuantizedRow, Row
from granplugin.quant.layers import Layer
from granplugin.recipe.algorithms import NONE, SVDQUANT, Algorithm
from granplugin.recipe.loaded import LoadedPart

_RANGED = {"smoothquant": ("weight", "input"), "awq_lite": ("weight",), SVDQUANT: ("weight",)}
"""The operands that have to be quantized: smoothquant moves ranges from inputs to weights, awq_lite
those within weights, as svdquant does first."""


def moved_by(
    loaded: LoadedPart,
    layers: Sequence[Layer],
    matched: Sequence[Sequence[int]],
    rows: Iterable[Row],
) -> list[tuple[int, Moved]]:
    """What the rules' algorithms change, each with its rule's position; `matched` has the positions of the layers of each rule, of
    which the last that names one counts.

    Layers that are float as a whole are left out. Raises RecipeError, at the rule's line, where
    none is left, and for others that the algorithm does not fit; an optional rule leaves them out.
    """
    asked: dict[int, int] = {}
    for index, positions in enumerate(matched):
        if loaded.recipe.rules[index].algorithm is not None:
            asked |= dict.fromkeys(positions, index)
    by_site = {row.site: row for row in rows} if asked else {}
    found: list[tuple[int, Moved]] = []
    left: dict[int, str] = {}
    for position, index in sorted(asked.items()):
        rule, layer = loaded.recipe.rules[index], layers[position]
        if rule.algorithm is None or rule.algorithm.method == NONE:
            continue
        said = misfit(layer, rule.algorithm, by_site)
        if said is None:
            where = str(loaded.mark("rules", index, "algorithm"))
            label = loaded.rule_label(index)
            found.append((index, Moved(layer.name, rule.algorithm, label, where)))
        elif rule.optional or _is_float(layer, by_site):
            left.setdefault(index, f"{layer.name!r} {said}")
        else:
            raise _refused(loaded, index, f"{layer.name!r} {said}")
    fitting = {index for index, _ in found}
    for index, said in left.items():
        rule = loaded.recipe.rules[index]
        if index not in fitting and not rule.optional:
            raise _refused(loaded, index, said)
    return found


def misfit(layer: Layer, algorithm: Algorithm, rows: Mapping[str, Row]) -> str | None:
    """Why the algorithm changes nothing of this layer, or None. `rows` are by site."""
    if layer.type != "Linear" or layer.call:
        kind = "function's call" if layer.call else layer.type
        return f"is a {kind}, and it is for linear layers"
    if layer.unusable:
        return f"cannot be quantized: {layer.unusable}"
    for operand in _RANGED[algorithm.method]:
        row = rows[f"{layer.name}.{operand}"]
        if not row.quantized:
            return f"has a float {operand} by {row.rule} ({row.where})"
    if algorithm.method == SVDQUANT:
        return _unbranched(layer, algorithm, rows)
    return None


def _unbranched(layer: Layer, algorithm: Algorithm, rows: Mapping[str, Row]) -> str | None:
    """Why a layer can have no product of low rank beside its own, or None."""
    weight = layer.shape("weight") or ()
    if algorithm.parameter is not None and algorithm.parameter >= min(weight, default=0):
        return (
            f"has a weight of {' x '.join(map(str, weight))}, of which such a rank leaves nothing"
        )
    if rows[f"{layer.name}.weight"].bn == "fold":
        return "has a batch norm folded into its weight, and the branch beside it would miss that"
    for operand in ("output", "skip"):
        row = rows.get(f"{layer.name}.{operand}")
        if row is not None and row.quantized:
            told = "output" if operand == "output" else "skip input"
            return f"has a quantized {told} by {row.rule} ({row.where}), where the branch is added"
    return None


def rows_of(layers: Collection[str], rows: Iterable[QuantizedRow]) -> list[QuantizedRow]:
    """What an algorithm sees of these layers: their weights and inputs."""
    return [row for row in rows if row.layer in layers and row.operand in ("weight", "input")]


def _is_float(layer: Layer, rows: Mapping[str, Row]) -> bool:
    own = [rows[site.name] for site in layer.sites if site.name in rows]
    return layer.type == "Linear" and not any(row.quantized for row in own)


def _refused(loaded: LoadedPart, index: int, said: str) -> RecipeError:
    return loaded.error(
        ("rules", index, "algorithm"),
        f"{loaded.recipe.rules[index].algorithm}: {said}; match others, or take it back there with "
        "algorithm: none",
    )
