"""Errors of the sites that are no factor of a layer's product: skip inputs, outputs, and inputs of
layers without weights. Of these it is the tensor itself that is measured, rounded and as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from granplugin.analysis.figures import FigureKey
from granplugin.analysis.rounding import Rounding, rounding
from granplugin.analysis.tried import TriedSite, figure, per_sample
from granplugin.errors import ModelError
from granplugin.network.frames import passing
from granplugin.network.torch_calls import tensors_in
from granplugin.planning.rows import QuantizedRow


def module_of(model: nn.Module, row: QuantizedRow) -> nn.Module:
    """The module whose input, or for role output whose output, the row's tensor is."""
    module = model.get_submodule(row.observed.rpartition(".")[0])
    return passing(module, row.operand) or module


class TensorErrors:
    """Measures them batch by batch, while the model runs for something else."""

    def __init__(
        self, model: nn.Module, tried: Sequence[TriedSite], wanted: frozenset[FigureKey]
    ) -> None:
        where = next(model.parameters()).device
        self.sites = [
            _Site(each, module_of(model, each.own), asked)
            for each in tried
            if (
                asked := {
                    name: rounding(ranged.row, ranged.amax, where)
                    for name, ranged in each.figures().items()
                    if name in wanted
                }
            )
        ]

    @contextmanager
    def watched(self, samples: int) -> Iterator[None]:
        """Look at every site's tensor meanwhile."""
        hooks = [_hook(each, partial(each.see, samples)) for each in self.sites]
        for each in self.sites:
            each.sums = {}
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def flush(self) -> dict[FigureKey, np.ndarray]:
        """The figures of the batch that was watched, in the form of local errors' figures."""
        found: dict[FigureKey, np.ndarray] = {}
        for each in self.sites:
            for name, (signal, error) in each.sums.items():
                if not np.isfinite(signal).all():
                    raise ModelError(f"{each.tried.own.site}: NaN or Inf in the analysis data")
                found[name] = figure(signal, error)
        return found


@dataclass
class _Site:
    tried: TriedSite
    module: nn.Module
    figures: Mapping[FigureKey, Rounding]
    sums: dict[FigureKey, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    weight: dict[FigureKey, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    """Of a weight, whose figures no data change: (1, channels)."""

    def see(self, samples: int, x: Tensor) -> None:
        if self.tried.own.at.constant:
            if not self.weight:
                self.weight = self._squared(x.detach().float()[None], self.tried.axis + 1, 1)
            # Each sample is given it.
            self.sums = {
                name: (np.repeat(signal, samples, 0), np.repeat(error, samples, 0))
                for name, (signal, error) in self.weight.items()
            }
            return
        for name, found in self._squared(x.detach().float(), self.tried.axis, samples).items():
            held = self.sums.get(name)
            self.sums[name] = found if held is None else (held[0] + found[0], held[1] + found[1])

    def _squared(
        self, x: Tensor, axis: int, samples: int
    ) -> dict[FigureKey, tuple[np.ndarray, np.ndarray]]:
        signal, found = _squares(x, axis, samples), {}
        for name, rounded in self.figures.items():
            whole = x[0] if self.tried.own.at.constant else x
            error = (rounded(whole) - whole).reshape(x.shape)
            found[name] = signal, _squares(error, axis, samples)
        return found


def _hook(site: _Site, see: Callable[[Tensor], None]) -> torch.utils.hooks.RemovableHandle:
    if site.tried.own.operand == "output":
        return site.module.register_forward_hook(lambda m, args, out: see(next(tensors_in(out))))
    return site.module.register_forward_pre_hook(
        lambda m, args, kwargs: see(next(tensors_in((args, kwargs)))), with_kwargs=True
    )


def _squares(x: Tensor, axis: int, samples: int) -> np.ndarray:
    """(samples, channels), float64."""
    others = tuple(a for a in range(1, x.ndim) if a != axis)
    squares = x.square()
    squares = (squares.sum(others) if others else squares).reshape(len(x), -1)
    return per_sample(squares.to(torch.float64).cpu().numpy(), samples)
