"""What one site gets: format, granularity, calibrator, range - and the short ways to write it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)

from granplugin.quant.calibrators import PLAIN, Calibrator, parse_calibrator
from granplugin.quant.formats import FORMATS, NO_RANGE
from granplugin.quant.granularity import EXAMPLES, GRANULARITIES, PARAMETERS, GranularityKey
from granplugin.recipe.strict import OneOf, Strict, at_key, unknown_key
from granplugin.suggest import did_you_mean

FLOAT = "float"


CalibratorKey = Annotated[
    Calibrator,
    BeforeValidator(parse_calibrator),
    WithJsonSchema(
        {
            "description": "How amax is found.",
            "oneOf": [
                {"enum": list(PLAIN)},
                {
                    "type": "object",
                    "properties": {
                        "percentile": {"type": "number", "exclusiveMinimum": 0, "maximum": 100}
                    },
                    "required": ["percentile"],
                    "additionalProperties": False,
                },
            ],
        }
    ),
]
FormatKey = Annotated[str, OneOf("format", (*FORMATS, FLOAT))]


def _short_forms(schema: dict[str, Any]) -> None:
    for name, parameters in PARAMETERS.items():
        short = {
            "description": f"Short for granularity: {{{name}: ...}}.",
            "examples": [EXAMPLES[name]],
            **parameters,
        }
        schema["properties"][name] = short


def _range(amax: float) -> float:
    """Raises ValueError for what modelopt takes for zero."""
    if amax <= NO_RANGE:
        raise ValueError(
            f"modelopt takes a range up to 2^-24 ({NO_RANGE:.2g}) for zero, and this is {amax:g}; "
            "write format: float where a tensor holds only zeros"
        )
    return amax


class Settings(Strict):
    """What one site gets; keys that are not given keep what earlier rules said."""

    model_config = ConfigDict(json_schema_extra=_short_forms)

    format: FormatKey | None = Field(
        default=None, description=f"{', '.join(FORMATS)}, or float: left alone.", examples=["int8"]
    )
    granularity: GranularityKey | None = Field(
        default=None,
        description="Which values share one scale; its parameters are part of it.",
        examples=[{"per_block": {"size": 16}}],
    )
    calibrator: CalibratorKey | None = Field(
        default=None,
        description="How amax, the largest value that fits, is found.",
        examples=[{"percentile": 99.99}],
    )
    amax: Annotated[float, Field(gt=0, allow_inf_nan=False), AfterValidator(_range)] | None = Field(
        default=None,
        description="Pins the range: no calibration, unless a later rule says a calibrator.",
        examples=[6.0],
    )

    @model_validator(mode="after")
    def _nothing_to_calibrate(self) -> Settings:
        if self.granularity is not None and self.granularity.at_run_time:
            for key in ("calibrator", "amax"):
                if getattr(self, key) is not None:
                    raise at_key(key, f"{self.granularity} has its ranges at run time: no {key}")
        return self


def long_form(value: Any) -> Any:
    """The keys behind a short form: `per_tensor` is {granularity: per_tensor}, and
    {per_block: {size: 16}, calibrator: mse} has its granularity's name as a key."""
    if isinstance(value, str):
        if value == FLOAT or value in FORMATS:
            return {"format": value}
        if value in GRANULARITIES:
            return {"granularity": value}
        known = [*GRANULARITIES, *FORMATS, FLOAT]
        raise ValueError(f"unknown granularity or format {value!r}{did_you_mean(value, known)}")
    if not isinstance(value, dict):
        return value
    keys = list(Settings.model_fields)
    for key in value:
        if key not in keys and key not in GRANULARITIES:
            raise unknown_key(key, [*keys, *GRANULARITIES])
    named = [key for key in value if key in GRANULARITIES]
    if len(named) + ("granularity" in value) > 1:
        raise at_key(named[-1], "a site has one granularity, and this is a second")
    rest = {key: given for key, given in value.items() if key in keys}
    return {**rest, "granularity": {named[0]: value[named[0]]}} if named else rest


_Word = Annotated[
    str, WithJsonSchema({"enum": sorted({*GRANULARITIES, *FORMATS, FLOAT} - {"per_block"})})
]
SettingsKey = Annotated[
    Settings, BeforeValidator(long_form, json_schema_input_type=Settings | _Word)
]
