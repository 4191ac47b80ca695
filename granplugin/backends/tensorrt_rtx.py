"""TensorRT-RTX: NVIDIA's compiler on every machine; its engines run on RTX GPUs.

Without a GPU it parses, builds and says what the engine will do, layer by layer.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from granplugin.backends import nvidia
from granplugin.backends.base import Engine, Options, Runner, missing
from granplugin.backends.nvidia import layers, plan

__all__ = ["build", "can_run", "layers", "open", "plan", "unavailable", "version"]

name = "tensorrt_rtx"
EXTRA = "rtx"


def unavailable() -> str | None:
    return missing(name, EXTRA)


def version() -> str:
    return nvidia.version(("tensorrt-rtx-cu13", "tensorrt-rtx-cu12", "tensorrt-rtx"))


def can_run() -> str | None:
    return nvidia.can_run(name)


def build(onnx: Path, out: Path, options: Options = Options()) -> Engine:
    return nvidia.build(name, version(), onnx, out, options)


def open(
    engine: Engine, threads: int | None = None, batch: int | None = None
) -> AbstractContextManager[Runner]:
    """`threads` and `batch` make no difference here."""
    return nvidia.open(engine, version())
