"""modelopt's quant_cfg as rules of a recipe, each entry in its order; what no recipe says is named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from granplugin.convert.quotient import as_match, without_suffix
from granplugin.errors import RecipeError
from granplugin.quant.layers import PASSIVE, PRODUCTS

ROLES = ("weight", "input", "output")
_FORMATS = {8: "int8", 4: "int4", (4, 3): "fp8"}
_KNOWN = {"num_bits", "axis", "block_sizes", "type", "enable", "fake_quant", "calibrator"}
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "fake_quant": (True,), "calibrator": ("max", None), "unsigned": (False,),
    "narrow_range": (False,), "learn_amax": (False,), "pass_through_bwd": (True, False),
    "trt_high_precision_dtype": ("Float", None), "rotate": (False, None), "backend": (None,),
    "bias": (None,), "effective_bits": (None,), "use_constant_amax": (False,),
    "backend_extra_args": (None,), "constant_amax": (None,),
}  # fmt: skip
"""Attributes with values that change nothing of what is computed here."""


@dataclass
class Converted:
    """`rules` as a recipe has them, and of each thing that is not in them one sentence, with its
    place in the config."""

    rules: list[dict[str, Any]] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


def rules_of(config: Any, where: str) -> Converted:
    """The rules of a config in either of modelopt's forms - a list of entries, or the older dict.
    Raises RecipeError for what is no such config."""
    if isinstance(config, Mapping) and isinstance(config.get("quantize"), Mapping):
        config = config["quantize"]  # one of modelopt's recipes
    if not isinstance(config, Mapping) or "quant_cfg" not in config:
        raise RecipeError(f"{where}: no config of modelopt: it has no key 'quant_cfg'")
    found = Converted()
    algorithm = config.get("algorithm", "max")
    method = algorithm.get("method") if isinstance(algorithm, Mapping) else algorithm
    if method not in ("max", None):
        found.lost.append(
            f"algorithm: {method!r} changes weights or ranges; a recipe says a calibrator of each "
            "site, and the rules have max"
        )
    for place, entry in _entries(config["quant_cfg"], where):
        _convert(found, place, entry)
    _allow_half(found)
    return found


def _entries(listed: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The entries in the form of a list."""
    if isinstance(listed, Mapping):
        for name, given in listed.items():
            yield from _older(name, given, where)
        return
    if not isinstance(listed, Sequence) or isinstance(listed, str):
        raise RecipeError(f"{where}: quant_cfg is a list of entries or a dict, not {listed!r:.60}")
    for at, entry in enumerate(listed):
        place = f"quant_cfg[{at}]"
        if not isinstance(entry, Mapping) or not isinstance(entry.get("quantizer_name"), str):
            raise RecipeError(f"{where}: {place}: an entry has a quantizer_name")
        yield place, dict(entry)


def _older(name: str, given: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """An entry of the older dict: quantizers by pattern, or a class with such a dict in it."""
    place = f"quant_cfg[{name!r}]"
    if not isinstance(given, Mapping | list):
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


def _convert(found: Converted, place: str, entry: Mapping[str, Any]) -> None:
    pattern, parent = entry["quantizer_name"], entry.get("parent_class")
    kind = parent.removeprefix("nn.") if isinstance(parent, str) else None
    if kind is not None and kind not in PRODUCTS and kind not in PASSIVE:
        if entry.get("enable", True) or entry.get("cfg"):
            found.lost.append(f"{place}: layers of {parent} have no sites, and stay float")
        return
    layers = {role: without_suffix(pattern, f".{role}_quantizer") for role in ROLES}
    if not any(layers.values()):
        if entry.get("enable", True):
            found.lost.append(f"{place}: {pattern!r} is no weight, input or output of a layer")
        return
    enabled, cfg = entry.get("enable", True), entry.get("cfg")
    if enabled and cfg is None:
        found.lost.append(
            f"{place}: it switches {pattern!r} on as an earlier entry had it; write what they get"
        )
        return
    said = _setting(found, place, cfg) if enabled else "float"
    if said is None:
        return
    for match, roles in _together(layers):
        rule: dict[str, Any] = {"match": {"name": match, "type": kind} if kind else match}
        rule |= dict.fromkeys(roles, said)
        found.rules.append(rule | {"optional": True})


def _together(layers: Mapping[str, frozenset[str]]) -> list[tuple[str, list[str]]]:
    """Roles by the layers they are of."""
    by_match: dict[str, list[str]] = {}
    for role, patterns in layers.items():
        if patterns:
            by_match.setdefault(as_match(patterns), []).append(role)
    return list(by_match.items())


def _setting(found: Converted, place: str, cfg: Any) -> Any:
    """Attributes of a quantizer as a recipe has them; None where it says no such thing."""
    if not isinstance(cfg, Mapping):
        found.lost.append(f"{place}: several quantizers in a row, of which a site has one")
        return None
    for key, value in cfg.items():
        if key not in _KNOWN and value not in _HARMLESS.get(key, ()):
            found.lost.append(f"{place}.cfg.{key}: {value!r} has no key in a recipe")
    bits = cfg.get("num_bits", 8)
    bits = tuple(bits) if isinstance(bits, list) else bits
    bits = (4, 3) if bits == "e4m3" else bits
    name = _FORMATS.get(bits)
    if name is None:
        found.lost.append(f"{place}.cfg.num_bits: {bits!r} is none of the formats {_formats()}")
        return None
    granularity = _granularity(found, place, cfg)
    if granularity is None:
        return None
    # All of it, as an entry replaces all that earlier ones said.
    return {"format": name, "granularity": granularity, **_calibrated(granularity)}


def _calibrated(granularity: Any) -> dict[str, str]:
    at_run_time = isinstance(granularity, dict) and "dynamic" in str(granularity)
    return {} if at_run_time else {"calibrator": "max"}


def _formats() -> str:
    return ", ".join(_FORMATS.values())


def _granularity(found: Converted, place: str, cfg: Mapping[str, Any]) -> Any:
    blocks, axis = cfg.get("block_sizes"), cfg.get("axis")
    dynamic = cfg.get("type") == "dynamic"
    if blocks is not None:
        return _blocks(found, place, blocks, dynamic)
    axis = axis[0] if isinstance(axis, (list, tuple)) and len(axis) == 1 else axis
    if isinstance(axis, (list, tuple)):
        found.lost.append(f"{place}.cfg.axis: {list(axis)} keeps several axes; say it per_block")
        return None
    if dynamic and axis is None:
        # modelopt's spans the batch, granplugin's is each sample's own.
        found.lost.append(f"{place}.cfg.type: dynamic scales are each sample's own here")
        return {"per_tensor": {"dynamic": True}}
    if dynamic:
        found.lost.append(f"{place}.cfg: dynamic on axis {axis} is no granularity of a recipe")
        return None
    return "per_tensor" if axis is None else {"per_channel": {"axis": axis}}


def _blocks(found: Converted, place: str, blocks: Mapping[Any, Any], dynamic: bool) -> Any:
    sizes = {key: value for key, value in blocks.items() if key not in ("type", "scale_bits")}
    dynamic = dynamic or blocks.get("type") == "dynamic"
    if len(sizes) == 1:
        ((axis, size),) = sizes.items()
        if size is None and int(axis) == -1:
            return {"per_token": {"dynamic": True}} if dynamic else "per_token"
        if size is not None and not dynamic:
            return {"per_block": {"size": int(size), "axis": int(axis)}}
    found.lost.append(f"{place}.cfg.block_sizes: {dict(blocks)!r} is no granularity of a recipe")
    return None


def _allow_half(found: Converted) -> None:
    """Where weights and inputs are not switched on and off together, halves are meant."""
    weight, inputs = (
        [(str(rule["match"]), rule[role] != "float") for rule in found.rules if role in rule]
        for role in ("weight", "input")
    )
    if weight != inputs:
        found.rules.insert(0, {"match": "**", "half": "allow", "optional": True})
