"""analysis.json: what was asked of each layer, what was measured, why, and what to do. Versioned;
nothing else is needed to print an analysis again."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from granplugin.engines import PromiseKind
from granplugin.report.schema.parts import Coverage, Machine, MovedBytes
from granplugin.results.parts import Number, Part

VERSION = 2
ALL = "all"
"""The setting of a layer that is skipped whole."""


class Sqnr(Part):
    """Signal to quantization noise, 10 log10(sum of squares / sum of squared changes)."""

    db: Number | None = Field(description="inf: nothing changed; null: there is no signal.")
    low: Number | None = Field(
        description="95 % interval of the figure on all samples; null: exact."
    )
    high: Number | None
    relative_error: float | None = Field(description="Of the root mean square; 10^(-dB / 20).")
    samples: int = Field(description="Samples it was measured on; 0: it is of a weight.")


class Share(Part):
    """A mean over samples, with its 95 % interval."""

    value: Number
    low: Number | None = None
    high: Number | None = None
    unit: str = Field(description="`points` and `%` have two decimals in texts.")


class NetworkEffect(Part):
    """What is left of the network's output, against FP32."""

    sqnr: Sqnr
    kl: Share | None = Field(description="KL(fp32 || this) of the class probabilities, nats.")
    agreement: Share | None = Field(description="Decisions that equal fp32's.")
    metric: Share | None = Field(description="The metric, where there are labels.")
    loss: Share = Field(description="In points; what `loss` at the top says it is of.")


class EngineCost(Part):
    """What one engine makes of a setting, and what it costs there."""

    promise: PromiseKind | Literal["float"]
    reason: str
    kernels: int | None = Field(description="Of the layer, in a built engine; null: not measured.")
    mb: float | None = Field(
        description="MB that they read and write for a batch of data.batch_size samples, all of "
        "`moved`; null: not measured."
    )
    moved: MovedBytes | None = Field(default=None, description="The parts of it.")
    unmeasured: str | None = Field(description="Why there are none.")


class SettingFigures(Part):
    """One setting of one site, with what it does to the layer."""

    setting: str = Field(description="In a few words, as `per_channel, bn keep`.")
    format: str
    granularity: str | None = Field(description="null: float.")
    calibrator: str | None
    bn: Literal["fold", "keep"] | None
    start: bool = Field(description="It is the recipe's own.")
    scales: int = Field(description="Scales stored; 0 where they are found at run time.")
    scale_bytes: int
    weight: Sqnr | None = Field(description="Of the weight itself; null for inputs.")
    alone: Sqnr | None = Field(description="Of the layer's output, this site alone rounded.")
    both: Sqnr | None = Field(
        description="Of the layer's output, with the layer's other site as the recipe has it."
    )
    network: NetworkEffect | None = Field(
        description="The network with this layer alone quantized, its other site as the recipe has "
        "it; null: not measured, which analyze.effects decides."
    )
    channels_lost: float | None = Field(
        description="Share of the output channels' signal that rounding this site alone takes: "
        "the mean over channels of min(1, noise / signal)."
    )
    clipped: float | None = Field(description="Share of values beyond the range, in percent.")
    zeroed: float | None = Field(description="Share of nonzero values rounded to 0, in percent.")
    zero_range: bool = Field(description="It saw only zeros, and stays float.")
    costs: dict[str, EngineCost] = Field(description="By engine.")


class Facts(Part):
    """What a layer's channels are like."""

    spread_before: float | None = Field(description="Largest / median channel range of the weight.")
    spread_after: float | None = Field(description="The same behind batch norm folding.")
    widest_before: int | None
    widest_after: int | None
    dead_channels: int
    outlier_channels: list[int] = Field(description="Over 10 times the median, folded.")
    input_spread: float | None = Field(description="Largest / median channel range of the input.")
    widest_input: int | None
    input_outliers: list[int]
    dead_inputs: int
    sample_spread: float | None = Field(
        description="Largest / median of the samples' largest |input|."
    )
    outlier_samples: int = Field(description="Samples over 10 times that median.")


class LayerAnalysis(Part):
    """One layer, worst first."""

    rank: int
    layer: str
    type: str
    traits: list[str]
    calls: int
    weights: list[SettingFigures]
    inputs: list[SettingFigures]
    facts: Facts
    alone: NetworkEffect | None = Field(
        description="The network with only this layer quantized, as the recipe has it; null: not "
        "among the layers that were measured at the network's output."
    )
    restored: NetworkEffect | None = Field(
        description="The network with all the recipe quantizes, but not this layer."
    )
    loss_in: Literal["weight", "input", "both", "neither"] = Field(
        description="Which of the recipe's roundings changes the layer's output more; both: each by "
        "itself takes much of what the other takes."
    )
    why: str = Field(description="One sentence.")


class SiteAnalysis(Part):
    """What the recipe quantizes besides the factors of layers' products: a skip input, an output,
    an input of a layer without weights. Its figures are of the tensor itself, in `alone`."""

    site: str
    layer: str
    role: str
    settings: list[SettingFigures]


class SkippedSetting(Part):
    """A setting that was not tried on a site, and why."""

    site: str = Field(description="A layer where the setting is `all`.")
    setting: str = Field(description="`all`: the layer is skipped whole.")
    reason: str


class Override(Part):
    """One rule of the suggested recipe."""

    layers: list[str]
    rule: dict[str, Any] = Field(description="As it stands in the recipe.")
    reason: str


class Advice(Part):
    """What to do."""

    verdict: Literal["within", "above", "cannot tell"] = Field(
        description="Of the recipe's own loss, with its interval: within the tolerance, above it, or "
        "the samples cannot tell, which is exit code 4; nothing is within the tolerance whose outputs "
        "have an SQNR below 10 dB."
    )
    enough_samples: int | None = Field(
        description="How many samples could tell, with a power of 80 %; null: they can, or no "
        "number is known."
    )
    said: str = Field(description="In one or two sentences.")
    overrides: list[Override] = Field(description="Empty where the network needs nothing.")
    suggested: NetworkEffect | None = Field(
        description="With the overrides, on the half of the samples that nothing was chosen by; "
        "null without any."
    )
    promise: Literal["within", "above", "cannot tell"] | None = Field(
        description="Of that loss, as `verdict`; null without overrides."
    )
    per_tensor: int = Field(description="Weights that have one scale then.")
    layers: int = Field(description="Weights that are quantized then, those of calls too.")


class Analysis(Part):
    """`granplugin analyze --json`, and analysis.json."""

    version: int = VERSION
    granplugin: str
    recipe: str
    machine: Machine
    data: Literal["analysis", "calibration"] = Field(
        description="Which of the recipe's data it was measured on."
    )
    samples: int = Field(description="Of these data.")
    local_samples: int = Field(description="Drawn of them for local errors.")
    calibration_samples: int
    batch_size: int = Field(description="Samples of a batch; what engines move is for one.")
    seconds: dict[str, float] = Field(description="By stage; a stage that was kept takes none.")
    loss: Literal["metric", "decisions", "outputs"] = Field(
        description="What a loss is: points of the metric below fp32; percent of decisions that "
        "differ from fp32's; the outputs' relative error in percent."
    )
    metric: str | None
    tolerance: float
    fp32: Share | None = Field(description="The metric of fp32.")
    start: NetworkEffect | None = Field(
        description="With all that the recipe quantizes; null: it quantizes nothing whose settings could be tried."
    )
    finest: NetworkEffect = Field(
        description="With the setting of each layer that, of those asked that round, loses least "
        "there; other sites as the recipe has them or float, whichever loses less."
    )
    layers: list[LayerAnalysis]
    sites: list[SiteAnalysis] = Field(description="Worst first.")
    skipped: list[SkippedSetting]
    advice: Advice
    notes: list[str]
    coverage: Coverage | None = Field(
        default=None, description="The recipe's, of all that the network multiplies."
    )
