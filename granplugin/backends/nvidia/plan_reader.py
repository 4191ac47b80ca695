"""An engine's plan, read from the text that TensorRT, TensorRT-RTX or trtexec write about it.

Four forms are known, and nothing else is guessed at: the `Layers:` message of TensorRT-RTX's
verbose build log, the `Layer(Kind): ...` lines of TensorRT 10's, the JSON of TensorRT's engine
inspector (10.x and 11.x; trtexec's --exportLayerInfo), and trtexec's --exportProfile.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from granplugin.backends.engine_plan import EngineLayer, EnginePlan, EngineTensor
from granplugin.errors import EngineError
from granplugin.reading import parse_json, reading

_WORDS = {
    "float": "Float FP32",
    "half": "Half FP16",
    "bf16": "BFloat16 BF16",
    "fp8": "FP8",
    "fp4": "FP4E2M1 FP4",
    "e8m0": "FP8UE8M0 E8M0",
    "int4": "Int4",
    "int8": "Int8",
    "uint8": "UInt8",
    "int32": "Int32",
    "int64": "Int64",
    "bool": "Bool",
}
_DTYPES = {word.lower(): dtype for dtype, words in _WORDS.items() for word in words.split()}
_BITS = {"float": 32, "half": 16, "bf16": 16, "fp4": 4, "int4": 4, "int32": 32, "int64": 64}


_TENSOR = re.compile(
    r"\{ Name: (?P<name>(?:(?!, \{ Name: ).)*?), Dimensions: \[(?P<shape>[-\d,]*)\], "
    r"Strides: \[[-\d,]*\], StrideOrder: \[[-\d,]*\], Datatype: (?P<dtype>\w+), "
    r"Format: [^{}]*? \}(?:, )?"
)
_LAYER = re.compile(
    r"Name: (?P<name>.*), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*)\], "
    r"Constants: \[(?P<constants>.*)\], Outputs: \[(?P<outputs>.*)\], TacticName: .*, "
    # Signals have an EventId, and jumps between the bodies of If and Loop their targets.
    r"StreamId: \d+, (?:\w+: [^,]*, )*?Metadata: (?P<nodes>.*)"
)
_IO = re.compile(
    r" Name: (?P<name>.*), IOMode: (?:Input|Output), DataType: (?P<dtype>\w+), "
    r"Dimensions: \[(?P<shape>[-\d,]*)\], Location: .*, ProfileInfo: \[.*\]"
)
_RTX = "TensorRT-RTX layers"


def read_plan(text: str) -> EnginePlan:
    """The plan in any of the forms that are known, JSON or text. Raises EngineError."""
    if text.lstrip().startswith(("{", "[")):
        return read_inspector_json(text)
    return read_layers_text(text)


def read_layers_text(text: str) -> EnginePlan:
    """The plan in a build log's verbose message: TensorRT-RTX's, which starts with `Layers:`, or
    the `Layer(Kind): ...` lines of TensorRT 10's.

    Raises EngineError for any other text, and one that was cut off; that of TensorRT 10 has no end
    mark, so a cut between two of its lines goes unseen.
    """
    if text.startswith("Layers:\n"):
        return _read_rtx(text)
    if re.search(r"^Layer\(", text, re.MULTILINE):
        return _read_tensorrt_10(text)
    raise EngineError(
        "layers: neither the 'Layers:' message of TensorRT-RTX (built with "
        "ProfilingVerbosity.DETAILED) nor the 'Layer(...)' lines of TensorRT 10"
    )


def _read_rtx(text: str) -> EnginePlan:
    body, found, rest = text.removeprefix("Layers:\n").partition("\n\nI/O Tensors:\n")
    tensors, complete, _ = rest.partition("\n\nEngine Metadata:\n")
    if not (found and complete):
        raise EngineError(f"{_RTX}: cut off; 'I/O Tensors' and 'Engine Metadata' end the message")
    io = [_match(_IO, line, _RTX) for line in tensors.split("\n")]

    def read_tensors(listed: str) -> tuple[EngineTensor, ...]:
        tensors = _all(_TENSOR, listed.removeprefix(" "), _RTX)
        return tuple(_tensor(each["name"], each["shape"], each["dtype"], _RTX) for each in tensors)

    layers = []
    for line in body.split("\n"):
        layer = _match(_LAYER, line, _RTX)
        inputs, constants, outputs = (
            read_tensors(layer[key]) for key in ("inputs", "constants", "outputs")
        )
        nodes = _nodes(layer["nodes"])
        layers.append(EngineLayer(layer["name"], layer["kind"], inputs, constants, outputs, nodes))
    own = (_tensor(each["name"], each["shape"], each["dtype"], _RTX) for each in io)
    return EnginePlan(tuple(layers), tuple(own), _RTX)


_TENSORRT_10 = "TensorRT 10 layers"
_LAYER_10 = re.compile(
    r"Layer\((?P<kind>\w+)\): (?P<name>.*), Tactic: \w+, "
    r"(?P<inputs>.*?) ?-> (?P<outputs>.+)"
)
_TENSOR_10 = re.compile(r"(?P<name>.+?) \((?P<dtype>\w+)\[(?P<shape>[-\d,:]*)\]\)(?:, |$)")


def _read_tensorrt_10(text: str) -> EnginePlan:
    def read_tensors(listed: str) -> tuple[EngineTensor, ...]:
        return tuple(
            # 320:32 is 320 channels, stored in vectors of 32.
            _tensor(each["name"], re.sub(r":\d+", "", each["shape"]), each["dtype"], _TENSORRT_10)
            for each in _all(_TENSOR_10, listed, _TENSORRT_10)
        )

    layers = []
    _, _, listed = f"\n{text}".partition("\nLayer(")
    # The plan ends at an empty line, or where the inspector lists the bindings.
    for line in re.split(r"\n(?:\n|Bindings:|$)", f"Layer({listed}")[0].split("\n"):
        layer = _match(_LAYER_10, line, _TENSORRT_10)
        inputs, outputs = read_tensors(layer["inputs"]), read_tensors(layer["outputs"])
        # A Myelin layer names the first and the last of its nodes only.
        opaque = layer["name"].startswith("{ForeignNode[")
        parts = [] if opaque else layer["name"].split(" + ")
        nodes = tuple(re.sub(r"^PWN\((.*)\)$", r"\1", part) for part in parts)
        layers.append(EngineLayer(layer["name"], layer["kind"], inputs, (), outputs, nodes))
    return EnginePlan(tuple(layers), (), _TENSORRT_10, constants_told=False)


_INSPECTOR = "engine inspector JSON"


def read_inspector_json(text: str) -> EnginePlan:
    """The plan in the engine inspector's JSON, of TensorRT 10.x ("Bindings", "Format/Datatype") or
    11.x ("I/O Tensors", "Datatype" and "Format").

    The weights and bias of a layer, of which it gives type and count, are constants of that shape.
    Raises EngineError for other JSON, and where the engine was not built with detailed verbosity.
    """
    data = _json(text, _INSPECTOR)
    if not isinstance(data, dict) or not isinstance(data.get("Layers"), list):
        raise EngineError(f"{_INSPECTOR}: expected an object with a list of 'Layers'")
    if all(isinstance(layer, str) for layer in data["Layers"]):
        raise EngineError(
            f"{_INSPECTOR}: it has only layer names; build with detailed profiling verbosity "
            "(trtexec --profilingVerbosity=detailed)"
        )
    with reading(_INSPECTOR, EngineError, _UNKNOWN):
        if "I/O Tensors" in data:
            form, listed = "TensorRT 11 inspector", data["I/O Tensors"]
            io = tuple(_json_tensor(tensor, "DataType") for tensor in listed)
            key = "Datatype"
        elif "Bindings" in data:
            form, key, io = "TensorRT 10 inspector", "Format/Datatype", ()
        else:
            raise EngineError(
                f"{_INSPECTOR}: neither 'Bindings' (TensorRT 10) nor 'I/O Tensors' (TensorRT 11)"
            )
        layers = tuple(_json_layer(layer, key) for layer in data["Layers"])
        # What Myelin compiles as a whole has constants that TensorRT 10 does not tell.
        told = not any(layer.kind == "Myelin" for layer in layers)
        return EnginePlan(layers, io, form, constants_told=told)


_UNKNOWN = "not in a form that is known"


def _json_layer(layer: Mapping[str, Any], key: str) -> EngineLayer:
    inputs, constants, outputs = (
        tuple(_json_tensor(tensor, key) for tensor in listed)
        for listed in (layer["Inputs"], layer.get("Constants", ()), layer["Outputs"])
    )
    for what in ("Weights", "Bias"):
        held = layer.get(what, {"Count": 0})
        if held["Count"]:
            count = str(held["Count"])
            constants += (_tensor(what.lower(), count, held["Type"], _INSPECTOR),)
    nodes = _nodes(layer.get("Metadata", ""))
    name, kind = _text(layer["Name"]), _text(layer["LayerType"])
    return EngineLayer(name, kind, inputs, constants, outputs, nodes)


def _json_tensor(tensor: Mapping[str, Any], key: str) -> EngineTensor:
    # With an execution context it is a sentence: "Thirty-two wide ... row major Int8 format".
    words = [word for word in re.findall(r"\w+", tensor[key]) if word.lower() in _DTYPES]
    dtype = words[0] if len(words) == 1 else tensor[key]
    shape = ",".join(map(str, tensor["Dimensions"]))
    return _tensor(_text(tensor["Name"]), shape, dtype, _INSPECTOR)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is no text")
    return value


def inspector_json(plan: EnginePlan) -> str:
    """The plan in the form of TensorRT 11's engine inspector, as tools for its files read it; what
    the plan does not tell is left out. `read_inspector_json` gives the plan again."""

    def told(tensor: EngineTensor) -> dict[str, Any]:
        dtype = _WORDS[tensor.dtype].split()[0]
        return {"Name": tensor.name, "Dimensions": list(tensor.shape), "Datatype": dtype}

    layers = [
        {
            "Name": layer.name,
            "LayerType": layer.kind,
            "Inputs": [told(tensor) for tensor in layer.inputs],
            "Constants": [told(tensor) for tensor in layer.constants],
            "Outputs": [told(tensor) for tensor in layer.outputs],
            "Metadata": "\x1f".join(f"[ONNX Layer: {node}]" for node in layer.onnx_nodes),
        }
        for layer in plan.layers
    ]
    io = [{**told(t), "DataType": told(t)["Datatype"]} for t in plan.io]
    return json.dumps({"Layers": layers, "I/O Tensors": io}, indent=1)


def read_profile_json(text: str) -> dict[str, float]:
    """Layer name -> mean time in ms, from trtexec's --exportProfile: a list of {"count": runs} and
    one {"name", "timeMs" (of all runs), "averageMs" ...} for each layer.

    Raises EngineError for other JSON, and where a layer is listed twice.
    """
    form = "profile JSON"
    data = _json(text, form)
    with reading(form, EngineError, _NO_PROFILE):
        (runs,) = (entry["count"] for entry in data if "count" in entry)
        timed = [
            (str(entry["name"]), float(entry["timeMs"]) / float(runs))
            for entry in data
            if "count" not in entry
        ]
    if any(not math.isfinite(ms) or ms < 0 for _, ms in timed):
        raise EngineError(f"{form}: a time in it is no time")
    times = dict(timed)
    if len(times) != len(timed):
        raise EngineError(f"{form}: a layer is listed twice")
    return times


_NO_PROFILE = 'expected trtexec\'s [{"count": N}, {"name", "timeMs", ...}, ...]'


def _json(text: str, form: str) -> Any:
    return parse_json(text, form, EngineError)


def _match(pattern: re.Pattern[str], line: str, form: str) -> re.Match[str]:
    match = pattern.fullmatch(line)
    if match is None:
        raise _unknown(form, line)
    return match


def _all(pattern: re.Pattern[str], text: str, form: str) -> list[re.Match[str]]:
    """The matches that the text is made of."""
    found, at = [], 0
    while at < len(text):
        match = pattern.match(text, at)
        if match is None:
            raise _unknown(form, text[at:])
        found.append(match)
        at = match.end()
    return found


def _unknown(form: str, line: str) -> EngineError:
    return EngineError(f"{form}: not in a form that is known: {line[:80]!r}")


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split(",") if size)


def _tensor(name: str, shape: str, word: str, form: str) -> EngineTensor:
    dtype = _DTYPES.get(word.lower())
    if dtype is None:
        raise EngineError(f"{form}: tensor {name!r} is of an unknown type, {word!r}")
    sizes = _shape(shape)
    held = None if -1 in sizes else math.ceil(math.prod(sizes) * _BITS.get(dtype, 8) / 8)
    return EngineTensor(name, sizes, dtype, held)


def _nodes(metadata: str) -> tuple[str, ...]:
    """`[ONNX Layer: a]<0x1E or 0x1F>[ONNX Layer: b]` -> a, b. A node that was rewritten has a word
    behind it, such as `__gemm_from_conv1x1`.
    """
    return tuple(re.findall(r"\[ONNX Layer: ([^\x1e\x1f]*)\](?:__\w+)?(?=[\x1e\x1f]|$)", metadata))
