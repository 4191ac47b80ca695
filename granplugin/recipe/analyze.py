"""The section `analyze`: what is tried, and how much it may take."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from granplugin.quant.calibrators import Calibrator
from granplugin.quant.granularity import Granularity, PerChannel, PerTensor, PerToken
from granplugin.recipe.settings import CalibratorKey, Settings, SettingsKey
from granplugin.recipe.strict import OneOf, OrAlone, Positive, Strict


def _at(granularity: Granularity, calibrator: str) -> Settings:
    return Settings(granularity=granularity, calibrator=Calibrator(calibrator))


class Analyze(Strict):
    """What `granplugin analyze` asks about, and how much it may take."""

    weights: Annotated[list[SettingsKey], OrAlone()] = Field(
        default=[_at(PerTensor(), "max"), _at(PerChannel(), "max")],
        description="What to try for weights; an entry without a calibrator is tried with each of "
        "`calibrators`.",
        examples=[["per_tensor", {"per_block": {"size": 16}}]],
    )
    inputs: Annotated[list[SettingsKey], OrAlone()] = Field(
        default=[
            Settings(granularity=PerTensor()),
            _at(PerChannel(), "max"),
            Settings(granularity=PerToken(dynamic=True)),
        ],
        description="What to try for inputs; likewise.",
        examples=[["per_tensor"]],
    )
    calibrators: Annotated[list[CalibratorKey], OrAlone()] = Field(
        default=[
            Calibrator("max"),
            Calibrator("percentile", 99.9),
            Calibrator("percentile", 99.99),
            Calibrator("entropy"),
            Calibrator("mse"),
        ],
        description="What entries without a calibrator are tried with.",
        examples=[["max", {"percentile": 99.99}]],
    )
    bn: Annotated[list[Annotated[str, OneOf("choice", ("fold", "keep"))]], OrAlone()] = Field(
        default=["fold", "keep"],
        description="What to try where a batch norm can be folded.",
        examples=[["fold"]],
    )
    exact: bool = Field(
        default=False,
        description="Measure local errors on every sample; default: on a random quarter of them.",
        examples=[True],
    )
    top: int = Field(
        default=15,
        ge=0,
        description="How many of the worst layers to measure at the network's output, and of its "
        "loudest to leave float at most where no setting is enough.",
        examples=[5],
    )
    effects: Annotated[str, OneOf("choice", ("own", "all"))] = Field(
        default="own",
        description="What is measured there: the recipe's own setting of each of them, or all.",
        examples=["all"],
    )
    tolerance: float = Field(
        default=1.0,
        ge=0,
        description="Loss against fp32 that is accepted, in points: of the metric, of decisions "
        "that differ from fp32's, or of the outputs' relative error.",
        examples=[0.5],
    )
    choices: int = Field(
        default=200,
        ge=1,
        description="How many choices of settings for the whole network to measure, at most about, "
        "when looking for what to advise.",
        examples=[50],
    )
    memory_mb: Positive = Field(
        default=256,
        description="For histograms; what does not fit is left out, and listed.",
        examples=[1024],
    )
