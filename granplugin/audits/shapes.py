"""The shapes that a file with open lengths is built for: as given, or of a usual size, which is
said."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import onnx
from onnx import TensorProto

from granplugin.errors import EngineError
from granplugin.quant.site import Shape
from granplugin.suggest import did_you_mean

Range = tuple[Shape, Shape, Shape]
"""An input's shapes: the smallest, that which the engine is tuned for, and the largest."""
FORM = "x=1x3x640x640, or x=MIN:OPT:MAX"

_IMAGE, _DETECTOR, _TOKENS, _SAMPLES = 224, 640, 128, 16_000
"""Usual lengths: an image's sides (of networks that call it `images`, as ultralytics does, 640), a
text's tokens, a second of sound."""
_OF_DETECTORS = frozenset({"images"})
_SOUND = ("audio", "input_values", "speech", "waveform")


def parse_shapes(texts: Sequence[str]) -> dict[str, Range]:
    """What --shapes says, an input each. Raises EngineError.

    >>> parse_shapes(["x=1x3x640x640", "ids=1x8:1x16:4x32"])["ids"]
    ((1, 8), (1, 16), (4, 32))
    """
    found: dict[str, Range] = {}
    for text in (part for given in texts for part in given.split(",")):
        name, equals, said = text.rpartition("=")
        shapes = [_shape(each) for each in said.split(":")]
        if not (name and equals) or None in shapes or len(shapes) not in (1, 3):
            raise EngineError(f"--shapes {text}: is not in the form {FORM}")
        if name in found:
            raise EngineError(f"--shapes: gives {name!r} twice")
        known = [shape for shape in shapes if shape is not None]
        found[name] = (known[0], known[len(known) // 2], known[-1])
    return found


def _shape(text: str) -> Shape | None:
    if re.fullmatch(r"[1-9]\d{0,8}(x[1-9]\d{0,8})*", text) is None:
        return None
    return tuple(map(int, text.split("x")))


@dataclass(frozen=True)
class _Input:
    name: str
    lengths: tuple[int | str, ...]
    """A word for one that is open, which is the same where inputs share it."""
    integer: bool

    @property
    def text(self) -> str:
        return f"[{', '.join('?' if '?' in str(n) else str(n) for n in self.lengths)}]"


@dataclass
class _Usual:
    """Lengths as they are found; one word has one length."""

    batch: int
    known: dict[str, int] = field(default_factory=dict)

    def of(self, each: _Input) -> Shape | None:
        sizes = self._sizes(each)
        shape = []
        for axis, length in enumerate(each.lengths):
            if isinstance(length, str):
                default = self.batch if axis == 0 else sizes.get(axis)
                size = self.known.get(length, default)
                if size is None:
                    return None
                self.known.setdefault(length, size)
                length = size
            shape.append(length)
        return tuple(shape)

    @staticmethod
    def _sizes(each: _Input) -> Mapping[int, int]:
        rank = len(each.lengths)
        if rank == 4 and not each.integer:
            if each.name.startswith("past"):
                return {2: _TOKENS}
            side = _DETECTOR if each.name in _OF_DETECTORS else _IMAGE
            axes = (1, 2) if isinstance(each.lengths[1], str) else (2, 3)
            return dict.fromkeys(axes, side)
        if rank == 2 and not each.integer:
            return {1: _SAMPLES} if each.name.startswith(_SOUND) else {}
        return {1: _TOKENS, 2: _TOKENS} if rank in (2, 3) else {}


def shapes_for(
    model: onnx.ModelProto, given: Mapping[str, Range], batch: int
) -> tuple[dict[str, Range], list[str]]:
    """Input -> the shapes it is built for, of those that have open lengths besides the batch, or
    that are given; and notes of those that were chosen. Raises EngineError for shapes that are no
    input's, and for an input of which no usual shape is known."""
    inputs = {each.name: each for each in _inputs(model)}
    for name, shapes in given.items():
        if name not in inputs:
            raise EngineError(
                f"--shapes: the file has no input {name!r}{did_you_mean(name, inputs)}"
            )
        each = inputs[name]
        if not all(_fits(each, shape) for shape in shapes):
            raise EngineError(f"--shapes {name}={spelt(shapes)}: the input is {each.text}")
    found, notes = dict(given), []
    usual = _Usual(batch)
    for name, shapes in given.items():
        for length, size in zip(inputs[name].lengths, shapes[1], strict=True):
            if isinstance(length, str):
                usual.known.setdefault(length, size)
    for each in inputs.values():
        if each.name in given or not any(isinstance(n, str) for n in each.lengths[1:]):
            continue
        shape = usual.of(each)
        if shape is None:
            raise EngineError(
                f"input {each.name!r} is {each.text}, and no usual size of it is known: give one, "
                f"as --shapes {each.name}={_example(each)}"
            )
        found[each.name] = (shape, shape, shape)
        notes.append(
            f"{each.name} is {each.text} and was built for {spelt(found[each.name])}, a usual "
            f"size; --shapes {each.name}=... says another"
        )
    return found, notes


def spelt(shapes: Range) -> str:
    """As --shapes has them.

    >>> spelt(((1, 3), (1, 3), (1, 3))), spelt(((1, 3), (2, 3), (4, 3)))
    ('1x3', '1x3:2x3:4x3')
    """
    return ":".join(dict.fromkeys("x".join(map(str, shape)) for shape in shapes))


def _inputs(model: onnx.ModelProto) -> list[_Input]:
    stored = {tensor.name for tensor in model.graph.initializer}
    found = []
    for value in model.graph.input:
        held = value.type.tensor_type
        if value.name in stored or not held.HasField("shape"):
            continue
        lengths = tuple(
            dim.dim_value if dim.dim_value > 0 else dim.dim_param or f"{value.name}.{axis}"
            for axis, dim in enumerate(held.shape.dim)
        )
        whole = (TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL)
        found.append(_Input(value.name, lengths, held.elem_type in whole))
    return found


def _fits(each: _Input, shape: Shape) -> bool:
    return len(each.lengths) == len(shape) and all(
        isinstance(length, str) or length == size
        for length, size in zip(each.lengths, shape, strict=True)
    )


def _example(each: _Input) -> str:
    sizes = [1, 3, _DETECTOR, _DETECTOR] if len(each.lengths) == 4 else [1] + [_TOKENS] * 9
    return "x".join(
        str(sizes[axis] if isinstance(length, str) else length)
        for axis, length in enumerate(each.lengths)
    )
