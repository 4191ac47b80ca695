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
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from granplugin.analysis.figures import SUMS, FigureKey, Rounded, sums
from granplugin.analysis.rounding import Rounding, rounding
from granplugin.analysis.settings import Asked
from granplugin.errors import ModelError
from granplugin.network.modules import stored_of
from granplugin.planning.rows import QuantizedRow
from granplugin.quant.formats import FORMATS, fake_quantize, scale_of

_CHUNK_BYTES = 8 << 20
"""On a CPU, activations are worked on in runs of samples of this size: they stay in the cache, and
the allocator reuses their memory instead of asking the system for it each time."""

_SIGNAL = None
"""Where the figures of a layer have its output's own energy."""

START = 0
"""The first setting of each role: what the other role has in "both"."""


@dataclass(frozen=True, eq=False)
class Tried:
    """One layer with all that is tried on it. `weights` and `inputs` are None where a site has no
    range (it saw only zeros) and stays float."""

    asked: Asked
    module: nn.Module
    bn: nn.Module | None
    weights: tuple[np.ndarray | None, ...]
    """Of each weight row, the rounded weight: folded or not, as the row says."""
    inputs: tuple[Rounding | None, ...]
    folded: tuple[np.ndarray, np.ndarray | None]
    """The weight and bias with the batch norm behind the layer folded in."""

    @property
    def name(self) -> str:
        return self.asked.layer.name

    def change(self, index: int) -> np.ndarray | None:
        """How far weight setting `index` moves the folded weight, float32."""
        rounded, row = self.weights[index], self.asked.weights[index]
        if rounded is None:
            return None
        if row.bn != "keep":
            return rounded - self.folded[0]
        moved = rounded.astype(np.float64) - _numpy(self.module.weight)
        return (moved * _factor(self.module, self.bn)).astype(np.float32)

    def figure(self, weight: int | None = None, given: int | None = None) -> FigureKey | None:
        """The figure of these settings of the weight, the input or both; None where one of them
        has no range, or neither is given."""
        if weight is None and given is None:
            return None
        settings = []
        for index, rows, rounded in (
            (weight, self.asked.weights, self.weights),
            (given, self.asked.inputs, self.inputs),
        ):
            if index is not None:
                if index >= len(rounded) or rounded[index] is None:
                    return None
                settings.append(key(rows[index]))
        what: Rounded = "both" if len(settings) == 2 else "weight" if given is None else "input"
        return FigureKey(self.name, what, tuple(settings))

    def figures(self) -> dict[FigureKey, tuple[int | None, int | None]]:
        """Figure -> the settings of the weight and the input that it is of: each alone, and beside
        the other's first."""
        pairs = [
            *((i, j) for i in range(len(self.weights)) for j in (None, START)),
            *((i, j) for j in range(len(self.inputs)) for i in (None, START)),
        ]
        found = {self.figure(*pair): pair for pair in pairs}
        return {figure: pair for figure, pair in found.items() if figure is not None}


def _factor(module: nn.Module, bn: nn.Module) -> np.ndarray:
    """The batch norm's factor of each output channel, broadcast over the weight."""
    factor = 1 / np.sqrt(_numpy(bn.running_var).astype(np.float64) + bn.eps)
    if bn.weight is not None:
        factor = factor * _numpy(bn.weight)
    weight, axis = module.weight, stored_of(module).axis
    if axis == 1:
        # [in, out / groups, ...], one run of rows per group.
        groups = module.groups
        rows = factor.reshape(groups, 1, -1).repeat(weight.shape[0] // groups, 1)
        factor = rows.reshape(weight.shape[0], -1)
    return factor.reshape(*factor.shape, *(1,) * (weight.ndim - factor.ndim))


def _folded(module: nn.Module, bn: nn.Module | None) -> tuple[np.ndarray, np.ndarray | None]:
    if bn is not None:
        return stored_of(module).folded(bn)
    return _numpy(module.weight), None if module.bias is None else _numpy(module.bias)


def key(row: QuantizedRow) -> str:
    """A row's setting as a name that tells it from the site's others."""
    bn = row.bn if row.operand == "weight" else None
    parts = (row.format, row.granularity, row.calibrator, row.amax, bn)
    return "/".join(str(part) for part in parts if part is not None)


def try_settings(
    asked: Sequence[Asked],
    model: nn.Module,
    ranges: Mapping[QuantizedRow, np.ndarray | None],
    device: torch.device,
) -> tuple[Tried, ...]:
    """The layers with their rounded weights, and the roundings of their inputs, by these ranges."""
    found = []
    for each in asked:
        module = model.get_submodule(each.layer.name)
        bn = model.get_submodule(each.layer.bn) if each.layer.bn else None
        behind, weights = _folded(module, bn), []
        for row in each.weights:
            amax = ranges[row]
            whole = behind[0] if row.bn == "fold" else _numpy(module.weight)
            fmt = FORMATS[row.format]
            weights.append(
                None if amax is None else fake_quantize(whole, scale_of(amax, fmt), row.block, fmt)
            )
        inputs = [
            None if ranges.get(row) is None and not row.dynamic else
            rounding(row, ranges.get(row), device)
            for row in each.inputs
        ]  # fmt: skip
        found.append(Tried(each, module, bn, tuple(weights), tuple(inputs), behind))
    return tuple(found)


class LocalErrors:
    """Measures the local errors of layers batch by batch."""

    def __init__(
        self, model: nn.Module, tried: Sequence[Tried], wanted: frozenset[FigureKey]
    ) -> None:
        self.model = model
        self.layers = [
            _Layer(each, asked)
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
            layer.tried.module.register_forward_hook(partial(layer.see, samples), with_kwargs=True)
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
    figures: Mapping[FigureKey, tuple[int | None, int | None]]
    squares: dict[FigureKey | None, np.ndarray] = field(default_factory=dict)
    """Of the batch at hand: (samples, channels), float64."""

    def __post_init__(self) -> None:
        tried = self.tried
        where = tried.module.weight.device
        weight = tried.folded[0]
        self.weight = torch.from_numpy(weight).to(where)
        # Called without the module's hooks: theirs may change, or keep, what they see.
        self.linear = copy.copy(tried.module)
        self.linear.__dict__.pop("weight", None)  # where a hook of weight_norm put it
        used = {i for i, _ in self.figures.values() if i is not None}
        self.changes = {i: torch.from_numpy(tried.change(i)).to(where) for i in used}
        self.by_input: dict[int, list[FigureKey]] = {}
        for name, (_, j) in self.figures.items():
            if j is not None:
                self.by_input.setdefault(j, []).append(name)
        self.axis = 1 if weight.ndim > 2 else -1

    def begin(self, samples: int) -> None:
        """Forget the batch before, which may not have been finished."""
        module = self.tried.module
        channels = getattr(module, "out_features", None) or module.out_channels
        names = (_SIGNAL, *self.figures)
        self.squares = {name: np.zeros((samples, channels)) for name in names}

    def see(
        self, samples: int, module: nn.Module, args: tuple, kwargs: dict, output: Tensor
    ) -> None:
        x, *args = args or [kwargs["input"]]
        kwargs = {name: value for name, value in kwargs.items() if name != "input"}
        apply = partial(self._apply, args, kwargs)
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
            if j is None:
                add(name, apply(x, self.changes[i]))
        for j, names in self.by_input.items():
            rounded = self.tried.inputs[j](x)
            moved = apply(rounded - x, self.weight)
            for name in names:
                i, _ = self.figures[name]
                if i is None:
                    add(name, moved)
                else:
                    add(name, apply(rounded, self.changes[i]).add_(moved))

    def _apply(self, args: Sequence, kwargs: Mapping, x: Tensor, weight: Tensor) -> Tensor:
        """What the layer makes of x with this weight and no bias."""
        self.linear.__dict__["_parameters"] = {"weight": weight, "bias": None}
        return type(self.linear).forward(self.linear, x, *args, **kwargs)

    def _behind_bn(self, output: Tensor) -> Tensor:
        bn = self.tried.bn
        if bn is None:
            return output
        return F.batch_norm(output, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps)

    def flush(self) -> dict[FigureKey, np.ndarray]:
        """The figures of the batch, from what all calls of the layer added."""
        signal = self.squares.pop(_SIGNAL)
        if not np.isfinite(signal).all():
            raise ModelError(
                f"{self.tried.name}: its output holds NaN or Inf in the analysis data, and in no "
                "layer before it"
            )
        found = {name: figure(signal, error) for name, error in self.squares.items()}
        return found


def figure(signal: np.ndarray, error: np.ndarray) -> np.ndarray:
    """SUMS sums, then the signal and the error of each channel, of (samples, channels) each."""
    return np.concatenate([sums(signal.sum(1), error.sum(1)), signal.sum(0), error.sum(0)])


def channels_of(figure: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The signal and the error of each output channel."""
    signal, error = np.split(figure[SUMS:], 2)
    return signal, error


def _squares(y: Tensor, axis: int) -> Tensor:
    """(rows, channels): the sum of squares over all other axes."""
    if y.ndim == 4 and axis == 1 and y.is_contiguous(memory_format=torch.channels_last):
        # A CPU's vector_norm takes ten times as long where channels are the innermost axis.
        return y.permute(0, 2, 3, 1).flatten(1, 2).square().sum(1)
    others = tuple(a for a in range(1, y.ndim) if a != axis % y.ndim)
    return torch.linalg.vector_norm(y, dim=others).square_() if others else y.square()


def per_sample(rows: np.ndarray, samples: int) -> np.ndarray:
    """(rows, channels) -> (samples, channels). Axis 0 may hold several rows of each
    sample, such as windows; where it cannot be told whose they are, samples share them evenly."""
    if len(rows) % samples:
        return np.repeat(rows.sum(0, keepdims=True) / samples, samples, 0)
    return rows.reshape(samples, -1, rows.shape[1]).sum(1)


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().to(torch.float32).cpu().numpy()
