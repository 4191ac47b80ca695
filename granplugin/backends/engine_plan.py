"""What an engine does, layer by layer, as its library tells it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, replace
from functools import cached_property

from granplugin.errors import EngineError

_NO_KERNEL = {"cjmp", "constant", "jmp", "noop", "shape_call", "signal", "wait"}
_MULTIPLIES = ("correlation", "conv", "gemm", "matrixmultiply", "fusion")
"""What is in the kinds of layers that multiply; CaskConvolution is TensorRT's own."""
_ATTENTION = "_gemm_mha"
"""How TensorRT-RTX names the kernel of a whole attention, whose kind is that of those that add and
scale. It has none for an attention in float: it takes one whose factors, weights of the softmax and
result are all quantized."""
LOW = frozenset({"int8", "fp8", "int4", "fp4"})
"""Types of quantized values."""


@dataclass(frozen=True)
class EngineTensor:
    """A tensor between kernels. `dtype` is float (32 bits), half, bf16, fp8, fp4, e8m0, int4,
    int8, uint8, int32, int64 or bool; a dynamic dimension of `shape` is -1.

    `bytes` are the values' alone, without padding; None where a dimension is dynamic: a transformer
    merges its batch with others, and all that is printed is -1.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int | None


@dataclass(frozen=True)
class EngineLayer:
    """One layer of an engine; `kind` is the library's own word.

    `onnx_nodes` are the ONNX nodes fused into it, where the text names them. `time_ms` is its mean
    time in a profile, or None.
    """

    name: str
    kind: str
    inputs: tuple[EngineTensor, ...]
    constants: tuple[EngineTensor, ...]
    outputs: tuple[EngineTensor, ...]
    onnx_nodes: tuple[str, ...]
    time_ms: float | None = None

    @property
    def attends(self) -> bool:
        """Whether it is a whole attention: both products and the softmax between, by its name."""
        return self.name.startswith(_ATTENTION)

    @property
    def multiplies(self) -> bool:
        """Whether it multiplies two matrices, or convolves, by its kind."""
        return self.attends or any(word in self.kind.lower() for word in _MULTIPLIES)

    @property
    def weights(self) -> tuple[EngineTensor, ...]:
        """Those of its constants that it multiplies with, or makes the factor of a product of:
        quantized values, or else what has more than a value for each channel. A count is all that
        the inspector tells of a weight, which is then the largest."""
        if self.attends or (not self.multiplies and self.inputs):
            return ()
        low = tuple(tensor for tensor in self.constants if tensor.dtype in LOW)
        if low or not self.multiplies:
            return low
        wide = tuple(tensor for tensor in self.constants if not _one_a_channel(tensor))
        if wide or len(self.inputs) > 1:
            return wide
        largest = max(self.constants, key=lambda tensor: tensor.bytes or 0, default=None)
        return (largest,) if largest else ()


@dataclass(frozen=True)
class Moved:
    """Bytes that kernels read and write for one batch, by what they are of; None where a size is
    not told.

    `activations` are what they read of each other's results and of the engine's inputs, and what
    they write. `weights` are read, and also written where a kernel dequantizes them at run time.
    `scales` are what has one value for each channel, or one at all, biases among them; `other` are
    constants such as zeros to pad with and tables. A constant counts wherever it is read.
    """

    activations: int | None = 0
    weights: int | None = 0
    scales: int | None = 0
    other: int | None = 0

    @property
    def total(self) -> int | None:
        """All of it; None where not all is told."""
        return _sum((self.activations, self.weights, self.scales, self.other))

    def __add__(self, more: Moved) -> Moved:
        pairs = zip(astuple(self), astuple(more), strict=True)
        return Moved(*(_sum(pair) for pair in pairs))


@dataclass(frozen=True)
class EnginePlan:
    """An engine's layers in order, and its own inputs and outputs (`io`, empty where the text does
    not give their types). `source` names the form it was read from; `constants_told` is False
    where that has no constants.
    """

    layers: tuple[EngineLayer, ...]
    io: tuple[EngineTensor, ...]
    source: str
    constants_told: bool = True

    @property
    def kernels(self) -> tuple[EngineLayer, ...]:
        """The layers that launch work on the device."""
        return tuple(layer for layer in self.layers if layer.kind.lower() not in _NO_KERNEL)

    @cached_property
    def moved(self) -> Moved:
        """What all kernels move."""
        return sum(self.moved_by, Moved())

    @cached_property
    def moved_by(self) -> tuple[Moved, ...]:
        """What each kernel moves, in their order."""
        made: set[str] = set()
        moved = [_moved(kernel, made) for kernel in self.kernels]
        if not self.constants_told:
            moved = [Moved(each.activations, None, None, None) for each in moved]
        return tuple(moved)

    @property
    def batch(self) -> int | None:
        """Samples in the engine's own inputs and outputs; None where that is open or not told."""
        sizes = {tensor.shape[0] for tensor in self.io if tensor.shape}
        return sizes.pop() if len(sizes) == 1 and min(sizes) > 0 else None

    def timed(self, times: Mapping[str, float]) -> EnginePlan:
        """The plan with the times of `read_profile_json`, joined by layer name.

        Raises EngineError where a profiled layer is not in the plan or a name is not unique there.
        """
        names = [layer.name for layer in self.layers]
        for name in times:
            if names.count(name) != 1:
                problem = "is not in the plan" if name not in names else "is there more than once"
                raise EngineError(
                    f"profile: layer {name!r} {problem}; give the layers and the profile of one "
                    "engine"
                )
        layers = (replace(layer, time_ms=times.get(layer.name)) for layer in self.layers)
        return replace(self, layers=tuple(layers))


def _moved(kernel: EngineLayer, made: set[str]) -> Moved:
    """What one kernel moves; `made` names the weights that kernels before it made of constants, and
    takes those that it makes."""
    weights = kernel.weights
    of_constants = kernel.inputs and all(tensor.name in made for tensor in kernel.inputs)
    if of_constants or (weights and not kernel.inputs):
        made |= {tensor.name for tensor in kernel.outputs}
    flows = (*kernel.inputs, *kernel.outputs)
    rest = [tensor for tensor in kernel.constants if tensor not in weights]
    beside_low = any(tensor.dtype in LOW for tensor in weights)
    scales = [tensor for tensor in rest if _one_a_channel(tensor) or beside_low]
    return Moved(
        activations=_total(tensor for tensor in flows if tensor.name not in made),
        weights=_total([*weights, *(tensor for tensor in flows if tensor.name in made)]),
        scales=_total(scales),
        other=_total(tensor for tensor in rest if tensor not in scales),
    )


def _one_a_channel(tensor: EngineTensor) -> bool:
    return sum(size > 1 for size in tensor.shape) < 2


def _total(tensors: Iterable[EngineTensor]) -> int | None:
    return _sum(tensor.bytes for tensor in tensors)


def _sum(sizes: Iterable[int | None]) -> int | None:
    total = 0
    for size in sizes:
        if size is None:
            return None
        total += size
    return total
