"""Skip inputs of a torch model's layers, sent through a quantizer while the model runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from granplugin.errors import ModelError
from granplugin.network.torch_calls import IN_PLACE_ADDS, addends, name_of, tensors_in

SKIP_QUANTIZER = "skip_quantizer"
"""The child of a layer through which its skip input goes."""


class SkipInputs:
    """Lets skip inputs of a model's layers go through the layers' children SKIP_QUANTIZER.

    While the model runs, it follows the result of each such layer, function by function, to the
    first add with a tensor that is not computed from it: what find_skips found in the trace. Its
    hooks are copied with the model.
    """

    def __init__(self, model: nn.Module, layers: Sequence[str]) -> None:
        self._running: list[_Following] = []
        model.register_forward_pre_hook(self._enter)
        model.register_forward_hook(self._leave, always_call=True)
        for layer in layers:
            model.get_submodule(layer).register_forward_hook(self._put_out)

    def _enter(self, model: nn.Module, args: tuple) -> None:
        self._running.append(_Following())
        self._running[-1].__enter__()

    def _put_out(self, layer: nn.Module, args: tuple, output: Tensor) -> None:
        if self._running:
            branch = (getattr(layer, SKIP_QUANTIZER),)
            self._running[-1].live[id(output)] = (output, branch)

    def _leave(self, model: nn.Module, args: tuple, output: Any) -> None:
        following = self._running.pop()
        following.__exit__(None, None, None)
        if output is not None and following.live:  # None: forward raised
            (missed,) = next(iter(following.live.values()))[1]
            name = next(name for name, module in model.named_modules() if module is missed)
            raise ModelError(
                f"{name.removesuffix('_quantizer')}: the residual add behind it did not take "
                "place; the model's forward does not do the same for every batch"
            )


class _Following(TorchFunctionMode):
    """`live`: id of a tensor -> it (kept, or its id would be another's) and the branch it is on,
    a tuple of the module for what that is added to."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, tuple[Tensor, tuple[nn.Module]]] = {}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = list(tensors_in((args, kwargs))) if self.live else []
        branch = next((self.live[id(x)][1] for x in given if id(x) in self.live), None)
        if branch is None:
            return func(*args, **kwargs)
        added = addends(func, args, kwargs)
        left, right = added or (None, None)
        if added and (id(left) in self.live) != (id(right) in self.live):
            skip_first = id(right) in self.live
            self.live = {i: seen for i, seen in self.live.items() if seen[1] is not branch}
            return _add(func, *added, module=branch[0], skip_first=skip_first)
        result = func(*args, **kwargs)
        self.live |= {id(tensor): (tensor, branch) for tensor in tensors_in(result)}
        return result


def _add(func: Any, left: Tensor, right: Tensor, module: nn.Module, skip_first: bool) -> Tensor:
    if not skip_first:
        return func(left, module(right))
    if name_of(func) in IN_PLACE_ADDS:
        return func(left.copy_(module(left)), right)
    return func(module(left), right)
