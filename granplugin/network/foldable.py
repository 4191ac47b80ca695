"""Which batch norms can be folded into the layer before them, exactly, and why others cannot."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from granplugin.network.flow import Op
from granplugin.network.values import Values
from granplugin.network.watch import LayerCall


@dataclass(frozen=True)
class BatchNorms:
    """`folded` maps a layer to the batch norm that can be folded into it, `kept` to why that behind
    it cannot."""

    folded: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)


def find_batch_norms(
    model: nn.Module,
    modules: dict[str, nn.Module],
    weights: Mapping[str, tuple[Tensor, Tensor | None]],
    calls: Mapping[str, Sequence[LayerCall]],
    values: Values,
    ends: set[int],
) -> BatchNorms:
    """What the batch norms that read layers' outputs are to them; `weights` has the weight
    and bias of layers, parameters or what a forward computes of such."""
    finder = _Finder(model, modules, weights, calls, values, ends)
    norms = BatchNorms()
    for name in calls:
        op = finder.behind(name)
        if op is not None:
            bn, why = finder.judge(name, op)
            if bn is not None and why is None:
                norms.folded[name] = bn
            elif why is not None:
                norms.kept[name] = why
    return norms


def lets_through(bn: Any) -> bool:
    """Whether this is a batch norm that scales no channel, as folding leaves some."""
    if not isinstance(bn, _BatchNorm) or bn.eps != 0:
        return False
    scales = [bn.running_var, *([] if bn.weight is None else [bn.weight])]
    return all(bool((scale == 1).all()) for scale in scales)


class _Finder:
    def __init__(
        self,
        model: nn.Module,
        modules: dict[str, nn.Module],
        weights: Mapping[str, tuple[Tensor, Tensor | None]],
        calls: Mapping[str, Sequence[LayerCall]],
        values: Values,
        ends: set[int],
    ) -> None:
        self.modules, self.weights, self.calls = modules, weights, calls
        self.values, self.ends = values, ends
        self.owners = Counter(
            id(p) for m in model.modules() for p in m._parameters.values() if p is not None
        )
        self.by_mean = {
            id(m.running_mean): name
            for name, m in modules.items()
            if isinstance(m, _BatchNorm) and m.running_mean is not None
        }

    def behind(self, name: str) -> Op | None:
        """The first batch norm that reads an output of this layer."""
        if isinstance(self.modules.get(name), _BatchNorm):
            return None
        outputs = [made.output for made in self.calls[name] if made.output is not None]
        readers = (op for output in outputs for op in self.values.flow.consumers[output])
        return next((op for op in readers if self._function(op) is F.batch_norm), None)

    def judge(self, name: str, op: Op) -> tuple[str | None, str | None]:
        """The batch norm of an operation behind a layer, and why it cannot be folded;
        neither where it is what folding left of one."""
        called = self.values.calls[op.at]
        given = inspect.signature(F.batch_norm).bind(*called.args, **called.kwargs).arguments
        bn = self.by_mean.get(id(given["running_mean"]))
        if bn is not None and lets_through(self.modules[bn]):
            return None, None
        return bn, self._layer(name) or self._norm(bn, op, given)

    def _layer(self, name: str) -> str | None:
        """Why nothing can be folded into the layer."""
        flow, made = self.values.flow, self.calls[name][0]
        weight, bias = self.weights.get(name, (None, None))
        if weight is None:
            return "it multiplies by no weight of shape (out, in, ...)"
        if weight.dtype != torch.float32:  # fold's result is float32
            return f"the layer's weight is {str(weight.dtype).removeprefix('torch.')}"
        used = (self.owners[id(weight)], len(self._readers(weight)), len(self.calls[name]))
        if used[0] > 1 or used[1:] != (1, 1):
            return "the layer's weight is used more than once"
        producer = self._readers(weight)[0]
        if (
            made.output is None
            or flow.producer[made.output] is not producer
            or (bias is not None and self.values.number(bias) not in producer.reads)
        ):
            return "the layer changes its product before it puts it out"
        if made.output in self.ends or len(flow.consumers[made.output]) != 1:
            return "something else reads the layer's output too"
        # Else axis 1, which batch norm scales, is not the layer's channels.
        if made.output_shape is None or len(made.output_shape) != weight.ndim:
            return "it does not scale the layer's channels"
        return None

    def _norm(self, name: str | None, op: Op, given: Mapping[str, Any]) -> str | None:
        """Why the batch norm cannot be folded into anything."""
        if given.get("training", False):
            return "it takes the mean of each batch"
        if name is None or name not in self.calls:
            return "it is no module's"
        bn = self.modules[name]
        if len(self._readers(bn.running_mean)) != 1:
            return "it is called more than once"
        if type(bn).forward is _BatchNorm.forward:
            # A hook of the user's does not change the result, and there is one call.
            whole = self.calls[name][0].output in op.writes
        else:
            own = {"running_var": bn.running_var, "weight": bn.weight, "bias": bn.bias}
            whole = all(given.get(key) is tensor for key, tensor in own.items())
            whole = whole and given.get("eps", 1e-5) == bn.eps
        return None if whole else "its class computes something else"

    def _readers(self, tensor: Tensor) -> list[Op]:
        return self.values.flow.consumers[self.values.number(tensor)]

    def _function(self, op: Op) -> Any:
        return self.values.calls[op.at].function
