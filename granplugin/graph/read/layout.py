"""How scales lie in a tensor, along what only renames or reorders its values."""

from __future__ import annotations

import math

import onnx

from granplugin.graph.read.graph import ReadGraph
from granplugin.quant.granularity import grid
from granplugin.quant.site import Shape

THROUGH = ("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Cast")


def along(shape: Shape, scales: Shape, axis: int) -> tuple[Shape, Shape | None, str | None]:
    """The tensor's shape, the block, and what does not fit, of scales along one axis."""
    if len(scales) == len(shape) and all(
        s and n % s == 0 for n, s in zip(shape, scales, strict=True)
    ):
        return shape, tuple(n // s for n, s in zip(shape, scales, strict=True)), None
    if axis == 0 and shape[0] == 1:
        shape = (*scales[:1], *shape[1:])  # one for each sample of a batch of that size
    if len(scales) != 1 or shape[axis] != scales[0]:
        return (
            shape,
            None,
            f"scales of shape {list(scales)} do not fit axis {axis} of {list(shape)}",
        )
    return shape, tuple(1 if i == axis else n for i, n in enumerate(shape)), None


def behind(
    graph: ReadGraph, node: onnx.NodeProto, shape: Shape, block: Shape | None
) -> tuple[Shape, Shape | None]:
    """Shape and block of a tensor, as they are behind a node that it goes through; no block where
    the same values share no block any more."""
    if node.op_type in ("Identity", "Cast"):
        return shape, block
    if node.op_type == "Transpose":
        said = [list(a.ints) for a in node.attribute if a.name == "perm"]
        perm = said[0] if said else list(range(len(shape)))[::-1]
        if sorted(perm) != list(range(len(shape))):  # of a tensor whose shape is not known
            seen = graph.shape(node.output[0])
            return tuple(n or 1 for n in seen or (1,) * len(perm)), None
        return tuple(shape[i] for i in perm), block and tuple(block[i] for i in perm)
    seen = graph.shape(node.output[0])
    after = None if seen is None else tuple(n or 1 for n in seen)
    if after is None or math.prod(after) != math.prod(shape):
        return after or shape, None
    return after, block and reshaped(shape, block, after)


def reshaped(shape: Shape, block: Shape, after: Shape) -> Shape | None:
    """The block of the same values in a tensor reshaped from `shape` to `after`, None where they
    are none.

    >>> reshaped((32, 64), (1, 16), (128, 16))
    (1, 16)
    >>> reshaped((4, 6), (1, 2), (2, 2, 6))
    (1, 1, 2)
    >>> reshaped((4, 6), (2, 6), (3, 8)) is None
    True

    In row-major order, an axis counts first through the blocks along it and then through the places
    in a block: the tensor is a number in a mixed radix, of which some digits say the scale. Each
    axis after must take whole digits, the ones of the scale in front.
    """
    if block == shape:
        return after
    digits: list[tuple[int, bool]] = []  # (length, whether it says the scale), the last one first
    for cells, part in zip(reversed(grid(shape, block)), reversed(block), strict=True):
        for length, tells in ((part, False), (cells, True)):
            if length > 1 and digits and digits[-1][1] == tells:
                digits[-1] = (digits[-1][0] * length, tells)
            elif length > 1:
                digits.append((length, tells))
    digits.reverse()
    found = []
    for axis in reversed(after):
        shared, left = 1, axis
        within = True
        while left > 1:
            length, tells = digits.pop()
            taken = math.gcd(length, left)
            if taken < min(length, left) or (within is False and not tells):
                return None
            within = within and not tells
            shared *= 1 if tells else taken
            left //= taken
            if length > taken:
                digits.append((length // taken, tells))
        found.append(shared)
    return tuple(reversed(found))
