"""Pages on the words of recipes and reports: half a page each."""

from __future__ import annotations

from importlib.resources import files
from typing import get_args

from granplugin.engines import PromiseKind
from granplugin.quant.calibrators import CALIBRATORS
from granplugin.quant.formats import FORMATS
from granplugin.quant.granularity import GRANULARITIES
from granplugin.recipe.decisions import WAYS
from granplugin.recipe.presets import PRESETS
from granplugin.recipe.settings import FLOAT
from granplugin.results.audited import Kind as VerdictKind

TOPICS: dict[str, tuple[str, ...]] = {
    "granularity": tuple(GRANULARITIES),
    "formats": (*FORMATS, FLOAT),
    "calibrators": (*CALIBRATORS, "amax"),
    "batch-norms": ("bn", "fold", "keep"),
    "defaults": tuple(PRESETS),
    "promises": get_args(PromiseKind),
    "verdicts": (*get_args(VerdictKind), "fused-dequant", "weight-only"),
    "on_unsupported": WAYS,
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
