"""Everything that an analysis measured, which the rest of it explains, advises on and tells."""

from __future__ import annotations

from dataclasses import dataclass

from granplugin.analysis.losses import LayerLosses, SiteLosses
from granplugin.analysis.outputs import OutputEffects
from granplugin.analysis.promised import Promised
from granplugin.analysis.questions import Questions
from granplugin.analysis.ranges import Ranges
from granplugin.calibration.statistics import Statistics


@dataclass(frozen=True)
class Evidence:
    """`layers` are those asked about, the worst first by what they do to the network's output;
    `sites` are the others, the worst first by what their own tensors lose."""

    questions: Questions
    statistics: Statistics
    ranges: Ranges
    promised: Promised
    outputs: OutputEffects
    layers: tuple[LayerLosses, ...]
    sites: tuple[SiteLosses, ...]
