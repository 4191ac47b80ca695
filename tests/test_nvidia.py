"""TensorRT-RTX builds and says what it did; what needs a GPU runs against a stand-in."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import textwrap
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from qdq_files import ATTENTION

from granplugin import backends
from granplugin.backends import base
from granplugin.backends.base import BuildFailed
from granplugin.backends.engine_plan import EngineLayer, EngineTensor
from granplugin.backends.nvidia import backend as nvidia
from granplugin.backends.nvidia import build as building
from granplugin.backends.nvidia import kernels
from granplugin.backends.nvidia import run as nvidia_run
from granplugin.backends.nvidia.build import Options, run_build
from granplugin.backends.nvidia.builder import Builder as Builds
from granplugin.backends.nvidia.plan_reader import (
    read_inspector_json,
    read_layers_text,
    read_profile_json,
)
from granplugin.errors import EngineError
from granplugin.measures.timing import Timed, measure_interleaved

tensorrt = backends.backend_of("tensorrt")
PLANS = Path(__file__).parent / "data" / "engine_plans"
NETS = ["conv_per_tensor", "conv_per_channel", "depthwise", "gemm"]
RTX = "1.7.1.116"
BATCH = 4


@pytest.fixture
def rtx():
    pytest.importorskip("tensorrt_rtx")
    return backends.backend_of("tensorrt_rtx")


def net(path, kind, weights_only=False, zero_point=0):
    """x -> Q -> DQ -> Conv or Gemm of stored int8 weights, called `body.layer`, -> Relu -> y."""
    rng = np.random.default_rng(0)
    depthwise, linear = kind == "depthwise", kind == "gemm"
    weight = rng.standard_normal((16, 16) if linear else (16, 1 if depthwise else 16, 3, 3))
    amax = (
        np.abs(weight).reshape(16, -1).max(1) if kind != "conv_per_tensor" else np.abs(weight).max()
    )
    scale = np.asarray(amax / 127, np.float32)
    stored = np.rint(
        weight / scale.reshape(-1, *[1] * (weight.ndim - 1)) if scale.ndim else weight / scale
    )
    constants = {
        "weight.stored": stored.astype(np.int8),
        "weight.scale": scale,
        "weight.zero": np.zeros(scale.shape, np.int8),
        "input.scale": np.asarray(0.03, np.float32),
        "input.zero": np.asarray(zero_point, np.int8),
    }
    layer = {"transB": 1} if linear else {"pads": [1] * 4, "group": 16 if depthwise else 1}
    nodes = [
        ("QuantizeLinear", ["x", "input.scale", "input.zero"], "input/QuantizeLinear", {}),
        (
            "DequantizeLinear",
            ["input/QuantizeLinear", "input.scale", "input.zero"],
            "input/DequantizeLinear",
            {},
        ),
        (
            "DequantizeLinear",
            ["weight.stored", "weight.scale", "weight.zero"],
            "weight/DequantizeLinear",
            {"axis": 0},
        ),
        (
            "Gemm" if linear else "Conv",
            ["x" if weights_only else "input/DequantizeLinear", "weight/DequantizeLinear"],
            "body.layer/Call",
            layer,
        ),
        ("Relu", ["body.layer/Call"], "y", {}),
    ]
    shape = ["batch", 16] if linear else ["batch", 16, 8, 8]
    graph = helper.make_graph(
        [
            helper.make_node(op, inputs, [name], name=name, **said)
            for op, inputs, name, said in nodes
        ],
        kind,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("kind", NETS)
def test_the_plan_of_a_build_is_the_recorded_one(rtx, tmp_path, kind):
    if rtx.version() != RTX:
        pytest.skip(f"the plans were recorded with {RTX}")
    engine = rtx.build(
        net(tmp_path / "model.onnx", kind), tmp_path / "engine", options=Options(batch=BATCH)
    )
    text = (engine.path / "layers.txt").read_text()
    assert text == (PLANS / f"rtx_{kind}.txt").read_text()
    assert rtx.engine_plan(engine) == read_layers_text(text)


@pytest.mark.parametrize(
    ("kind", "weights_only", "batch", "precision"),
    [
        ("conv_per_channel", False, 1, "int8"),
        ("conv_per_channel", True, 1, "float"),
        ("gemm", False, 1, "int8"),
        # They read Int8 weights, and multiply in float.
        ("gemm", True, 1, "float"),
        ("gemm", True, 2, "float"),
    ],
)
def test_a_layer_is_int8_where_its_input_and_weight_are(
    rtx, tmp_path, kind, weights_only, batch, precision
):
    path = net(tmp_path / "model.onnx", kind, weights_only)
    (found,) = rtx.layers(rtx.build(path, tmp_path / "engine", options=Options(batch=batch)))
    assert (found.layer, found.precision) == ("body.layer", precision)
    assert found.kernel


def test_a_layer_whose_kernel_is_not_in_the_plan_is_unknown(rtx, tmp_path, monkeypatch):
    engine = rtx.build(
        net(tmp_path / "model.onnx", "gemm"), tmp_path / "engine", options=Options(batch=1)
    )
    whole = rtx.engine_plan(engine)
    monkeypatch.setattr(
        nvidia, "_read_plan", lambda engine: type(whole)((), whole.io, whole.source)
    )
    assert rtx.layers(engine) == (base.LayerPrecision("body.layer", "unknown", ""),)


@pytest.mark.parametrize(
    ("library", "kind", "dtypes", "precision"),
    [
        ("tensorrt", "CaskConvolution", ["int8", "int8"], "int8"),
        ("tensorrt", "CaskConvolution", ["half", "int8"], "float"),
        ("tensorrt", "CaskConvolution", ["int8"], "unknown"),
        ("tensorrt", "gemm", ["fp8", "fp8", "float"], "fp8"),
        ("tensorrt", "runtime_fusion", ["int8", "int8"], "unknown"),
        ("tensorrt_rtx", "runtime_fusion", ["int8", "int8"], "float"),
        ("tensorrt_rtx", "runtime_fusion", ["half", "half"], "float"),
        ("tensorrt_rtx", "kgen", ["half", "int8"], "float"),
        ("tensorrt_rtx", "kgen", ["int8", "int8"], "unknown"),
    ],
)
def test_precision_is_that_of_both_operands(library, kind, dtypes, precision):
    tensors = tuple(EngineTensor("t", (4, 4), dtype, 16) for dtype in dtypes)
    layer = EngineLayer("l", kind, tensors[:1], tensors[1:], (), ("n",))
    assert kernels.precision(library, layer)[0] == precision


def test_an_engine_is_reused_for_the_same_onnx_version_and_options_only(rtx, tmp_path, monkeypatch):
    builds = []
    monkeypatch.setattr(
        nvidia.building, "run_build", lambda *args: builds.append(1) or run_build(*args)
    )
    path, out = net(tmp_path / "model.onnx", "gemm"), tmp_path / "engine"
    options = Options(batch=1, targets=("sm86",), optimization_level=1, workspace_mb=64)
    engine = rtx.build(path, out, options=options)
    assert rtx.build(path, out, options=options) == engine
    # How long it may take is not what it is built for.
    assert rtx.build(path, out, options=Options(**vars(options) | {"seconds": 500})) == engine
    assert len(builds) == 1
    rtx.build(path, out, options=Options(batch=1, targets=("sm89",)))
    rtx.build(
        net(path, "gemm", weights_only=True), out, options=Options(batch=1, targets=("sm89",))
    )
    monkeypatch.setattr(rtx, "version", lambda: "another")
    assert rtx.build(path, out, options=Options(batch=1, targets=("sm89",))).version == "another"
    assert len(builds) == 4
    assert not list(tmp_path.glob(".making-*"))


@pytest.mark.parametrize("file", ["model.engine", "layers.txt", "engine.json"])
def test_a_truncated_or_foreign_engine_is_refused_and_rebuilt(rtx, tmp_path, file):
    path, out = net(tmp_path / "model.onnx", "gemm"), tmp_path / "engine"
    engine = rtx.build(path, out, options=Options(batch=1))
    whole = rtx.engine_plan(engine)
    for damage in (b"foreign", (out / file).read_bytes()[:100]):
        (out / file).write_bytes(damage)
        for read in (rtx.engine_plan, rtx.layers, lambda engine: rtx.open(engine).__enter__()):
            with pytest.raises(EngineError, match="not as they were built; delete the folder"):
                read(engine)
        assert rtx.engine_plan(rtx.build(path, out, options=Options(batch=1))) == whole


def test_a_refused_build_leaves_the_engine_that_was_there(rtx, tmp_path):
    path, out = net(tmp_path / "model.onnx", "gemm"), tmp_path / "engine"
    engine = rtx.build(path, out, options=Options(batch=1))
    with pytest.raises(EngineError):
        rtx.build(net(tmp_path / "bad.onnx", "gemm", zero_point=3), out, options=Options(batch=1))
    assert rtx.build(path, out, options=Options(batch=1)) == engine
    assert sorted(each.name for each in tmp_path.iterdir()) == ["bad.onnx", "engine", "model.onnx"]


@pytest.mark.parametrize(
    ("reason", "shape"), [(None, (-1, 16)), ("no GPU", (32, 16))], ids=["runs", "cannot run"]
)
def test_unless_told_it_builds_for_all_batches_only_where_it_can_run(
    rtx, tmp_path, monkeypatch, reason, shape
):
    monkeypatch.setattr(rtx, "can_run", lambda: reason)
    plan = rtx.engine_plan(rtx.build(net(tmp_path / "model.onnx", "gemm"), tmp_path / "engine"))
    assert plan.io[0].shape == shape


def test_a_dynamic_batch_is_built_for_all_sizes_and_its_plan_has_no_sizes(rtx, tmp_path):
    path = net(tmp_path / "model.onnx", "gemm")
    plan = rtx.engine_plan(
        rtx.build(path, tmp_path / "engine", options=Options(batch=8, min_batch=2))
    )
    assert plan.io[0].shape == (-1, 16)
    assert plan.moved.total is None
    text = (tmp_path / "engine" / "layers.txt").read_text()
    assert "MinShape: [2,16], OptShape: [8,16], MaxShape: [8,16]" in text
    shapes = {"x": ((1, 16), (3, 16), (5, 16))}
    rtx.build(path, tmp_path / "engine", options=Options(shapes=shapes))
    text = (tmp_path / "engine" / "layers.txt").read_text()
    assert "MinShape: [1,16], OptShape: [3,16], MaxShape: [5,16]" in text


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"targets": ("sm90",)}, "has no target 'sm90'; it has sm120, .+sm89"),
        ({"targets": ("current",)}, "has no target 'current'"),
        ({"targets": ("sm75",)}, "refused model.onnx: layer body.layer/Call: .+SM75"),
        ({"timing_cache": "cache"}, "builds without timing; leave timing_cache out"),
        ({"optimization_level": 9}, "refused model.onnx: it has no optimization level 9"),
        ({"shapes": {"z": ((1, 16),) * 3}}, "refused model.onnx: shapes are given for 'z'"),
        (
            {"shapes": {"x": ((4, 16), (2, 16), (8, 16))}},
            r"\[-1, 16\] in the graph; .+ \[4, 16\], \[2, 16\]",
        ),
        ({"shapes": {"x": ((1, 16, 1),) * 3}}, r"shapes \[1, 16, 1\]"),
        ({"batch": 2, "min_batch": 4}, r"shapes \[4, 16\], \[2, 16\], \[2, 16\]"),
        ({"seconds": 0.01}, "could not build model.onnx: it took more than 0.01 s"),
        ({"memory_mb": 20}, "could not build model.onnx: it took .+ MB of memory, and 20 MB"),
    ],
)
def test_options_it_cannot_honour_are_refused_on_one_line(rtx, tmp_path, capfd, options, reason):
    path = net(tmp_path / "model.onnx", "gemm")
    with pytest.raises(EngineError, match=f"^tensorrt_rtx .*{reason}") as error:
        rtx.build(path, tmp_path / "engine", options=Options(**options))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "engine").exists()
    assert capfd.readouterr() == ("", "")


def test_a_parser_error_names_the_node(rtx, tmp_path):
    path = net(tmp_path / "model.onnx", "gemm", zero_point=3)
    with pytest.raises(
        EngineError, match=r"node input/QuantizeLinear \(QuantizeLinear\): .+Non-zero"
    ):
        rtx.build(path, tmp_path / "engine")


def test_an_operator_that_the_parser_does_not_know_is_named(rtx, tmp_path):
    path = net(tmp_path / "model.onnx", "gemm")
    model = onnx.load(path)
    model.graph.node[-1].op_type = "Rectify"  # as of an opset that comes after it
    onnx.save(model, path)
    with pytest.raises(BuildFailed, match=r"node y \(Rectify\): it does not know") as error:
        rtx.build(path, tmp_path / "engine")
    assert error.value.nodes == ("y",)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("Plugin not found, are the plugin name, version, and namespace correct?", "it does not know"),
        ("NonZero plugin creator version 1 was not found in plugin registry.", "it does not know"),
        ("false", "it does not know"),
        ("falsely shaped", "falsely shaped"),
    ],
)  # fmt: skip
def test_what_a_parser_lacks_is_told_in_one_way(said, told):
    error = {"desc": said, "node_name": "n", "node_operator": "NonZero"}
    functions = {name: lambda word=word: word for name, word in error.items()}
    parser = SimpleNamespace(get_error=lambda at: SimpleNamespace(**functions))
    assert str(building._parser_error(parser)).startswith(f"node n (NonZero): {told}")


def test_an_input_that_is_dynamic_in_more_than_its_batch_needs_shapes(rtx, tmp_path):
    path = net(tmp_path / "model.onnx", "conv_per_tensor")
    model = onnx.load(path)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[2].dim_param = "height"
    onnx.save(model, path)
    with pytest.raises(
        EngineError, match="input 'x' is dynamic in more than its batch.+give its min"
    ):
        rtx.build(path, tmp_path / "engine")
    shapes = {"x": ((1, 16, 8, 8),) * 3}
    assert rtx.engine_plan(
        rtx.build(path, tmp_path / "engine", options=Options(shapes=shapes))
    ).moved.total


CRASHES = {
    "SIGSEGV": ("os.kill(os.getpid(), signal.SIGSEGV)", r"the compiler crashed \(SIGSEGV\)"),
    "abort": ("os.abort()", r"the compiler crashed \(SIGABRT\)"),
    "killed": ("os.kill(os.getpid(), signal.SIGKILL)", "killed, most likely for want of memory"),
    "exit": ("print('last word', flush=True); os._exit(3)", "ended with code 3; .+: last word"),
    "error": (
        "raise OSError('disk full')",
        "ended with code 1; its last words: OSError: disk full",
    ),
    "hang": ("time.sleep(60)", "it took more than 1 s"),
}


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("crash", CRASHES)
def test_a_compiler_that_crashes_or_hangs_is_one_line(tmp_path, monkeypatch, crash):
    does, reason = CRASHES[crash]
    (tmp_path / "crashing.py").write_text(f"import os, signal, time\n{does}\n")
    monkeypatch.syspath_prepend(tmp_path)
    options = Options(seconds=1 if crash == "hang" else 60)
    with pytest.raises(EngineError, match=f"^crashing could not build m.onnx: .*{reason}") as error:
        run_build("crashing", tmp_path / "m.onnx", tmp_path, options)
    assert "\n" not in str(error.value)
    assert error.value.__cause__ is not None


def test_without_a_driver_it_says_so_and_opens_nothing(rtx, tmp_path, monkeypatch):
    def no_driver(name):
        raise OSError(name)

    engine = rtx.build(
        net(tmp_path / "model.onnx", "gemm"), tmp_path / "engine", options=Options(batch=1)
    )
    monkeypatch.setattr(nvidia.ctypes, "CDLL", no_driver)
    assert rtx.can_run() == "there is no NVIDIA driver on this machine"
    with (
        pytest.raises(
            EngineError, match="^tensorrt_rtx cannot run here: there is no NVIDIA driver"
        ),
        rtx.open(engine),
    ):
        pass


@pytest.mark.parametrize(
    ("built", "available", "capability", "reason"),
    [
        (False, False, None, "is built without CUDA"),
        (True, False, None, "torch finds no GPU that it can use: the driver is too old"),
        (True, True, (9, 0), "H200 is sm90, which it has no target for"),
        (True, True, (8, 9), None),
    ],
)
def test_why_it_cannot_run_is_a_sentence(rtx, monkeypatch, built, available, capability, reason):
    import torch

    monkeypatch.setattr(nvidia.ctypes, "CDLL", lambda name: None)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: built)

    def init():
        raise RuntimeError("the driver is too old")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H200")
    told = rtx.can_run()
    assert (told is None) if reason is None else (reason in told)


STAND_IN = """
import ctypes, enum, json
import numpy as np

__version__ = "VERSION"
LAYERS = open(LAYERS_FILE).read()

def enumeration(name, words):
    return enum.IntEnum(name, words, start=0)

class ILogger:
    Severity = enumeration("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")
    def __init__(self): self.made = True

class Tensor:
    def __init__(self, name, shape): self.name, self.shape = name, shape

class Network:
    num_inputs, num_layers = 1, 0
    def __init__(self): self.x = Tensor("x", (-1, 4))
    def get_input(self, index): return self.x

class Builder:
    def __init__(self, logger):
        assert logger.made
    def create_network(self, flags):
        self.flags, self.network = flags, Network()
        return self.network
    def create_builder_config(self): return Config()
    def create_optimization_profile(self): return Profile()
    def build_serialized_network(self, network, config):
        said = {"flags": self.flags, "shape": network.x.shape, "cache": config.cache.blob.decode()}
        config.cache.blob = b"timed"
        return json.dumps(said | vars(config.profile)).encode()

class Config:
    cache = profile = None
    def add_optimization_profile(self, profile):
        self.profile = profile
        return 0
    def set_memory_pool_limit(self, pool, size): pass
    def create_timing_cache(self, blob): return Cache(blob)
    def set_timing_cache(self, cache, ignore_mismatch):
        if cache.blob == b"of another version": return False
        self.cache = cache
        return True
    def get_timing_cache(self): return self.cache

class Cache:
    def __init__(self, blob): self.blob = blob
    def serialize(self): return self.blob

class Profile:
    def set_shape(self, name, *shapes): self.shapes = shapes
    def get_shape(self, name): return self.shapes

class OnnxParser:
    def __init__(self, network, logger): pass
    def parse_from_file(self, path): return True

class Runtime:
    def __init__(self, logger): pass
    def deserialize_cuda_engine(self, data): return CudaEngine(json.loads(bytes(data)))

class CudaEngine:
    num_io_tensors = 2
    def __init__(self, said): self.largest = said["shapes"][2]
    def create_engine_inspector(self): return Inspector()
    def create_execution_context(self): return Context(self.largest)
    def get_tensor_name(self, index): return "xy"[index]
    def get_tensor_mode(self, name): return TensorIOMode(1 + "xy".index(name))
    def get_tensor_dtype(self, name): return np.float32
    def get_tensor_shape(self, name): return (-1, 4)
    def get_tensor_profile_shape(self, name, index): return [(1, 4), (2, 4), self.largest]

class Inspector:
    execution_context = None
    def get_engine_information(self, form): return LAYERS

class IProfiler:
    def __init__(self): self.made = True

class Context:
    profiler = None
    def __init__(self, largest): self.largest, self.at, self.calls = largest, {}, 0
    def set_input_shape(self, name, shape):
        self.shape = shape
        return len(shape) == 2 and shape[0] <= self.largest[0] and shape[1] == 4
    def infer_shapes(self): return []
    def get_tensor_shape(self, name): return self.shape
    def set_tensor_address(self, name, address): self.at[name] = address
    def execute_async_v3(self, stream):
        assert stream == 7
        x, y = (
            np.ctypeslib.as_array((ctypes.c_float * int(np.prod(self.shape))).from_address(at))
            for at in (self.at["x"], self.at["y"])
        )
        y[:] = 2 * x
        self.calls += 1
        if self.profiler is not None:
            assert self.profiler.made
            self.profiler.report_layer_time("first", 0.5 * self.calls)
            self.profiler.report_layer_time("second", 0.5)
        return True

def nptype(dtype): return dtype

NetworkDefinitionCreationFlag = enumeration("Flag", "EXPLICIT_BATCH STRONGLY_TYPED")
ProfilingVerbosity = enumeration("Verbosity", "LAYER_NAMES_ONLY NONE DETAILED")
MemoryPoolType = enumeration("Pool", "WORKSPACE")
LayerInformationFormat = enumeration("Format", "ONELINE JSON")
TensorIOMode = enumeration("Mode", "NONE INPUT OUTPUT")
"""


@pytest.fixture(params=["10", "11"])
def stand_in(request, tmp_path, monkeypatch):
    """TensorRT as its documentation says it is, without a GPU: y = 2 x."""
    import torch

    library = STAND_IN.replace("VERSION", f"{request.param}.4.0").replace(
        "LAYERS_FILE", repr(str(PLANS / f"tensorrt_{request.param}.json"))
    )
    (tmp_path / "tensorrt.py").write_text(textwrap.dedent(library))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    monkeypatch.setattr(tensorrt, "version", lambda: f"{request.param}.4.0")
    monkeypatch.setattr(tensorrt, "can_run", lambda: None)
    monkeypatch.setattr(nvidia_run, "DEVICE", "cpu")
    stream = SimpleNamespace(cuda_stream=7, synchronize=lambda: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    yield request.param
    sys.modules.pop("tensorrt", None)


def test_tensorrt_builds_strongly_typed_with_a_timing_cache(stand_in, tmp_path):
    path, cache = net(tmp_path / "model.onnx", "gemm"), tmp_path / "timing"
    cache.write_bytes(b"of another version")
    options = Options(batch=2, min_batch=2, timing_cache=str(cache), workspace_mb=64)
    engine = tensorrt.build(path, tmp_path / "engine", options=options)
    said = json.loads((engine.path / "model.engine").read_text())
    # TensorRT 11 has nothing else.
    assert said["flags"] == {"10": 2, "11": 0}[stand_in]
    assert said["shape"] == [2, 4]
    assert said["cache"] == ""
    assert cache.read_bytes() == b"timed"
    assert [layer.kind for layer in tensorrt.engine_plan(engine).kernels][1] == "CaskConvolution"
    assert tensorrt.layers(engine)[0] == base.LayerPrecision(
        "body.layer", "int8", "CaskConvolution"
    )


def test_tensorrt_runs_every_batch_size_it_was_built_for(stand_in, tmp_path):
    path, cache = net(tmp_path / "model.onnx", "gemm"), tmp_path / "timing"
    options = Options(batch=3, min_batch=1, timing_cache=str(cache))
    with tensorrt.open(tensorrt.build(path, tmp_path / "engine", options=options)) as runner:
        first = None
        for batch in (1, 3):
            x = np.random.default_rng(batch).standard_normal((batch, 4), np.float32)
            y = runner.run({"x": x})["y"]
            np.testing.assert_array_equal(y, 2 * x)
            first = (y, 2 * x) if first is None else first
        np.testing.assert_array_equal(*first)
        for feeds, reason in [
            ({}, r"its inputs are \['x'\], not \[\]"),
            (
                {"x": np.zeros((4, 4), np.float32)},
                r"shape \[4, 4\]; it was built for up to \[3, 4\]",
            ),
            ({"x": np.zeros((1, 4))}, "input 'x' is float64, not float32"),
        ]:
            with pytest.raises(EngineError, match=f"^tensorrt cannot run engine: .*{reason}"):
                runner.run(feeds)


class Event:
    """torch.cuda.Event by the calls that the stand-in's context has made."""

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self, stream):
        self.at = len(stream.work)

    def synchronize(self):
        pass

    def elapsed_time(self, other):
        return 0.25 * (other.at - self.at)


@pytest.fixture
def runner(stand_in, tmp_path, monkeypatch):
    """The stand-in's runner on torch.cuda's events and graphs, which count and replay calls.

    It tests what we do in which order, not TensorRT or CUDA.
    """
    import torch

    stream = SimpleNamespace(cuda_stream=7, work=[], capturing=None, synchronize=lambda: None)

    class Graph:
        def replay(self):
            stream.work.append("replay")

    @contextmanager
    def capture(graph, stream):
        stream.capturing = graph
        yield
        stream.capturing = None

    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    path, options = net(tmp_path / "model.onnx", "gemm"), Options(batch=3, min_batch=1)
    options = replace(options, timing_cache=str(tmp_path / "timing"))
    with tensorrt.open(tensorrt.build(path, tmp_path / "engine", options=options)) as runner:
        execute = runner.context.execute_async_v3

        def execute_async_v3(number):
            stream.work.append("capture" if stream.capturing else "call")
            return execute(number)

        runner.context.execute_async_v3 = execute_async_v3
        yield runner


X = {"x": np.ones((2, 4), np.float32)}


def test_a_latency_is_between_two_events_around_calls_on_the_device(runner):
    call = runner.repeated(X)
    assert isinstance(call, Timed)
    assert runner.stream.work == ["call"]  # shapes are settled before anything is timed
    assert call.timed(10) == 0.25
    assert runner.stream.work == ["call"] * 11
    found = measure_interleaved({"a": call}, warmup=3, rounds=20, inner=10)["a"]
    assert found.samples_ms == (0.25,) * 20
    assert len(runner.stream.work) == 11 + 3 + 200


def test_a_cuda_graph_is_captured_after_a_call_and_replayed(runner):
    graph = runner.repeated(X).captured()
    assert runner.stream.work == ["call", "call", "capture"]
    graph()
    graph.timed(4)
    assert runner.stream.work[3:] == ["replay"] * 5


def test_an_engine_that_cannot_be_captured_has_no_graph_and_still_runs(runner, monkeypatch, caplog):
    import torch

    @contextmanager
    def refuse(graph, stream):
        raise RuntimeError("operation not permitted when stream is capturing")
        yield

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    call = runner.repeated(X)
    with caplog.at_level("INFO"):
        assert call.captured() is None
    assert "no CUDA graph: operation not permitted" in caplog.text
    assert call.timed(2) == 0.25


def test_a_call_that_fails_says_why(runner):
    runner.context.execute_async_v3 = lambda stream: False
    runner.logger.told.append("CUDA error 700: an illegal memory access")
    for run in (lambda: runner.run(X), lambda: runner.repeated(X)):
        with pytest.raises(EngineError, match="^tensorrt cannot run engine: CUDA error 700"):
            run()


def test_what_the_bindings_or_torch_raise_is_translated(runner, monkeypatch):
    import torch

    call = runner.repeated(X)
    for error in (RuntimeError, ValueError, MemoryError, TypeError, torch.OutOfMemoryError):

        def execute(stream, error=error):
            raise error("it\nbroke")

        runner.context.execute_async_v3 = execute
        runs = (lambda: runner.run(X), lambda: runner.repeated(X), call, lambda: call.timed(2))
        for run in runs:
            with pytest.raises(EngineError, match="^tensorrt cannot run engine: it broke") as said:
                run()
            assert type(said.value.__cause__) is error


def test_the_profile_is_trtexecs_and_joins_the_plan(runner, tmp_path):
    runner.profile(X, tmp_path)
    told = json.loads((tmp_path / "profile.json").read_text())
    calls = nvidia_run.PROFILED_CALLS
    assert told[0] == {"count": calls}
    assert [set(layer) for layer in told[1:]] == [
        {"name", "timeMs", "averageMs", "medianMs", "percentage"}
    ] * 2
    assert sum(layer["percentage"] for layer in told[1:]) == pytest.approx(100)
    times = read_profile_json((tmp_path / "profile.json").read_text())
    # The call before the profiler was set is not in it.
    assert times == {"first": pytest.approx(0.5 * (calls + 3) / 2), "second": pytest.approx(0.5)}
    assert read_inspector_json((tmp_path / "layers.json").read_text()).kernels


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"version": "9.0"}, "built with tensorrt 9.0 on A4000, and this is .* on A4000"),
        ({"gpu": "T4"}, "built with tensorrt .* on T4, and this is .* on A4000"),
    ],
)
def test_an_engine_of_another_version_or_gpu_is_not_opened_but_built_again(
    stand_in, tmp_path, monkeypatch, changed, said
):
    monkeypatch.setattr(nvidia, "_gpu", lambda: "A4000")
    path, options = net(tmp_path / "model.onnx", "gemm"), Options(timing_cache=str(tmp_path / "t"))
    engine = tensorrt.build(path, tmp_path / "engine", options)
    card = json.loads((engine.path / "engine.json").read_text())
    (engine.path / "engine.json").write_text(json.dumps(card | changed))
    with pytest.raises(EngineError, match=f"{said}; delete the folder"), tensorrt.open(engine):
        pass
    with tensorrt.open(tensorrt.build(path, tmp_path / "engine", options)) as runner:
        assert runner.run(X)["y"].shape == (2, 4)


def test_targets_are_not_for_tensorrt(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorrt, "version", lambda: "10")
    with pytest.raises(
        EngineError, match="tensorrt builds for the GPU it runs on; leave targets out"
    ):
        tensorrt.build(
            net(tmp_path / "m.onnx", "gemm"), tmp_path / "e", options=Options(targets=("sm89",))
        )


OBJECTS = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "parser": "OnnxParser",
    "error": "ParserError",
    "cache": "ITimingCache",
    "runtime": "Runtime",
    "runtime_config": "IRuntimeConfig",
    "inspector": "EngineInspector",
    "loaded": "ICudaEngine",
    "context": "IExecutionContext",
}
"""What our variables are called that hold an object of the library."""
RTX_ONLY = {
    ("IExecutionContext", "is_stream_capturable"),
    ("IRuntimeConfig", "dynamic_shapes_kernel_specialization_strategy"),
    ("DynamicShapesKernelSpecializationStrategy", "EAGER"),
    ("", "DynamicShapesKernelSpecializationStrategy"),
    ("ComputeCapability", "__members__"),
    ("", "ComputeCapability"),
}


def names_used():
    """(owner, name): every attribute of the library or of one of its objects that we name."""
    for file in ("backend.py", "build.py", "run.py"):
        for node in ast.walk(ast.parse((Path(nvidia.__file__).parent / file).read_text())):
            if not isinstance(node, ast.Attribute):
                continue
            root = ast.unparse(node.value).removeprefix("self.").removeprefix("runner.")
            if root in OBJECTS:
                yield OBJECTS[root], node.attr
            elif root == "trt" or root.startswith("trt."):
                yield root.removeprefix("trt").removeprefix("."), node.attr


def test_every_name_of_tensorrt_rtx_that_is_used_exists(rtx):
    import tensorrt_rtx as module

    used = set(names_used())
    assert {("ICudaEngine", "get_tensor_profile_shape"), ("IProfiler", "__init__")} <= used
    for owner, name in used:
        scope = module
        for part in filter(None, owner.split(".")):
            scope = getattr(scope, part, None)
        assert hasattr(scope, name), f"{owner} has no {name}"


@pytest.mark.parametrize("version", ["10.16", "11.4"])
def test_every_name_that_runs_an_engine_exists_in_tensorrt(version):
    """By what `dir` said of tensorrt-lean-cu13, the runtime without builder and parser."""
    text = (Path(__file__).parent / "data" / "api" / f"tensorrt_lean_{version}.json").read_text()
    recorded = json.loads(text)
    assert recorded["version"].startswith(version)
    names = {owner: set(known) for owner, known in recorded["names"].items()}
    checked = [
        (owner, name)
        for owner, name in set(names_used()) - RTX_ONLY
        if owner in names and owner and not name.startswith("__")
    ]
    assert ("IExecutionContext", "profiler") in checked
    assert not [(owner, name) for owner, name in checked if name not in names[owner]]


@pytest.mark.parametrize("library", ["tensorrt", "tensorrt_rtx"])
def test_the_library_is_not_imported_until_it_is_asked_for(library):
    script = (
        "import sys; from granplugin import backends; backend = backends.backend_of(sys.argv[1]); "
        "backend.unavailable(); print(backend.name, sys.argv[1] in sys.modules)"
    )
    command = [sys.executable, "-c", script, library]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{library} False\n"


def test_the_kernel_of_a_whole_attention_tells_both_products(tmp_path):
    pytest.importorskip("tensorrt_rtx")
    products = [("scores", "scores", None), ("values", "values", None)]
    unmasked = ATTENTION.replace(", float[2,1,16,16] m", "").replace("Add(b, m)", "Identity(b)")
    float_weights = ATTENTION.replace("MatMul(pd, vd)", "MatMul(e, vd)")
    with Builds("tensorrt_rtx", tmp_path) as builder:
        for text, expected in (
            (ATTENTION, ["int8", "int8"]),
            (unmasked, ["int8", "int8"]),
            (float_weights, ["int8", "float"]),
        ):
            plan = builder.build(onnx.parser.parse_model(text))
            found = kernels.layer_precisions("tensorrt_rtx", products, plan)
            assert [each.precision for each in found] == expected
            whole = [kernel for kernel in plan.kernels if kernel.attends]
            assert len(whole) == (text != float_weights)
            assert not any(kernel.weights for kernel in whole)
