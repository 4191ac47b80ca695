"""Every exception of an engine's library is one of ours, with the library's as its cause."""

import importlib
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from granplugin import backends
from granplugin.errors import EngineError
from granplugin.graph import reference
from granplugin.translate import load_library, one_line

LIBRARIES = {
    "onnxruntime": ["onnxruntime.capi.onnxruntime_pybind11_state"],
    "openvino": ["openvino._pyopenvino", "openvino.frontend", "openvino.exceptions"],
    "tensorrt_rtx": ["tensorrt_rtx"],
    "tensorrt": ["tensorrt"],
}
"""Where each library's exception classes are; what its bindings make of C++'s is Python's own."""
OF_BINDINGS = [RuntimeError, ValueError, MemoryError]


def classes(library):
    """Its exception classes, found by looking at all that its modules name."""
    modules = [importlib.import_module(name) for name in LIBRARIES[library]]
    own = [value for module in modules for value in vars(module).values()]
    found = [x for x in own if isinstance(x, type) and issubclass(x, Exception)]
    return list(dict.fromkeys(found))


def raising(error):
    def call(*args, **named):
        raise error("it\nbroke")

    return call


@pytest.fixture
def identity(tmp_path):
    """y = relu(x), in a file."""
    tensors = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 4]) for n in "xy"]
    node = helper.make_node("Relu", ["x"], ["y"], name="layer/Relu")
    graph = helper.make_graph([node], "g", tensors[:1], tensors[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


X = {"x": np.ones((2, 4), np.float32)}


def refused(call, error):
    with pytest.raises(EngineError) as caught:
        call()
    assert type(caught.value.__cause__) is error
    assert "it broke" in str(caught.value) and "\n" not in str(caught.value)


def test_onnx_runtimes_are_translated_where_it_loads_and_where_it_runs(identity, monkeypatch):
    own = classes("onnxruntime")
    assert len(own) > 10 and not any(issubclass(each, RuntimeError) for each in own)
    backend = backends.backend_of("onnxruntime")
    engine = backend.build(identity, identity.parent)
    model = onnx.load(identity)
    with backend.open(engine) as runner:
        broken = SimpleNamespace(get_outputs=runner.session.get_outputs)
        object.__setattr__(runner, "session", broken)
        for error in (*own, *OF_BINDINGS):
            broken.run = raising(error)
            refused(lambda: runner.run(X), error)
    for error in (*own, *OF_BINDINGS):
        monkeypatch.setattr(reference.onnxruntime, "InferenceSession", raising(error))
        refused(lambda: backend.build(identity, identity.parent), error)
        refused(lambda: backend.open(engine).__enter__(), error)
        refused(lambda: reference.run(model, None, X), error)


def test_openvinos_are_translated_where_it_converts_opens_and_runs(identity, monkeypatch):
    ov = pytest.importorskip("openvino")
    own = classes("openvino")
    assert len(own) > 5
    backend = backends.backend_of("openvino")
    engine = backend.build(identity, identity.parent / "engine")
    with backend.open(engine) as runner:
        for error in (*own, *OF_BINDINGS):
            object.__setattr__(runner, "request", SimpleNamespace(infer=raising(error)))
            refused(lambda: runner.run(X), error)
    for error in (*own, *OF_BINDINGS):
        core = SimpleNamespace(read_model=raising(error))
        monkeypatch.setattr(ov, "Core", lambda core=core: core)
        refused(lambda: backend.build(identity, identity.parent / "another"), error)
        refused(lambda: backend.open(engine).__enter__(), error)
    assert not (identity.parent / "another").exists()


@pytest.mark.parametrize("library", ["tensorrt", "tensorrt_rtx"])
def test_tensorrt_has_no_exceptions_of_its_own(library):
    """What it refuses it logs; nvidia.run translates what its bindings raise, by test_nvidia."""
    pytest.importorskip(library)
    assert classes(library) == []


def test_torchs_exceptions_of_a_gpu_are_runtime_errors():
    import torch

    assert issubclass(torch.OutOfMemoryError, RuntimeError)
    assert issubclass(getattr(torch, "AcceleratorError", RuntimeError), RuntimeError)


def test_a_library_that_is_installed_and_does_not_load_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for number, error in enumerate((ImportError, OSError, RuntimeError)):
        name = f"broken_library_{number}"
        (tmp_path / f"{name}.py").write_text(f"raise {error.__name__}('it\\nbroke')\n")
        refused(lambda name=name: load_library(name), error)
        assert name not in sys.modules


def test_an_error_without_words_says_its_type():
    assert one_line(MemoryError()) == "MemoryError"
