"""What is known of each engine before it is used: one entry each, and nothing is imported for it.

The recipe's words, what doctor and reports list, the scripts of export and the code that builds all
derive from these entries. A new engine is an entry here and the module that it names.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

PromiseKind = Literal["native", "lowered", "simulated", "refused"]
"""What an engine makes of a row, known before it is built: capabilities.promise has the meanings."""


@dataclass(frozen=True)
class Program:
    """A command line, used as trtexec is, that builds and runs an engine on another machine: the
    script that export writes for it, and the flags that it alone needs."""

    script: str
    what: str
    command: str
    build: tuple[str, ...] = ()
    profile: tuple[str, ...] = ()
    time: tuple[str, ...] = ()


@dataclass(frozen=True)
class EngineFacts:
    """One engine.

    `backend` is the class that builds and runs it, as module:name, and `package` what that imports;
    the first of `distributions` that is installed gives the version; `extra` is the extra of
    granplugin that installs it, None where granplugin itself needs it.
    """

    name: str
    backend: str
    what_for: str
    package: str
    distributions: tuple[str, ...]
    extra: str | None
    device: Literal["cpu", "gpu"]
    """Where it runs. On a GPU calls are timed with their data on the device and as CUDA graphs, and
    layer by layer (base.DeviceRunner)."""
    precisions: tuple[str, ...]
    """Of the graphs that it takes; for another it gets the float32 graph."""
    used: Literal["always", "if installed", "if named"] = "if named"
    """By a recipe that names no engines."""
    measures_latency: bool = True
    """Without, it is a numerical reference only."""
    targeted: bool = False
    """It must be able to do what a recipe says; on another a row may run in float, and the report
    counts it."""
    tells_plan: bool = False
    """It tells its kernels and what they move, so a file can be audited with it."""
    operators: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Format -> the engine's own operator by which it reads weights in it; ONNX Runtime has none of
    these, and the file that it is compared on has DequantizeLinear there."""
    fp32_is: str = ""
    """What it multiplies float32 in, by its own default; empty: float32."""
    builds_vary: bool = False
    """Two builds of one graph may choose other kernels."""
    builds_for: Literal["anywhere", "this gpu", "targets"] = "anywhere"
    """What its engines run on: all that it runs on, the GPU they are built on, or `targets`."""
    targets: tuple[str, ...] = ()
    """The compute capabilities it can build for on any machine."""
    no_fp32_product: tuple[str, ...] = ()
    """Those of `targets` for which it has no matrix product in FP32."""
    build: tuple[str, ...] = ()
    """The keys of a recipe's `build` that it takes. With `shapes`, it is built for a range of
    sizes."""
    any_size: bool = False
    """It takes any size of an axis that a file leaves open, without being told of shapes."""
    without: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Key of `build` that engines like it take -> why it does not."""
    programs: tuple[Program, ...] = ()
    """What builds and runs it where there is no Python: one for each range of versions."""


_TIMING_CACHE = "--timingCacheFile=timing.cache"
_TF32 = "TF32 (10 bits of mantissa), where the GPU has it, as its builder does by default"
_OPERATORS = MappingProxyType({"mxfp8": "TRT_MXFP8DequantizeLinear"})
_BUILD = ("optimization_level", "workspace_mb", "shapes", "seconds", "memory_mb")
_nvidia = functools.partial(
    EngineFacts,
    backend="granplugin.backends.nvidia.backend:Nvidia",
    device="gpu",
    precisions=("fp32", "fp16", "bf16"),
    targeted=True,
    tells_plan=True,
    operators=_OPERATORS,
    fp32_is=_TF32,
    builds_vary=True,
)

ENGINES: Mapping[str, EngineFacts] = {
    each.name: each
    for each in (
        EngineFacts(
            name="onnxruntime",
            backend="granplugin.backends.onnxruntime:OnnxRuntime",
            what_for="the numerical reference on the CPU (graph optimizations off; no latency)",
            package="onnxruntime",
            distributions=("onnxruntime",),
            extra=None,
            device="cpu",
            precisions=("fp32", "fp16"),
            used="always",
            measures_latency=False,
            any_size=True,
        ),
        EngineFacts(
            name="openvino",
            backend="granplugin.backends.openvino:OpenVino",
            what_for="accuracy and latency on the CPU, with real INT8 kernels",
            package="openvino",
            distributions=("openvino",),
            extra="openvino",
            device="cpu",
            precisions=("fp32", "fp16"),
            used="if installed",
            any_size=True,
            build=("shapes",),
        ),
        _nvidia(
            name="tensorrt",
            what_for="the target: builds and runs on an NVIDIA GPU (TensorRT 10 and 11)",
            package="tensorrt",
            distributions=("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
            extra="tensorrt",
            builds_for="this gpu",
            build=(*_BUILD, "timing_cache"),
            without={"targets": "builds for the GPU it runs on"},
            # 10.x is strongly typed only when told so, copies inputs and outputs on every call,
            # waits asleep and launches kernel by kernel unless told otherwise, and profiles in the
            # timed run; 11.x does none of this, and its flags for it are deprecated and without
            # effect.
            programs=(
                Program(
                    "run_10.sh",
                    "TensorRT 10.x",
                    "trtexec",
                    build=("--stronglyTyped", _TIMING_CACHE),
                    profile=("--separateProfileRun",),
                    time=("--useCudaGraph", "--useSpinWait", "--noDataTransfers"),
                ),
                Program("run_11.sh", "TensorRT 11.x", "trtexec", build=(_TIMING_CACHE,)),
            ),
        ),
        _nvidia(
            name="tensorrt_rtx",
            what_for="NVIDIA's compiler without a GPU: what the engine does; runs on RTX GPUs",
            package="tensorrt_rtx",
            distributions=("tensorrt-rtx-cu13", "tensorrt-rtx-cu12", "tensorrt-rtx"),
            extra="rtx",
            builds_for="targets",
            targets=("sm75", "sm80", "sm86", "sm89", "sm120"),
            no_fp32_product=("sm75",),
            build=(*_BUILD, "targets"),
            # It "forces the AOT step to query your system for a GPU" (TensorRT-RTX release notes).
            without={"timing_cache": "builds without timing"},
            programs=(Program("run_rtx.sh", "TensorRT-RTX", "tensorrt_rtx"),),
        ),
    )
}
REFERENCE = next(name for name, each in ENGINES.items() if not each.measures_latency)
"""The engine that the others' numbers are held to."""
PRECISIONS = tuple(dict.fromkeys(word for each in ENGINES.values() for word in each.precisions))
TARGETS = tuple(dict.fromkeys(target for each in ENGINES.values() for target in each.targets))
AUDITED = tuple(
    sorted(
        (name for name, each in ENGINES.items() if each.tells_plan),
        key=lambda name: ENGINES[name].builds_for == "this gpu",
    )
)
"""Engines with which a file can be audited, first those that build on every machine."""
EXPORTED = {name: each.programs for name, each in ENGINES.items() if each.programs}
"""Engine -> the programs that build and run it on another machine."""


def taking(key: str) -> tuple[str, ...]:
    """The engines that take this key of a recipe's `build`."""
    return tuple(name for name, each in ENGINES.items() if key in each.build)
