"""modelopt's quant_cfg as rules of a recipe, each entry in its order; what no recipe says is named."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from granplugin.errors import RecipeError
from granplugin.quant.formats import FORMATS
from granplugin.quant.layers import CALL, PASSIVE, PRODUCTS
from granplugin.recipe.algorithms import MOVING
from granplugin.recipe.quotient import as_match, without_suffix

ROLES = ("weight", "input", "output")
_FORMATS = {8: "int8", 4: "int4", (4, 3): "fp8"}
_EXMY = re.compile(r"[Ee]([0-9]+)[Mm]([0-9]+)")
_KNOWN = {"num_bits", "axis", "block_sizes", "type", "enable", "constant_amax"}
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "fake_quant": (True,), "calibrator": ("max", None), "unsigned": (False,),
    "narrow_range": (False,), "learn_amax": (False,), "pass_through_bwd": (True, False),
    "trt_high_precision_dtype": ("Float", None), "rotate": (False, None), "backend": (None,),
    "bias": (None,), "use_constant_amax": (False,), "backend_extra_args": (None,),
}  # fmt: skip
"""Attributes with values that change nothing of what is computed here."""
_COSTS = {"effective_bits"}
"""Attributes that only modelopt's search reads."""


@dataclass(frozen=True, slots=True)
class Loss:
    """What a recipe does not say of a config: where in it, in modelopt's words, and the sentence.
    `entry` is the entry of quant_cfg; `stops` tells that without it other numbers come out."""

    place: str
    told: str
    stops: bool = True
    entry: int | None = None

    def __str__(self) -> str:
        return f"{self.place}: {self.told}"


@dataclass
class Converted:
    """`rules` as a recipe has them, `entries` which entry of quant_cfg each is of (None: of all),
    and `lost` what is not in them."""

    rules: list[dict[str, Any]] = field(default_factory=list)
    entries: list[int | None] = field(default_factory=list)
    lost: list[Loss] = field(default_factory=list)


def rules_of(config: Any, where: str) -> Converted:
    """The rules of a config in either of modelopt's forms - a list of entries, or the older dict.
    Raises RecipeError for what is no such config."""
    if isinstance(config, Mapping) and isinstance(config.get("quantize"), Mapping):
        config = config["quantize"]  # one of modelopt's recipes
    if not isinstance(config, Mapping) or "quant_cfg" not in config:
        raise RecipeError(f"{where}: no config of modelopt: it has no key 'quant_cfg'")
    converted = Converted()
    algorithm = config.get("algorithm", "max")
    method = algorithm.get("method") if isinstance(algorithm, Mapping) else algorithm
    if method not in ("max", None):
        told = (
            f"{method!r} changes weights or ranges; a recipe says a calibrator of each site, and "
            "the rules have max"
            + (
                f"; a rule {{match: {{type: Linear}}, algorithm: {method}}} runs it"
                if method in tuple(MOVING)
                else ""
            )
        )
        converted.lost.append(Loss("algorithm", told, stops=False))
    for number, place, entry in _entries(config["quant_cfg"], where):
        _Entry(converted, number, place).convert(entry)
    _allow_half(converted)
    return converted


def _entries(listed: Any, where: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """The entries in the form of a list, by their number."""
    if isinstance(listed, Mapping):
        for number, (name, given) in enumerate(listed.items()):
            for place, entry in _older(name, given, where):
                yield number, place, entry
        return
    if not isinstance(listed, Sequence) or isinstance(listed, str):
        raise RecipeError(f"{where}: quant_cfg is a list of entries or a dict, not {listed!r:.60}")
    for number, entry in enumerate(listed):
        place = f"quant_cfg[{number}]"
        if not isinstance(entry, Mapping) or not isinstance(entry.get("quantizer_name"), str):
            raise RecipeError(f"{where}: {place}: an entry has a quantizer_name")
        yield number, place, dict(entry)


def _older(name: Any, given: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """An entry of the older dict: quantizers by pattern, or a class with such a dict in it."""
    place = f"quant_cfg[{name!r}]"
    if not isinstance(given, Mapping | list) or not isinstance(name, str):
        raise RecipeError(f"{where}: {place}: attributes are a dict, not {given!r:.60}")
    if isinstance(given, Mapping) and name.startswith("nn."):
        for inner, attributes in given.items():
            for below, entry in _older(inner, attributes, where):
                yield f"{place}{below.removeprefix('quant_cfg')}", entry | {"parent_class": name}
        return
    pattern = "*" if name == "default" else name
    if isinstance(given, list):
        yield place, {"quantizer_name": pattern, "cfg": given}
        return
    rest = {key: value for key, value in given.items() if key != "enable"}
    told: dict[str, Any] = {"quantizer_name": pattern}
    yield (
        place,
        told
        | ({"cfg": rest} if rest else {})
        | ({"enable": given["enable"]} if "enable" in given else {}),
    )


@dataclass(frozen=True, slots=True)
class _Entry:
    """One entry of quant_cfg, on its way into `found`."""

    found: Converted
    number: int
    place: str

    def lose(self, told: str, key: str = "", stops: bool = True) -> None:
        place = f"{self.place}.{key}" if key else self.place
        self.found.lost.append(Loss(place, told, stops, self.number))

    def convert(self, entry: Mapping[str, Any]) -> None:
        pattern, parent = entry["quantizer_name"], entry.get("parent_class")
        kind = parent.removeprefix("nn.") if isinstance(parent, str) else None
        if kind is not None and kind not in PRODUCTS and kind not in PASSIVE:
            if entry.get("enable", True) or entry.get("cfg"):
                self.lose(f"layers of {parent} have no sites, and stay float", stops=False)
            return
        layers = {role: without_suffix(pattern, f".{role}_quantizer") for role in ROLES}
        if not any(layers.values()):
            if entry.get("enable", True):
                told = f"{pattern!r} is no weight, input or output of a layer"
                self.lose(told, stops=False)
            return
        enabled, cfg = entry.get("enable", True), entry.get("cfg")
        if enabled and cfg is None:
            self.lose(f"it switches {pattern!r} on as an earlier entry had it; write what they get")
            return
        said = self._setting(cfg) if enabled else "float"
        if said is None:
            return
        for match, roles in _together(layers):
            # What modelopt has quantizers of are modules; a function's call is none.
            of = {"name": match} | ({"type": kind} if kind else {}) | {"without": CALL}
            rule = {"match": of} | dict.fromkeys(roles, said) | {"optional": True}
            self.found.rules.append(rule)
            self.found.entries.append(self.number)

    def _setting(self, cfg: Any) -> Any:
        """Attributes of a quantizer as a recipe has them; None where it says no such thing."""
        if not isinstance(cfg, Mapping):
            self.lose("several quantizers in a row, of which a site has one")
            return None
        for key, value in cfg.items():
            if key == "calibrator" and value == "histogram":
                # modelopt 0.47 calls compute_amax without its method, and stops.
                told = "modelopt runs no histogram of a config; write calibrator: entropy or "
                self.lose(f"{told}{{percentile: 99.99}}; the rule has max", "cfg.calibrator", False)
            elif key not in _KNOWN and key not in _COSTS and value not in _HARMLESS.get(key, ()):
                self.lose(f"{value!r} has no key in a recipe", f"cfg.{key}")
        name, granularity = self._format(cfg), self._granularity(cfg)
        if name is None or granularity is None:
            return None
        # All of it, as an entry replaces all that earlier ones said.
        return {"format": name, "granularity": granularity, **self._range(cfg, granularity)}

    def _format(self, cfg: Mapping[str, Any]) -> str | None:
        bits = _bits(cfg.get("num_bits", 8))
        scaled_by = _inside(cfg.get("block_sizes")).get("scale_bits")
        scale = None if scaled_by is None else _bits(scaled_by)
        if scale is None:
            found = _FORMATS.get(bits)
        else:
            found = "mxfp8" if (bits, scale) == ((4, 3), (8, 0)) else None
        if found is None:
            scaled = "" if scale is None else f" with scales of {_shown(scale)}"
            told = f"{_shown(bits)}{scaled} is none of the formats {', '.join(FORMATS)}"
            self.lose(told, "cfg.num_bits")
        return found

    def _range(self, cfg: Mapping[str, Any], granularity: Any) -> dict[str, Any]:
        if "dynamic" in str(granularity):
            return {}
        amax = cfg.get("constant_amax")
        if isinstance(amax, (int, float)) and not isinstance(amax, bool) and 0 < amax < math.inf:
            return {"amax": float(amax)}
        if amax is not None:
            self.lose(f"{amax!r:.60} is no range", "cfg.constant_amax")
        return {"calibrator": "max"}

    def _granularity(self, cfg: Mapping[str, Any]) -> Any:
        blocks, axis = cfg.get("block_sizes"), cfg.get("axis")
        dynamic = cfg.get("type") == "dynamic"
        if blocks is not None:
            return self._blocks(blocks, dynamic)
        axis = axis[0] if isinstance(axis, (list, tuple)) and len(axis) == 1 else axis
        if isinstance(axis, (list, tuple)):
            self.lose(f"{list(axis)} keeps several axes; say it per_block", "cfg.axis")
            return None
        if dynamic and axis is None:
            # modelopt's spans the batch, granplugin's is each sample's own.
            self.lose("dynamic scales are each sample's own here", "cfg.type", stops=False)
            return {"per_tensor": {"dynamic": True}}
        if dynamic and axis == 0:
            return {"per_tensor": {"dynamic": True}}
        if dynamic:
            self.lose(f"dynamic on axis {axis} is no granularity of a recipe", "cfg.type")
            return None
        return "per_tensor" if axis is None else {"per_channel": {"axis": axis}}

    def _blocks(self, blocks: Any, dynamic: bool) -> Any:
        sizes = {k: v for k, v in _inside(blocks).items() if k not in ("type", "scale_bits")}
        dynamic = dynamic or _inside(blocks).get("type") == "dynamic"
        scaled = _inside(blocks).get("scale_bits") is not None
        known = all(re.fullmatch(r"-?\d+", str(axis)) for axis in sizes)
        by_axis = {int(axis): size for axis, size in sizes.items()} if known else {}
        if by_axis == {-1: None}:
            return {"per_token": {"dynamic": True}} if dynamic else "per_token"
        if by_axis and all(isinstance(size, int) and size > 0 for size in by_axis.values()):
            if len(by_axis) == 1 and (scaled or not dynamic):
                ((axis, size),) = by_axis.items()
                return {"per_block": {"size": size, "axis": axis}}
            from_end, from_start = range(-len(by_axis), 0), range(len(by_axis))
            if not dynamic and sorted(by_axis) in (list(from_end), list(from_start)):
                return {"per_block": {"shape": [by_axis[axis] for axis in sorted(by_axis)]}}
        self.lose(f"{blocks!r} is no granularity of a recipe", "cfg.block_sizes")
        return None


def _together(layers: Mapping[str, frozenset[str]]) -> list[tuple[str, list[str]]]:
    """Roles by the layers they are of."""
    by_match: dict[str, list[str]] = {}
    for role, patterns in layers.items():
        if patterns:
            by_match.setdefault(as_match(patterns), []).append(role)
    return list(by_match.items())


def _inside(blocks: Any) -> Mapping[Any, Any]:
    return blocks if isinstance(blocks, Mapping) else {}


def _bits(said: Any) -> Any:
    """Bits as modelopt has them in Python: e4m3 is (4, 3)."""
    if isinstance(said, str) and (told := _EXMY.fullmatch(said)):
        return int(told[1]), int(told[2])
    listed = isinstance(said, (list, tuple)) and all(isinstance(each, int) for each in said)
    return tuple(said) if listed else said if isinstance(said, (int, str)) else f"{said!r:.60}"


def _shown(bits: Any) -> str:
    return f"E{bits[0]}M{bits[1]}" if isinstance(bits, tuple) and len(bits) == 2 else f"{bits!r}"


def _allow_half(converted: Converted) -> None:
    """Where weights and inputs are not switched on and off together, halves are meant."""
    weight, inputs = (
        [(str(rule["match"]), rule[role] != "float") for rule in converted.rules if role in rule]
        for role in ("weight", "input")
    )
    if weight != inputs:
        converted.rules.insert(0, {"match": "**", "half": "allow", "optional": True})
        converted.entries.insert(0, None)
