"""What makes a file's numbers wrong, though it builds: scales that no tensor has, Q and DQ that do
not undo each other, scales that do not lie where they are meant."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx

from granplugin.audits.case import Case
from granplugin.audits.refusals import numbers_of, reader_of, tensor_of, zero_point
from granplugin.graph.read.pairs import Scaled
from granplugin.quant.formats import FORMATS
from granplugin.quant.layers import ONNX_PRODUCTS
from granplugin.results.audited import Finding

_SMALLEST, _LARGEST = 2.0**-24, 1e7
"""Ranges of tensors: below, formats take a range for zero (modelopt); above, no network computes."""
_BOUNDS = {"Sigmoid": 1.0, "Softmax": 1.0, "Tanh": 1.0, "HardSigmoid": 1.0, "Erf": 1.0, "Cos": 1.0}
"""Operators -> the largest |value| that they give."""
_AT_LIMIT = 0.5
"""A weight of which more than this part lies beyond its range was quantized with another."""


def scale_broadcast(case: Case) -> Iterator[Finding]:
    for node, _, ran in case.products():
        for told in filter(None, map(case.kernels.misfit, ran)):
            yield case.wrong(
                "scale-broadcast", node, f"its numbers are wrong: {told}",
                "write weight: per_channel, input: per_tensor",
            )  # fmt: skip


def uint8(case: Case) -> Iterator[Finding]:
    for operand in case.found.operands:
        zero = zero_point(case.found, operand.pairs[0])
        if operand.row.format == "uint8" and (zero is None or not zero.any()):
            yield case.wrong(
                "uint8-zero-point", operand.node,
                "uint8 is read as int8: what lies above 127 scales saturates",
                "quantize to int8 with zero point 0, as granplugin does",
                role=operand.row.at.word,
            )  # fmt: skip


def infinite(case: Case) -> Iterator[Finding]:
    for pair, scale in _scales(case):
        if np.isinf(scale).any():
            yield _at(
                case, pair, "scale-infinite",
                f"{tensor_of(pair)} has {_some(scale, np.isinf(scale))} infinite: all is rounded "
                "to 0",
                "calibrate again: the data or the network gave an infinite value",
            )  # fmt: skip


def denormal(case: Case) -> Iterator[Finding]:
    for pair, scale in _scales(case):
        small = (scale > 0) & (scale < np.finfo(np.float32).tiny)
        if small.any():
            yield _at(
                case, pair, "scale-denormal",
                f"{tensor_of(pair)} has {_some(scale, small)} below {np.finfo(np.float32).tiny:.1e}, "
                "which GPUs take for 0",
                "put a floor under it, as 1e-8, or leave the tensor float: its values are 0",
            )  # fmt: skip


def absurd(case: Case) -> Iterator[Finding]:
    """Scales with which every value of a tensor becomes the same."""
    for pair, scale in _scales(case):
        usual = np.isfinite(scale) & (scale >= np.finfo(np.float32).tiny)
        if not usual.all() or pair.format not in FORMATS:
            continue
        says = _weight_is(case, pair, scale)
        if says is None and pair.pair.source not in case.graph.constant:
            says = _activation_is(case, pair, scale)
        if says is not None:
            yield _at(
                case, pair, "scale-absurd", f"{tensor_of(pair)} {says}",
                "calibrate again, or leave the tensor float",
            )  # fmt: skip


def _activation_is(case: Case, pair: Scaled, scale: np.ndarray) -> str | None:
    ranges = scale.astype(np.float64) * FORMATS[pair.format].largest
    if ranges.min() > _LARGEST:
        return f"has the range {ranges.max():.3g}, so that all it holds is rounded to 0"
    if ranges.max() < _SMALLEST:
        return f"has the range {ranges.max():.3g}, so that all it holds is cut off there"
    maker = case.graph.producer.get(pair.pair.source)
    bound = None if maker is None else _bound(case, maker)
    if bound is not None and maker is not None and scale.min() > 2 * bound:
        return (
            f"is the result of a {maker.op_type}, and its scale {scale.min():.3g} rounds all to 0"
        )
    return None


def _bound(case: Case, node: onnx.NodeProto) -> float | None:
    """The largest |value| that a node gives; None where it is not known."""
    if node.op_type != "Clip" or len(node.input) < 3:
        return _BOUNDS.get(node.op_type)
    ends = [case.graph.value(name) if name else None for name in node.input[1:3]]
    known = [abs(float(end.reshape(-1)[0])) for end in ends if end is not None and end.size == 1]
    return max(known) if len(known) == 2 else None


def _weight_is(case: Case, pair: Scaled, scale: np.ndarray) -> str | None:
    graph, q = case.graph, pair.pair.q
    if pair.pair.source not in graph.constant or pair.format == "int32":
        return None
    values = graph.value(pair.pair.source)
    if values is None or not values.size or values.dtype.kind not in "fiu":
        return None
    if q is None and not case.readers[pair.pair.dq.name]:
        return None  # a bias
    if q is None:
        told = "holds nothing but zeros" if not values.any() else None
        return told if values.size > 1 else None
    limit = FORMATS[pair.format].largest
    amax = float(np.abs(values).max())
    if amax > 0 and scale.min() > 2 * amax:
        return f"has |values| up to {amax:.3g} and scales from {scale.min():.3g}: all become 0"
    beyond = float(np.mean(np.abs(values) > (limit + 0.5) * float(scale.max())))
    if beyond > _AT_LIMIT:
        return f"has {beyond:.0%} of its values beyond the range of its largest scale"
    return None


def differing(case: Case) -> Iterator[Finding]:
    for pair, _ in _scales(case):
        q, dq = pair.pair.q, pair.pair.dq
        if q is None or len(q.input) < 2:
            continue
        ours, theirs = (case.graph.value(node.input[1]) for node in (q, dq))
        if ours is None or theirs is None:
            same = q.input[1] == dq.input[1]
        else:
            same = ours.shape == theirs.shape and bool(np.array_equal(ours, theirs, equal_nan=True))
        if not same:
            told = "another scale"
            if ours is not None and theirs is not None and ours.size == theirs.size == 1:
                told = f"scale {float(ours.reshape(-1)[0]):.4g}"
                told += f", its DequantizeLinear {float(theirs.reshape(-1)[0]):.4g}"
            yield _at(
                case, pair, "q-dq-differ",
                f"the QuantizeLinear of {tensor_of(pair)} has {told}: what comes out is not what "
                "went in",
                "give both the same scale and zero point",
            )  # fmt: skip


def early_blocks(case: Case) -> Iterator[Finding]:
    if case.graph.opset >= 21:
        return
    for pair in case.found.pairs:
        if any(a.name == "block_size" and a.i for a in pair.pair.dq.attribute):
            if pair.pair.dq.domain in ("", "ai.onnx"):
                yield _at(
                    case, pair, "block-size-opset",
                    f"{tensor_of(pair)} has a block_size, which opset {case.graph.opset} does not "
                    "have: who reads it ignores it, or the file",
                    "export opset 21 or newer",
                )  # fmt: skip


def uneven_blocks(case: Case) -> Iterator[Finding]:
    for pair in case.found.pairs:
        if pair.misfit is not None and pair.misfit.startswith("blocks"):
            yield _at(
                case, pair, "blocks-do-not-divide", f"{tensor_of(pair)}: {pair.misfit}",
                "take a block size that divides it, or pad the weight",
            )  # fmt: skip


def no_axis(case: Case) -> Iterator[Finding]:
    """Several scales of a weight along axis 1, since no axis is said, where that are no output
    channels."""
    if case.graph.opset < 13:
        return
    for operand in case.found.operands:
        pair = operand.pairs[0]
        said = {a.name for node in (pair.pair.dq, pair.pair.q) if node for a in node.attribute}
        if operand.row.operand != "weight" or operand.op_type not in ONNX_PRODUCTS:
            continue
        if pair.scale is None or pair.scale.ndim != 1 or pair.scale.size < 2 or "axis" in said:
            continue
        if operand.row.granularity != "per_channel" and operand.row.shape[:1] == pair.scale.shape:
            yield case.wrong(
                "axis-missing", operand.node,
                "its weight has a scale for each index of axis 1, since no axis is said; there are "
                "as many output channels",
                "write axis=0 into QuantizeLinear and DequantizeLinear",
            )  # fmt: skip


def _scales(case: Case) -> Iterator[tuple[Scaled, np.ndarray]]:
    for pair in case.found.pairs:
        scale = numbers_of(pair)
        if scale is not None:
            yield pair, scale


def _some(scale: np.ndarray, hit: np.ndarray) -> str:
    return "its scale" if scale.size == 1 else f"{int(hit.sum())} of {scale.size} scales"


def _at(case: Case, pair: Scaled, code: str, says: str, instead: str) -> Finding:
    return case.wrong(code, reader_of(case.found, pair), says, instead)
