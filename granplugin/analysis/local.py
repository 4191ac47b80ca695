"""Local errors: what rounding a layer's weight, its input, or both does to the layer's output.

One float forward pass serves all layers and settings. A layer is linear: with x' = x + dx and
W' = W + dW, its output changes by A(x, dW) where only the weight is rounded, by A(dx, W) where only
the input is, and by A(x', dW) + A(dx, W) where both are; nothing is run again behind the layer. The
output is taken behind the batch norm that can be folded into the layer, so that fold and keep are
measured with one measure: there, kept, the error of channel c is A(x, Q(W) - W) times the batch
norm's factor of c, and folded it is A(x, Q(W f) - W f).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import InitVar, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from granplugin.analysis.factors import Factor, layer_module
from granplugin.analysis.figures import FigureKey
from granplugin.analysis.rounding import Rounding, rounding
from granplugin.analysis.tried import Held, Pair, Tried, factor_of, figure, per_sample
from granplugin.errors import ModelError
from granplugin.network.modules import stored_of
from granplugin.quant.layers import Layer

_CHUNK_BYTES = 8 << 20
"""On a CPU, activations are worked on in runs of samples of this size: they stay in the cache, and
the allocator reuses their memory instead of asking the system for it each time."""

_SIGNAL = None
"""Where the figures of a layer have its output's own energy."""


def held_of(model: nn.Module, layer: Layer) -> Held:
    """What an analysis copy holds of a layer; a batch norm is in a call's weight already, or stays
    behind it."""
    module = layer_module(model, layer.name)
    if isinstance(module, Factor):
        found = module.stored
        bias = None if found.bias is None else _numpy(found.bias)
        return Held(found.array, (found.array, bias), np.ones(1), found.facts(None))
    bn = model.get_submodule(layer.bn) if layer.bn else None
    stored, weight = stored_of(module), _numpy(module.weight)
    bias = None if module.bias is None else _numpy(module.bias)
    if bn is None:
        return Held(weight, (weight, bias), None, stored.facts(None))
    gamma = None if bn.weight is None else _numpy(bn.weight)
    variance = _numpy(bn.running_var)
    factor = factor_of(gamma, variance, bn.eps, weight, stored.axis, stored.groups)
    return Held(weight, stored.folded(bn), factor, stored.facts(bn))


class LocalErrors:
    """Measures the local errors of layers batch by batch."""

    def __init__(
        self, model: nn.Module, tried: Sequence[Tried], wanted: frozenset[FigureKey]
    ) -> None:
        self.layers = [
            _Layer(each, asked, model)
            for each in tried
            if (asked := {n: f for n, f in each.figures().items() if n in wanted})
        ]

    def run(self, forward: Callable[[], Any], samples: int) -> dict[FigureKey, np.ndarray]:
        """The figures of one batch of `samples` samples, run by `forward()`.

        A figure is SUMS sums, then the signal and the error of each output channel. Raises
        ModelError naming the first layer whose output is not finite.
        """
        for layer in self.layers:
            layer.begin(samples)
        with self._watched(samples):
            forward()
        found: dict[FigureKey, np.ndarray] = {}
        for layer in self.layers:
            found |= layer.flush()
        return found

    @contextmanager
    def _watched(self, samples: int) -> Iterator[None]:
        hooks = [
            layer.module.register_forward_hook(partial(layer.see, samples), with_kwargs=True)
            for layer in self.layers
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


@dataclass
class _Layer:
    tried: Tried
    figures: Mapping[FigureKey, Pair]
    model: InitVar[nn.Module]
    squares: dict[FigureKey | None, np.ndarray] = field(default_factory=dict)
    """Of the batch at hand: (samples, channels), float64."""

    def __post_init__(self, model: nn.Module) -> None:
        tried, layer = self.tried, self.tried.asked.layer
        self.module = layer_module(model, layer.name)
        called = isinstance(self.module, Factor)
        self.bn = model.get_submodule(layer.bn) if layer.bn and not called else None
        where = self.module.weight.device
        weight = tried.held.folded[0]
        self.weight = torch.from_numpy(weight).to(where)
        # Called without the module's hooks: theirs may change, or keep, what they see.
        self.linear = copy.copy(self.module)
        self.linear.__dict__.pop("weight", None)  # where a hook of weight_norm put it
        if called:
            self.linear.__dict__["alone"] = True
        used = {i for i, _ in self.figures.values() if i is not None}
        self.changes = {i: torch.from_numpy(tried.change(i)).to(where) for i in used}
        self.by_input: dict[int, list[FigureKey]] = {}
        self.roundings: dict[int, Rounding] = {}
        for name, (_, j) in self.figures.items():
            if j is not None:
                ranged = tried.inputs[j]
                assert ranged is not None, f"{name} has no range"
                self.roundings[j] = rounding(ranged.row, ranged.amax, where)
                self.by_input.setdefault(j, []).append(name)
        self.axis = 1 if weight.ndim > 2 else -1

    def begin(self, samples: int) -> None:
        """Forget the batch before, which may not have been finished."""
        module = self.module
        channels = getattr(module, "out_features", None) or module.out_channels
        names = (_SIGNAL, *self.figures)
        self.squares = {name: np.zeros((samples, channels)) for name in names}

    def see(
        self,
        samples: int,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Tensor,
    ) -> None:
        # What is computed here is no call of the model's, which may have a mode on.
        with torch._C.DisableTorchFunction():
            self._measure(samples, args, kwargs, output)

    def _measure(
        self, samples: int, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> None:
        x, *rest = args or [kwargs["input"]]
        others = {name: value for name, value in kwargs.items() if name != "input"}
        apply = partial(self._apply, rest, others)
        rows = max(x.nbytes, output.nbytes) // max(len(x), 1)
        parts = max(_CHUNK_BYTES // max(rows, 1), 1) if x.device.type == "cpu" else max(len(x), 1)
        call: dict[FigureKey | None, list[Tensor]] = {}
        for part, out in zip(x.detach().split(parts), output.split(parts), strict=True):
            part = part.float()
            if part.ndim == self.weight.ndim == 4:
                # A CPU's convolutions then need no copies in an order of their own.
                part = part.contiguous(memory_format=torch.channels_last)
            self._see(part, out.float(), apply, call)
        # A GPU is waited for once per call of a layer.
        together = torch.stack([torch.cat(squares) for squares in call.values()]).cpu().double()
        for name, squares in zip(call, together.numpy(), strict=True):
            found = per_sample(squares, samples)
            self.squares[name] += found

    def _see(
        self,
        x: Tensor,
        output: Tensor,
        apply: Callable[[Tensor, Tensor], Tensor],
        call: dict[FigureKey | None, list[Tensor]],
    ) -> None:
        def add(name: FigureKey | None, y: Tensor) -> None:
            call.setdefault(name, []).append(_squares(y, self.axis))

        add(_SIGNAL, self._behind_bn(output))
        for name, (i, j) in self.figures.items():
            if j is None and i is not None:
                add(name, apply(x, self.changes[i]))
        for j, names in self.by_input.items():
            rounded = self.roundings[j](x)
            moved = apply(rounded - x, self.weight)
            for name in names:
                i, _ = self.figures[name]
                if i is None:
                    add(name, moved)
                else:
                    add(name, apply(rounded, self.changes[i]).add_(moved))

    def _apply(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], x: Tensor, weight: Tensor
    ) -> Tensor:
        """What the layer makes of x with this weight and no bias."""
        self.linear.__dict__["_parameters"] = {"weight": weight, "bias": None}
        return type(self.linear).forward(self.linear, x, *args, **kwargs)

    def _behind_bn(self, output: Tensor) -> Tensor:
        bn = self.bn
        if bn is None:
            return output
        return F.batch_norm(output, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps)

    def flush(self) -> dict[FigureKey, np.ndarray]:
        """The figures of the batch, from what all calls of the layer added."""
        signal = self.squares[_SIGNAL]
        if not np.isfinite(signal).all():
            raise ModelError(
                f"{self.tried.name}: its output holds NaN or Inf in the analysis data, and in no "
                "layer before it"
            )
        return {
            name: figure(signal, error)
            for name, error in self.squares.items()
            if name is not _SIGNAL
        }


def _squares(y: Tensor, axis: int) -> Tensor:
    """(rows, channels): the sum of squares over all other axes."""
    if y.ndim == 4 and axis == 1 and y.is_contiguous(memory_format=torch.channels_last):
        # A CPU's vector_norm takes ten times as long where channels are the innermost axis.
        return y.permute(0, 2, 3, 1).flatten(1, 2).square().sum(1)
    others = tuple(a for a in range(1, y.ndim) if a != axis % y.ndim)
    return torch.linalg.vector_norm(y, dim=others).square_() if others else y.square()


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().to(torch.float32).cpu().numpy()
