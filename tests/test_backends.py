"""One contract for all backends, and what OpenVINO reports of its kernels."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from granplugin import backends
from granplugin.backends import base
from granplugin.engines import ENGINES
from granplugin.errors import EngineError

CHANNELS = 8
RNG = np.random.default_rng(0)
CONV = RNG.standard_normal((CHANNELS, CHANNELS, 3, 3), np.float32) / 8
LINEAR = RNG.standard_normal((5, CHANNELS), np.float32) / 3
BIAS = RNG.standard_normal(CHANNELS, np.float32) / 8
GAIN = RNG.uniform(0.5, 1.5, CHANNELS).astype(np.float32)


@pytest.fixture(params=sorted(ENGINES))
def backend(request):
    module = backends.backend_of(request.param)
    if reason := module.unavailable():
        pytest.skip(reason)
    return module


@pytest.fixture
def openvino():
    pytest.importorskip("openvino")
    return backends.backend_of("openvino")


def small_net(path, weights="per_channel", inputs="per_tensor", bn=False, gain=1.0):
    """x [batch, 8, 6, 6] -> conv (-> batch norm) -> relu -> mean -> gemm: `features`, `logits`.

    `weights` and `inputs` of the convolution: per_tensor, per_channel or float.
    """
    nodes, initializers = [], []

    def constant(name, values):
        initializers.append(numpy_helper.from_array(np.array(values, order="C"), name))
        return name

    def node(op, inputs, name, output=None, **attributes):
        output = output or f"{name}_out"
        nodes.append(helper.make_node(op, inputs, [output], name=name, **attributes))
        return output

    def scale_and_zero(site, amax, granularity, axis):
        amax = np.max(amax) if granularity == "per_tensor" else amax
        scale = np.asarray(amax / 127, np.float32)
        names = [
            constant(f"{site}.scale", scale),
            constant(f"{site}.zero", np.zeros(scale.shape, np.int8)),
        ]
        return scale, names, {"axis": axis} if scale.ndim else {}

    def quantized_weight(site, weight, granularity):
        if granularity == "float":
            return constant(site, weight)
        amax = np.abs(weight).reshape(len(weight), -1).max(1)
        scale, names, axis = scale_and_zero(site, amax, granularity, 0)
        scale = scale.reshape(-1, *[1] * (weight.ndim - 1)) if scale.ndim else scale
        stored = constant(f"{site}.stored", np.rint(weight / scale).astype(np.int8))
        return node("DequantizeLinear", [stored, *names], f"{site}/DequantizeLinear", **axis)

    def quantized_input(site, tensor, granularity):
        if granularity == "float":
            return tensor
        _, names, axis = scale_and_zero(site, np.linspace(3, 5, CHANNELS), granularity, 1)
        q = node("QuantizeLinear", [tensor, *names], f"{site}/QuantizeLinear", **axis)
        return node("DequantizeLinear", [q, *names], f"{site}/DequantizeLinear", **axis)

    y = node(
        "Conv",
        [
            quantized_input("body.conv.input", "x", inputs),
            quantized_weight("body.conv.weight", CONV * np.float32(gain), weights),
            *([] if bn else [constant("body.conv.bias", BIAS)]),
        ],
        "body.conv/Conv",
        kernel_shape=[3, 3],
        pads=[1] * 4,
    )
    if bn:
        named = {"weight": GAIN, "bias": BIAS, "mean": BIAS * 0.5, "var": GAIN}
        parameters = [constant(f"body.bn.{name}", values) for name, values in named.items()]
        y = node("BatchNormalization", [y, *parameters], "body.bn/BatchNormalization")
    y = node("Relu", [y], "body.relu/Relu")
    y = node("GlobalAveragePool", [y], "pool/GlobalAveragePool")
    y = node("Flatten", [y], "flatten/Flatten", "features")
    plain = "float" if weights == inputs == "float" else "per_tensor"
    gemm = [quantized_input("head.input", y, plain), quantized_weight("head.weight", LINEAR, plain)]
    node("Gemm", gemm, "head/Gemm", "logits", transB=1)
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", CHANNELS, 6, 6])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 5]),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", CHANNELS]),
        ],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def images(batch):
    return np.random.default_rng(batch).standard_normal((batch, CHANNELS, 6, 6), np.float32)


@pytest.fixture
def running(backend):
    if reason := backend.can_run():
        pytest.skip(reason)
    return backend


def outputs(backend, engine, feeds, **options):
    with backend.open(engine, **options) as runner:
        return runner.run(feeds)


@pytest.mark.parametrize("bn", [False, True], ids=["folded", "kept"])
def test_every_backend_agrees_with_the_reference_at_every_batch_size(running, tmp_path, bn):
    backend = running
    path = small_net(tmp_path / "model.onnx", bn=bn)
    reference = backends.backend_of("onnxruntime")
    engine = backend.build(path, tmp_path / "engine")
    with (
        reference.open(reference.build(path, tmp_path)) as expected,
        backend.open(engine, threads=1) as runner,
    ):
        for batch in (1, 3, 7):
            want, got = (r.run({"x": images(batch)}) for r in (expected, runner))
            static = outputs(backend, engine, {"x": images(batch)}, batch=batch)
            for name, shape in {"logits": (batch, 5), "features": (batch, CHANNELS)}.items():
                assert want[name].shape == got[name].shape == static[name].shape == shape
                # An engine may round at a tie to the other side: one step of the head's input.
                for values in (got[name], static[name]):
                    np.testing.assert_allclose(values, want[name], atol=5 / 127)
                    assert np.mean(np.abs(values - want[name])) < 2e-3


def test_outputs_stay_as_they_were_when_the_runner_runs_again(running, tmp_path):
    backend = running
    engine = backend.build(small_net(tmp_path / "model.onnx"), tmp_path / "engine")
    with backend.open(engine) as runner:
        first = runner.run({"x": images(3)})["logits"]
        kept = first.copy()
        runner.run({"x": -images(3)})
    np.testing.assert_array_equal(first, kept)


def test_an_engine_says_what_it_is(backend, tmp_path):
    path = small_net(tmp_path / "model.onnx")
    engine = backend.build(path, tmp_path / "engine")
    files = [engine.path] if engine.path.is_file() else list(engine.path.glob("model.*"))
    assert engine.backend == backend.name
    assert engine.version == backend.version()
    assert engine.bytes == sum(file.stat().st_size for file in files)
    assert engine.bytes > CONV.size


@pytest.mark.parametrize(
    "feeds",
    [
        {},
        {"y": images(1)},
        {"x": images(1), "y": images(1)},
        {"x": images(1)[:, :, :5]},
        {"x": images(1)[0]},
        {"x": images(1).astype(np.float64)},
    ],
    ids=["none", "unknown", "too many", "wrong shape", "wrong rank", "wrong type"],
)
def test_feeds_that_are_not_the_graphs_inputs_are_refused_on_one_line(running, tmp_path, feeds):
    backend = running
    engine = backend.build(small_net(tmp_path / "model.onnx"), tmp_path / "engine")
    with backend.open(engine) as runner:
        runner.run({"x": images(1)})
        with pytest.raises(EngineError, match=f"^{backend.name} cannot run .+: .*input") as error:
            runner.run(feeds)
    assert "\n" not in str(error.value)


def write_garbage(path):
    path.write_bytes(b"this is no model")


def cut_in_half(path):
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def write_half(path):
    cut_in_half(small_net(path))


def write_unknown_operator(path):
    tensors = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 4]) for n in "xy"]
    unknown = helper.make_node("Unheard", ["x"], ["y"], domain="nowhere")
    graph = helper.make_graph([unknown], "g", tensors[:1], tensors[1:])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("nowhere", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)


@pytest.mark.parametrize("write", [write_garbage, write_half, write_unknown_operator])
def test_a_refused_file_is_one_sentence_naming_it(backend, tmp_path, capfd, write):
    write(tmp_path / "bad.onnx")
    with pytest.raises(EngineError, match=f"^{backend.name} refused bad.onnx: .+") as error:
        backend.build(tmp_path / "bad.onnx", tmp_path / "engine")
    assert "\n" not in str(error.value)
    assert error.value.__cause__ is not None
    assert capfd.readouterr() == ("", "")


def test_building_and_running_is_silent(running, tmp_path, capfd):
    backend = running
    engine = backend.build(small_net(tmp_path / "model.onnx"), tmp_path / "engine")
    outputs(backend, engine, {"x": images(3)})
    backend.layers(engine)
    assert capfd.readouterr() == ("", "")


def test_a_truncated_engine_is_refused_and_rebuilt(running, tmp_path):
    backend = running
    path = small_net(tmp_path / "model.onnx")
    engine = backend.build(path, tmp_path / "engine")
    before = outputs(backend, engine, {"x": images(3)})["logits"]
    for file in sorted(engine.path.iterdir()) if engine.path.is_dir() else [engine.path]:
        cut_in_half(file)
        with pytest.raises(EngineError) as error, backend.open(engine):
            pass
        assert "\n" not in str(error.value)
        small_net(path)
        after = backend.build(path, tmp_path / "engine")
        np.testing.assert_array_equal(outputs(backend, after, {"x": images(3)})["logits"], before)


def test_an_engine_of_another_onnx_is_rebuilt_not_loaded(running, tmp_path):
    backend = running
    first = small_net(tmp_path / "first.onnx")
    second = small_net(tmp_path / "second.onnx", gain=2.0)
    was = outputs(backend, backend.build(first, tmp_path / "engine"), {"x": images(3)})["logits"]
    engine = backend.build(second, tmp_path / "engine")
    now = outputs(backend, engine, {"x": images(3)})["logits"]
    fresh = outputs(backend, backend.build(second, tmp_path / "fresh"), {"x": images(3)})["logits"]
    np.testing.assert_array_equal(now, fresh)
    assert np.abs(now - was).max() > 0.1


def test_an_unavailable_backend_says_what_to_install(backend, monkeypatch):
    monkeypatch.setattr(base, "find_spec", lambda name: None)
    extra = f'"granplugin[{backend.facts.extra}]"' if backend.facts.extra else backend.name
    assert backend.unavailable() == f"{backend.name} is not installed; pip install {extra}"


def test_a_misspelt_engine_gets_the_nearest_name():
    with pytest.raises(EngineError, match="unknown engine 'openvin'; did you mean 'openvino'?"):
        backends.backend_of("openvin")


def test_openvino_returns_an_intact_engine_of_the_same_onnx_and_version(
    openvino, tmp_path, monkeypatch
):
    path = small_net(tmp_path / "model.onnx")
    engine = openvino.build(path, tmp_path / "engine")
    assert openvino.build(path, tmp_path / "engine") == engine
    monkeypatch.setattr(openvino, "version", lambda: "another")
    assert openvino.build(path, tmp_path / "engine").version == "another"


@pytest.mark.parametrize("bn", [False, True], ids=["folded", "kept"])
@pytest.mark.parametrize(
    ("weights", "inputs", "conv"),
    [
        ("per_tensor", "per_tensor", "int8"),
        ("per_channel", "per_tensor", "int8"),
        ("per_channel", "per_channel", "float"),
        ("per_channel", "float", "float"),
        ("float", "float", "float"),
    ],
)
def test_openvino_says_which_layers_ran_in_int8(openvino, tmp_path, weights, inputs, conv, bn):
    path = small_net(tmp_path / "model.onnx", weights, inputs, bn)
    found = openvino.layers(openvino.build(path, tmp_path / "engine"))
    head = "float" if weights == "float" else "int8"
    assert [(layer.layer, layer.precision) for layer in found] == [
        ("body.conv", conv),
        ("head", head),
    ]
    assert all(layer.kernel for layer in found)


def linear_of_stored_weights(path, features=256, tokens=64):
    """y = x @ w.T with w stored as int8, one scale per output; x is float."""
    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, (features, features)).astype(np.int8)
    constants = {
        "w": weight,
        "s": rng.uniform(1e-3, 1e-2, features).astype(np.float32),
        "z": np.zeros(features, np.int8),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"], axis=0),
        helper.make_node("Transpose", ["d"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], ["y"], name="fc/MatMul"),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", tokens, features])
        for name in "xy"
    ]
    stored = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "graph", ends[:1], ends[1:], stored)
    opset = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return {"x": rng.standard_normal((2, tokens, features)).astype(np.float32)}


def test_float_inputs_of_stored_weights_are_not_rounded_at_run_time(running, tmp_path):
    feeds = linear_of_stored_weights(tmp_path / "model.onnx")
    reference = backends.backend_of("onnxruntime")
    expected, found = (
        outputs(each, each.build(tmp_path / "model.onnx", tmp_path / each.name), feeds)["y"]
        for each in (reference, running)
    )
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert error < 1e-5  # -100 dB; rounded to 8 bits it would be -45 dB


def test_openvino_says_of_a_float_product_that_its_weight_alone_is_read_in_8_bits(
    openvino, tmp_path
):
    linear_of_stored_weights(tmp_path / "model.onnx")
    (found,) = openvino.layers(openvino.build(tmp_path / "model.onnx", tmp_path / "engine"))
    assert (found.layer, found.precision, found.detail) == ("fc", "float", "weight-only")


@pytest.mark.parametrize("static", [3, 1], ids=["static is as good", "static runs less in int8"])
def test_openvino_has_a_static_batch_only_where_it_runs_as_much_in_int8(
    openvino, tmp_path, monkeypatch, static
):
    def ran(compiled, listed):
        dynamic = compiled.inputs[0].get_partial_shape()[0].is_dynamic
        count = 2 if dynamic else static
        return tuple(base.LayerPrecision(f"l{n}", "int8", "k") for n in range(count))

    monkeypatch.setattr("granplugin.backends.openvino._ran", ran)
    engine = openvino.build(small_net(tmp_path / "net.onnx"), tmp_path / "engine")
    assert len(openvino.layers(engine)) == max(static, 2), "what is told is what runs"
    with openvino.open(engine, batch=4) as runner:
        if static == 1:
            assert runner.run({"x": images(3)})["logits"].shape == (3, 5)
        else:
            with pytest.raises(EngineError, match="it takes"):
                runner.run({"x": images(3)})
