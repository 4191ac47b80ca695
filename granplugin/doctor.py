"""doctor: what is installed, which engines work, and why the others do not."""

from __future__ import annotations

import re
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, requires, version

import granplugin
from granplugin import backends
from granplugin.report import build
from granplugin.report.verbs import DoctorOutput, EngineState


def examine() -> DoctorOutput:
    """Look at this machine; imports no engine."""
    engines = []
    for name in backends.BACKENDS:
        module = backends.load(name)
        reason = module.unavailable()
        engines.append(
            EngineState(
                engine=name,
                what_for=module.what_for,
                version=None if reason else module.version(),
                unavailable=reason,
                cannot_run=None if reason else module.can_run(),
            )
        )
    return DoctorOutput(
        granplugin=granplugin.__version__,
        machine=build.machine(),
        gpu=gpu(),
        engines=engines,
        missing=missing(),
    )


def missing() -> list[str]:
    """The packages granplugin declares that are not installed."""
    absent = []
    try:
        declared = requires("granplugin") or []
    except PackageNotFoundError:
        return ["granplugin itself: pip install -e ."]
    for requirement in declared:
        if "extra ==" in requirement:
            continue
        name = re.match(r"[A-Za-z0-9_.-]+", requirement).group()
        try:
            version(name)
        except PackageNotFoundError:
            absent.append(name)
    return absent


def gpu() -> str | None:
    """The first NVIDIA GPU and its driver, or None."""
    if not shutil.which("nvidia-smi"):
        return None
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True
        ).stdout
    except (subprocess.SubprocessError, OSError):
        return None
    return told.strip().splitlines()[0] if told.strip() else None


def lines(found: DoctorOutput) -> list[str]:
    """The same as text."""
    machine = found.machine
    told = [
        f"granplugin {found.granplugin}, Python {machine.python}, {machine.system}",
        f"{machine.processor}, {machine.cores} cores; NVIDIA GPU: {found.gpu or 'none'}",
        "",
    ]
    told += [f"{name:<18} {number}" for name, number in machine.packages.items()]
    told += [f"{name:<18} missing; pip install {name}" for name in found.missing]
    told.append("")
    for engine in found.engines:
        state = engine.unavailable or f"works ({engine.version})"
        if engine.cannot_run:
            state = f"builds and audits ({engine.version}), cannot run: {engine.cannot_run}"
        told.append(f"{engine.engine:<18} {state}")
        told.append(f"{'':<18} {engine.what_for}")
    return told
