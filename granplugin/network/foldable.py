"""Which batch norms can be folded into the layer before them, exactly."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from granplugin.network.flow import Op
from granplugin.network.values import Values
from granplugin.network.watch import LayerCall


def find_batch_norms(
    model: nn.Module,
    modules: dict[str, nn.Module],
    weights: Mapping[str, tuple[Tensor, Tensor | None]],
    calls: Mapping[str, Sequence[LayerCall]],
    values: Values,
    ends: set[int],
) -> dict[str, str]:
    """Layer -> the batch norm that is the one reader of its output, where folding is exact;
    `weights` has the stored weight and bias of layers."""
    flow = values.flow
    owners = Counter(
        id(p) for m in model.modules() for p in m._parameters.values() if p is not None
    )
    by_mean = {
        id(m.running_mean): name
        for name, m in modules.items()
        if isinstance(m, _BatchNorm) and m.running_mean is not None
    }

    def readers(tensor: Tensor) -> list[Op]:
        return flow.consumers[values.number(tensor)]

    foldable = {}
    for name, seen in calls.items():
        weight, bias = weights.get(name, (None, None))
        if (
            weight is None
            or weight.dtype != torch.float32  # fold's result is float32
            or seen[0].output in ends
            or owners[id(weight)] != 1
            or len(readers(weight)) != 1  # called once, and read by nothing else
        ):
            continue
        output, producer = seen[0].output, readers(weight)[0]
        if (
            output is None
            or flow.producer[output] is not producer
            or (bias is not None and values.number(bias) not in producer.reads)
            or len(flow.consumers[output]) != 1
            or values.calls[flow.consumers[output][0].at].function is not F.batch_norm
        ):
            continue
        op = flow.consumers[output][0]
        batch_norm = values.calls[op.at]
        given = (
            inspect.signature(F.batch_norm).bind(*batch_norm.args, **batch_norm.kwargs).arguments
        )
        bn_name = by_mean.get(id(given["running_mean"]))
        if bn_name is None or bn_name not in calls:
            continue
        bn, shape = modules[bn_name], seen[0].output_shape
        if (
            type(bn).forward is _BatchNorm.forward
            # A hook of the user's does not change the result, and there is one call.
            and calls[bn_name][0].output in op.writes
            and len(readers(bn.running_mean)) == 1
            and not given.get("training", False)
            # Else axis 1, which batch norm scales, is not the layer's channels.
            and shape is not None
            and len(shape) == weight.ndim
        ):
            foldable[name] = bn_name
    return foldable
