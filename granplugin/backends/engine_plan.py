"""What an engine does, layer by layer, as its library tells it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from granplugin.errors import EngineError

_NO_KERNEL = {"cjmp", "constant", "jmp", "noop", "shape_call", "signal", "wait"}


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


@dataclass(frozen=True)
class EnginePlan:
    """An engine's layers in order, and its own inputs and outputs (`io`, empty where the text does
    not give their types). `source` names the form it was read from.
    """

    layers: tuple[EngineLayer, ...]
    io: tuple[EngineTensor, ...]
    source: str

    @property
    def kernels(self) -> tuple[EngineLayer, ...]:
        """The layers that launch work on the device."""
        return tuple(layer for layer in self.layers if layer.kind.lower() not in _NO_KERNEL)

    @property
    def bytes_read(self) -> int | None:
        """What kernels read of each other's outputs and of the engine's inputs. Constants are not
        in it, but weights that a kernel dequantizes at run time are."""
        return _total(tensor for layer in self.kernels for tensor in layer.inputs)

    @property
    def bytes_written(self) -> int | None:
        return _total(tensor for layer in self.kernels for tensor in layer.outputs)

    @property
    def traffic(self) -> int | None:
        """Bytes read and written by all kernels; None where a tensor's size is not known."""
        read, written = self.bytes_read, self.bytes_written
        return None if read is None or written is None else read + written

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


def _total(tensors: Iterable[EngineTensor]) -> int | None:
    total = 0
    for tensor in tensors:
        if tensor.bytes is None:
            return None
        total += tensor.bytes
    return total
