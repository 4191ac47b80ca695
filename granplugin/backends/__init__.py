"""What builds and runs engines: BACKENDS has one entry per backend, imported when it is asked for.

A backend is a module with what `base.Backend` lists; a new one is such a module and one entry here.
"""

from __future__ import annotations

from importlib import import_module

from granplugin.backends.base import Backend, Engine, LayerPrecision, Runner
from granplugin.errors import EngineError
from granplugin.suggest import did_you_mean

__all__ = ["BACKENDS", "Backend", "Engine", "LayerPrecision", "Runner", "TARGETED", "load"]

BACKENDS = {
    "onnxruntime": "granplugin.backends.onnxruntime",
    "openvino": "granplugin.backends.openvino",
    "tensorrt": "granplugin.backends.tensorrt",
    "tensorrt_rtx": "granplugin.backends.tensorrt_rtx",
}
TARGETED = ("tensorrt", "tensorrt_rtx")
"""Engines that must be able to do what a recipe says; on the others a row may run in float, and
the report counts it."""


def load(name: str) -> Backend:
    """The backend's module, whether or not its library is installed (`unavailable` says).

    Raises EngineError for a name that is not in BACKENDS.
    """
    if name not in BACKENDS:
        raise EngineError(f"unknown engine {name!r}{did_you_mean(name, BACKENDS)}")
    return import_module(BACKENDS[name])
