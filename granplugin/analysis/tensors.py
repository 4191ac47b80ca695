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

from granplugin.analysis.figures import sums
from granplugin.analysis.local import key
from granplugin.analysis.rounding import Rounding
from granplugin.errors import ModelError
from granplugin.plan import Row
from granplugin.residuals import tensors_in


@dataclass(frozen=True, eq=False)
class TriedSite:
    """One site with its settings, the recipe's own first; None for one without a range. `module`
    is the one whose output the tensor is (role output), or whose input."""

    rows: tuple[Row, ...]
    roundings: tuple[Rounding | None, ...]
    module: nn.Module

    @property
    def own(self) -> Row:
        return self.rows[0]

    def figures(self) -> dict[str, Rounding]:
        """Name -> what is measured."""
        return {
            f"{self.own.site}|site|{key(row)}": rounding
            for row, rounding in zip(self.rows, self.roundings, strict=True)
            if rounding is not None
        }


class TensorErrors:
    """Measures them batch by batch, while the model runs for something else."""

    def __init__(self, tried: Sequence[TriedSite], wanted: frozenset[str]) -> None:
        self.sites = [
            _Site(each, asked)
            for each in tried
            if (asked := {n: f for n, f in each.figures().items() if n in wanted})
        ]

    @contextmanager
    def watched(self, samples: int) -> Iterator[None]:
        """Look at every site's tensor meanwhile."""
        hooks = [_hook(each.tried, partial(each.see, samples)) for each in self.sites]
        for each in self.sites:
            each.sums = {}
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def flush(self) -> dict[str, np.ndarray]:
        """The figures of the batch that was watched."""
        found: dict[str, np.ndarray] = {}
        for each in self.sites:
            for name, (signal, error) in each.sums.items():
                if not np.isfinite(signal).all():
                    raise ModelError(f"{each.tried.own.site}: NaN or Inf in the analysis data")
                found[name] = sums(signal, error)
        return found


@dataclass
class _Site:
    tried: TriedSite
    figures: Mapping[str, Rounding]
    sums: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    def see(self, samples: int, x: Tensor) -> None:
        x = x.detach().float()
        signal = _squares(x, samples)
        for name, rounding in self.figures.items():
            found = signal, _squares(rounding(x).sub_(x), samples)
            held = self.sums.get(name)
            self.sums[name] = found if held is None else (held[0] + found[0], held[1] + found[1])


def _hook(tried: TriedSite, see: Callable[[Tensor], None]) -> torch.utils.hooks.RemovableHandle:
    if tried.own.role == "output":
        return tried.module.register_forward_hook(lambda m, args, out: see(next(tensors_in(out))))
    return tried.module.register_forward_pre_hook(
        lambda m, args, kwargs: see(next(tensors_in((args, kwargs)))), with_kwargs=True
    )


def _squares(x: Tensor, samples: int) -> np.ndarray:
    """Of each sample; where rows cannot be told apart, samples share them evenly."""
    rows = torch.linalg.vector_norm(x.flatten(1) if x.ndim > 1 else x[:, None], dim=1)
    rows = rows.to(torch.float64).square_().cpu().numpy()
    if len(rows) % samples:
        return np.full(samples, rows.sum() / samples)
    return rows.reshape(samples, -1).sum(1)
