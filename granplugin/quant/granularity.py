"""Which values of a tensor share one scale: every granularity is a block shape.

A block shape has the tensor's rank and cuts it into equal blocks; each block has one scale. The
blocks form a grid of shape `shape / block`. Axis 0 of an input or output is the batch: it is
written as 1 in its shape, so no granularity can split it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from granplugin.quant.site import Shape, Site
from granplugin.suggest import did_you_mean


class DoesNotApply(ValueError):
    """A granularity that a tensor of this shape or operand cannot have; the message says why."""


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


_Size = Annotated[int, Field(ge=1)]


class _Granularity(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    kind: ClassVar[str]

    @property
    def at_run_time(self) -> bool:
        """Whether scales are computed from each tensor as it comes, sample by sample."""
        return False

    def __str__(self) -> str:
        parameters = self.model_dump(exclude_defaults=True)
        inside = ", ".join(
            key if value is True else f"{key} {_compact(value)}"
            for key, value in parameters.items()
        )
        return f"{self.kind}({inside})" if inside else self.kind


class _Dynamic(_Granularity):
    dynamic: bool = Field(default=False, description="true or false")

    @property
    def at_run_time(self) -> bool:
        return self.dynamic

    def _check(self, site: Site) -> None:
        if self.dynamic and site.operand != "input":
            raise DoesNotApply(
                f"{self.kind}: only an input has scales computed at run time, not the "
                f"{site.operand}; leave dynamic out"
            )


class PerTensor(_Dynamic):
    """One scale for the whole tensor; `dynamic`: of each sample, computed at run time.

    >>> PerTensor().block(Site("conv", "weight", (8, 3, 3, 3), 0))
    (8, 3, 3, 3)
    >>> print(PerTensor(dynamic=True))
    per_tensor(dynamic)
    """

    kind = "per_tensor"

    def block(self, site: Site) -> Shape:
        self._check(site)
        return site.shape


class PerChannel(_Granularity):
    """One scale for each index along `axis`; without it, along the (output) channel axis.

    >>> PerChannel().block(Site("conv", "weight", (8, 3, 3, 3), 0))
    (1, 3, 3, 3)
    >>> PerChannel(axis=-1).block(Site("fc", "input", (1, 64), 1))
    (1, 1)
    """

    kind = "per_channel"
    axis: int | None = Field(default=None, description="an integer")

    def block(self, site: Site) -> Shape:
        axis = site.channel_axis if self.axis is None else _axis(self.axis, site)
        if axis is None:
            raise DoesNotApply("per_channel: no single axis is the output channel here; give axis")
        if axis >= len(site.shape):
            raise DoesNotApply(
                f"per_channel: a tensor of shape {list(site.shape)} has no channel axis"
            )
        return _replace(site.shape, {axis: 1})


class PerToken(_Dynamic):
    """One scale for each row (all axes but the last) of a layer's input, the same for all samples;
    `dynamic`: of each sample, computed at run time.

    >>> PerToken().block(Site("fc", "input", (1, 197, 64), 2))
    (1, 1, 64)
    """

    kind = "per_token"

    def block(self, site: Site) -> Shape:
        shape = site.shape
        if site.constant:
            raise DoesNotApply("per_token: a weight has no tokens; use per_channel")
        self._check(site)
        if site.channel_axis != len(shape) - 1:
            raise DoesNotApply("per_token: only inputs whose last axis is the features have tokens")
        if len(shape) < 3 and not self.dynamic:
            raise DoesNotApply(
                f"per_token: the only rows of a tensor of shape {_batched(site)} are the samples, "
                "and a static scale cannot differ between samples; use per_tensor, or dynamic: true"
            )
        return (1,) * (len(shape) - 1) + shape[-1:]


class PerBlock(_Granularity):
    """One scale for each run of `size` values along `axis`, or for each block of a given `shape`.

    >>> PerBlock(size=4).block(Site("fc", "weight", (8, 16), 0))
    (1, 4)
    >>> PerBlock(shape=(1, 4, 3, 3)).block(Site("conv", "weight", (8, 16, 3, 3), 0))
    (1, 4, 3, 3)
    """

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"required": ["size"]},
                {"required": ["shape"], "properties": {"axis": False}},
            ]
        }
    )
    kind = "per_block"
    size: int | None = Field(default=None, ge=1, description="a positive integer")
    axis: int | None = Field(default=None, description="an integer")
    shape: Annotated[tuple[_Size, ...], Field(min_length=1), BeforeValidator(_tupled)] | None = (
        Field(default=None, description="a list of positive integers")
    )

    @model_validator(mode="after")
    def _size_or_shape(self) -> PerBlock:
        if (self.shape is None) == (self.size is None):
            raise ValueError(
                "per_block takes either size (and axis) or shape, such as {per_block: {size: 16}}"
            )
        if self.shape is not None and self.axis is not None:
            raise ValueError("per_block takes either size and axis, or shape, not both")
        return self

    def block(self, site: Site) -> Shape:
        shape = site.shape
        if self.shape is not None:
            if len(self.shape) != len(shape):
                raise DoesNotApply(
                    f"per_block: shape {list(self.shape)} has {len(self.shape)} axes, "
                    f"the tensor {_batched(site)} has {len(shape)}"
                )
            block = self.shape
        else:
            axis = _axis(-1 if self.axis is None else self.axis, site)
            assert self.size is not None  # _size_or_shape
            block = _replace((1,) * len(shape), {axis: self.size})
        for axis, (length, part) in enumerate(zip(shape, block, strict=True)):
            if length % part:
                if not site.constant and axis == 0:
                    raise DoesNotApply("per_block: axis 0 is the batch and is never cut; write 1")
                raise DoesNotApply(
                    f"per_block: {part} does not divide axis {axis} of {_batched(site)}"
                    + _nearest_divisors(length, part)
                )
        return block


class PerElement(_Granularity):
    """One scale for each value (of one sample).

    >>> PerElement().block(Site("fc", "weight", (8, 3), 0))
    (1, 1)
    """

    kind = "per_element"

    def block(self, site: Site) -> Shape:
        return (1,) * len(site.shape)


Granularity = PerTensor | PerChannel | PerToken | PerBlock | PerElement
GRANULARITIES: dict[str, type[Granularity]] = {
    cls.kind: cls for cls in (PerTensor, PerChannel, PerToken, PerBlock, PerElement)
}


def parse_granularity(value: Any) -> Granularity:
    """`per_tensor`, or `{per_block: {size: 16, axis: 1}}`: a name, or a name with parameters.

    Raises ValueError, in one sentence, for what is none.

    >>> print(parse_granularity({"per_block": {"size": 16, "axis": 1}}))
    per_block(size 16, axis 1)
    """
    if isinstance(value, Granularity):
        return value
    if isinstance(value, str):
        name, parameters = value, dict[str, Any]()
    elif isinstance(value, dict) and len(value) == 1:
        name, parameters = next(iter(value.items()))
        parameters = {} if parameters is None else parameters
    else:
        raise ValueError(
            "a granularity is a name, or one name with its parameters such as "
            "{per_block: {size: 16, axis: 1}}"
        )
    if name not in GRANULARITIES:
        raise ValueError(f"unknown granularity {name!r}{did_you_mean(str(name), GRANULARITIES)}")
    if not isinstance(parameters, dict):
        raise ValueError(f"{name} takes parameters by name, such as {{{name}: {_example(name)}}}")
    cls = GRANULARITIES[name]
    for key, given in parameters.items():
        if key not in cls.model_fields:
            hint = did_you_mean(str(key), cls.model_fields)
            raise ValueError(
                f"{name} has no parameter {key!r}{hint}"
                if cls.model_fields
                else f"{name} takes no parameters"
            )
        if given is None:
            raise ValueError(_wanted(cls, key, given))
    try:
        return cls.model_validate(parameters)
    except ValidationError as err:
        first = err.errors()[0]
        if not first["loc"]:
            raise ValueError(str(first["ctx"]["error"])) from err
        key = str(first["loc"][0])
        raise ValueError(_wanted(cls, key, parameters[key])) from err


EXAMPLES: dict[str, dict[str, Any]] = {
    "per_tensor": {"dynamic": True},
    "per_channel": {"axis": 0},
    "per_token": {"dynamic": True},
    "per_block": {"size": 16},
}
"""Parameters of those granularities that have any."""


def _example(name: str) -> str:
    given = EXAMPLES.get(name, {})
    return "{" + ", ".join(f"{key}: {str(value).lower()}" for key, value in given.items()) + "}"


def _wanted(cls: type[Granularity], key: str, given: Any) -> str:
    wanted = cls.model_fields[key].description
    word = "is" if key == "dynamic" else "must be"
    return f"{cls.kind}: {key} {word} {wanted}, not {given!r}"


def written(granularity: Granularity) -> Any:
    """A granularity as a recipe has it, which parse_granularity takes.

    >>> written(PerBlock(size=16, axis=1))
    {'per_block': {'size': 16, 'axis': 1}}
    """
    parameters = granularity.model_dump(mode="json", exclude_defaults=True)
    return {granularity.kind: parameters} if parameters else granularity.kind


def _parameters(cls: type[Granularity]) -> dict[str, Any]:
    """JSON Schema of a granularity's parameters, as parse_granularity takes them: never null."""
    schema = cls.model_json_schema()
    said = {
        key: next(iter(prop.get("anyOf", [{"type": prop.get("type")}])))
        for key, prop in schema["properties"].items()
    }
    kept: dict[str, Any] = {
        key: schema[key] for key in ("additionalProperties", "oneOf") if key in schema
    }
    return {"type": "object", "properties": said, **kept}


PARAMETERS = {name: _parameters(cls) for name, cls in GRANULARITIES.items() if cls.model_fields}
"""JSON Schema of the parameters of those granularities that have any."""

GranularityKey = Annotated[
    Granularity,
    BeforeValidator(parse_granularity),
    PlainSerializer(written),
    WithJsonSchema(
        {
            "oneOf": [
                {"enum": [name for name in GRANULARITIES if name != PerBlock.kind]},
                {
                    "type": "object",
                    "properties": PARAMETERS,
                    "minProperties": 1,
                    "maxProperties": 1,
                    "additionalProperties": False,
                },
            ],
        }
    ),
]
"""A recipe's value of `granularity`."""


def grid(shape: Shape, block: Shape) -> Shape:
    """How many blocks lie along each axis; one scale per cell. A block of nothing is the whole of an
    axis without values.

    >>> grid((8, 16, 3, 3), (1, 4, 3, 3)), grid((8, 0), (1, 0))
    ((8, 4, 1, 1), (8, 1))
    """
    return tuple([length // part if part else 1 for length, part in zip(shape, block, strict=True)])


def scales(shape: Shape, block: Shape) -> int:
    """The number of scales."""
    return math.prod(grid(shape, block))


def coarser(site: Site, block: Shape) -> Iterator[Granularity]:
    """Granularities whose blocks are made of whole blocks of this one, finest first: longer ones
    along the axis where they are longest, per_channel, per_tensor.

    >>> [str(g) for g in coarser(Site("fc", "weight", (8, 24), 0), (1, 6))]
    ['per_block(size 12, axis 1)', 'per_channel', 'per_tensor']
    """
    shape = site.shape
    axis = max(range(len(shape)), key=lambda i: (block[i], i))
    alone = all(part == 1 for i, part in enumerate(block) if i != axis)
    for length in range(2 * block[axis], shape[axis], block[axis]):
        if shape[axis] % length == 0:
            longer = _replace(block, {axis: length})
            yield PerBlock(size=length, axis=axis) if alone else PerBlock(shape=longer)
    if site.channel_axis is not None and site.channel_axis < len(shape):
        by_channel = PerChannel().block(site)
        if all(whole % part == 0 for whole, part in zip(by_channel, block, strict=True)):
            yield PerChannel()
    yield PerTensor()


def reduce_blocks(values: np.ndarray, block: Shape) -> np.ndarray:
    """The largest value of each block: shape -> grid.

    >>> reduce_blocks(np.array([[1, 5, 2, 3]]), (1, 2)).tolist()
    [[5, 3]]
    """
    cells = grid(values.shape, block)
    split = [part for pair in zip(cells, block, strict=True) for part in pair]
    return np.maximum.reduce(values.reshape(split), axis=tuple(range(1, 2 * len(block), 2)))


def expand(cells: np.ndarray, block: Shape) -> np.ndarray:
    """Repeat each cell of a grid over its block: grid -> shape.

    >>> expand(np.array([[5, 3]]), (1, 2)).tolist()
    [[5, 5, 3, 3]]
    """
    for axis, part in enumerate(block):
        if part > 1:
            cells = np.repeat(cells, part, axis=axis)
    return cells


def _axis(axis: int, site: Site) -> int:
    rank = len(site.shape)
    if not -rank <= axis < rank:
        raise DoesNotApply(f"axis {axis} is out of range for {_batched(site)}")
    axis %= rank
    if not site.constant and axis == 0:
        raise DoesNotApply(
            f"axis 0 of an {site.operand} is the batch; a scale cannot depend on the sample"
        )
    return axis


def _replace(shape: Shape, changed: dict[int, int]) -> Shape:
    return tuple([changed.get(axis, length) for axis, length in enumerate(shape)])


def _compact(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _batched(site: Site) -> str:
    first = "batch" if not site.constant else str(site.shape[0]) if site.shape else ""
    return "[" + ", ".join([first, *map(str, site.shape[1:])]) + "]"


def _nearest_divisors(length: int, part: int) -> str:
    divisors = [n for n in range(1, length + 1) if length % n == 0]
    near = [*[n for n in divisors if n < part][-1:], *[n for n in divisors if n > part][:1]]
    return "; " + " or ".join(map(str, near)) + " would"
