"""doctor: what is installed, which engines work, and why the others do not."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, requires, version

import granplugin
from granplugin import backends
from granplugin.backends.gpu import gpu, trouble
from granplugin.engines import ENGINES
from granplugin.report.build.machine import machine
from granplugin.report.schema.verbs import DoctorOutput, EngineState


def examine() -> DoctorOutput:
    """Look at this machine; imports no engine."""
    engines = []
    for name, facts in ENGINES.items():
        module = backends.backend_of(name)
        reason = module.unavailable()
        engines.append(
            EngineState(
                engine=name,
                what_for=facts.what_for,
                version=None if reason else module.version(),
                unavailable=reason,
                cannot_run=None if reason else module.can_run(),
                targets=list(facts.targets),
            )
        )
    return DoctorOutput(
        granplugin=granplugin.__version__,
        machine=machine(),
        gpu=_gpu(),
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
        name = re.split(r"[^A-Za-z0-9_.-]", requirement)[0]
        try:
            version(name)
        except PackageNotFoundError:
            absent.append(name)
    return absent


def _gpu() -> str:
    """The GPU and its driver, or why there is none."""
    card = gpu()
    if card:
        return f"{card.name} ({card.target}), driver {card.driver}"
    return f"none; {trouble()}" if trouble() else "none"
