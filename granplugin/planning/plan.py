"""The planner: a recipe's rules and a model's layers make one row per site."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from granplugin.errors import RecipeError
from granplugin.planning.moving import moved_by
from granplugin.planning.rows import FloatRow, Plan, QuantizedRow, Row, RuleUse
from granplugin.planning.settle import PRESET, Sayings, Settled
from granplugin.planning.sharing import one_pair, one_scale
from granplugin.quant.calibrators import Calibrator, refusal
from granplugin.quant.formats import FORMATS, block_of, own_block
from granplugin.quant.granularity import DoesNotApply, Granularity, PerChannel, PerTensor, grid
from granplugin.quant.layers import PRODUCTS, Layer
from granplugin.quant.site import MULTIPLIED, OPERANDS, Operand, Shape, Site
from granplugin.recipe.decisions import Decision, Rule, of_base
from granplugin.recipe.loaded import LoadedPart
from granplugin.recipe.match import missing, select
from granplugin.recipe.settings import FLOAT
from granplugin.words import counted, first


def make_plan(loaded: LoadedPart, layers: Sequence[Layer]) -> Plan:
    """Resolve a recipe against a model's layers.

    The last matching rule decides, key by key. Raises RecipeError at the rule's line: a rule that
    matches nothing or can do nothing, a granularity that does not apply, half a layer quantized.
    """
    return _Planner(loaded, layers).plan()


def preset_plan(defaults: str | Decision, layers: Sequence[Layer], loaded: LoadedPart) -> Plan:
    """The plan of a preset, or of defaults that are spelt out, alone: what a baseline is."""
    bare = loaded.recipe.model_copy(
        update={"base": None, "defaults": defaults, "rules": [], "share": []}
    )
    return make_plan(replace(loaded, recipe=bare), [replace(each, given=None) for each in layers])


def plan_before_rules(loaded: LoadedPart, layers: Sequence[Layer]) -> Plan:
    """The plan of the recipe's defaults or base alone, without its own rules."""
    rules = [rule for rule in loaded.recipe.rules if of_base(rule.id)]
    bare = loaded.recipe.model_copy(update={"rules": rules, "share": []})
    return make_plan(replace(loaded, recipe=bare), layers)


_NOWHERE: dict[Operand, str] = {
    "weight": "has a weight to quantize",
    "other": "multiplies two activations, and so has an other input",
    "skip": "has a skip input: their outputs join no residual add",
}
"""What no layer does that a rule matches, where none has the operand that it speaks of."""


class _Planner:
    def __init__(self, loaded: LoadedPart, layers: Sequence[Layer]) -> None:
        self.loaded, self.layers = loaded, layers
        self.sayings = Sayings(loaded)
        self.rules = self.sayings.rules
        self.decides: Counter[int] = Counter()
        self.ranged: set[str] = set()  # sites of which a rule says the calibrator or amax

    def plan(self) -> Plan:
        matched = [select(rule.match, self.layers) for rule in self.rules]
        for index, positions in enumerate(matched):
            self._check_match(index, positions)
        rules_of: list[list[int]] = [[] for _ in self.layers]
        for index, positions in enumerate(matched):
            for position in positions:
                rules_of[position].append(index)
        rows: list[Row] = []
        folded_norms: dict[str, str] = {}
        unfolded: list[Layer] = []
        for layer, rules in zip(self.layers, rules_of, strict=True):
            if layer.unusable:
                continue
            settled = self.sayings.settle(layer, rules)
            if layer.unfolded and settled.bn == "fold":
                unfolded.append(layer)
            of_layer = self._rows(layer, settled)
            half = _is_half(layer, of_layer)
            if half and not settled.half:
                raise self._half(layer, settled, of_layer)
            if layer.bn is not None and of_layer and of_layer[0].bn == "fold":
                folded_norms[layer.bn] = layer.name
            rows += of_layer
            self._count(settled, of_layer, half)
        _check_folded_norms(rows, folded_norms)
        rows = one_pair(rows, frozenset(self.ranged))
        rows = one_scale(rows, self.layers, self.loaded)
        moved = moved_by(self.loaded, self.layers, matched, rows)
        self.decides.update(index for index, _ in moved)
        uses = tuple(
            RuleUse(label, where, len(positions), self.decides[index])
            for index, (label, where, positions) in enumerate(
                zip(self.sayings.labels, self.sayings.wheres, matched, strict=True)
            )
        )
        notes = [
            *_unfolded(unfolded, len(folded_norms)),
            *_left_float(rows),
            *self._notes(uses),
        ]
        told = [u for r, u in zip(self.rules, uses, strict=True) if u.matched or not of_base(r.id)]
        return Plan(tuple(rows), tuple(told), tuple(notes), tuple(each for _, each in moved))

    def _check_match(self, index: int, positions: Sequence[int]) -> None:
        rule = self.rules[index]
        if rule.optional:
            return
        at = ("rules", index, "match")
        if (said := missing(rule.match, self.layers)) is not None:
            inside, message = said
            raise self.loaded.error((*at, *inside), message)
        matched = [self.layers[position] for position in positions]
        usable = [layer for layer in matched if not layer.unusable]
        if not usable and rule.format != FLOAT:
            layer = matched[0]
            raise self.loaded.error(at, f"{layer.name!r} cannot be quantized: {layer.unusable}")
        for operand, nowhere in _NOWHERE.items():
            if getattr(rule, operand) and not any(layer.site(operand) for layer in usable):
                raise self.loaded.error(
                    ("rules", index, operand), f"no layer this rule matches {nowhere}"
                )
        if rule.bn == "fold" and (kept := [layer for layer in usable if layer.unfolded]):
            raise self.loaded.error(
                ("rules", index, "bn"),
                f"the batch norm behind {kept[0].name!r} cannot be folded into it: "
                f"{kept[0].unfolded}; exclude the layer, or say bn: keep for it",
            )
        folded = rule.bn == "fold" and any(layer.given is not None for layer in usable)
        if rule.bn and not folded and not any(layer.bn or layer.unfolded for layer in usable):
            raise self.loaded.error(
                ("rules", index, "bn"),
                "no layer this rule matches has a batch norm behind it that can be folded",
            )

    def _rows(self, layer: Layer, settled: Settled) -> list[Row]:
        by_rule = settled.bn_rule != PRESET
        bn = settled.bn if layer.bn and (by_rule or not settled.is_float) else None
        bn = bn or ("keep" if layer.bn else None)
        # A residual add is fused into a layer that multiplies integers, and else stays float.
        half = any(
            settled.value(each, "format") in (None, FLOAT)
            for each in (layer.multiplied if "skip" in settled.operands else ())
        )
        rows: list[Row] = []
        for site in layer.sites:
            operand = site.operand
            decides = settled.deciding[operand]
            rule, where = self.sayings.name(decides, layer.given is not None)
            format = settled.value(operand, "format") or FLOAT
            by_preset = settled.source(operand, "format") == PRESET
            if format == FLOAT or (operand == "skip" and by_preset and half):
                rows.append(
                    FloatRow(
                        at=site, type=layer.type, bn=bn, bn_name=layer.bn, rule=rule, where=where,
                        on_unsupported=settled.on_unsupported,
                        note=self.sayings.left_float(layer)
                        if by_preset and layer.given is None
                        else None,
                    )
                )  # fmt: skip
                continue
            granularity = settled.value(operand, "granularity") or PerTensor()
            block = self._block(layer, site, format, granularity, settled)
            calibrator, amax = self._ranges(layer, site, granularity, block, settled)
            given = _kept(layer, site, format, block, settled, bn)
            rows.append(
                QuantizedRow(
                    at=site, type=layer.type, bn=bn, bn_name=layer.bn, rule=rule, where=where,
                    on_unsupported=settled.on_unsupported, note=_coarser(granularity, site, block),
                    format=format, granularity=granularity, calibrator=calibrator, amax=amax, given=given,
                )
            )  # fmt: skip
        return rows

    def _block(
        self, layer: Layer, site: Site, format: str, granularity: Granularity, settled: Settled
    ) -> Shape:
        operand, fmt = site.operand, FORMATS[format]
        key = "format"
        try:
            own = own_block(fmt, site)
            if own is None or settled.source(operand, key) <= settled.source(
                operand, "granularity"
            ):
                key = "granularity"
            block = block_of(fmt, granularity, site)
            if not granularity.at_run_time:
                check_varying(layer, site, block)
            else:
                _check_dynamic(layer)
        except DoesNotApply as err:
            message = f"{layer.name!r}: {err}"
            raise self.sayings.error(settled.source(operand, key), operand, key, message) from err
        return block

    def _ranges(
        self, layer: Layer, site: Site, granularity: Granularity, block: Shape, settled: Settled
    ) -> tuple[Calibrator, float | None]:
        operand = site.operand
        if any(settled.source(operand, key) != PRESET for key in ("calibrator", "amax")):
            self.ranged.add(site.name)
        if granularity.at_run_time:
            self._check_later(layer, operand, settled)
            return Calibrator(), None
        calibrator = settled.value(operand, "calibrator") or Calibrator()
        amax = settled.value(operand, "amax")
        if site.constant and amax is None and (said := refusal(calibrator, site.shape, block)):
            at = settled.source(operand, "calibrator")
            raise self.sayings.error(at, operand, "calibrator", f"{layer.name!r}: {said}")
        return calibrator, amax

    def _check_later(self, layer: Layer, operand: Operand, settled: Settled) -> None:
        """A calibrator or amax said of a site after its ranges were said to be found at run time
        would be lost; one said before is overridden, as all that a rule changes."""
        chosen = settled.source(operand, "granularity")
        for key in ("calibrator", "amax"):
            index = settled.source(operand, key)
            if index > chosen:
                granularity = settled.value(operand, "granularity")
                rule, _ = self.sayings.name(chosen)
                raise self.sayings.error(
                    index, operand, key,
                    f"{layer.name!r}: its {operand} is {granularity} by {rule}: its ranges are "
                    f"found at run time, so there is no {key}",
                )  # fmt: skip

    def _half(self, layer: Layer, settled: Settled, rows: Sequence[Row]) -> RecipeError:
        left = next(row for row in rows if row.operand in layer.multiplied and not row.quantized)
        quantized = " and ".join(
            row.operand for row in rows if row.operand in layer.multiplied and row.quantized
        )
        source = max(settled.source(operand, "format") for operand in layer.multiplied)
        return self.sayings.error(
            source, left.operand, "format",
            f"{layer.name!r}: only its {quantized} would be quantized, which engines run in float; "
            "quantize both, or say half: allow",
        )  # fmt: skip

    def _count(self, settled: Settled, rows: Sequence[Row], half: bool) -> None:
        for row in rows:
            self.decides.update(settled.last_words[row.operand])
        if rows and rows[0].bn:
            self.decides[settled.bn_rule] += 1
        if any(row.quantized for row in rows):
            self.decides[settled.unsupported_rule] += 1
        if half:
            self.decides[settled.half_rule] += 1

    def _notes(self, uses: Sequence[RuleUse]) -> list[str]:
        notes = list(self.loaded.document.notes)
        for rule, use in zip(self.rules, uses, strict=True):
            if of_base(rule.id):
                if not use.matched and _switches_on(rule):
                    notes.append(f"{use.where}: {use.rule} matches no layer")
                continue
            if use.matched and not use.decides:
                reason = "later rules or format: float win"
                for operand in ("output", "skip", "other", "input"):
                    settings = getattr(rule, operand)
                    if settings and not settings.format and not rule.format:
                        reason += (
                            f", or this {operand} is float by default, as outputs, skips and "
                            f"layers without weights are; {operand}: {{format: int8, ...}} "
                            "switches it on"
                        )
                        break
                notes.append(f"{use.where}: {use.rule} decides nothing: {reason}")
        return notes


def _switches_on(rule: Rule) -> bool:
    said = (getattr(rule, operand) for operand in OPERANDS)
    return any(settings is not None and settings.format != FLOAT for settings in said)


def _unfolded(layers: Sequence[Layer], folded: int) -> list[str]:
    """What is said of batch norms that stay though they were to be folded, by reason."""
    by_reason: dict[str, list[str]] = {}
    for layer in layers:
        by_reason.setdefault(str(layer.unfolded), []).append(layer.name)
    return [
        f"{len(names)} of {len(layers) + folded} batch norms cannot be folded into the layer "
        f"before them: {first(names)} ({why})"
        for why, names in by_reason.items()
    ]


def _left_float(rows: Sequence[Row]) -> list[str]:
    """What is said of layers that the defaults leave float, and could quantize, by reason."""
    left = [row for row in rows if not row.quantized and row.note and row.operand in MULTIPLIED]
    if not left:
        return []
    by_reason: dict[str | None, dict[str, None]] = {}
    for row in left:
        by_reason.setdefault(row.note, {})[row.layer] = None
    layers = {row.layer for row in left}
    told = ", ".join(f"{first(list(names))} ({why})" for why, names in by_reason.items())
    return [
        f"{left[0].rule} leaves {counted(layers, 'layer')} float: {told}; a rule with format: int8 "
        "quantizes them"
    ]


def _kept(
    layer: Layer, site: Site, format: str, block: Shape, settled: Settled, bn: str | None
) -> str | None:
    """The key of the ranges that the layer came with, where nothing that is said of it changes
    what they are of. A rule that says the calibrator they were found with changes nothing."""
    if layer.given is None:
        return None
    given = dict(layer.given).get(site.operand)
    if given is None or given.ranges is None:
        return None
    if (given.format, given.granularity.block(site)) != (format, block):
        return None
    by_rule = settled.source(site.operand, "calibrator") != PRESET
    if by_rule and settled.value(site.operand, "calibrator") != given.calibrator:
        return None
    refolded = bn == "fold" and site.operand in ("weight", "output")
    return None if refolded or settled.value(site.operand, "amax") is not None else given.ranges


def _is_half(layer: Layer, rows: Sequence[Row]) -> bool:
    """Whether one of the tensors that the layer multiplies is quantized and another is not."""
    multiplied = layer.multiplied
    return len({row.quantized for row in rows if row.operand in multiplied}) > 1


def check_varying(layer: Layer, site: Site, block: Shape) -> None:
    """DoesNotApply where the layer sees shapes that these blocks do not all fit."""
    if layer.varying and not site.constant:
        cells = grid(site.shape, block)
        if any(count > 1 and axis != site.channel_axis for axis, count in enumerate(cells)):
            raise DoesNotApply("it sees tensors of different shapes; use per_tensor or per_channel")


def _check_dynamic(layer: Layer) -> None:
    if layer.type not in PRODUCTS:
        raise DoesNotApply(
            f"{layer.type} has no product behind which scales of run time could be multiplied; "
            "leave dynamic out"
        )


def _check_folded_norms(rows: Sequence[Row], folded: Mapping[str, str]) -> None:
    for row in rows:
        if row.quantized and row.layer in folded:
            raise RecipeError(
                f"{row.where}: {row.layer!r} is folded into {folded[row.layer]!r}; quantize "
                "that layer's output, or say bn: keep for it"
            )


def _coarser(granularity: Granularity, site: Site, block: Shape) -> str | None:
    """The coarser granularity this one equals here, if any."""
    if isinstance(granularity, PerTensor):
        return None
    cells = grid(site.shape, block)
    if set(cells) <= {1}:
        return f"equals {PerTensor(dynamic=granularity.at_run_time)} here"
    if isinstance(granularity, PerChannel) or site.channel_axis not in range(len(site.shape)):
        return None
    by_channel = grid(site.shape, PerChannel().block(site))
    return "equals per_channel here" if by_channel == cells else None
