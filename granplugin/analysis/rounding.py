"""Q/DQ of activations as torch computes it: the oracle of quant.formats, on any device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from granplugin.planning.rows import QuantizedRow
from granplugin.quant.formats import FORMATS, Format, scale_of
from granplugin.quant.granularity import expand

_SMALLEST_NORMAL = float(np.finfo(np.float32).smallest_normal)


@dataclass(frozen=True, eq=False)
class Rounding:
    """What one row does to its tensor; `scale` is broadcast over it, None where it is found at
    run time, of each sample's largest |x| over `within`."""

    row: QuantizedRow
    format: Format
    scale: Tensor | None
    within: tuple[int, ...]

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """x (float32) rounded, in `out` or a new tensor."""
        scale = self.scale
        if scale is None:
            amax = x.abs().amax(self.within, keepdim=True)
            scale = (amax / self.format.largest).clamp_min_(_SMALLEST_NORMAL)
        x = torch.div(x, scale, out=out)
        if self.format.integer:
            return x.round_().clamp_(self.format.smallest, self.format.largest).mul_(scale)
        x.clamp_(self.format.smallest, self.format.largest)
        return x.copy_(x.to(getattr(torch, self.format.dtype.name))).mul_(scale)


def rounding(row: QuantizedRow, amax: np.ndarray | None, device: torch.device) -> Rounding:
    """The rounding of an input, output or skip row with this amax (the row's grid, float32)."""
    fmt = FORMATS[row.format]
    if row.dynamic:
        within = tuple(a for a, n in enumerate(row.block) if a and n == row.shape[a])
        return Rounding(row, fmt, None, within)
    assert amax is not None, f"{row.site} has a range"
    scale = scale_of(amax, fmt)
    # Blocks of several values along an axis of several blocks cannot be broadcast.
    along = [n if cells > 1 else 1 for n, cells in zip(row.block, row.grid, strict=True)]
    scale = expand(scale, tuple(along))
    return Rounding(row, fmt, torch.from_numpy(np.ascontiguousarray(scale)).to(device), ())
