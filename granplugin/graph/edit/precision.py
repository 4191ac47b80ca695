"""The float part of a written graph in float16 or bfloat16; its Q/DQ keep float32 scales.

ONNX Runtime's converter changes the types; Q/DQ and the arithmetic that belongs to it are kept from
it, and its casts around them are taken out: QuantizeLinear reads what the network computes and
DequantizeLinear gives what the network goes on with (`output_dtype`, which needs opset 23), both
with the scales as they were calibrated. In float16 a scale below 6e-8 would be 0.

Weights in a file beside the model may be more than protobuf holds: the converter sees inputs in
their places, and they are made one by one when the result is written.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes
from onnxruntime.transformers import float16

from granplugin.graph import reference
from granplugin.graph.edit.contract import seam, seen
from granplugin.graph.edit.nodes import replace, unique
from granplugin.graph.names import CASTS

DTYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
LARGEST = 2.0**13
"""What float16 is trusted with: an eighth of its largest, so that samples not seen fit too."""
INFINITE = 1e30
"""From here on a value stands for infinity, as in attention masks, and may become the largest."""
_OPSET, _IR_VERSION = 23, 11
_HALF, _FLOAT = DTYPES["fp16"], ir.DataType.FLOAT
_QDQ = ("QuantizeLinear", "DequantizeLinear")
_AT_ONCE = 2**22
"""Values of one tensor that are rounded in one go."""


def too_large(path: Path, feeds: Mapping[str, np.ndarray]) -> list[str]:
    """The nodes of a float32 file that read or write, for these feeds, a magnitude beyond LARGEST
    and below INFINITE: computed in float16 they could overflow."""
    model, folder = onnx.load(path, load_external_data=False), path.parent
    constants = {tensor.name for tensor in model.graph.initializer}
    beyond = {
        tensor.name
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
        and _between(np.abs(_array(tensor, folder))).any()
    }
    floats = {
        value.name
        for value in onnx.shape_inference.infer_shapes(model).graph.value_info
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    }
    floats.update(name for name, array in feeds.items() if array.dtype == np.float32)
    wanted = sorted(floats - constants)
    nodes = list(model.graph.node)
    del model.graph.output[:]
    for name, value in (("largest/infinite", INFINITE), ("largest/nothing", 0)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(value), name))
    for index, name in enumerate(wanted):
        largest = f"largest/{index}"
        for op_type, inputs, output, more in (
            ("Abs", [name], f"{largest}/abs", {}),
            ("Less", [f"{largest}/abs", "largest/infinite"], f"{largest}/finite", {}),
            ("Where", [f"{largest}/finite", f"{largest}/abs", "largest/nothing"],
             f"{largest}/sizes", {}),
            ("ReduceMax", [f"{largest}/sizes"], largest, {"keepdims": 0}),
        ):  # fmt: skip
            model.graph.node.append(onnx.helper.make_node(op_type, inputs, [output], **more))
        model.graph.output.append(onnx.ValueInfoProto(name=largest))
    outputs = reference.run(model, None, feeds, folder)
    beyond.update(n for n, value in zip(wanted, outputs, strict=True) if value > LARGEST)
    return [
        node.name
        for node in nodes
        if node.op_type not in _QDQ and beyond.intersection([*node.input, *node.output])
    ]


def _array(tensor: onnx.TensorProto, folder: Path) -> np.ndarray:
    held = onnx.TensorProto()
    held.CopyFrom(tensor)  # what is read from outside would stay in it
    return onnx.numpy_helper.to_array(held, str(folder))


def _between(size: np.ndarray) -> np.ndarray:
    return (size > LARGEST) & (size < INFINITE)


def _requires(
    path: Path, precision: str, sites: Collection[str], keep: Collection[str]
) -> str | None:
    return None if precision in DTYPES else f"{precision} is none of {', '.join(DTYPES)}"


def _ensures(
    result: ir.Model, path: Path, precision: str, sites: Collection[str], keep: Collection[str]
) -> str | None:
    graph, low = result.graph, set(DTYPES.values())
    if why := seen(graph).unsound:
        return why
    for value in (*graph.inputs, *graph.outputs):
        if value.dtype in low:
            return f"{value.name} is {value.dtype}"
    for node in graph:
        if node.op_type in _QDQ and node.inputs[1].dtype != _FLOAT:
            return f"the scale of {node.name} is {node.inputs[1].dtype}"
    other = low - {DTYPES[precision]}
    held = next((v.name for v in graph.initializers.values() if v.dtype in other), None)
    return held and f"{held} is not in {precision}"


@seam(_requires, _ensures)
def convert(path: Path, precision: str, sites: Collection[str], keep: Collection[str]) -> ir.Model:
    """The float32 file with its float part in `precision`, fp16 or bf16.

    `sites` are those of its rows, whose arithmetic stays float32, as do the nodes `keep`. Requires
    one of DTYPES. Ensures that inputs, outputs and the scales of Q/DQ are float32 still, and that
    constants are in no other low precision.
    """
    model = onnx.load(path, load_external_data=False)
    blocked = {
        node.name
        for node in model.graph.node
        if node.op_type in (*_QDQ, *float16.DEFAULT_OP_BLOCK_LIST)
        or node.name in keep
        or node.name.rpartition("/")[0] in sites
    }
    readers: dict[str, set[str]] = defaultdict(set)
    for node in model.graph.node:
        for name in node.input:
            readers[name].add(node.name)
    # A weight on its way to a product is of the product's type.
    blocked.update(
        node.name
        for node in model.graph.node
        if node.op_type == "Transpose" and readers[node.output[0]] <= blocked
    )
    _part_constants(model, blocked)
    ends = [value.name for value in (*model.graph.input, *model.graph.output)]
    outside = _take_outside(model)
    floats = {tensor.name: tensor for tensor in model.graph.initializer}
    originals = {name: onnx.numpy_helper.to_array(tensor) for name, tensor in floats.items()}
    named = {node.name for node in model.graph.node}
    low = {n for node in model.graph.node if node.name not in blocked for n in node.input}
    # The converter infers types itself, and would cast the constants that are listed.
    del model.graph.value_info[:]
    converted = float16.convert_float_to_float16(
        model, keep_io_types=[*ends, *(outside.keys() - low)], node_block_list=list(blocked)
    )
    del converted.graph.value_info[:]  # they are those of before
    result = ir.from_proto(converted)
    passes.TopologicalSortPass()(result)
    _drop_casts(result.graph)
    passes.RemoveUnusedNodesPass()(result)
    for node in result.graph:
        if node.name not in named:
            node.name = unique(f"{CASTS}/{node.op_type}", named)
    if precision == "bf16":
        _to_bfloat16(result.graph, originals)
    _put_outside(result.graph, outside, path.parent)
    result.opset_imports[""] = _OPSET
    result.ir_version = max(result.ir_version, _IR_VERSION)
    return result


def _take_outside(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """The tensors whose numbers lie beside the file, by name; inputs stand in their places."""
    graph = model.graph
    held = [t for t in graph.initializer if t.data_location != onnx.TensorProto.EXTERNAL]
    outside = [t for t in graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    for tensor in outside:
        graph.input.append(
            onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )
    del graph.initializer[:]
    graph.initializer.extend(held)
    return {tensor.name: tensor for tensor in outside}


def _put_outside(graph: ir.Graph, outside: Mapping[str, onnx.TensorProto], folder: Path) -> None:
    """Constants again, in the precision of those inputs; rounded where they are read."""
    for value in [value for value in graph.inputs if value.name in outside]:
        graph.inputs.remove(value)
        tensor = ir.serde.deserialize_tensor(outside[value.name], str(folder))
        if value.dtype != tensor.dtype:
            tensor = ir.LazyTensor(
                partial(_lowered, tensor, value.dtype),
                dtype=value.dtype,
                shape=tensor.shape,
                name=value.name,
            )
        value.const_value = tensor
        graph.register_initializer(value)


def _lowered(tensor: ir.TensorProtocol, dtype: ir.DataType) -> ir.Tensor:
    values = tensor.numpy().reshape(-1)
    made = np.empty(values.size, dtype.numpy())
    for at in range(0, values.size, _AT_ONCE):
        part = values[at : at + _AT_ONCE]
        # float16 as the converter rounds what the model holds: no value becomes 0 or infinite
        half = dtype == _HALF
        made[at : at + _AT_ONCE] = float16.convert_np_to_float16(part) if half else part
    return ir.Tensor(made.reshape(tensor.shape.numpy()), dtype=dtype, name=tensor.name)


def _part_constants(model: onnx.ModelProto, blocked: Collection[str]) -> None:
    """A constant that is read in both types gets a copy for the float32 readers: the converter
    would give them the rounded one."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    low = {n for node in model.graph.node if node.name not in blocked for n in node.input}
    taken = {n for node in model.graph.node for n in (*node.input, *node.output)}
    copies: dict[str, str] = {}
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if node.name in blocked and name in low and name in constants:
                if name not in copies:
                    copies[name] = unique(f"{name}/float32", taken)
                    copy = model.graph.initializer.add()
                    copy.CopyFrom(constants[name])
                    copy.name = copies[name]
                node.input[index] = copies[name]


def _drop_casts(graph: ir.Graph) -> None:
    """Take out the casts around Q/DQ, and those that round what is read in float32 again."""
    for up in list(graph):
        if _casts(up, _FLOAT) and _casts(down := up.inputs[0].producer(), _HALF):
            replace(up.outputs[0], down.inputs[0])
            graph.remove(up, safe=True)
    for node in list(graph):
        if node.op_type == "QuantizeLinear" and _casts(up := node.inputs[0].producer(), _FLOAT):
            node.replace_input_with(0, up.inputs[0])
        elif _casts(node, _HALF) and node.outputs[0].uses():
            dq = node.inputs[0].producer()
            if dq is not None and dq.op_type == "DequantizeLinear":
                _give_half(graph, dq, node)


def _give_half(graph: ir.Graph, dq: ir.Node, cast: ir.Node) -> None:
    """Let DequantizeLinear give float16 itself; who reads it in float32 casts."""
    dq.attributes["output_dtype"] = ir.AttrInt64("output_dtype", int(_HALF))
    result = dq.outputs[0]
    others = [(user, index) for user, index in result.uses() if user is not cast]
    if others:
        up = ir.node("Cast", [result], {"to": int(_FLOAT)}, name=f"{dq.name}/Cast")
        up.outputs[0].name = f"{result.name}/float32"
        dq.append(up)
        for user, index in others:
            user.replace_input_with(index, up.outputs[0])
    replace(cast.outputs[0], result)
    graph.remove(cast, safe=True)


def _casts(node: ir.Node | None, dtype: ir.DataType) -> bool:
    return node is not None and node.op_type == "Cast" and node.attributes["to"].as_int() == dtype


def _to_bfloat16(graph: ir.Graph, originals: Mapping[str, np.ndarray]) -> None:
    """What is float16 becomes bfloat16, constants from their float32 values."""
    low = DTYPES["bf16"]
    for value in graph.inputs:  # constants whose numbers lie outside: see _take_outside
        if value.dtype == _HALF:
            value.dtype = low
    for name, value in graph.initializers.items():
        if value.dtype == _HALF:
            array = originals[name].astype(low.numpy())
            value.const_value = ir.tensor(array, dtype=low, name=name)
            value.dtype = low
    for node in graph.all_nodes():
        for name, attribute in list(node.attributes.items()):
            if attribute.type == ir.AttributeType.INT and attribute.as_int() == _HALF:
                if name in ("to", "dtype", "output_dtype"):
                    node.attributes[name] = ir.AttrInt64(name, int(low))
            elif attribute.type == ir.AttributeType.TENSOR:
                held = attribute.as_tensor()
                if held.dtype == _HALF:
                    array = held.numpy().astype(low.numpy())
                    node.attributes[name] = ir.AttrTensor(name, ir.tensor(array, dtype=low))
