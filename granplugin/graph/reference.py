"""The reference: ONNX Runtime on the CPU, each node as the graph says it.

With optimizations on it rounds biases to INT32 (WeightBiasQuantization) and is no reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state

from granplugin.translate import errors_of, translated

_OUTSIDE = "session.model_external_initializers_file_folder_path"
ERRORS = errors_of(onnxruntime_pybind11_state)
"""All that its calls may raise; they share no base."""


def session_options(
    threads: int | None = None, folder: Path | None = None
) -> onnxruntime.SessionOptions:
    """Those of the reference. What is outside of a serialized model is in `folder`."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4  # what it would print comes with the exception too
    options.intra_op_num_threads = threads or 0
    if folder is not None:
        options.add_session_config_entry(_OUTSIDE, str(folder))
    return options


def open_session(
    model: Path | bytes,
    threads: int | None = None,
    options: onnxruntime.SessionOptions | None = None,
) -> onnxruntime.InferenceSession:
    """A file or a serialized model on `threads` threads; without it, one per physical core.
    `options` are session_options with what is special to it. Raises one of ERRORS."""
    options = options or session_options(threads)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run(
    model: onnx.ModelProto,
    names: Sequence[str] | None,
    feeds: Mapping[str, np.ndarray],
    folder: Path | None = None,
) -> list[np.ndarray]:
    """The named outputs (None: all of them), in that order; `folder` has the files of weights that
    the model names. Raises EngineError where ONNX Runtime does not take the graph."""
    with translated("onnxruntime cannot run the graph", ERRORS):
        options = session_options(folder=folder)
        session = open_session(model.SerializeToString(), options=options)
        found: list[np.ndarray] = session.run(names, dict(feeds))
        return found
