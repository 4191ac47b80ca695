"""What a reader should make of a verdict: good, bad, or that it is not known."""

from __future__ import annotations

from typing import Literal

SENSES: dict[str, Literal["good", "bad", "doubtful"]] = {
    "better": "good", "worse": "bad",
    "met": "good", "missed": "bad", "cannot tell": "doubtful",
    "within": "good", "above": "bad",
    "honoured": "good", "degraded": "bad", "wrong": "bad", "unknown": "doubtful",
}  # fmt: skip
"""Verdict of figures, limits, advice and sites -> its sense; one that is not here has none."""
