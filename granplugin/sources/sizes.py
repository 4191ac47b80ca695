"""Layers that see tensors of other shapes where dynamic axes have other sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from granplugin.quant.layers import Layer
from granplugin.quant.site import Operand, Shape
from granplugin.recipe.model import FileForm
from granplugin.sources.protocol import Batch

Shapes = Mapping[str, Mapping[Operand, Shape]]


def of_other_sizes(batch: Batch, form: FileForm) -> Iterator[Batch]:
    """The batch with its dynamic axes twice as long, then half as long."""
    for num, den in ((2, 1), (1, 2)):
        other = dict(batch)
        for name in form.dynamic.keys() & other.keys():
            for axis in form.dynamic[name]:
                size = other[name].shape[axis]
                other[name] = np.take(
                    other[name], np.arange(max(size * num // den, 1)) % size, axis
                )
        yield other


def varying(layers: tuple[Layer, ...], others: Shapes | None) -> tuple[Layer, ...]:
    """The layers, varying where another pass, with other sizes of the dynamic axes, has shown other
    shapes; all of them without such a pass."""
    return tuple(
        replace(layer, varying=True)
        if others is None or others.get(layer.name) != _shapes(layer)
        else layer
        for layer in layers
    )


def shapes_of(layers: tuple[Layer, ...]) -> Shapes:
    """Of what each layer reads and puts out, but for weights."""
    return {layer.name: _shapes(layer) for layer in layers}


def _shapes(layer: Layer) -> dict[Operand, Shape]:
    return {site.operand: site.shape for site in layer.sites if not site.constant}
