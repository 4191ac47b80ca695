"""A named marker in each quantizer's place, for export: the graph then says where every site is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from granplugin.modelopt_bridge.library import TensorQuantizer

OP = "granplugin::Site"


class Marker(nn.Module):
    """Passes its input on through the op granplugin::Site, which carries the site's name."""

    def __init__(self, site: str, quantizer: TensorQuantizer) -> None:
        super().__init__()
        self.site = site
        # In a list, so that it is not a submodule: its amax is no part of the graph.
        self._replaced = [quantizer]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.onnx.ops.symbolic(
            OP, [x], {"site": self.site}, dtype=x.dtype, shape=x.shape, version=1
        )

    def __getattr__(self, name: str) -> Any:
        # What modelopt's modules ask a quantizer, such as is_enabled, they ask its marker.
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_replaced"][0], name)


@contextmanager
def marked(model: nn.Module) -> Iterator[None]:
    """Put a marker in place of every quantizer of a converted model, those that are off too (they
    cannot be exported), and take them out again.

    A marker's site is the quantizer's full name without "_quantizer": features.0.0.weight. A layer
    that has several names is called by its first.
    """
    replaced = []
    for layer, module in list(model.named_modules()):
        for child, quantizer in module._modules.items():
            if isinstance(quantizer, TensorQuantizer):
                site = f"{layer}.{child.removesuffix('_quantizer')}"
                replaced.append((module, child, quantizer, Marker(site, quantizer)))
    try:
        for parent, child, _, marker in replaced:
            parent._modules[child] = marker
        yield
    finally:
        for parent, child, quantizer, _ in replaced:
            parent._modules[child] = quantizer
