"""compare: what two engines do, or what two runs measured, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from granplugin.audits.comparison import Comparison, aligned, plan_of
from granplugin.audits.engine_plans import profile_of
from granplugin.audits.shapes import parse_shapes
from granplugin.errors import EngineError
from granplugin.runs.compared import RunsCompared, compare_runs


def compare(
    a: Path,
    b: Path,
    backend: str,
    batch: int = 1,
    profiles: Sequence[Path] = (),
    shapes: Sequence[str] = (),
) -> Comparison | RunsCompared:
    """Compare what two engines do, or what two runs measured, where both are run folders. Each is an engine's folder, its layers (layers.json or
    layers.txt), or an ONNX file or a variant's folder in a run, which are built here on `backend`
    for `batch` samples, or for these `shapes` (FORM of audits.shapes); `profiles` are trtexec's of
    both. Raises UserError."""
    if all((path / "report.json").is_file() for path in (a, b)):
        return compare_runs(a, b)
    if len(profiles) not in (0, 2):
        raise EngineError("give --profile twice, first for A and then for B, or not at all")
    notes: list[str] = []
    plans = []
    for path in (a, b):
        plan, chosen = plan_of(path, backend, batch, parse_shapes(shapes))
        plans.append(plan)
        notes += (note for note in chosen if note not in notes)
    for at, profile in enumerate(profiles):
        plans[at] = plans[at].timed(profile_of(profile))
    ours, theirs = ({tensor.name: tensor.shape for tensor in plan.io} for plan in plans)
    differ = [name for name in ours if name in theirs and ours[name] != theirs[name]]
    if differ:
        name = differ[0]
        notes.append(
            f"A is built for {name} {list(ours[name])} and B for {list(theirs[name])}: their bytes "
            "are not comparable"
        )
    return Comparison((str(a), str(b)), (plans[0], plans[1]), aligned(*plans), tuple(notes))
