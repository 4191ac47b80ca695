"""What is installed, which engines work, and why the others do not."""

from __future__ import annotations

from granplugin.report.schema.verbs import DoctorOutput, EngineState
from granplugin.report.view.elements import Paragraph, Section, Terms


def doctor_view(output: DoctorOutput) -> Section:
    """The machine, its packages, and each engine."""
    machine = output.machine
    packages = (
        *machine.packages.items(),
        *((name, f"missing; pip install {name}") for name in output.missing),
    )
    return Section(
        "",
        (
            Paragraph(f"granplugin {output.granplugin}, Python {machine.python}, {machine.system}"),
            Paragraph(f"{machine.processor}, {machine.cores} cores"),
            Terms((("NVIDIA GPU", output.gpu),)),
            Section("", (Terms(packages),)),
            *(Section("", (Terms(_engine(engine)),)) for engine in output.engines),
        ),
    )


def _engine(engine: EngineState) -> tuple[tuple[str, str], ...]:
    told = [engine.what_for]
    if engine.unavailable:
        told.append(engine.unavailable)
    else:
        if engine.cannot_run:
            told += [f"{engine.version} builds and audits here, and cannot run:", engine.cannot_run]
        else:
            told.append(f"{engine.version} works")
        if engine.targets:
            told.append(f"builds for {', '.join(engine.targets)}")
    return tuple(zip((engine.engine, *[""] * len(told)), told, strict=False))
