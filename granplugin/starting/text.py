"""The text of a recipe to start from: the network in groups that a person would write."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

from granplugin.recipe.glob import matcher
from granplugin.recipe.settings import FLOAT
from granplugin.report.schema.verbs import InspectedLayer, InspectOutput
from granplugin.words import counted

DATA_FILE = "calibration_data.py"
"""Where the function stands that gives calibration samples, until there are any."""

_WIDE = 10
"""Over this spread a layer is named, as `inspect` does."""
_MOST = 12
"""Groups and layers that are named."""
_SHORT = 40
"""Characters of two names that are said instead of a glob."""

Shapes = Mapping[str, tuple[tuple[int, ...], str]]


@dataclass(frozen=True)
class Known:
    """What is known of a network: `data` is the calibration source given, `guess` what forward runs
    with where none is, `names` forward's arguments, `seen` what `inspect` says; `unclassed` says why
    no output's classes can be compared."""

    name: str
    model: Mapping[str, Any]
    data: Mapping[str, Any] | None
    guess: Shapes | None
    names: Sequence[str]
    seen: InspectOutput
    unclassed: str | None = None


def starter(known: Known) -> str:
    """The recipe; it loads as it stands."""
    weighted = [layer for layer in known.seen.layers if layer.weight_shape]
    parts = (_head(known, weighted), _model(known), _data(known), _decisions(known, weighted))
    return "\n".join(line for part in parts for line in part) + "\n"


def _head(known: Known, weighted: Sequence[InspectedLayer]) -> Iterator[str]:
    kinds = Counter(layer.type for layer in weighted)
    told = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    yield f"# {known.name}: {told or 'no layers with weights'}; {known.seen.parameters:,} parameters."
    yield "#"
    verbs = {
        "plan": "what each layer gets, which line decides it, what each engine promises",
        "analyze": "which layers lose what, why, and the least that mends it",
        "apply": "builds, measures and compares with TensorRT's defaults",
    }
    for verb, what in verbs.items():
        command = f"granplugin {verb} {known.name}.yaml"
        yield f"#   {command:<{len(known.name) + 26}}  {what}"
    yield "version: 1"


def _model(known: Known) -> Iterator[str]:
    yield "model:"
    for key, value in known.model.items():
        yield f"  {key}: {quoted(value)}"
    if "callable" in known.model and "weights" not in known.model:
        yield "  # weights: trained.safetensors  # else those that the function itself loads"


def _data(known: Known) -> Iterator[str]:
    yield "data:"
    it = "the file" if "onnx" in known.model else "forward"
    if known.guess:
        wants = ", ".join(f"{n} {kind} {_sizes(shape)}" for n, (shape, kind) in known.guess.items())
        yield f"  # {it} runs with {wants}."
    elif known.data is None and known.names:
        none = (
            "whose lengths it leaves open" if it == "the file" else "none of the usual shapes runs"
        )
        yield f"  # {it} takes {', '.join(known.names)}; {none}, so give yours:"
        yield "  # granplugin init ... --shape image=3x224x224"
    if known.data is None:
        source: Mapping[str, Any] = {"callable": f"{DATA_FILE}:batches"}
    else:
        source = known.data
    yield f"  calibration: {flow(source)}"
    yield "  # Other samples than those, with labels; without them accuracy is agreement with fp32"
    yield "  # on the calibration data."
    inputs = {name: name for name in _inputs(known)}
    yield f"  # evaluation: {{npz: test.npz, inputs: {flow(inputs)}, labels: labels}}"
    yield "  batch_size: 32"
    if known.unclassed:
        yield from wrap(known.unclassed, 98, initial_indent="# ", subsequent_indent="# ")
        yield "metrics: [sqnr_db]"
        return
    metrics = ["top1", "agreement", "sqnr_db"] if "labels" in source else ["agreement", "sqnr_db"]
    yield f"metrics: {flow(metrics)}"


def _inputs(known: Known) -> Sequence[str]:
    """The arguments that samples are given for."""
    if known.guess:
        return list(known.guess)
    given = (known.data or {}).get("inputs", {})
    return list(given) or list(known.names[:1]) or ["input"]


def _decisions(known: Known, weighted: Sequence[InspectedLayer]) -> Iterator[str]:
    yield ""
    yield "# What TensorRT does unless told otherwise: int8, inputs per_tensor, weights per_channel"
    yield "# (one scale an output channel), ranges by max, batch norms folded."
    yield "defaults: tensorrt@11"
    yield "# What is not quantized; as an engine would: fp16."
    yield "precision: fp32"
    yield ""
    yield "# The layers:"
    for pattern, layers in _groups(weighted)[:_MOST]:
        yield f"#   {pattern}: {_told(layers)}"
    left = len(_groups(weighted)) - _MOST
    if left > 0:
        yield f"#   and {counted(left, 'group')} more: granplugin inspect {known.name}.yaml"
    yield "#"
    yield "# Rules change it, the last that matches decides. Take away the # of `rules:` and of those"
    yield "# you want to try."
    yield "# rules:"
    yield from _suspicious(weighted)


def _groups(weighted: Sequence[InspectedLayer]) -> list[tuple[str, list[InspectedLayer]]]:
    """Layers whose names differ in numbers alone, under the glob that stands for them."""
    found: dict[tuple[str, str], list[InspectedLayer]] = {}
    for layer in weighted:
        found.setdefault((_glob(layer.name), layer.type), []).append(layer)
    return [(_called(pattern, layers), layers) for (pattern, _), layers in found.items()]


def _glob(name: str) -> str:
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def _called(pattern: str, layers: Sequence[InspectedLayer]) -> str:
    """The glob, or the names themselves where they are short or it would match anything."""
    named = ", ".join(layer.name for layer in layers[:3])
    if len(layers) == 1 or not pattern.strip(".*") or (len(layers) < 3 and len(named) <= _SHORT):
        return named + (" ..." if len(layers) > 3 else "")
    return pattern


def _told(layers: Sequence[InspectedLayer]) -> str:
    traits = Counter(trait for layer in layers for trait in layer.traits)
    kind = "".join(
        f"{trait} " for trait in ("depthwise", "grouped") if traits[trait] == len(layers)
    )
    told = f"{len(layers)} {kind}{layers[0].type}"
    widest = max(layers, key=_spread)
    if _spread(widest) >= _WIDE:
        told += f", channel ranges up to {_spread(widest):,.0f} times the median ({widest.name})"
    return told


def _spread(layer: InspectedLayer) -> float:
    facts = layer.folded or layer.weight
    return facts.spread if facts and facts.spread else 0.0


def _suspicious(weighted: Sequence[InspectedLayer]) -> Iterator[str]:
    quantized = [
        layer
        for layer in weighted
        if any(row.role == "weight" and row.format != FLOAT for row in layer.defaults)
    ]
    wide = sorted((x for x in quantized if _spread(x) >= _WIDE), key=_spread, reverse=True)
    if quantized:
        coarse = Counter(layer.type for layer in quantized).most_common(1)[0][0]
        yield "#   # One scale for each weight: what engines are fastest with, where accuracy allows."
        yield f"#   - {{id: coarse, match: {{type: {coarse}}}, weight: per_tensor}}"
    for layer in wide[:3]:
        yield f"#   # One of its channels is {_spread(layer):,.0f} times the median: per_tensor ruins it."
        yield f"#   - {{match: {quoted(layer.name)}, weight: per_channel}}"
    for end, one, several in (
        ("first", "It reads the input", "They read inputs"),
        ("last", "It makes the output", "They make the outputs"),
    ):
        patterns = list(_exactly([x for x in quantized if end in x.traits], weighted))[:_ENDS]
        if patterns:
            told = one if len(patterns) == 1 and "*" not in patterns[0] else several
            yield f"#   # {told}; often the most sensitive, and small."
        for pattern in patterns:
            yield f"#   - {{match: {quoted(pattern)}, format: float}}"


_ENDS = 4
"""Rules for the layers at one end."""


def _exactly(chosen: Sequence[InspectedLayer], weighted: Sequence[InspectedLayer]) -> Iterator[str]:
    """Globs that match these layers and no other, else their names."""
    names = {layer.name for layer in chosen}
    every = [layer.name for layer in weighted]
    by_glob: dict[str, list[str]] = {}
    for layer in chosen:
        by_glob.setdefault(_glob(layer.name), []).append(layer.name)
    for pattern, of in by_glob.items():
        matched = set(filter(matcher(pattern), every))
        yield from [pattern] if len(of) > 1 and matched <= names else of


def data_module(names: Sequence[str], guess: Shapes | None) -> str:
    """The file with the function that has to be filled in."""
    shapes = guess or dict.fromkeys(names[:1], ((), "float32"))
    lines = [
        '"""Samples that quantization ranges are found on: some hundred like those of production."""',
        "",
        "import numpy as np",
        "",
        "",
        "def batches():",
        '    """One dict a batch: argument of forward -> array, axis 0 counts the samples."""',
        "    raise NotImplementedError(",
        '        "calibration_data.py: let batches() yield your own samples, and delete this line"',
        "    )",
    ]
    told = ", ".join(
        f'"{name}": np.zeros((8, {", ".join(map(str, shape)) or "..."}), np.{kind})'
        for name, (shape, kind) in shapes.items()
    )
    return "\n".join([*lines, f"    yield {{{told}}}"]) + "\n"


def _sizes(shape: Sequence[int]) -> str:
    return "x".join(map(str, ("N", *shape)))


def flow(value: Any) -> str:
    """A value as YAML on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {flow(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(flow, value)) + "]"
    return quoted(value)


def quoted(value: Any) -> str:
    """A scalar as YAML; in quotes where it would be read as something else.

    >>> [quoted(each) for each in ("a.b", "a: b", "12", 3)]
    ['a.b', '"a: b"', '"12"', '3']
    """
    text = str(value)
    if not isinstance(value, str):
        return text
    plain = text.replace(".", "").replace("_", "").replace("/", "").replace("-", "")
    parts = plain.split(":")
    safe = all(part.isalnum() for part in parts) and not text.endswith(":")
    numeric = text.replace(".", "").replace("_", "").replace("-", "").isdigit()
    reserved = text.lower() in ("true", "false", "null", "yes", "no", "on", "off")
    return text if safe and not numeric and not reserved else json.dumps(text)
