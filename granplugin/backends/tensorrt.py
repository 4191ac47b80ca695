"""TensorRT 10 and 11: builds and runs on the NVIDIA GPU of this machine."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from granplugin.backends import nvidia
from granplugin.backends.base import Engine, Options, Runner, missing
from granplugin.backends.nvidia import layers, plan

__all__ = ["build", "can_run", "layers", "open", "plan", "unavailable", "version"]

name = "tensorrt"
EXTRA = "tensorrt"


def unavailable() -> str | None:
    return missing(name, EXTRA)


def version() -> str:
    return nvidia.version(("tensorrt", "tensorrt-cu13", "tensorrt-cu12"))


def can_run() -> str | None:
    return nvidia.can_run(name)


def build(onnx: Path, out: Path, options: Options = Options()) -> Engine:
    return nvidia.build(name, version(), onnx, out, options)


def open(
    engine: Engine, threads: int | None = None, batch: int | None = None
) -> AbstractContextManager[Runner]:
    """`threads` and `batch` make no difference here."""
    return nvidia.open(engine, version())
