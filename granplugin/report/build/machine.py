"""This machine, as far as a figure needs it."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

from granplugin.engines import ENGINES
from granplugin.report.schema.parts import Machine

_PACKAGES = (
    "nvidia-modelopt", "torch", "numpy", "onnx",
    *(each.package for each in ENGINES.values() if each.device == "cpu"),
)  # fmt: skip


def machine() -> Machine:
    """Its processor, the cores this process may use, and the versions of what computes here."""
    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return Machine(
        system=f"{platform.system()} {platform.machine()}",
        processor=_processor(),
        cores=_cores(),
        python=platform.python_version(),
        packages=packages,
    )


def _cores() -> int:
    """Those that this process may use, where the system tells."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [
                line.partition(":")[2].strip() for line in file if line.startswith("model name")
            ]
        return names[0] if names else platform.processor()
    except OSError:
        return platform.processor() or "unknown"
