"""What an engine does not build, seen in the file before it tries, each with the way out.

Each was tried with TensorRT-RTX 1.7.1, whose parser is TensorRT's (onnx-tensorrt).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import onnx
from onnx import TensorProto

from granplugin.audits.types_read import TYPES, unread
from granplugin.backends.nvidia.libraries import LIBRARIES
from granplugin.capabilities import Promise
from granplugin.graph.read.graph import closed, dequantizes, quantizes
from granplugin.graph.read.pairs import Scaled
from granplugin.graph.read.quantized_graph import QuantizedGraph
from granplugin.quant.layers import ONNX_PRODUCTS
from granplugin.results.audited import Finding
from granplugin.words import counted, first

_INTEGER = frozenset(
    [
        "ConvInteger",
        "DynamicQuantizeLSTM",
        "DynamicQuantizeLinear",
        "DynamicQuantizeMatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
    ]
)
"""What quantize_dynamic writes."""
_QOPERATORS = frozenset({"QAttention", "QGemm"})
_PACKED = frozenset({"GatherBlockQuantized", "MatMulBnb4", "MatMulFpQ4", "MatMulNBits"})
_STORED = {"uint8", "uint4", "int16", "uint16", "fp8_e5m2"}
"""Formats that it takes of no stored weight."""
_OF_ACTIVATIONS = _STORED - {"uint8"}

Check = Callable[[QuantizedGraph, str], Iterator[Finding]]


def refusals(quantized: QuantizedGraph, library: str) -> tuple[Finding, ...]:
    """Everything in a file for which an engine of `library` would not be built."""
    return tuple(each for check in REFUSALS.values() for each in check(quantized, library))


def reader_of(quantized: QuantizedGraph, pair: Scaled) -> str:
    """The node that a pair is told at: the first that computes with it, or its DequantizeLinear."""
    name = pair.pair.dq.name
    return next((o.node for o in quantized.operands if o.dequantize == name), name)


def numbers_of(pair: Scaled) -> np.ndarray | None:
    """A pair's scales; None where they are computed at run time, stored as exponents (MX formats),
    or those of a bias, which follow from others."""
    scale = pair.scale
    if scale is None or pair.format == "int32" or scale.dtype.kind not in "fV":
        return None
    return scale if scale.dtype.kind == "f" else scale.astype(np.float32)


def tensor_of(pair: Scaled) -> str:
    """A quantized tensor in words."""
    return f"{pair.format} tensor {pair.pair.source!r}"


def _scales(code: str, is_so: Callable[[np.ndarray], np.ndarray], word: str, out: str) -> Check:
    def check(quantized: QuantizedGraph, library: str) -> Iterator[Finding]:
        for pair in quantized.pairs:
            scale = numbers_of(pair)
            if scale is None:
                continue
            hit = np.flatnonzero(is_so(scale))
            if hit.size:
                where = f"{counted(int(hit.size), 'scale')} of {scale.size} of {tensor_of(pair)}"
                channels = f"channel{'s' * (hit.size > 1)} {first([str(i) for i in hit])}"
                at = f" ({channels})" if scale.size > 1 else ""
                verb = "is" if hit.size == 1 else "are"
                yield _finding(code, quantized, pair, f"{where} {verb} {word}{at}", out)

    return check


def _finding(
    code: str, quantized: QuantizedGraph, pair: Scaled, says: str, instead: str
) -> Finding:
    return Finding(code, reader_of(quantized, pair), None, says, instead, severity="refused")


def _misfits(quantized: QuantizedGraph, library: str) -> Iterator[Finding]:
    for pair in quantized.pairs:
        scale, source = pair.scale, closed(quantized.graph.shape(pair.pair.source))
        if scale is not None and scale.ndim > 1 and pair.pair.dq.domain in ("", "ai.onnx"):
            shape = source if source and len(source) == scale.ndim else scale.shape
            cut = sum(n != length for n, length in zip(scale.shape, shape, strict=True))
            if scale.size == 1 or cut > 1:
                yield _finding(
                    "scales-do-not-fit", quantized, pair,
                    f"{tensor_of(pair)} has scales of shape {list(scale.shape)}, which lie along "
                    "several axes to it",
                    "write one scale with the shape [], several as a vector with an axis",
                )  # fmt: skip
                continue
        if pair.misfit is not None and not pair.misfit.startswith("blocks"):
            yield _finding(
                "scales-do-not-fit", quantized, pair, f"{tensor_of(pair)}: {pair.misfit}",
                "write one scale, or one for each output channel along the axis that is named",
            )  # fmt: skip


_SYMMETRIC = (
    "quantize symmetric, to int8 with zero point 0 (onnxruntime's quantize_static: QuantType.QInt8 "
    "and extra_options={'ActivationSymmetric': True, 'WeightSymmetric': True})"
)
_SYMMETRIC_4 = "quantize symmetric, to int4 with zero point 0"


_FLOATS = {TensorProto.FLOAT: "FP32", TensorProto.FLOAT16: "FP16", TensorProto.BFLOAT16: "BF16"}
_ALIKE = frozenset({*ONNX_PRODUCTS, "Add", "Concat", "Div", "Mul", "Sub"})
"""Operators whose operands are of one type."""


def _mixed(quantized: QuantizedGraph, library: str) -> Iterator[Finding]:
    """A DequantizeLinear gives the type of its scale, unless it says another. Before opset 19 ONNX
    has it give FP32, and parsers go by the scale."""
    if quantized.graph.opset < 19:
        return
    dequantized = {pair.pair.result for pair in quantized.pairs}
    for node in quantized.graph.nodes:
        if node.op_type in _ALIKE and not dequantized.isdisjoint(node.input):
            kinds = [_FLOATS.get(quantized.graph.element_type(name)) for name in node.input if name]
            known = list(dict.fromkeys(filter(None, kinds)))
            if len(known) > 1:
                yield Finding(
                    "types-differ", node.name, None,
                    f"its operands are {' and '.join(known)}: DequantizeLinear gives the type of "
                    "its scale",
                    "write the scales in the type of the rest, or give DequantizeLinear "
                    "output_dtype",
                    severity="refused",
                )  # fmt: skip


def _asymmetric(quantized: QuantizedGraph, library: str) -> Iterator[Finding]:
    for pair in quantized.pairs:
        zero = zero_point(quantized, pair)
        if zero is not None and pair.format != "int32" and (hit := np.count_nonzero(zero)):
            several = f"{counted(int(hit), 'zero point')} other than 0"
            given = f"zero point {zero.reshape(-1)[0]}" if zero.size == 1 else several
            yield _finding(
                "asymmetric", quantized, pair, f"{tensor_of(pair)} has {given}",
                _SYMMETRIC_4 if pair.format in ("int4", "uint4") else _SYMMETRIC,
            )  # fmt: skip


def zero_point(quantized: QuantizedGraph, pair: Scaled) -> np.ndarray | None:
    """None where there is none, or it is computed at run time."""
    name = next(iter(pair.pair.dq.input[2:3]), "")
    return quantized.graph.value(name) if name else None


def _types(quantized: QuantizedGraph, library: str) -> Iterator[Finding]:
    for pair in quantized.pairs:
        stored = pair.pair.q is None and pair.pair.source in quantized.graph.constant
        if pair.format in (_STORED if stored else _OF_ACTIVATIONS):
            yield _finding(
                "unsupported-type", quantized, pair, f"{tensor_of(pair)} has a type that is not read",
                "quantize to int8, fp8 (E4M3) or, weights alone, int4",
            )  # fmt: skip
    yield from unread(quantized)


def _bias(quantized: QuantizedGraph, library: str) -> Iterator[Finding]:
    for node in quantized.biases:
        yield Finding(
            "int32-bias", node, None, "its bias is quantized, to 32-bit integers",
            "leave biases float (onnxruntime's quantize_static: extra_options="
            "{'QuantizeBias': False})",
            severity="refused",
        )  # fmt: skip


def _nodes(code: str, is_so: Callable[[onnx.NodeProto, str], str | None], instead: str) -> Check:
    def check(quantized: QuantizedGraph, library: str) -> Iterator[Finding]:
        for node in quantized.graph.nodes:
            if says := is_so(node, library):
                yield Finding(code, node.name, None, says, instead, severity="refused")

    return check


def _qoperator(node: onnx.NodeProto, library: str) -> str | None:
    if node.op_type.startswith("QLinear") or node.op_type in _QOPERATORS:
        return f"{node.op_type} is ONNX Runtime's own form, QOperator, which is not read"
    return None


def _integers(node: onnx.NodeProto, library: str) -> str | None:
    if node.op_type in _INTEGER:
        return f"{node.op_type} multiplies integers that are quantized at run time"
    return None


def _packed(node: onnx.NodeProto, library: str) -> str | None:
    if node.op_type in _PACKED:
        return f"{node.op_type} is ONNX Runtime's own operator for packed weights"
    return None


def _suppression(node: onnx.NodeProto, library: str) -> str | None:
    if node.op_type == "NonMaxSuppression" and node.op_type in LIBRARIES[library].operators_not:
        return f"{LIBRARIES[library].title} has no NonMaxSuppression"
    return None


def _operators(node: onnx.NodeProto, library: str) -> str | None:
    missing = LIBRARIES[library].operators_not - {"NonMaxSuppression"}
    if node.domain in ("", "ai.onnx") and node.op_type in missing:
        return f"{LIBRARIES[library].title} has no {node.op_type}"
    return None


def _onnxruntime(node: onnx.NodeProto, library: str) -> str | None:
    if node.domain != "com.microsoft" or not _is_foreign(node):
        return None
    return f"{node.op_type} is ONNX Runtime's own operator"


def _custom(node: onnx.NodeProto, library: str) -> str | None:
    if node.domain == "com.microsoft" or not _is_foreign(node):
        return None
    if node.op_type.endswith("_TRT") and LIBRARIES[library].has_plugins:
        return None
    called = f"{node.domain}:{node.op_type}" if node.domain else node.op_type
    return f"{called} is no operator of ONNX: it takes a plugin"


def _is_foreign(node: onnx.NodeProto) -> bool:
    """Whether a node is another library's, and none that another check tells of. The parser looks
    at names, whatever their domain."""
    if quantizes(node) or dequantizes(node) or node.domain == "trt":
        return False
    ours = {*_INTEGER, *_QOPERATORS, *_PACKED}
    known = onnx.defs.has(node.op_type) or node.op_type in ours
    return not known and not node.op_type.startswith("QLinear")


REFUSALS: Mapping[str, Check] = {
    "scale-zero": _scales(
        "scale-zero", lambda s: s == 0, "0",
        "a channel of zeros takes any scale: write a floor there, as 1e-8, or quantize again with "
        "a tool that has one",
    ),
    "scale-negative": _scales(
        "scale-negative", lambda s: s < 0, "negative",
        "a scale is a range over the largest number: write its absolute value and negate what it "
        "scales, or quantize with a tool whose scales are positive (onnxruntime's 4-bit ones are not)",
    ),
    "scale-nan": _scales(
        "scale-nan", np.isnan, "not a number",
        "the range was calibrated of NaN: look for it in the network's float output or in the data, "
        "and calibrate again",
    ),
    "scales-do-not-fit": _misfits,
    "types-differ": _mixed,
    "asymmetric": _asymmetric,
    "unsupported-type": _types,
    "int32-bias": _bias,
    **TYPES,
    "qoperator": _nodes(
        "qoperator", _qoperator,
        "quantize with quant_format=QuantFormat.QDQ",
    ),
    "integer-operators": _nodes(
        "integer-operators", _integers,
        "quantize with calibration data, quantize_static instead of quantize_dynamic, to QDQ",
    ),
    "packed-weights": _nodes(
        "packed-weights", _packed,
        "write them as DequantizeLinear: MatMulNBitsQuantizer(quant_format=QuantFormat.QDQ)",
    ),
    "nms-at-end": _nodes(
        "nms-at-end", _suppression,
        "export the network without it, up to boxes and scores, and run it behind the engine",
    ),
    "unsupported-operator": _nodes(
        "unsupported-operator", _operators,
        "leave it out of the file and compute it before or behind the engine, or give the layers "
        "of an engine that was built with a plugin for it (--layers)",
    ),
    "onnxruntime-operator": _nodes(
        "onnxruntime-operator", _onnxruntime,
        "quantize the network as it was exported: without ONNX Runtime's optimizer "
        "(quant_pre_process(skip_optimization=True)) or its transformer fusions",
    ),
    "custom-operator": _nodes(
        "custom-operator", _custom,
        "give the layers of an engine that was built with its plugin (--layers layers.json)",
    ),
}  # fmt: skip
"""Code -> what finds it."""
REFUSED = "refused"
"""Code of what the engine itself says of a file in which none of these was found."""


def told_by(quantized: QuantizedGraph, nodes: tuple[str, ...], told: str) -> Finding:
    """What an engine itself said as it refused a file; `nodes` are those that it names."""
    at = next(iter(nodes), "") or quantized.graph.path.name
    node = quantized.graph.named.get(at)
    opset = quantized.graph.opset
    if node is not None and "does not know this operator" in told:
        domain = f"{node.domain}:" if node.domain else ""
        return Finding(
            "custom-operator", at, None, f"{domain}{node.op_type} is not known to it",
            "give the layers of an engine that was built with its plugin (--layers layers.json)",
            severity="refused",
        )  # fmt: skip
    run_time = [pair for pair in quantized.pairs if pair.scale is None]
    if run_time and not nodes:
        return Finding(
            REFUSED, at, None, told,
            f"write constant scales: those of {counted(run_time, 'tensor')} are computed at run "
            "time",
            severity="refused",
        )  # fmt: skip
    newer = f"; export opset 17 to 21, this file has {opset}" if opset > _NEWEST else ""
    instead = (
        f"leave {at} out of the file, or float" if node is not None else "look at what it says"
    )
    return Finding(REFUSED, at, None, told, f"{instead}{newer}", severity="refused")


def not_had(quantized: QuantizedGraph, promises: Mapping[str, Promise]) -> tuple[Finding, ...]:
    """Why a file that was refused may be: what the capability table says of its scales."""
    reasons: dict[str, str] = {}
    for operand in quantized.operands:
        promise = promises.get(operand.row.site)
        if promise is not None and promise.kind == "refused":
            reasons.setdefault(operand.node, promise.reason)
    instead = "write scales that `granplugin capabilities` lists, or format: float for the layer"
    return tuple(
        Finding(REFUSED, node, None, reason, instead, severity="refused")
        for node, reason in reasons.items()
    )


_NEWEST = 24
"""Opset that TensorRT 11's parser documents as its last."""
