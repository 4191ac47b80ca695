"""granplugin: quantization granularity, layer by layer, for NVIDIA modelopt and TensorRT.

The commands as functions, with results that print as theirs and as tables in a notebook:
load, plan, inspect, apply, analyze, audit. For scripts that call modelopt themselves:
calibration_batches, prepare, modelopt_config, export_onnx; to fine-tune: quantize; a network with
the weights of modelopt's smoothquant or awq_lite: run_algorithm. And every error they raise. Nothing
heavy is imported until a function is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from granplugin.errors import (
    DataError,
    EngineError,
    LackError,
    ModelError,
    RecipeError,
    RunError,
    Unhonoured,
    UserError,
)

if TYPE_CHECKING:
    from granplugin.api.algorithms import run_algorithm
    from granplugin.api.scripts import (
        calibration_batches,
        export_onnx,
        modelopt_config,
        prepare,
        quantize,
    )
    from granplugin.api.verbs import analyze, apply, audit, inspect, load, plan

__version__: str

__all__ = [
    "DataError",
    "EngineError",
    "LackError",
    "ModelError",
    "RecipeError",
    "RunError",
    "Unhonoured",
    "UserError",
    "__version__",
    "analyze",
    "apply",
    "audit",
    "calibration_batches",
    "export_onnx",
    "inspect",
    "load",
    "modelopt_config",
    "plan",
    "prepare",
    "quantize",
    "run_algorithm",
]

_SCRIPTS = ("calibration_batches", "export_onnx", "modelopt_config", "prepare", "quantize")


def __getattr__(name: str) -> Any:
    if name == "__version__":
        globals()[name] = _version()
        return globals()[name]
    if name in __all__:
        module = "algorithms" if name == "run_algorithm" else "verbs"
        module = "scripts" if name in _SCRIPTS else module
        return getattr(import_module(f"granplugin.api.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _version() -> str:
    # What reads it takes as long to import as all else that a compiler's process needs of ours.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("granplugin")
    except PackageNotFoundError:  # a source tree on sys.path, not installed
        return "0"


def __dir__() -> list[str]:
    return list(__all__)
