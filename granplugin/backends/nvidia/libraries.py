"""What TensorRT and TensorRT-RTX do each in its own way; all else is one code path."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Library:
    """One of the two. `logs_plan`: a build's verbose log has the plan, which the engine inspector
    would tell only on a GPU. Versions before `typed_from` are strongly typed only when told so.
    `compiles_at_run_time`: kernels for dynamic shapes are compiled while an engine runs, unless
    told otherwise, and a context says whether it can be captured. `runtime_fusion`: what a kernel
    of that kind multiplies in that reads 8 bits, None where that is not known.
    """

    logs_plan: bool
    typed_from: int
    compiles_at_run_time: bool
    runtime_fusion: str | None


LIBRARIES = {
    "tensorrt": Library(
        logs_plan=False, typed_from=11, compiles_at_run_time=False, runtime_fusion=None
    ),
    "tensorrt_rtx": Library(
        logs_plan=True, typed_from=0, compiles_at_run_time=True, runtime_fusion="float"
    ),
}
