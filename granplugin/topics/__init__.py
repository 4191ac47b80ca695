"""Pages on the words of recipes and reports: half a page each."""

from __future__ import annotations

from importlib.resources import files

TOPICS: dict[str, tuple[str, ...]] = {
    "granularity": ("per_tensor", "per_channel", "per_token", "per_block", "per_element"),
    "formats": ("int8", "int4", "fp8", "mxfp8", "float"),
    "calibrators": ("max", "percentile", "entropy", "mse", "amax"),
    "batch-norms": ("bn", "fold", "keep"),
    "defaults": ("tensorrt@11", "modelopt@0.47"),
    "promises": ("native", "lowered", "simulated", "refused"),
    "on_unsupported": ("error", "lower", "coarsen", "simulate"),
    "verdicts": ("honoured", "degraded", "unknown", "fused-dequant", "weight-only"),
    "wrong": ("held",),
    "coverage": ("products",),
    "sqnr": ("sqnr_db", "db"),
    "interval": ("=", "better", "worse", "power", "cannot tell"),
    "half": ("half: allow",),
    "exit-codes": ("0", "1", "2", "3", "4", "70", "130"),
}
"""A page -> other words that lead to it."""


def page(topic: str) -> str:
    """The page of a key of TOPICS, in at most 80 columns."""
    return (files(__package__) / "pages" / f"{topic}.txt").read_text(encoding="utf-8")
