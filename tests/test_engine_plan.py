"""What an engine does, read from each form its library writes: recorded, or as documented."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from granplugin.backends.engine_plan import EngineLayer, EnginePlan, EngineTensor, Moved
from granplugin.backends.nvidia.kernels import Kernels
from granplugin.backends.nvidia.plan_reader import (
    read_inspector_json,
    read_layers_text,
    read_profile_json,
)
from granplugin.errors import EngineError

PLANS = Path(__file__).parent / "data" / "engine_plans"
RTX = {path.stem: path.read_text() for path in sorted(PLANS.glob("rtx_*.txt"))}
TEXT_10 = (PLANS / "tensorrt_10.txt").read_text()
JSON_10, JSON_11, PROFILE = (
    (PLANS / name).read_text() for name in ("tensorrt_10.json", "tensorrt_11.json", "profile.json")
)


def test_a_recorded_rtx_plan_is_read_whole():
    plan = read_layers_text(RTX["rtx_conv_per_tensor"])
    quantize, conv, _ = plan.layers
    assert [layer.kind for layer in plan.layers] == ["kgen", "correlation", "kgen"]
    assert quantize.onnx_nodes == ("input/QuantizeLinear",)
    assert conv.onnx_nodes == (
        "body.layer/Call", "input/DequantizeLinear", "weight/DequantizeLinear", "y"
    )  # fmt: skip
    assert [(t.shape, t.dtype, t.bytes) for t in (*quantize.inputs, *conv.inputs)] == [
        ((4, 16, 8, 8), "float", 4 * 16 * 8 * 8 * 4),
        ((4, 16, 8, 8), "int8", 4 * 16 * 8 * 8),
    ]
    assert (conv.constants[0].shape, conv.constants[0].dtype) == ((16, 16, 3, 3), "int8")
    assert [tensor.name for tensor in plan.io] == ["x", "y"]
    assert plan.io[0] == quantize.inputs[0]


def test_rtx_pads_a_depthwise_convolution_to_four_channels_a_group():
    _, conv, _ = read_layers_text(RTX["rtx_depthwise"]).layers
    assert conv.inputs[0].shape == (4, 64, 8, 8)


@pytest.mark.parametrize("text", RTX.values(), ids=RTX.keys())
def test_what_is_moved_is_all_that_kernels_read_and_write_constants_too(text):
    plan = read_layers_text(text)
    held = [(k.inputs, k.outputs, k.constants) for k in plan.kernels]
    assert plan.moved.total == sum(t.bytes for of in held for part in of for t in part)
    assert plan.moved.activations == sum(t.bytes for of in held for part in of[:2] for t in part)
    assert plan.batch == 4


def test_weights_scales_and_padding_are_told_apart():
    conv = read_layers_text(RTX["rtx_conv_per_channel"]).moved
    assert conv.weights == 16 * 16 * 3 * 3 and conv.other == 0 < conv.scales
    padded = read_layers_text(RTX["rtx_depthwise"]).moved
    assert padded.weights == 16 * 4 * 3 * 3
    assert padded.other == 4 * 16 * 3 * 8 * 8  # zeros for 3 of 4 channels, of the whole batch


def tensor(name, dtype, *shape):
    size = {"float": 4, "half": 2, "int8": 1}[dtype] * math.prod(shape)
    return EngineTensor(name, shape, dtype, size)


def test_a_weight_that_is_dequantized_at_run_time_is_written_and_read_as_a_weight():
    stored, scales = tensor("w", "int8", 8, 16), tensor("s", "float", 8, 2)
    made, x, y = (
        tensor(n, "half", *s) for n, s in (("dq", (8, 16)), ("x", (1, 16)), ("y", (1, 8)))
    )
    plan = EnginePlan(
        (
            EngineLayer("dq", "kgen", (), (stored, scales), (made,), ()),
            EngineLayer("fc", "gemm", (x, made), (), (y,), ()),
        ),
        (),
        "test",
    )
    assert plan.moved == Moved(x.bytes + y.bytes, stored.bytes + 2 * made.bytes, scales.bytes, 0)


@pytest.mark.parametrize(("name", "wrong"), [("MulReluConc", False), ("MulRelu", True)])
def test_zeros_that_fill_up_channels_are_no_scales_of_another_shape(name, wrong):
    x, y, z = (tensor(n, "float", 8, c, 16, 1) for n, c in (("x", 4), ("y", 6), ("z", 8)))
    conv = EngineLayer("conv", "correlation", (x,), (), (y,), ("conv",))
    behind = EngineLayer(name, "kgen", (y,), (tensor("c", "float", 8, 2, 16, 1),), (z,), ())
    kernels = Kernels("tensorrt_rtx", EnginePlan((conv, behind), (), "test"), {})
    assert bool(kernels.misfit(conv)) is wrong


def test_what_tensorrt_10_does_not_tell_of_constants_is_unknown():
    told = read_layers_text(TEXT_10).moved
    assert told.activations > 0 and (told.weights, told.total) == (None, None)
    inspected = read_inspector_json(JSON_10).moved
    assert inspected.weights == 2304 and inspected.total > inspected.activations


def line(kind, name="l", stream="StreamId: 0", metadata=""):
    return (
        f"Name: {name}, LayerType: {kind}, Inputs: [], Constants: [], Outputs: [], TacticName: , "
        f"{stream}, Metadata: {metadata}\n"
    )


@pytest.mark.parametrize("kind", ["signal", "wait", "shape_call", "constant"])
def test_layers_that_launch_nothing_are_no_kernels(kind):
    text = RTX["rtx_gemm"]
    plan = read_layers_text(
        text.replace("\n", f"\n{line(kind, stream='StreamId: 1, EventId: 2')}", 1)
    )
    whole = read_layers_text(text)
    assert len(plan.layers) == len(whole.layers) + 1
    assert plan.kernels == whole.kernels


@pytest.mark.parametrize("separator", ["\x1e", "\x1f"])
def test_onnx_nodes_are_parted_by_either_separator(separator):
    names = ["a/Conv", "b [c], d]/Relu", "e"]
    metadata = separator.join(f"[ONNX Layer: {name}]" for name in names)
    text = RTX["rtx_gemm"].replace("\n", f"\n{line('kgen', metadata=metadata)}", 1)
    assert read_layers_text(text).layers[0].onnx_nodes == tuple(names)


def test_a_node_that_was_rewritten_is_still_named():
    metadata = "[ONNX Layer: a/Conv]__gemm_from_conv1x1\x1f[ONNX Layer: b/Relu]"
    text = RTX["rtx_gemm"].replace("\n", f"\n{line('runtime_fusion', metadata=metadata)}", 1)
    assert read_layers_text(text).layers[0].onnx_nodes == ("a/Conv", "b/Relu")


def test_the_size_of_a_dynamic_tensor_is_unknown_and_so_is_what_is_moved():
    plan = read_layers_text(RTX["rtx_gemm"].replace("[4,16]", "[-1,16]"))
    assert plan.layers[0].inputs[0].shape == (-1, 16)
    assert plan.layers[0].inputs[0].bytes is None
    assert plan.moved.total is None


@given(st.data())
def test_a_cut_off_rtx_plan_is_refused(data):
    text = RTX[data.draw(st.sampled_from(sorted(RTX)))]
    end = data.draw(st.integers(0, text.index("\nEngine Metadata:")))
    with pytest.raises(EngineError, match="^(TensorRT-RTX )?layers: "):
        read_layers_text(text[:end])


@given(st.data())
def test_an_rtx_plan_in_another_form_is_refused(data):
    text = RTX[data.draw(st.sampled_from(sorted(RTX)))]
    words = ["LayerType: ", "Inputs: [", "Dimensions: [", "Datatype: ", "Outputs: [", "IOMode: "]
    word = data.draw(st.sampled_from(words))
    at = data.draw(st.sampled_from([i for i in range(len(text)) if text.startswith(word, i)]))
    with pytest.raises(EngineError, match="^TensorRT-RTX layers: not in a form that is known"):
        read_layers_text(text[:at] + "Renamed: " + text[at + len(word) :])


def test_an_unknown_datatype_is_named():
    with pytest.raises(EngineError, match="tensor 'x' is of an unknown type, 'Int3'"):
        read_layers_text(RTX["rtx_gemm"].replace("Datatype: Float", "Datatype: Int3"))


@pytest.mark.parametrize("text", ["", "Layers:", "Layer conv", "Engine Layer Information:\n"])
def test_other_text_is_refused_with_the_forms_that_are_known(text):
    with pytest.raises(EngineError, match="neither the 'Layers:' message .+ nor the 'Layer"):
        read_layers_text(text)


def test_the_text_of_tensorrt_10_is_read():
    reformat, conv, myelin = read_layers_text(TEXT_10).layers
    assert reformat.outputs == (EngineTensor("x_q", (4, 16, 8, 8), "int8", 4096),)
    assert [tensor.name for tensor in conv.inputs] == ["x_q", "skip"]
    assert conv.onnx_nodes == ("body.layer.weight", "body.layer/Call", "y")
    assert (myelin.kind, myelin.onnx_nodes) == ("Myelin", ())


def test_what_a_log_has_around_the_text_of_tensorrt_10_is_left_out():
    assert read_layers_text(f"[V] before\n{TEXT_10}Bindings:\nx\nz\n") == read_layers_text(TEXT_10)


@given(st.integers(1, len(TEXT_10.rstrip()) - 1))
def test_a_line_of_tensorrt_10_that_is_cut_off_is_refused(end):
    text = TEXT_10.rstrip()[:end]
    if TEXT_10[end] == "\n" and "Layer(" in text:
        assert len(read_layers_text(text).layers) == text.count("\nLayer(")
    elif not text.endswith("\n") or "Layer(" not in text:
        with pytest.raises(EngineError):
            read_layers_text(text)


@pytest.mark.parametrize("text", [JSON_10, JSON_11], ids=["10", "11"])
def test_both_schemas_of_the_inspector_say_the_same(text):
    plan = read_inspector_json(text)
    reformat, conv, _, mean = plan.layers
    assert plan.kernels == (reformat, conv, mean)
    assert reformat.inputs == (EngineTensor("x", (4, 16, 8, 8), "float", 16384),)
    assert conv.inputs == (EngineTensor("x_q", (4, 16, 8, 8), "int8", 4096),)
    assert conv.outputs == (EngineTensor("y", (4, 16, 8, 8), "half", 8192),)
    assert conv.constants == (
        EngineTensor("weights", (2304,), "int8", 2304),
        EngineTensor("bias", (16,), "float", 64),
    )
    assert conv.onnx_nodes == ("body.layer/Call", "input/DequantizeLinear", "y")
    assert mean.constants == (EngineTensor("one", (1,), "half", 2),)
    assert plan.moved.activations == 16384 + 2 * 4096 + 2 * 8192 + 128


def test_only_tensorrt_11_tells_the_types_of_inputs_and_outputs():
    assert read_inspector_json(JSON_10).io == ()
    assert [(t.name, t.dtype) for t in read_inspector_json(JSON_11).io] == [
        ("x", "float"), ("z", "half")
    ]  # fmt: skip


@given(st.sampled_from([JSON_10, JSON_11, PROFILE]), st.data())
def test_cut_off_json_is_refused(text, data):
    read = read_profile_json if text == PROFILE else read_inspector_json
    with pytest.raises(EngineError, match="not complete JSON"):
        read(text[: data.draw(st.integers(0, len(text.rstrip()) - 1))])


@pytest.mark.parametrize("text", [JSON_10, JSON_11], ids=["10", "11"])
@given(data=st.data())
def test_inspector_json_without_a_key_that_is_needed_is_refused(text, data):
    key = data.draw(
        st.sampled_from(["Layers", "Name", "LayerType", "Inputs", "Outputs", "Dimensions"])
    )
    with pytest.raises(EngineError, match="^engine inspector JSON: "):
        read_inspector_json(text.replace(f'"{key}"', f'"{key}2"'))


def test_the_schema_of_one_version_with_the_types_of_the_other_is_refused():
    mixed = json.loads(JSON_10) | {"I/O Tensors": json.loads(JSON_11)["I/O Tensors"]}
    with pytest.raises(EngineError, match="form that is known"):
        read_inspector_json(json.dumps(mixed))


def test_layer_names_alone_are_refused_with_the_way_out():
    with pytest.raises(EngineError, match="only layer names.+profilingVerbosity=detailed"):
        read_inspector_json('{"Layers": ["conv1 + relu", "fc"], "Bindings": ["x"]}')


@given(
    st.recursive(
        st.none() | st.integers() | st.text(),
        lambda x: (
            st.lists(x)
            | st.dictionaries(
                st.sampled_from(["Layers", "Bindings", "count", "name", "timeMs", "I/O Tensors"]), x
            )
        ),
    )
)
def test_any_other_json_is_read_as_nothing_or_refused(value):
    text = json.dumps(value)
    for read in (read_inspector_json, read_profile_json):
        try:
            read(text)
        except EngineError as err:
            assert "\n" not in str(err)


def test_a_profile_gives_each_layer_its_mean_time():
    plan = read_inspector_json(JSON_11).timed(read_profile_json(PROFILE))
    assert [layer.time_ms for layer in plan.layers] == pytest.approx([0.01, 0.03, None, 0.02])


def test_a_profile_of_another_engine_is_refused():
    times = read_profile_json(PROFILE)
    with pytest.raises(EngineError, match="layer 'input/QuantizeLinear' is not in the plan"):
        read_layers_text(RTX["rtx_gemm"]).timed(times)


def test_a_layer_that_is_profiled_twice_is_refused():
    entries = json.loads(PROFILE)
    with pytest.raises(EngineError, match="listed twice"):
        read_profile_json(json.dumps([*entries, entries[-1]]))
