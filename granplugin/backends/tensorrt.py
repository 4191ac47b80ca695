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
what_for = "the target: builds and runs on an NVIDIA GPU (TensorRT 10 and 11)"
measures_latency = True
PRECISIONS = ("fp32", "fp16", "bf16")
builds_vary = True


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
