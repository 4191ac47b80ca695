"""What an engine does not build is told before it tries, with everything that is in the way; what
makes a file's numbers wrong is told though it builds."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from conftest import run_main
from onnx import TensorProto, helper
from qdq_files import Net, inspected
from test_audit import needs_rtx

from granplugin.audits.lint import lint
from granplugin.audits.refusals import refusals
from granplugin.audits.shapes import parse_shapes, shapes_for
from granplugin.backends.engine_plan import EnginePlan
from granplugin.backends.nvidia.builder import Builder
from granplugin.backends.nvidia.kernels import Kernels
from granplugin.errors import EngineError
from granplugin.graph.read.loading import read_model
from granplugin.graph.read.quantized_graph import read_quantized
from granplugin.pipelines.audit import audit


def scales(at=None, value=0.0):
    found = np.full(32, 0.01, np.float32)
    if at is not None:
        found[at] = value
    return found


def weight(net, scale=None, zero=None, stored=np.int8, axis=0, shape=(32, 32, 3, 3)):
    """Stored numbers and their DequantizeLinear."""
    values = np.asarray(net.random.integers(-100, 100, shape), stored)
    scale = scales() if scale is None else scale
    zero = np.zeros(scale.shape, stored) if zero is None else zero
    said = {} if axis is None else {"axis": axis}
    return net.node("DequantizeLinear", *map(net.constant, (values, scale, zero)), **said)


def conv(given=lambda net: net.qdq("x"), bias=None, **said):
    net = Net(half=False)
    operands = [given(net), weight(net, **said)]
    if bias is not None:
        operands.append(bias(net))
    return net.model(net.node("Conv", *operands, pads=[1] * 4), (1, 32, 8, 8))


def bias(net):
    numbers = net.constant(np.ones(32, np.int32))
    return net.node("DequantizeLinear", numbers, net.constant(scales()), axis=0)


def of(op, domain="", inputs=1, **attributes):
    net = Net(half=False)
    given = [net.qdq("x")] * inputs
    return net.model(net.node(op, *given, domain=domain, **attributes), (1, 32, 8, 8))


def stored(op, *more, **attributes):
    """Sums of an input and what `op` makes of an int8 constant."""
    net = Net(half=False)
    held = net.node(op, net.constant(np.ones((32, 1, 1), np.int8)), *more, **attributes)
    return net.model(net.node("Add", "x", held), (1, 32, 8, 8))


def between(op, kind=np.int8, **attributes):
    """`op` between a QuantizeLinear and a DequantizeLinear."""
    net = Net(half=False)
    scale, zero = net.constant(np.float32(0.03)), net.constant(kind(0))
    y = net.node(op, net.node("QuantizeLinear", "x", scale, zero), **attributes)
    return net.model(net.node("DequantizeLinear", y, scale, zero), (1, 32, 8, 8))


def cast(*to):
    """Casts of `x`, one after another, and Q/DQ."""
    net, x = Net(half=False), "x"
    for kind in to:
        x = net.node("Cast", x, to=kind)
    return net.model(net.qdq(x), (1, 32, 8, 8))


def fp8(net):
    scale = net.constant(np.float32(0.03))
    net.constants.append(helper.make_tensor("z8", TensorProto.FLOAT8E4M3FN, (), [0.0]))
    q = net.node("QuantizeLinear", "x", scale, "z8")
    return net.node("DequantizeLinear", q, scale, "z8")


def fp8_between(op, **attributes):
    net = Net(half=False)
    fp8(net)
    (q, dq), net.nodes = net.nodes, net.nodes[:1]
    y = net.node(op, *q.output, **attributes)
    return net.model(net.node("DequantizeLinear", y, *dq.input[1:]), (1, 32, 8, 8))


def at_run_time(net, axes=(), what="scale"):
    """Q/DQ whose scale or zero point is computed, over everything or `axes`."""
    given = net.node("ReduceMax", "x", *(net.constant(np.int64(a)) for a in axes), keepdims=0)
    scale, zero = net.constant(np.float32(0.03)), net.constant(np.zeros([32] * len(axes), np.int8))
    scale, zero = (given, zero) if what == "scale" else (scale, net.node("Cast", given, to=3))
    said = {"axis": 1} if axes else {}
    q = net.node("QuantizeLinear", "x", scale, zero, **said)
    return net.node("DequantizeLinear", q, scale, zero, **said)


def uint8_input(op, **attributes):
    net = Net(half=False)
    x = net.node(op, "x", **attributes)
    model = net.model(net.node("Relu", net.node("Cast", x, to=1)), (1, 32, 8, 8))
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    return model


def nothing(net):
    """A quantized tensor of no channels."""
    return weight(net, np.float32(0.1), np.int8(0), axis=None, shape=(1, 0, 8, 8))


REFUSED = {
    "scale-zero": conv(scale=scales(5)),
    "scale-negative": conv(scale=scales(5, -0.01)),
    "scale-nan": conv(lambda net: net.qdq("x", np.nan)),
    "scales-do-not-fit": conv(axis=7),
    "types-differ": conv(lambda net: net.qdq("x", scale_type=np.float16)),
    "asymmetric": conv(lambda net: net.qdq("x", zero=np.uint8(128))),
    "unsupported-type": conv(stored=np.uint8),
    "int32-bias": conv(bias=bias),
    "int8-constant": stored("Cast", to=1),
    "quantized-integers": cast(TensorProto.INT32),
    "int8-operator": between("Sigmoid"),
    "formats-differ": conv(fp8),
    "scale-at-run-time": conv(at_run_time),
    "qoperator": of("QLinearSigmoid", "com.microsoft"),
    "integer-operators": of("MatMulInteger", inputs=2),
    "packed-weights": of("MatMulNBits", "com.microsoft"),
    "nms-at-end": of("NonMaxSuppression", inputs=2),
    "unsupported-operator": of("Det"),
    "onnxruntime-operator": of("FusedConv", "com.microsoft"),
    "custom-operator": of("DeformableAttention", "my.domain"),
}


def written(model, folder):
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path


def found_in(model, folder):
    path = written(model, folder)
    return read_quantized(read_model(path), path)


@pytest.mark.parametrize("code", REFUSED)
def test_each_refusal_is_told_alone_and_of_no_good_file(tmp_path, code):
    told = refusals(found_in(REFUSED[code], tmp_path), "tensorrt_rtx")
    assert [finding.code for finding in told] == [code]
    assert told[0].severity == "refused" and told[0].instead
    good = conv() if code != "unsupported-type" else conv(lambda net: net.qdq("x"))
    assert refusals(found_in(good, tmp_path), "tensorrt_rtx") == ()


def factor(shape):
    """A product with a quantized constant of this shape."""
    net = Net(half=False)
    held = weight(net, np.float32(0.1), np.int8(0), axis=None, shape=shape)
    return net.model(net.node("Mul", net.qdq("x"), held), (1, 32, 8, 8))


ALIKE = {
    "int8-constant": [factor(()), stored("Identity"), stored("Transpose", perm=[0, 2, 1])],
    "quantized-integers": [cast(TensorProto.BOOL), cast(TensorProto.INT64)],
    "int8-operator": [
        fp8_between("Relu"), fp8_between("MaxPool", kernel_shape=[2, 2]),
        between("Softmax", np.uint8), between("GlobalAveragePool")],
    "scale-at-run-time": [conv(lambda net: at_run_time(net, what="zero"))],
    "unsupported-type": [
        cast(TensorProto.INT16, 1), cast(TensorProto.UINT8, 1), cast(TensorProto.FLOAT8E4M3FN, 1),
        uint8_input("Transpose", perm=[0, 1, 3, 2]), uint8_input("Identity"),
    ],
}  # fmt: skip
"""More of the kinds of tensors that what reads them does not take."""
BUILT = {
    "int8 moved": between("Transpose", perm=[0, 1, 3, 2]),
    "uint8 moved": between("MaxPool", np.uint8, kernel_shape=[2, 2]),
    "fp8 moved": fp8_between("Transpose", perm=[0, 1, 3, 2]),
    "int8 Relu": between("Relu"),
    "cast to int8": cast(TensorProto.INT8, 1),
    "cast to int64": cast(TensorProto.INT64, 1),
    "uint8 input": uint8_input("Cast", to=1),
    "a factor": factor((1,)),
    "nothing": conv(lambda net: net.node("Concat", net.qdq("x"), nothing(net), axis=1)),
    "scales at run time": conv(lambda net: at_run_time(net, [[0, 2, 3]])),
}
"""What lies next to them, and is taken."""


@pytest.mark.parametrize(("code", "at"), [(c, i) for c in ALIKE for i in range(len(ALIKE[c]))])
def test_more_tensors_that_their_reader_does_not_take_are_told(tmp_path, code, at):
    told = refusals(found_in(ALIKE[code][at], tmp_path), "tensorrt_rtx")
    assert code in [finding.code for finding in told]


@pytest.mark.parametrize("name", BUILT)
def test_what_lies_next_to_a_refused_type_is_not_told(tmp_path, name):
    assert refusals(found_in(BUILT[name], tmp_path), "tensorrt_rtx") == ()


@needs_rtx
def test_the_engine_refuses_and_takes_the_same_types(tmp_path):
    """A crash of its compiler costs a process, so the one there is is not among them."""
    refused = [REFUSED["int8-constant"], *(m for models in ALIKE.values() for m in models)]
    with Builder("tensorrt_rtx", tmp_path) as builder:
        for model in [*refused, REFUSED["int8-operator"], REFUSED["formats-differ"]]:
            with pytest.raises(EngineError):
                builder.build(model)
        for model in BUILT.values():
            builder.build(model)


@pytest.mark.parametrize("op", ["Cast", "Identity", "Conv"])
def test_a_body_whose_nodes_lack_what_they_read_is_no_crash(tmp_path, op):
    given = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    body = helper.make_graph([helper.make_node(op, [], ["y"])], "body", [], given)
    net = Net(half=False)
    chosen = net.node("If", net.constant(np.True_), then_branch=body, else_branch=body)
    assert refusals(found_in(net.model(chosen), tmp_path), "tensorrt_rtx") == ()


def test_every_refusal_has_a_case():
    from granplugin.audits.refusals import REFUSALS

    assert REFUSED.keys() == REFUSALS.keys()


def test_a_scale_is_told_with_its_tensor_its_channels_and_their_count(tmp_path):
    (told,) = refusals(found_in(conv(scale=scales([3, 7])), tmp_path), "tensorrt_rtx")
    assert "2 scales of 32 of int8 tensor 'c2' are 0 (channels 3, 7)" in told.says


def test_a_file_that_is_not_built_is_told_whole_and_all_at_once(tmp_path):
    model = conv(lambda net: net.qdq("x", zero=np.int8(3)), bias, scale=scales(5))
    done = run_main("audit", written(model, tmp_path))
    assert (done.code, done.stderr) == (2, "")
    for code in ("scale-zero", "asymmetric", "int32-bias"):
        assert f"{code} (1 layer)" in done.stdout
    assert "2 sites and no verdict" in done.stdout and "int8 per_channel" in done.stdout


@needs_rtx
def test_what_the_engine_alone_knows_is_told_with_the_table_too(tmp_path):
    net = Net(half=False)
    y = net.node("EyeLike", net.node("Conv", net.qdq("x"), weight(net), pads=[1] * 4))
    found = audit(written(net.model(y, (1, 32, 8, 8)), tmp_path), "tensorrt_rtx")
    assert found.exit_code == 2 and found.refusals[0].code == "refused"
    assert [site.verdict for site in found.sites] == [None, None]


def test_layers_of_an_engine_that_was_built_are_audited_whatever_the_file(tmp_path):
    net = Net(half=False)
    model = net.model(net.conv(net.qdq(net.node("MyOp", "x", domain="my.domain"))))
    path = written(model, tmp_path)
    (tmp_path / "layers.json").write_text(inspected(model))
    found = audit(path, "tensorrt", layers=tmp_path / "layers.json")
    assert found.refusals == () and found.exit_code == 0


def pair(net, x, first, second):
    zero = net.constant(np.int8(0))
    q = net.node("QuantizeLinear", x, net.constant(np.float32(first)), zero)
    return net.node("DequantizeLinear", q, net.constant(np.float32(second)), zero)


def blocks(size, opset=21):
    net = Net(half=False)
    values = net.constant(np.ones((200, 64), np.int8))
    scale = net.constant(np.full((-(-200 // size), 64), 0.1, np.float32))
    held = net.node("DequantizeLinear", values, scale, axis=0, block_size=size)
    return net.model(net.node("MatMul", "x", held), (8, 200), opset)


def sigmoid(net):
    return net.qdq(net.node("Sigmoid", "x"), 4.0)


def behind(op, *more, **attributes):
    """A convolution, Q/DQ, and what is behind it."""
    net = Net(half=False)
    x = net.qdq(net.conv(net.qdq("x")), 0.1)
    y = net.node(op, x, *(net.constant(np.float32(each) * np.ones(32, "f4")) for each in more))
    return net.model(y, (1, 32, 8, 8))


def requantized(net):
    return net.qdq(net.qdq("x", 0.03), 0.04)


FOUND = {
    "scale-infinite": conv(lambda net: net.qdq("x", np.inf)),
    "scale-denormal": conv(scale=scales(5, 1e-42)),
    "scale-absurd": conv(lambda net: net.qdq("x", 1e30)),
    "q-dq-differ": conv(lambda net: pair(net, "x", 0.05, 0.06)),
    "block-size-opset": blocks(50, 17),
    "blocks-do-not-divide": blocks(128),
    "axis-missing": conv(axis=None),
    "uint8-zero-point": conv(lambda net: net.qdq("x", zero=np.uint8(0))),
    "qdq-before-batch-norm": behind("BatchNormalization", 1, 0, 0, 1),
    "qdq-before-activation": behind("Relu"),
    "qdq-twice": conv(requantized),
}


@pytest.mark.parametrize("code", FOUND)
def test_what_is_wrong_with_a_file_is_found_in_it_without_an_engine(tmp_path, code):
    def codes(model):
        found = found_in(model, tmp_path)
        assert not refusals(found, "tensorrt_rtx")
        kernels = Kernels("tensorrt_rtx", EnginePlan((), (), ""), found.products)
        return {each.code: each for each in lint("tensorrt_rtx", found, kernels)}

    told = codes(FOUND[code])
    assert list(told) == [code]
    wrong = not code.startswith("qdq-")
    assert told[code].severity == ("wrong" if wrong else "advice")
    assert codes(conv()) == {}


@pytest.mark.parametrize(
    "model",
    [
        conv(sigmoid),
        conv(lambda net: net.qdq("x", 1e-12)),
        conv(scale=scales(slice(None), 0.01)),
        blocks(50),
        blocks(100),
    ],
    ids=["bounded", "tiny", "good", "50", "100"],
)
def test_a_scale_is_absurd_only_where_all_becomes_the_same(tmp_path, model):
    found = found_in(model, tmp_path)
    kernels = Kernels("tensorrt_rtx", EnginePlan((), (), ""), found.products)
    wrong = [each.code for each in lint("tensorrt_rtx", found, kernels) if each.wrong]
    absurd = any(o.scale is not None and o.scale.size == 1 for o in found.operands)
    held = [float(o.scale) for o in found.operands if o.scale is not None and o.scale.size == 1]
    assert wrong == ["scale-absurd"] * bool(absurd and held[0] in (4.0, np.float32(1e-12)))


# -- shapes ------------------------------------------------------------------------------------


def open_model(**inputs):
    values = [
        helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()
    ]
    graph = helper.make_graph([], "graph", values, [])
    return helper.make_model(graph)


FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def test_open_lengths_get_a_usual_size_that_is_said():
    model = open_model(
        images=(FLOAT, ["n", 3, "h", "w"]),
        input_ids=(INT64, ["n", "seq"]),
        hidden=(FLOAT, ["n", "seq", 64]),
        fixed=(FLOAT, ["n", 10]),
    )
    found, notes = shapes_for(model, {}, 2)
    assert {name: shapes[1] for name, shapes in found.items()} == {
        "images": (2, 3, 640, 640),
        "input_ids": (2, 128),
        "hidden": (2, 128, 64),
    }
    assert len(notes) == 3 and "images is [n, 3, h, w] and was built for 2x3x640x640" in notes[0]
    given = parse_shapes(["input_ids=1x16"])
    assert shapes_for(model, given, 1)[0]["hidden"][1] == (1, 16, 64)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x", "is not in the form"),
        ("x=1x0x3", "is not in the form"),
        ("x=1x3:1x3", "is not in the form"),
        ("x=1x4x8x8", "the input is [n, 3, h, w]"),
        ("y=1x3x8x8", "the file has no input 'y'"),
        ("x=1x3x8x8,x=1x3x8x8", "gives 'x' twice"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_with_their_form(text, says):
    with pytest.raises(EngineError) as refused:
        shapes_for(open_model(x=(FLOAT, ["n", 3, "h", "w"])), parse_shapes([text]), 1)
    assert says in str(refused.value)


def test_an_input_without_a_usual_size_asks_for_one():
    with pytest.raises(EngineError, match="--shapes v=1x128x128"):
        shapes_for(open_model(v=(FLOAT, ["n", "a", "b", "c", "d"])), {}, 1)


@needs_rtx
def test_an_engine_is_built_for_the_shapes_that_are_given(tmp_path):
    net = Net(half=False)
    path = written(net.model(net.conv(net.qdq("x")), ("n", 32, "h", "w")), tmp_path)
    (given,) = audit(path, "tensorrt_rtx", shapes=["x=2x32x16x24"]).plan.io[:1]
    assert given.shape == (2, 32, 16, 24)
