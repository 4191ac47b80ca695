"""Who decides what for a layer: defaults, rules, shared scales, and what variants change."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from granplugin.quant.site import OPERANDS
from granplugin.recipe.algorithms import AlgorithmKey
from granplugin.recipe.match import MatchKey
from granplugin.recipe.settings import FormatKey, SettingsKey
from granplugin.recipe.strict import OneOf, OrAlone, Strict

WAYS = ("error", "lower", "coarsen", "simulate", "float")
OnUnsupported = Annotated[tuple[Annotated[str, OneOf("choice", WAYS)], ...], OrAlone()]
"""The first of these that can be done is."""


def _of(operand: str, *examples: Any) -> Any:
    return Field(
        default=None,
        description=f"The {operand}: granularity, format, or keys one by one.",
        examples=list(examples),
    )


class Decision(Strict):
    """What a rule, or spelt-out defaults, decide for a layer."""

    weight: SettingsKey | None = _of(
        "weight", "per_tensor", {"format": "int4", "per_block": {"size": 128}}
    )
    input: SettingsKey | None = _of(
        "input", "fp8", {"granularity": "per_tensor", "calibrator": {"percentile": 99.99}}
    )
    output: SettingsKey | None = _of("output", "per_tensor")
    other: SettingsKey | None = _of(
        "other input (the second activation of a product of two)", "per_tensor"
    )
    skip: SettingsKey | None = _of("skip input (what a residual add adds the output to)", "float")
    format: FormatKey | None = Field(
        default=None,
        description="Of weight and input together; float leaves the layer alone.",
        examples=["float"],
    )
    half: Literal["allow"] | None = Field(
        default=None,
        description="Allows quantizing only one of a layer's weight and input.",
        examples=["allow"],
    )
    bn: Annotated[str, OneOf("bn", ("fold", "keep"))] | None = Field(
        default=None,
        description="Fold the batch norm behind the layer into it before quantizing.",
        examples=["keep"],
    )
    on_unsupported: OnUnsupported | None = Field(
        default=None,
        description="As the recipe's, for these layers.",
        examples=[["lower", "coarsen"]],
    )


class Rule(Decision):
    """One override; the last rule that matches decides, key by key."""

    id: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*(\[[0-9a-z]*\])?$")] | None = Field(
        default=None,
        description="What variants and reports call this rule; name[3] is entry 3 of its base.",
        examples=["rescue"],
    )
    match: MatchKey = Field(
        description="Which layers: names, or keys that must all hold.", examples=["layer1.*.conv2"]
    )
    optional: bool = Field(
        default=False, description="The rule may match nothing.", examples=[True]
    )
    algorithm: AlgorithmKey | None = Field(
        default=None,
        description="Let modelopt change the weights of these linear layers first, so that they and "
        "their inputs lose less by rounding: smoothquant, awq_lite, svdquant, or with its number, "
        "{method: svdquant, lowrank: 16}; none takes it back. The float network computes the same.",
        examples=["smoothquant"],
    )


def of_base(id: str | None) -> bool:
    """Whether a rule with this id comes of the recipe's `base`.

    >>> of_base("INT8_DEFAULT_CFG[3]"), of_base("head"), of_base(None)
    (True, False, False)
    """
    return id is not None and id.endswith("]")


class Share(Strict):
    """Sites that have one scale: the largest of theirs."""

    match: MatchKey = Field(
        description="Which layers: names, or keys that must all hold.",
        examples=[["detect.0", "detect.1"]],
    )
    role: Annotated[str, OneOf("role", OPERANDS)] = Field(
        default="input", description="Which site of each layer.", examples=["input"]
    )


CONCAT = "concat"


def _share(value: Any) -> Any:
    if isinstance(value, str) and value != CONCAT:
        raise ValueError(f"share takes concat, or match: and role:, not {value!r}")
    return value if isinstance(value, (str, Share)) else Share.model_validate(value)


def _shares(value: Any) -> Any:
    return [value] if isinstance(value, (str, dict, Share)) else value


ShareKey = Annotated[
    str | Share, BeforeValidator(_share, json_schema_input_type=Literal["concat"] | Share)
]
SharesKey = Annotated[list[ShareKey], OrAlone(_shares, least=0)]


class Variant(Strict):
    """What one variant changes."""

    drop: Annotated[list[str], OrAlone(least=0)] = Field(
        default=[], description="Rules to leave out, by id.", examples=[["rescue"]]
    )
    set: dict[str, Any] = Field(
        default={},
        description="Keys to change: `rules.<id>.weight: per_tensor`, `defaults: ...`.",
        examples=[{"rules.rescue.weight": "per_tensor"}],
    )
    rules: list[Rule] = Field(
        default=[],
        description="Rules to add behind the others.",
        examples=[[{"match": "head", "format": "float"}]],
    )
