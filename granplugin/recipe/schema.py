"""The recipe's keys: strict, frozen, versioned. Every key says, where it is declared, what it means.

`granplugin schema` prints this as JSON Schema; nothing else validates a recipe's text.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from granplugin.engines import ENGINES, PRECISIONS
from granplugin.measures.metrics import METRICS
from granplugin.recipe.analyze import Analyze
from granplugin.recipe.build import Build
from granplugin.recipe.data import DataSpec
from granplugin.recipe.decisions import (
    OnUnsupported,
    Rule,
    SharesKey,
    Variant,
)
from granplugin.recipe.model import ModelKey
from granplugin.recipe.presets import DEFAULT, PRESETS, DefaultsKey
from granplugin.recipe.strict import Callable, File, OneOf, OrAlone, Strict, at_key

VERSION = 1
_ALWAYS, _IF_INSTALLED = (
    [name for name, each in ENGINES.items() if each.used == when]
    for when in ("always", "if installed")
)
"""The engines of a recipe that names none."""


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
"""Of a folder, too."""


class Limits(Strict):
    """What must hold, else the exit code is 1."""

    top1_drop: float | None = Field(
        default=None,
        ge=0,
        description="Points against fp32, at the interval's unfavourable end.",
        examples=[1.0],
    )
    latency_vs: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default={},
        description="Baseline -> largest allowed ratio of median latencies.",
        examples=[{"fp16": 0.9}],
    )
    unhonoured: int | None = Field(
        default=None,
        ge=0,
        description="Rows that an engine may compute otherwise than asked.",
        examples=[0],
    )


class LatencySpec(Strict):
    """How latency is measured."""

    rounds: int = Field(default=20, ge=6, description="Interleaved rounds.", examples=[40])
    seconds: float = Field(
        default=3.0, gt=0, description="At most so long for each variant.", examples=[5.0]
    )


class QatSpec(Strict):
    """What `granplugin.quantize` makes of a model for fine-tuning."""

    learn_ranges: bool = Field(
        default=False,
        description="Ranges (amax) are parameters, trained with the weights; else they stay as "
        "calibrated. Those of weights start where the error of what the layer computes is least.",
        examples=[True],
    )
    batch_norms: Annotated[str, OneOf("choice", ("updated", "frozen"))] = Field(
        default="updated",
        description="Of those that are not folded, while training: updated with each batch, or "
        "frozen as they are.",
        examples=["frozen"],
    )


class StatisticsSpec(Strict):
    """Ranges from and to a file."""

    import_: File | None = Field(
        default=None,
        alias="import",
        description="JSON file of amax to use.",
        examples=["amax.json"],
    )
    export: File | None = Field(
        default=None, description="Where to write this run's amax.", examples=["amax.json"]
    )


class ClassesSpec(Strict):
    """Where decisions are read: the output with a score for each class, and the axis of these."""

    output: str | None = Field(
        default=None, description="Its name; default: the only one that may.", examples=["logits"]
    )
    axis: int | None = Field(
        default=None,
        description="Of the classes, as 1 of (samples, classes, height, width) or -1 of (samples, "
        "tokens, classes); not 0, the samples.",
        examples=[1],
    )


class RecipePart(Strict):
    """A recipe without the model or the data it is for: what others extend, or what a script says
    of a model of its own."""

    version: int = Field(description="Of this schema: 1.", examples=[1])
    name: Name = Field(
        default="",
        description="Names the run folder runs/<name>; default: the file's name.",
        examples=["edge"],
    )
    extends: Annotated[list[File], OrAlone(least=0)] = Field(
        default=[],
        description="Recipes whose keys and rules come before this one's, in order.",
        examples=[["base.yaml"]],
    )
    model: ModelKey | None = Field(
        default=None,
        description="Where the network comes from.",
        examples=[{"callable": "nets.py:tiny"}],
    )
    device: Annotated[str, OneOf("device", ("cpu", "cuda", "auto"), (("gpu", "cuda"),))] = Field(
        default="cpu",
        description="Where the model runs for calibration; auto: cuda if there.",
        examples=["auto"],
    )
    data: DataSpec | None = Field(
        default=None,
        description="What it is calibrated on and measured with.",
        examples=[{"calibration": {"npz": "data.npz", "inputs": {"image": "images"}}}],
    )
    metrics: list[Annotated[str, OneOf("metric", tuple(METRICS))]] = Field(
        default=["agreement", "sqnr_db"],
        min_length=1,
        description="What is measured on the evaluation data.",
        examples=[["top1", "agreement"]],
    )
    classes: ClassesSpec | None = Field(
        default=None,
        description="Which output has a score for each class, for top1, top5, agreement and analyze; "
        "default: the only one of shape (samples, classes).",
        examples=[{"output": "logits", "axis": 1}],
    )
    evaluate: Callable | None = Field(
        default=None,
        description="fn(predict, data) -> {metric: value, per_sample: {metric: [..]}, "
        "lower_is_better: [metric]}.",
        examples=["measure.py:errors"],
    )
    defaults: DefaultsKey = Field(
        default=DEFAULT,
        description="What a layer gets before any rule.",
        examples=["modelopt@0.47"],
    )
    base: str | None = Field(
        default=None,
        description="One of modelopt's configs, in place of defaults: a preset's name "
        "(modelopt:INT8_DEFAULT_CFG), one of its recipes (modelopt:huggingface/vit/ptq/fp8), or a "
        "file of their form. Rules override it; rules.<name>[3] is its entry 3.",
        examples=["modelopt:INT8_DEFAULT_CFG"],
    )
    rules: list[Rule] = Field(
        default=[],
        description="Overrides, in order: the last that matches decides, key by key.",
        examples=[[{"match": "stem.*", "format": "float"}]],
    )
    share: SharesKey = Field(
        default=[],
        description="Sites with one scale, the largest of theirs: layers and a role, or concat - "
        "around each concatenation, all that reads one of its inputs or its result.",
        examples=[["concat"]],
    )
    variants: dict[Name, Variant] = Field(
        default={},
        description="Name -> what to change; built and compared in the same run.",
        examples=[{"without-rescue": {"drop": ["rescue"]}}],
    )
    statistics: StatisticsSpec = Field(
        default=StatisticsSpec(),
        description="Ranges (amax) from and to a JSON file.",
        examples=[{"export": "amax.json"}],
    )
    qat: QatSpec = Field(
        default=QatSpec(),
        description="Fine-tuning with granplugin.quantize.",
        examples=[{"learn_ranges": True}],
    )
    optional_engines: list[Annotated[str, OneOf("engine", tuple(ENGINES))]] = Field(
        default=[],
        description="Engines to use where they are installed, and else to leave out; default: "
        f"{' and '.join(_IF_INSTALLED)} where no engines are named.",
        examples=[list(ENGINES)[-1:]],
    )
    engines: list[Annotated[str, OneOf("engine", tuple(ENGINES))]] = Field(
        default=_ALWAYS,
        min_length=1,
        description="What variants are built and measured with.",
        examples=[list(ENGINES)[:2]],
    )
    precision: Annotated[str, OneOf("precision", PRECISIONS)] = Field(
        default="fp32",
        description="What everything that is not quantized is computed in; also where a preset is "
        "a baseline.",
        examples=["fp16"],
    )
    baselines: list[Annotated[str, OneOf("baseline", ("fp32", "fp16", *PRESETS))]] = Field(
        default=["fp32", DEFAULT],
        description="What the recipe is compared with; fp16: nothing quantized, all in float16.",
        examples=[["fp32", "fp16"]],
    )
    on_unsupported: OnUnsupported = Field(
        default=("error",),
        description="Where TensorRT or TensorRT-RTX has no kernel for a granularity: an error at "
        "the rule's line; lower: made exactly from what there is, where that can be; coarsen: the "
        "finest coarser granularity it has (block, channel, tensor); simulate: float on the "
        "device, for accuracy only; float: the layer is not quantized. Of a list, the first that "
        "can be done. Each engine has its own; model.onnx keeps what the rules say.",
        examples=[["lower", "coarsen"]],
    )
    build: Build = Field(
        default=Build(),
        description="How TensorRT and TensorRT-RTX build.",
        examples=[{"optimization_level": 3}],
    )
    latency: LatencySpec = Field(
        default=LatencySpec(), description="How latency is measured.", examples=[{"rounds": 40}]
    )
    analyze: Analyze = Field(
        default=Analyze(),
        description="What `granplugin analyze` asks about, and on how much.",
        examples=[{"tolerance": 0.5}],
    )
    limits: Limits = Field(
        default=Limits(),
        description="What must hold, else exit code 1.",
        examples=[{"top1_drop": 1.0}],
    )

    @model_validator(mode="before")
    @classmethod
    def _version(cls, data: Any) -> Any:
        if isinstance(data, dict) and "version" in data and data["version"] != VERSION:
            raise at_key(
                "version", f"version {data['version']!r} is not known; this is version {VERSION}"
            )
        if isinstance(data, dict) and not {"engines", "optional_engines"} & data.keys():
            return {**data, "optional_engines": list(_IF_INSTALLED)}
        return data


class Recipe(RecipePart):
    """A recipe: one model, its data, and what is quantized how."""

    model: ModelKey = Field(
        description="Where the network comes from.", examples=[{"callable": "nets.py:tiny"}]
    )
    data: DataSpec = Field(
        description="What it is calibrated on and measured with.",
        examples=[{"calibration": {"npz": "data.npz", "inputs": {"image": "images"}}}],
    )


def json_schema() -> dict[str, Any]:
    """The recipe's JSON Schema (2020-12), for editors."""
    schema = Recipe.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
