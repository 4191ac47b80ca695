"""What an engine's kernels move, in MB and in words."""

from __future__ import annotations

from granplugin.report.schema.parts import MovedBytes
from granplugin.report.view.elements import Column, columns

PARTS = ("activations", "weights", "scales", "other")
MOVED = "MB moved"


def moved_told(moved: MovedBytes) -> str:
    """All of it with its parts, in a sentence.

    >>> moved_told(MovedBytes(activations=2100000, weights=90000, scales=0, other=0, total=2190000))
    '2.19 MB moved (activations 2.10, weights 0.09)'
    >>> moved_told(MovedBytes(activations=2e6, weights=None, scales=None, other=None, total=None))
    '2.00 MB of activations moved (weights not told)'
    """
    if moved.activations is None:
        return "bytes unknown (open sizes)"
    if moved.total is None:
        return f"{_mb(moved.activations)} MB of activations moved (weights not told)"
    parts = [(name, getattr(moved, name)) for name in PARTS]
    sizes = ", ".join(f"{name} {_mb(size)}" for name, size in parts if size >= 5000)
    return f"{_mb(moved.total)} {MOVED}" + (f" ({sizes})" if sizes else "")


def moved_cells(moved: MovedBytes | None) -> list[str | None]:
    """Each part and all of it; None where there is no plan, or nothing of the kind."""
    if moved is None:
        return [None] * (len(PARTS) + 1)
    parts = [getattr(moved, name) for name in PARTS]
    return [_cell(size) if size != 0 else None for size in parts] + [_cell(moved.total)]


def moved_heads() -> tuple[Column, ...]:
    """Of `moved_cells`."""
    return columns(*PARTS, "sum")


def _cell(size: int | None) -> str:
    return "unknown" if size is None else _mb(size)


def _mb(size: int) -> str:
    return f"{size / 1e6:.2f}"
