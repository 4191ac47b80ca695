"""The plan: one row per site, with the rule that decided it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from granplugin.errors import RecipeError, UserError
from granplugin.recipe.presets import PRESETS, spelt_out
from granplugin.quant.calibrators import Calibrator, refusal
from granplugin.quant.granularity import (
    DoesNotApply,
    PerChannel,
    PerTensor,
    Role,
    Shape,
    grid,
    scales,
)
from granplugin.quant.layers import MULTIPLIED, WEIGHTED, Layer
from granplugin.recipe.loaded import LoadedPart
from granplugin.recipe.match import nearest, select
from granplugin.recipe.decisions import Decision, Rule, Share
from granplugin.recipe.match import Match
from granplugin.recipe.settings import FLOAT
from granplugin.recipe.source import Location
from granplugin.suggest import did_you_mean


@dataclass(frozen=True, slots=True)
class Row:
    """One site's decision.

    `block` has the rank of `shape`; one scale per block. `format` is a key of FORMATS or "float"
    (then block, granularity and calibrator are None). `amax` pins the range. `bn` is fold or keep
    where the layer has a batch norm `bn_name` behind it that can be folded, else None. `rule` is
    the deciding rule's id or the preset's name, `where` its file:line:column. The scales of a
    `dynamic` row are computed at run time, of each sample's largest |x|: nothing is calibrated.
    `on_unsupported` is what a rule says is made of it where an engine does not have it. Rows with
    the same `share` have one scale, the largest of theirs.
    """

    layer: str
    type: str
    role: Role
    shape: Shape
    format: str
    granularity: str | None
    block: Shape | None
    calibrator: Calibrator | None
    amax: float | None
    bn: str | None
    bn_name: str | None
    rule: str
    where: str
    note: str | None = None
    dynamic: bool = False
    on_unsupported: tuple[str, ...] | None = None
    share: str | None = None

    @property
    def site(self) -> str:
        return f"{self.layer}.{self.role}"

    @property
    def observed(self) -> str:
        """The site of the unfolded model where this row's tensor is: a folded layer's output is
        its batch norm's."""
        if self.role == "output" and self.bn == "fold":
            return f"{self.bn_name}.output"
        return self.site

    @property
    def quantized(self) -> bool:
        return self.format != FLOAT

    @property
    def ranges(self) -> str:
        """How its ranges are found, in a word."""
        return "at run time" if self.dynamic else str(self.calibrator)

    @property
    def grid(self) -> Shape:
        return grid(self.shape, self.block)

    @property
    def scales(self) -> int:
        return scales(self.shape, self.block) if self.block else 0


@dataclass(frozen=True, slots=True)
class RuleUse:
    """What became of a rule: layers matched, and sites where it had the last word on some key."""

    rule: str
    where: str
    matched: int
    decides: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Every site's row, in the order the layers run; what each rule did; and what to know."""

    rows: tuple[Row, ...]
    uses: tuple[RuleUse, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def quantized(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.quantized)

    @property
    def folded(self) -> frozenset[str]:
        """The layers whose batch norm is folded."""
        return frozenset(row.layer for row in self.rows if row.bn == "fold")


PRESET = -1
"""The position of the defaults, in front of rule 0."""

_KEYS = ("format", "granularity", "calibrator", "amax")


def make_plan(loaded: LoadedPart, layers: Sequence[Layer]) -> Plan:
    """Resolve a recipe against a model's layers.

    The last matching rule decides, key by key. Raises RecipeError at the rule's line: a rule that
    matches nothing or can do nothing, a granularity that does not apply, half a layer quantized.
    """
    return _Planner(loaded, layers).plan()


def preset_plan(name: str, layers: Sequence[Layer], loaded: LoadedPart) -> Plan:
    """The plan of a preset alone: what a baseline is."""
    bare = loaded.recipe.model_copy(update={"defaults": name, "rules": [], "share": []})
    return make_plan(replace(loaded, recipe=bare), layers)


def why(loaded: LoadedPart, layers: Sequence[Layer], name: str) -> tuple[str, ...]:
    """One layer's story: what each rule said of it, and what came of it.

    Raises UserError where no layer has that name.
    """
    for layer in layers:
        if layer.name == name:
            return _Planner(loaded, layers).story(layer)
    raise UserError(f"no layer is called {name!r}{did_you_mean(name, [x.name for x in layers])}")


class _Planner:
    def __init__(self, loaded: LoadedPart, layers: Sequence[Layer]) -> None:
        self.loaded, self.layers = loaded, layers
        self.rules = loaded.recipe.rules
        defaults = loaded.recipe.defaults
        self.defaults = spelt_out(defaults) if isinstance(defaults, Decision) else PRESETS[defaults]
        self.labels = [loaded.rule_label(index) for index in range(len(self.rules))]
        self.wheres = [str(loaded.mark("rules", index)) for index in range(len(self.rules))]
        self.default_label = "defaults" if isinstance(defaults, Decision) else defaults
        self.default_where = str(loaded.mark("defaults"))
        self.settled: dict[tuple[Decision, tuple[int, ...], tuple[Role, ...]], _Settled] = {}
        self.decides: Counter[int] = Counter()
        self.notes: list[str] = []
        self.ranged: set[str] = set()  # sites of which a rule says the calibrator or amax

    def plan(self) -> Plan:
        matched = [select(rule.match, self.layers) for rule in self.rules]
        for index, found in enumerate(matched):
            self._check_match(index, found)
        rules_of: list[list[int]] = [[] for _ in self.layers]
        for index, found in enumerate(matched):
            for position in found:
                rules_of[position].append(index)
        rows: list[Row] = []
        folded_norms: dict[str, str] = {}
        for layer, rules in zip(self.layers, rules_of, strict=True):
            if layer.unusable:
                continue
            settled = self._settle(layer, rules)
            of_layer = self._rows(layer, settled)
            self._check_half(layer, settled, of_layer)
            if of_layer and of_layer[0].bn == "fold":
                folded_norms[layer.bn] = layer.name
            rows += of_layer
            self._count(settled, of_layer)
        self._check_folded_norms(rows, folded_norms)
        rows, partners = self._one_pair(rows)
        rows = self._shared(rows, partners)
        uses = tuple(
            RuleUse(label, where, len(found), self.decides[index])
            for index, (label, where, found) in enumerate(
                zip(self.labels, self.wheres, matched, strict=True)
            )
        )
        for rule, use in zip(self.rules, uses, strict=True):
            if use.matched and not use.decides:
                reason = "later rules or format: float win"
                for role in ("output", "skip", "input"):
                    settings = getattr(rule, role)
                    if settings and not settings.format and not rule.format:
                        reason += (
                            f", or this {role} is float by default, as outputs, skips and layers "
                            f"without weights are; {role}: {{format: int8, ...}} switches it on"
                        )
                        break
                self.notes.append(f"{use.where}: {use.rule} decides nothing: {reason}")
        return Plan(tuple(rows), uses, tuple(self.notes))

    def story(self, layer: Layer) -> tuple[str, ...]:
        if layer.unusable:
            return (f"=> float: {layer.unusable}",)
        rules = [n for n, rule in enumerate(self.rules) if select(rule.match, [layer])]
        settled = self._settle(layer, rules)
        return self._story(layer, settled, self._rows(layer, settled))

    def _settle(self, layer: Layer, rules: Sequence[int]) -> _Settled:
        # Layers of one kind with the same rules are settled alike: 10,000 layers, a dozen times.
        key = (self.defaults(layer), tuple(rules), layer.roles)
        if key not in self.settled:
            said = [(PRESET, key[0]), *((index, self.rules[index]) for index in rules)]
            self.settled[key] = _Settled(layer.roles, said)
        return self.settled[key]

    def _check_match(self, index: int, found: Sequence[int]) -> None:
        rule = self.rules[index]
        if rule.optional:
            return
        usable = [self.layers[position] for position in found if not self.layers[position].unusable]
        at = ("rules", index, "match")
        self._check_named(at, rule.match)
        if not usable:
            layer = self.layers[found[0]]
            raise self.loaded.error(at, f"{layer.name!r} cannot be quantized: {layer.unusable}")
        if rule.weight and not any(layer.weight_shape for layer in usable):
            raise self.loaded.error(
                ("rules", index, "weight"), "no layer this rule matches has a weight to quantize"
            )
        if rule.skip and not any(layer.skip_shape for layer in usable):
            raise self.loaded.error(
                ("rules", index, "skip"),
                "no layer this rule matches has a skip input: their outputs join no residual add",
            )
        if rule.bn and not any(layer.bn for layer in usable):
            raise self.loaded.error(
                ("rules", index, "bn"),
                "no layer this rule matches has a batch norm behind it that can be folded",
            )

    def _check_named(self, at: Location, match: Match) -> None:
        """Does `match`, and each name in it alone, match a layer?"""
        if not select(match, self.layers):
            raise self.loaded.error(at, nearest(match, self.layers))
        names = match.name or ()
        for number, name in enumerate(names if len(names) > 1 else ()):
            alone = Match(name=[name])
            if not select(alone, self.layers):
                raise self.loaded.error((*at, "name", number), nearest(alone, self.layers))

    def _rows(self, layer: Layer, settled: _Settled) -> list[Row]:
        by_rule = settled.bn_rule != PRESET
        bn = settled.bn if layer.bn and (by_rule or not settled.is_float) else None
        bn = bn or ("keep" if layer.bn else None)
        # A residual add is fused into a layer that multiplies integers, and else stays float.
        half = FLOAT in (settled.value(r, "format") or FLOAT for r in MULTIPLIED)
        rows = []
        for role in layer.roles:
            shape = layer.shape(role)
            if shape is None:
                continue
            rule, where = self._name(settled.deciding[role])
            format = settled.value(role, "format") or FLOAT
            if role == "skip" and settled.source(role, "format") == PRESET and half:
                format = FLOAT
            common = dict(
                layer=layer.name, type=layer.type, role=role, shape=shape, format=format,
                bn=bn, bn_name=layer.bn, rule=rule, where=where,
                on_unsupported=settled.on_unsupported,
            )  # fmt: skip
            if format == FLOAT:
                rows.append(Row(**common, granularity=None, block=None, calibrator=None, amax=None))
                continue
            granularity = settled.value(role, "granularity") or PerTensor()
            at = settled.source(role, "granularity")
            try:
                block = granularity.block(shape, role, layer.channel_axis(role))
                check_varying(layer, role, block)
                if granularity.at_run_time:
                    _check_dynamic(layer)
            except DoesNotApply as err:
                raise self._error(at, role, "granularity", f"{layer.name!r}: {err}") from err
            calibrator = settled.value(role, "calibrator") or Calibrator()
            amax = settled.value(role, "amax")
            if {settled.source(role, key) for key in ("calibrator", "amax")} != {PRESET}:
                self.ranged.add(f"{layer.name}.{role}")
            if granularity.at_run_time:
                self._check_later(layer, role, settled)
                calibrator, amax = Calibrator(), None
            elif role == "weight" and amax is None:
                refused = refusal(calibrator, shape, block)
                if refused:
                    at = settled.source(role, "calibrator")
                    raise self._error(at, role, "calibrator", f"{layer.name!r}: {refused}")
            rows.append(
                Row(
                    **common,
                    granularity=str(granularity),
                    block=block,
                    calibrator=calibrator,
                    amax=amax,
                    note=_coarser(granularity, shape, role, block, layer.channel_axis(role)),
                    dynamic=granularity.at_run_time,
                )
            )
        return rows

    def _check_later(self, layer: Layer, role: Role, settled: _Settled) -> None:
        """A calibrator or amax said of a site after its ranges were said to be found at run time
        would be lost; one said before is overridden, as all that a rule changes."""
        chosen = settled.source(role, "granularity")
        for key in ("calibrator", "amax"):
            index = settled.source(role, key)
            if index > chosen:
                granularity = settled.value(role, "granularity")
                raise self._error(
                    index, role, key,
                    f"{layer.name!r}: its {role} is {granularity} by {self._name(chosen)[0]}: its "
                    f"ranges are found at run time, so there is no {key}",
                )  # fmt: skip

    def _check_half(self, layer: Layer, settled: _Settled, rows: Sequence[Row]) -> None:
        if layer.type not in WEIGHTED or settled.half:
            return
        by_role = {row.role: row for row in rows}
        weight, given = by_role.get("weight"), by_role.get("input")
        if weight is None or given is None or weight.quantized == given.quantized:
            return
        left = "input" if weight.quantized else "weight"
        source = max(settled.source(role, "format") for role in MULTIPLIED)
        raise self._error(
            source, left, "format",
            f"{layer.name!r}: only its {'weight' if left == 'input' else 'input'} would be "
            "quantized, which engines run in float; quantize both, or say half: allow",
        )  # fmt: skip

    def _check_folded_norms(self, rows: Sequence[Row], folded: Mapping[str, str]) -> None:
        for row in rows:
            if row.quantized and row.layer in folded:
                raise RecipeError(
                    f"{row.where}: {row.layer!r} is folded into {folded[row.layer]!r}; quantize "
                    "that layer's output, or say bn: keep for it"
                )

    def _one_pair(self, rows: Sequence[Row]) -> tuple[list[Row], dict[str, str]]:
        """A skip input whose range no rule decides gets that of the first layer that reads the same
        tensor in the same blocks: they then have one Q/DQ. Skip -> that input, for those that do.
        """
        tensors = {
            (layer.name, role): number
            for layer in self.layers
            for role, number in (("input", layer.input_id), ("skip", layer.skip_id))
            if number is not None
        }
        read: dict[tuple, Row] = {}
        for row in rows:
            calibrated = row.quantized and not row.dynamic
            if row.role == "input" and calibrated and (row.layer, "input") in tensors:
                key = (tensors[row.layer, "input"], row.format, row.block)
                read.setdefault(key, row)
        found, partners = [], {}
        for row in rows:
            key = (tensors.get((row.layer, "skip")), row.format, row.block)
            if row.role == "skip" and row.quantized and key in read:
                reader = read[key]
                if row.site not in self.ranged:
                    row = replace(row, calibrator=reader.calibrator, amax=reader.amax)
                if (row.calibrator, row.amax) == (reader.calibrator, reader.amax):
                    row = replace(row, note=f"one Q/DQ with {reader.site}")
                    partners[row.site] = reader.site
            found.append(row)
        return found, partners

    def _shared(self, rows: Sequence[Row], partners: Mapping[str, str]) -> list[Row]:
        by_site = {row.site: row for row in rows if row.quantized}
        label: dict[str, str] = {}
        for index, said in enumerate(self.loaded.recipe.share):
            where = str(self.loaded.mark("share", index))
            for sites in self._groups(index, said, by_site):
                self._check_alike(index, [by_site[site] for site in sites])
                joined = {label[site] for site in sites if site in label}
                label |= dict.fromkeys(sites, f"{where} {sites[0]}")
                label |= {s: label[sites[0]] for s, old in label.items() if old in joined}
        # What has one Q/DQ keeps it.
        label |= {s: label[reader] for s, reader in partners.items() if reader in label}
        count = Counter(label.values())
        return [
            replace(
                row,
                share=label[row.site],
                note=row.note or f"one scale with {count[label[row.site]] - 1} more: share",
            )
            if row.site in label
            else row
            for row in rows
        ]

    def _groups(self, index: int, said: str | Share, by_site: Mapping[str, Row]) -> list[list[str]]:
        """The quantized sites that one item of `share` puts together."""
        if isinstance(said, Share):
            self._check_named(("share", index, "match"), said.match)
            names = [self.layers[n].name for n in select(said.match, self.layers)]
            sites = [site for name in names if (site := f"{name}.{said.role}") in by_site]
            if len(sites) < 2:
                raise self.loaded.error(
                    ("share", index),
                    f"two {said.role}s at least share a scale; of the layers this matches, "
                    f"{len(sites)} have theirs quantized",
                )
            return [sites]
        around: dict[int, list[str]] = {}
        for layer in self.layers:
            for role, number in layer.concats:
                around.setdefault(number, []).append(f"{layer.name}.{role}")
        # The output of a layer with a folded batch norm is that batch norm's.
        seen_as = {row.observed: site for site, row in by_site.items()}
        found = [[seen_as[site] for site in sites if site in seen_as] for sites in around.values()]
        found = [sites for sites in found if len(sites) > 1]
        if not found:
            raise self.loaded.error(
                ("share", index),
                "the model has no concatenation with two quantized sites around it",
            )
        return found

    def _check_alike(self, index: int, rows: Sequence[Row]) -> None:
        first = rows[0]
        for row in rows:
            if row.dynamic:
                raise self.loaded.error(
                    ("share", index), f"{row.site!r} has scales computed at run time"
                )
            grids = {row.grid, first.grid} if max(row.scales, first.scales) > 1 else set()
            if row.format != first.format or len(grids) > 1:
                raise self.loaded.error(
                    ("share", index),
                    f"{first.site!r} is {first.format} {first.granularity} and {row.site!r} "
                    f"{row.format} {row.granularity}: what shares a scale has one format and as "
                    "many scales",
                )

    def _count(self, settled: _Settled, rows: Sequence[Row]) -> None:
        for row in rows:
            self.decides.update(settled.last_words[row.role])
        if rows and rows[0].bn:
            self.decides[settled.bn_rule] += 1
        if any(row.quantized for row in rows):
            self.decides[settled.unsupported_rule] += 1

    def _story(self, layer: Layer, settled: _Settled, rows: Sequence[Row]) -> tuple[str, ...]:
        lines = []
        for role, key, index, value in settled.history:
            rule, where = self._name(index)
            of_layer = {"bn": settled.bn_rule, "on_unsupported": settled.unsupported_rule}
            current = settled.source(role, key) if role else of_layer[key]
            lost = "" if current == index else "  (a later rule says otherwise)"
            what = f"{role}.{key}" if role else key
            lines.append(f"{where}  {rule}: {what} = {value}{lost}")
        for row in rows:
            if row.quantized:
                lines.append(
                    f"=> {row.role}: {row.format} {row.granularity}, {row.scales} "
                    f"scale{'s' if row.scales > 1 else ''}, {row.ranges}"
                    + (f", amax {row.amax:g}" if row.amax else "")
                    + (f" ({row.note})" if row.note else "")
                )
            elif row.role != "output":
                lines.append(f"=> {row.role}: float")
        if rows and rows[0].bn:
            lines.append(f"=> bn: {rows[0].bn} ({layer.bn})")
        return tuple(lines)

    def _name(self, index: int) -> tuple[str, str]:
        if index == PRESET:
            return self.default_label, self.default_where
        return self.labels[index], self.wheres[index]

    def _error(self, index: int, role: str, key: str, message: str) -> Exception:
        at = ("defaults", role, key) if index == PRESET else ("rules", index, role, key)
        return self.loaded.error(at, message)


class _Settled:
    """What defaults and rules say of a layer: each key with the last that said it.

    `last_words` are, per role, those with the last word on some key, `deciding` the last of them.
    """

    def __init__(
        self, roles: tuple[Role, ...], said: Sequence[tuple[int, Decision | Rule]]
    ) -> None:
        self.roles = roles
        self.values: dict[tuple[str, str], tuple[Any, int]] = {}
        self.history: list[tuple[str | None, str, int, Any]] = []
        self.bn, self.bn_rule, self.half = "keep", PRESET, False
        self.on_unsupported, self.unsupported_rule = None, PRESET
        for index, decision in said:
            self.apply(index, decision)
        floats = {role for role in roles if self.value(role, "format") in (None, FLOAT)}
        self.is_float = len(floats) == len(roles)
        self.last_words = {
            role: {self.source(role, key) for key in self._keys(role, role in floats)}
            for role in roles
        }
        self.deciding = {role: max(words) for role, words in self.last_words.items()}

    def apply(self, index: int, decision: Decision) -> None:
        if decision.format is not None:
            multiplied = [role for role in self.roles if role in MULTIPLIED]
            for role in self.roles if decision.format == FLOAT else multiplied:
                self._set(role, "format", index, decision.format)
        for role in self.roles:
            settings = getattr(decision, role)
            for key in _KEYS if settings is not None else ():
                value = getattr(settings, key)
                if value is not None:
                    self._set(role, key, index, value)
        if decision.bn is not None:
            self.bn, self.bn_rule = decision.bn, index
            self.history.append((None, "bn", index, decision.bn))
        if decision.on_unsupported is not None:
            self.on_unsupported, self.unsupported_rule = decision.on_unsupported, index
            self.history.append((None, "on_unsupported", index, ", ".join(decision.on_unsupported)))
        self.half = self.half or decision.half == "allow"

    def _keys(self, role: str, is_float: bool) -> tuple[str, ...]:
        """The keys whose word counts."""
        granularity = self.value(role, "granularity")
        if is_float:
            return _KEYS[:1]
        return _KEYS[:2] if granularity is not None and granularity.at_run_time else _KEYS

    def _set(self, role: str, key: str, index: int, value: Any) -> None:
        self.values[role, key] = (value, index)
        self.history.append((role, key, index, value))

    def value(self, role: str, key: str) -> Any:
        return self.values.get((role, key), (None, PRESET))[0]

    def source(self, role: str, key: str) -> int:
        return self.values.get((role, key), (None, PRESET))[1]


def check_varying(layer: Layer, role: Role, block: Shape) -> None:
    """DoesNotApply where calls of the layer see shapes that these blocks do not all fit."""
    cells = grid(layer.shape(role), block)
    channels = layer.channel_axis(role)
    if layer.varying and role != "weight":
        if any(count > 1 and axis != channels for axis, count in enumerate(cells)):
            raise DoesNotApply("its calls see different shapes; use per_tensor or per_channel")


def _check_dynamic(layer: Layer) -> None:
    if layer.type not in WEIGHTED:
        raise DoesNotApply(
            f"{layer.type} has no product behind which scales of run time could be multiplied; "
            "leave dynamic out"
        )


def _coarser(
    granularity: Any, shape: Shape, role: Role, block: Shape, channel_axis: int | None
) -> str | None:
    """The coarser granularity this one equals here, if any."""
    if not isinstance(granularity, PerTensor) and scales(shape, block) == 1:
        return f"equals {PerTensor(dynamic=granularity.at_run_time)} here"
    if isinstance(granularity, (PerTensor, PerChannel)) or channel_axis not in range(len(shape)):
        return None
    per_channel = PerChannel().block(shape, role, channel_axis)
    return "equals per_channel here" if grid(shape, per_channel) == grid(shape, block) else None
