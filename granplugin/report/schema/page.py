"""page.json: what report.html shows besides the report and the analysis, and the data in it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from granplugin.results.parts import Number, Part

MOST_CHANNELS = 256
"""More channels than these are shown in groups, each by its largest range."""


class Histogram(Part):
    """How often |x| fell into each bin; the first bin begins at 0."""

    edges: list[float] = Field(description="One more than counts, rising.")
    counts: list[int]


class LayerRanges(Part):
    """The ranges - largest |value| - of a layer's weight, channel by channel, and of its input."""

    layer: str
    before: list[float] = Field(default=[], description="By output channel, as the model has it.")
    after: list[float] | None = Field(
        default=None, description="With the batch norm folded in; null: there is none to fold."
    )
    group: int = Field(default=1, description="Channels that each of these is the largest of.")
    input: Histogram | None = Field(
        default=None, description="Of the input over the calibration data; null: not collected."
    )
    clips: dict[str, float] = Field(
        default={}, description="How the input was calibrated -> where it is clipped."
    )


class RecipeText(Part):
    """A recipe as it was read."""

    path: str
    text: str
    sha256: str


class KeptForPage(Part):
    """page.json, and analysis_page.json."""

    version: Literal[1] = 1
    layers: list[LayerRanges] = []
    recipes: list[RecipeText] = []
    command: str = ""
    seeds: dict[str, int] = {}
    files: dict[str, str] = Field(
        default={}, description="Weights, data and code that were read -> their SHA-256."
    )


class Figure(Part):
    """A measured value and its 95 % interval, if it has one."""

    value: Number
    low: float | None = None
    high: float | None = None


class Axis(Part):
    """Something that variants are compared by."""

    key: str
    title: str
    better: Literal["less", "more"]


class Spot(Part):
    """A variant in the plane of two axes."""

    name: str
    kind: Literal["baseline", "recipe", "variant"]
    figures: dict[str, Figure]
    says: list[str]
    wrong: bool


class HeatCell(Part):
    """One setting of one operand; `figures` by measure."""

    role: str
    setting: str
    figures: dict[str, Number | None]
    start: bool = Field(description="The recipe's own.")
    chosen: bool = Field(description="What the advice comes to; the recipe's own without advice.")
    says: str


Told = tuple[str, Literal["good", "bad", "doubtful", "plain"]]
"""What is said of something, and what to make of it."""


class Decided(Part):
    """What a variant asks of an operand, which rule decided it, and what became of it."""

    variant: str
    role: str
    asked: str
    rule: str
    where: str
    text: str = Field(description="The rule's own lines.")
    engines: dict[str, Told]


class PageFinding(Part):
    """A lint finding on a layer."""

    engine: str
    variant: str
    code: str
    says: str
    instead: str
    rule: str = Field(description="The same as a rule to paste; empty where it is no key's value.")


class PageLayer(Part):
    """All that is shown of a layer."""

    name: str
    type: str
    traits: list[str] = []
    rank: int | None = None
    why: str = ""
    loss: Figure | None = None
    cells: list[HeatCell] = []
    decided: list[Decided] = []
    findings: list[PageFinding] = []
    ranges: LayerRanges | None = None


class Kernel(Part):
    """One kernel of an engine's plan."""

    name: str
    does: Literal["low", "float", "moves", "unknown"] = Field(
        description="Multiplies in fewer bits, multiplies in float, does not multiply, not told."
    )
    arithmetic: str
    bytes: int | None
    nodes: list[str]


class EnginePlanOf(Part):
    """The kernels of a variant on an engine, in order."""

    engine: str
    variant: str
    kernels: list[Kernel]


class PageData(Part):
    """What the page's script reads."""

    x: list[Axis] = []
    y: list[Axis] = []
    spots: list[Spot] = []
    measures: list[Axis] = []
    loss: str = Field(default="", description="What a layer's loss is of.")
    layers: list[PageLayer] = []
    plans: list[EnginePlanOf] = []
