"""Which layer read and put out which value, in each of its calls of one forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from granplugin.errors import ModelError
from granplugin.network.forward import batched_shape, finite
from granplugin.network.torch_calls import tensors_in
from granplugin.network.values import Values
from granplugin.quant.site import Shape


@dataclass(slots=True)
class LayerCall:
    """One call of a layer: the values of its first tensor and of its result, and their shapes with
    1 on axis 0; without a result where it put out no tensor. A product of two activations has the
    second as `other`. `kind` is the type of the result's numbers."""

    input: int
    input_shape: Shape
    output: int | None = None
    output_shape: Shape | None = None
    other: int | None = None
    other_shape: Shape | None = None
    kind: torch.dtype | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Watch:
    """Calls by layer, in the order of their first; `broken` has the first layer, if any, that put
    out NaN or Inf, `exchanged` those that ran with another weight than they hold."""

    values: Values
    calls: dict[str, list[LayerCall]] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    exchanged: set[str] = field(default_factory=set)

    @contextmanager
    def hooked(self, modules: Mapping[str, nn.Module]) -> Iterator[None]:
        """Sees the calls of these modules."""
        hooks = []
        try:
            for name, module in modules.items():
                before = partial(self._before, name, module._parameters.get("weight"))
                after = partial(self._after, name)
                hooks.append(module.register_forward_pre_hook(before, with_kwargs=True))
                hooks.append(module.register_forward_hook(after))
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _before(
        self,
        name: str,
        held: nn.Parameter | None,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        if module._parameters.get("weight") is not held:
            self.exchanged.add(name)
        tensor = next(tensors_in((args, kwargs)), None)
        if tensor is not None:
            if torch._C._functorch.is_batchedtensor(tensor):
                raise ModelError(
                    f"the model's forward runs {name!r} under torch.vmap, where nothing can be "
                    "seen of it; call it on the whole batch"
                )
            with torch._C.DisableTorchFunction():
                made = LayerCall(self.values.number(tensor), batched_shape(tensor))
                self.calls.setdefault(name, []).append(made)

    def _after(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        tensor = next(tensors_in(output), None)
        if tensor is None or name not in self.calls:
            return
        with torch._C.DisableTorchFunction():
            made = self.calls[name][-1]
            made.output, made.output_shape = self.values.number(tensor), batched_shape(tensor)
            made.kind = tensor.dtype
            if not self.broken and not finite(tensor):
                self.broken.append(name)
