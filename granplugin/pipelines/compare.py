"""compare: what two engines do, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from granplugin.audits.comparison import Comparison, aligned, plan_of
from granplugin.audits.engine_plans import profile_of
from granplugin.errors import EngineError


def compare(
    a: Path, b: Path, backend: str, batch: int = 1, profiles: Sequence[Path] = ()
) -> Comparison:
    """Compare what two engines do. Each is an engine's folder, its layers (layers.json or
    layers.txt), or an ONNX file or a variant's folder in a run, which are built here on `backend`
    for `batch` samples; `profiles` are trtexec's of both. Raises UserError."""
    if len(profiles) not in (0, 2):
        raise EngineError("give --profile twice, first for A and then for B, or not at all")
    plans = [plan_of(path, backend, batch) for path in (a, b)]
    for at, profile in enumerate(profiles):
        plans[at] = plans[at].timed(profile_of(profile))
    notes = []
    ours, theirs = ({tensor.name: tensor.shape for tensor in plan.io} for plan in plans)
    differ = [name for name in ours if name in theirs and ours[name] != theirs[name]]
    if differ:
        name = differ[0]
        notes.append(
            f"A is built for {name} {list(ours[name])} and B for {list(theirs[name])}: their bytes "
            "are not comparable"
        )
    return Comparison((str(a), str(b)), (plans[0], plans[1]), aligned(*plans), tuple(notes))
