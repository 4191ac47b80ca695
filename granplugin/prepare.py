"""Folding batch norms in a torch model, with the proof that its outputs did not change."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn

from granplugin.errors import ModelError
from granplugin.trace import Example, Traced, call, copied, flatten_outputs, folded

log = logging.getLogger(__name__)

# Folding changes the order of float32 roundings (2^-24 each): on MobileNetV2, ResNet-50 and
# EfficientNet-B0 that moves outputs by at most PLACEHOLDER of the largest one. Folding the
# wrong thing moves them by a sizeable part of it.
TOLERANCE = 1e-4


def fold_batch_norms(
    model: nn.Module, traced: Traced, names: Collection[str], example: Example
) -> nn.Module:
    """Fold the batch norms of the named layers, in place: a new weight and bias for each layer,
    nn.Identity for its batch norm. Layers that are folded already stay as they are.

    The model's outputs on `example` are compared before and after. Raises ModelError, and leaves
    the model as it was, where one moves by more than TOLERANCE times its largest value, naming
    the layer; and for a name that has no batch norm in `traced`.
    """
    for name in names:
        if name not in traced.batch_norms:
            raise ModelError(f"layer {name!r} has no batch norm that can be folded into it")
    pairs = {
        name: traced.batch_norms[name]
        for name in traced.batch_norms
        if name in set(names)
        and not isinstance(model.get_submodule(traced.batch_norms[name]), nn.Identity)
    }
    if not pairs:
        return model
    before = _outputs(model, example)
    undo = [_fold(model, name, bn) for name, bn in pairs.items()]
    moved = _moved(model, before, example)
    if moved <= TOLERANCE:
        log.info("folded %d batch norms; outputs moved by %.1e of their range", len(pairs), moved)
        return model
    for step in undo:
        step()
    by_layer = {}
    for name, bn in pairs.items():
        step = _fold(model, name, bn)
        by_layer[name] = _moved(model, before, example)
        step()
    worst = max(by_layer, key=by_layer.get)
    raise ModelError(
        f"folding {pairs[worst]!r} into {worst!r} changes the model's outputs (by "
        f"{by_layer[worst]:.1e} of their largest value); something else reads the output of "
        f"{worst!r}: set bn: keep for it"
    )
