"""Which layers a rule is about."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from granplugin.quant.layers import PASSIVE, PRODUCTS, TRAITS, Layer
from granplugin.recipe.glob import MAX_LENGTH, matcher
from granplugin.recipe.strict import OneOf, OrAlone, Strict, words

_BOUND = re.compile(r"(>=|<=|>|<)\s*([0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?)")
_ONE_LEVEL = re.compile(r"(?<!\*)\*(?!\*)")


def _bound(value: Any) -> str:
    if not isinstance(value, str) or not _BOUND.fullmatch(value):
        raise ValueError(f"a bound is written like '>= 100', not {value!r}")
    return value


Bound = Annotated[
    str, BeforeValidator(_bound), WithJsonSchema({"type": "string", "pattern": _BOUND.pattern})
]


def within(bound: str, number: float | None) -> bool:
    """Whether a number satisfies a bound such as '>= 100'; nothing does without a number."""
    written = _BOUND.fullmatch(bound)
    if number is None or written is None:
        return False
    sign, limit = written[1], float(written[2])
    return {">=": number >= limit, "<=": number <= limit, ">": number > limit, "<": number < limit}[
        sign
    ]


def _names(value: Any) -> Any:
    for name in words(value) if isinstance(words(value), list) else []:
        if isinstance(name, str) and len(name) > MAX_LENGTH:
            raise ValueError(f"a pattern of over {MAX_LENGTH:,} characters, which no name has")
        if isinstance(name, str) and name.startswith("re:"):
            matcher(name)
    return words(value)


_MEANT = (("Conv1D", "Linear"), ("NonDynamicallyQuantizableLinear", "Linear"))
"""Classes of transformers and of torch -> the type of their layers."""
LayerType = Annotated[str, OneOf("layer type", tuple(sorted({*PRODUCTS, *PASSIVE})), meant=_MEANT)]
Trait = Annotated[str, OneOf("trait", TRAITS)]


class Match(Strict):
    """Which layers a rule is about: all that satisfy every key."""

    name: Annotated[list[str], OrAlone(_names)] | None = Field(
        default=None,
        description="Globs (* one level, ** many), or re: and a regular expression.",
        examples=[["layer1.*", "re:head[0-9]+"]],
    )
    type: Annotated[list[LayerType], OrAlone()] | None = Field(
        default=None,
        description="One of these module types, such as Conv2d or Linear.",
        examples=[["Conv2d"]],
    )
    trait: Annotated[list[Trait], OrAlone()] | None = Field(
        default=None, description=f"All of: {', '.join(TRAITS)}.", examples=[["depthwise"]]
    )
    size: Bound | None = Field(
        default=None, description="Values in the weight, as '>= 1000'.", examples=[">= 1000"]
    )
    without: Annotated[list[Trait], OrAlone()] | None = Field(
        default=None, description="None of these traits.", examples=[["call"]]
    )
    spread: Bound | None = Field(
        default=None,
        description="Largest over median output-channel range, BN folded, as '>= 100'.",
        examples=[">= 100"],
    )
    exclude: Annotated[list[str], OrAlone(_names)] | None = Field(
        default=None, description="Names to leave out.", examples=[["stem.*"]]
    )

    @model_validator(mode="after")
    def _says_something(self) -> Match:
        if all(given is None for key, given in self if key != "exclude"):
            raise ValueError("match needs a name, type, trait, without, size or spread")
        return self


def _match(value: Any) -> Any:
    return value if isinstance(value, (dict, Match)) else {"name": words(value)}


MatchKey = Annotated[Match, BeforeValidator(_match, json_schema_input_type=Match | str | list[str])]


def select(match: Match, layers: Iterable[Layer]) -> list[int]:
    """The positions of the layers that satisfy every key of `match`."""
    names = [matcher(name) for name in match.name or ()]
    excluded = [matcher(name) for name in match.exclude or ()]
    return [
        position
        for position, layer in enumerate(layers)
        if (not names or any(is_match(layer.name) for is_match in names))
        and (match.type is None or layer.type in match.type)
        and (match.trait is None or layer.traits.issuperset(match.trait))
        and (match.without is None or layer.traits.isdisjoint(match.without))
        and (match.size is None or (layer.site("weight") and within(match.size, layer.size)))
        and (match.spread is None or within(match.spread, layer.spread))
        and not any(is_match(layer.name) for is_match in excluded)
    ]


def missing(match: Match, layers: Sequence[Layer]) -> tuple[tuple[str | int, ...], str] | None:
    """Where in a match is what matches no layer - all of it, one name of several, or a name that it
    leaves out - and what to say of it; None where there is no such thing."""
    if not select(match, layers):
        return (), nearest(match, layers)
    names = match.name or ()
    for number, name in enumerate(names if len(names) > 1 else ()):
        alone = Match(name=[name])
        if not select(alone, layers):
            return ("name", number), nearest(alone, layers)
    for number, name in enumerate(match.exclude or ()):
        alone = Match(name=[name])
        if not select(alone, layers):
            return ("exclude", number), nearest(alone, layers)
    return None


def nearest(match: Match, layers: Sequence[Layer]) -> str:
    """What to say of a match without a layer: the nearest names, or what it asked for."""
    names = [layer.name for layer in layers]
    if match.name and not any(matcher(n)(name) for n in match.name for name in names):
        said = match.name[0]
        wanted = said.removeprefix("re:")
        near = difflib.get_close_matches(wanted, _globbed(names, wanted), n=2, cutoff=0.5)
        hint = f"; nearest: {', '.join(map(repr, near))}" if near else ""
        return f"{said!r} matches no layer{hint}"
    asked = match.model_dump(exclude_none=True)
    said = ", ".join(
        f"{key} {' and '.join(v) if isinstance(v, list) else v}" for key, v in asked.items()
    )
    return f"no layer has {said}"


def _globbed(names: Sequence[str], wanted: str) -> list[str]:
    """Layer names, and what matches some: those written as the pattern would have to be, with its
    wildcards in place, and the pattern with wildcards that cross levels."""
    parts = wanted.split(".")
    globbed = {
        ".".join(
            want if "*" in want else part
            for want, part in zip(parts, name.split("."), strict=False)
        )
        for name in names
        if len(name.split(".")) == len(parts)
    }
    patterns = [_ONE_LEVEL.sub("**", wanted), *sorted(globbed)]
    matching = [each for each in patterns if any(map(matcher(each), names))]
    return list(dict.fromkeys([*matching, *names]))
