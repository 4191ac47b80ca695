"""Which values of a tensor share one scale: every granularity is a block shape.

A block shape has the tensor's rank and cuts it into equal blocks; each block has one scale. The
blocks form a grid of shape `shape / block`. Axis 0 of an input or output is the batch: it is
written as 1 in its shape, so no granularity can split it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema

from granplugin.suggest import did_you_mean

Shape = tuple[int, ...]
Role = Literal["weight", "input", "skip", "output"]
ROLES: tuple[Role, ...] = ("weight", "input", "skip", "output")


class DoesNotApply(ValueError):
    """A granularity that a tensor of this shape or role cannot have; the message says why."""


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
    dynamic: bool = False

    @property
    def at_run_time(self) -> bool:
        return self.dynamic

    def _check(self, role: Role) -> None:
        if self.dynamic and role != "input":
            raise DoesNotApply(
                f"{self.kind}: only an input has scales computed at run time, not the {role}; "
                "leave dynamic out"
            )


class PerTensor(_Dynamic):
    """One scale for the whole tensor; `dynamic`: of each sample, computed at run time.

    >>> PerTensor().block((8, 3, 3, 3), "weight", 0)
    (8, 3, 3, 3)
    >>> print(PerTensor(dynamic=True))
    per_tensor(dynamic)
    """

    kind = "per_tensor"

    def block(self, shape: Shape, role: Role, channel_axis: int | None) -> Shape:
        self._check(role)
        return shape


class PerChannel(_Granularity):
    """One scale for each index along `axis`; without it, along the (output) channel axis.

    >>> PerChannel().block((8, 3, 3, 3), "weight", 0)
    (1, 3, 3, 3)
    >>> PerChannel(axis=-1).block((1, 64), "input", 1)
    (1, 1)
    """

    kind = "per_channel"
    axis: int | None = None

    def block(self, shape: Shape, role: Role, channel_axis: int | None) -> Shape:
        if self.axis is None and channel_axis is None:
            raise DoesNotApply("per_channel: no single axis is the output channel here; give axis")
        axis = channel_axis if self.axis is None else _axis(self.axis, shape, role)
        if axis >= len(shape):
            raise DoesNotApply(f"per_channel: a tensor of shape {list(shape)} has no channel axis")
        return _replace(shape, {axis: 1})


class PerToken(_Dynamic):
    """One scale for each row (all axes but the last) of a layer's input, the same for all samples;
    `dynamic`: of each sample, computed at run time.

    >>> PerToken().block((1, 197, 64), "input", 2)
    (1, 1, 64)
    """

    kind = "per_token"

    def block(self, shape: Shape, role: Role, channel_axis: int | None) -> Shape:
        if role == "weight":
            raise DoesNotApply("per_token: a weight has no tokens; use per_channel")
        self._check(role)
        if channel_axis != len(shape) - 1:
            raise DoesNotApply("per_token: only inputs whose last axis is the features have tokens")
        if len(shape) < 3 and not self.dynamic:
            raise DoesNotApply(
                f"per_token: the only rows of a tensor of shape {_batched(shape)} are the samples, "
                "and a static scale cannot differ between samples; use per_tensor, or dynamic: true"
            )
        return (1,) * (len(shape) - 1) + shape[-1:]


class PerBlock(_Granularity):
    """One scale for each run of `size` values along `axis`, or for each block of a given `shape`.

    >>> PerBlock(size=4).block((8, 16), "weight", 0)
    (1, 4)
    >>> PerBlock(shape=(1, 4, 3, 3)).block((8, 16, 3, 3), "weight", 0)
    (1, 4, 3, 3)
    """

    kind = "per_block"
    size: int | None = Field(default=None, ge=1)
    axis: int | None = None
    shape: tuple[Annotated[int, Field(ge=1)], ...] | None = None

    def block(self, shape: Shape, role: Role, channel_axis: int | None) -> Shape:
        if self.shape is not None:
            if len(self.shape) != len(shape):
                raise DoesNotApply(
                    f"per_block: shape {list(self.shape)} has {len(self.shape)} axes, "
                    f"the tensor {_batched(shape, role)} has {len(shape)}"
                )
            block = self.shape
        else:
            axis = _axis(-1 if self.axis is None else self.axis, shape, role)
            block = _replace((1,) * len(shape), {axis: self.size})
        for axis, (length, part) in enumerate(zip(shape, block, strict=True)):
            if length % part:
                if role != "weight" and axis == 0:
                    raise DoesNotApply("per_block: axis 0 is the batch and is never cut; write 1")
                raise DoesNotApply(
                    f"per_block: {part} does not divide axis {axis} of {_batched(shape, role)}"
                    + _nearest_divisors(length, part)
                )
        return block


class PerElement(_Granularity):
    """One scale for each value (of one sample).

    >>> PerElement().block((8, 3), "weight", 0)
    (1, 1)
    """

    kind = "per_element"

    def block(self, shape: Shape, role: Role, channel_axis: int | None) -> Shape:
        return (1,) * len(shape)


GRANULARITIES: dict[str, type[_Granularity]] = {
    cls.kind: cls for cls in (PerTensor, PerChannel, PerToken, PerBlock, PerElement)
}


def parse_granularity(value: Any) -> _Granularity:
    """`per_tensor`, or `{per_block: {size: 16, axis: 1}}`: a name, or a name with parameters.

    >>> print(parse_granularity({"per_block": {"size": 16, "axis": 1}}))
    per_block(size 16, axis 1)
    """
    if isinstance(value, _Granularity):
        return value
    if isinstance(value, str):
        name, parameters = value, {}
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
    cls = GRANULARITIES[name]
    if not isinstance(parameters, dict):
        raise ValueError(f"{name} takes parameters by name, such as {{{name}: {{axis: 0}}}}")
    for key in parameters:
        if key not in cls.model_fields:
            known = list(cls.model_fields)
            raise ValueError(
                f"{name} has no parameter {key!r}{did_you_mean(str(key), known)}"
                if known
                else f"{name} takes no parameters"
            )
    for key, given in parameters.items():
        if key == "dynamic":
            if not isinstance(given, bool):
                raise ValueError(f"{name}: dynamic is true or false, not {given!r}")
            continue
        numbers = given if key == "shape" and isinstance(given, list) else [given]
        if not all(isinstance(n, int) and not isinstance(n, bool) for n in numbers) or (
            key != "axis" and (not numbers or min(numbers) < 1)
        ):
            wanted = "an integer" if key == "axis" else "a positive integer"
            wanted = "a list of positive integers" if key == "shape" else wanted
            raise ValueError(f"{name}: {key} must be {wanted}, not {given!r}")
    if cls is PerBlock and ("shape" in parameters) == ("size" in parameters):
        raise ValueError("per_block takes either size (and axis) or shape")
    if cls is PerBlock and "shape" in parameters and "axis" in parameters:
        raise ValueError("per_block takes either size and axis, or shape, not both")
    if "shape" in parameters:
        parameters = {**parameters, "shape": tuple(parameters["shape"])}
    return cls(**parameters)


def spelt(text: str) -> Any:
    """The value that parse_granularity takes, from a granularity as str() shows it.

    >>> spelt("per_block(size 16, axis 1)")
    {'per_block': {'size': 16, 'axis': 1}}
    """
    kind, _, inside = text.rstrip(")").partition("(")
    parameters: dict[str, Any] = {}
    for part in filter(None, inside.split(", ")):
        key, _, value = part.partition(" ")
        if not value:
            parameters[key] = True
        else:
            numbers = [int(number) for number in value.split("x")]
            parameters[key] = numbers if key == "shape" else numbers[0]
    return {kind: parameters} if parameters else kind


def _dump(granularity: _Granularity) -> Any:
    parameters = granularity.model_dump(mode="json", exclude_defaults=True)
    return {granularity.kind: parameters} if parameters else granularity.kind


_AXIS = {"axis": {"type": "integer"}}
_SIZE = {"type": "integer", "minimum": 1}
_DYNAMIC = {
    "type": "object",
    "properties": {"dynamic": {"type": "boolean"}},
    "additionalProperties": False,
}
PARAMETERS: dict[str, dict[str, Any]] = {
    "per_tensor": _DYNAMIC,
    "per_token": _DYNAMIC,
    "per_channel": {"type": "object", "properties": _AXIS, "additionalProperties": False},
    "per_block": {
        "type": "object",
        "properties": {"size": _SIZE, **_AXIS, "shape": {"type": "array", "items": _SIZE}},
        "additionalProperties": False,
        "oneOf": [
            {"required": ["size"]},
            {"required": ["shape"], "properties": {"axis": False}},
        ],
    },
}
"""JSON Schema of the parameters of those granularities that have any."""

Granularity = Annotated[
    _Granularity,
    BeforeValidator(parse_granularity),
    PlainSerializer(_dump),
    WithJsonSchema(
        {
            "oneOf": [
                {"enum": [name for name in GRANULARITIES if name != "per_block"]},
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


def grid(shape: Shape, block: Shape) -> Shape:
    """How many blocks lie along each axis; one scale per cell.

    >>> grid((8, 16, 3, 3), (1, 4, 3, 3))
    (8, 4, 1, 1)
    """
    return tuple(length // part for length, part in zip(shape, block, strict=True))


def scales(shape: Shape, block: Shape) -> int:
    """The number of scales."""
    return math.prod(grid(shape, block))


def coarser(
    shape: Shape, role: Role, channel_axis: int | None, block: Shape
) -> Iterator[_Granularity]:
    """Granularities whose blocks are made of whole blocks of this one, finest first: longer ones
    along the axis where they are longest, per_channel, per_tensor.

    >>> [str(g) for g in coarser((8, 24), "weight", 0, (1, 6))]
    ['per_block(size 12, axis 1)', 'per_channel', 'per_tensor']
    """
    axis = max(range(len(shape)), key=lambda i: (block[i], i))
    alone = all(part == 1 for i, part in enumerate(block) if i != axis)
    for length in range(2 * block[axis], shape[axis], block[axis]):
        if shape[axis] % length == 0:
            longer = _replace(block, {axis: length})
            yield PerBlock(size=length, axis=axis) if alone else PerBlock(shape=longer)
    if channel_axis is not None and channel_axis < len(shape):
        by_channel = PerChannel().block(shape, role, channel_axis)
        if all(whole % part == 0 for whole, part in zip(by_channel, block, strict=True)):
            yield PerChannel()
    yield PerTensor()


def reduce_blocks(values: np.ndarray, block: Shape, ufunc: np.ufunc = np.maximum) -> np.ndarray:
    """Reduce each block of `values` with `ufunc`: shape -> grid.

    >>> reduce_blocks(np.array([[1, 5, 2, 3]]), (1, 2)).tolist()
    [[5, 3]]
    """
    cells = grid(values.shape, block)
    split = [part for pair in zip(cells, block, strict=True) for part in pair]
    return ufunc.reduce(values.reshape(split), axis=tuple(range(1, 2 * len(block), 2)))


def expand(cells: np.ndarray, block: Shape) -> np.ndarray:
    """Repeat each cell of a grid over its block: grid -> shape.

    >>> expand(np.array([[5, 3]]), (1, 2)).tolist()
    [[5, 5, 3, 3]]
    """
    for axis, part in enumerate(block):
        if part > 1:
            cells = np.repeat(cells, part, axis=axis)
    return cells


def _axis(axis: int, shape: Shape, role: Role) -> int:
    if not -len(shape) <= axis < len(shape):
        raise DoesNotApply(f"axis {axis} is out of range for {_batched(shape, role)}")
    axis %= len(shape)
    if role != "weight" and axis == 0:
        raise DoesNotApply(f"axis 0 of an {role} is the batch; a scale cannot depend on the sample")
    return axis


def _replace(shape: Shape, changed: dict[int, int]) -> Shape:
    return tuple(changed.get(axis, length) for axis, length in enumerate(shape))


def _compact(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _batched(shape: Shape, role: Role = "input") -> str:
    first = "batch" if role != "weight" else str(shape[0]) if shape else ""
    return "[" + ", ".join([first, *map(str, shape[1:])]) + "]"


def _nearest_divisors(length: int, part: int) -> str:
    divisors = [n for n in range(1, length + 1) if length % n == 0]
    near = [*[n for n in divisors if n < part][-1:], *[n for n in divisors if n > part][:1]]
    return "; " + " or ".join(map(str, near)) + " would"
