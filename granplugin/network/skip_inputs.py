"""Skip inputs of a torch model's layers, sent through a quantizer while the model runs."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from granplugin.errors import ModelError
from granplugin.network.opened import opened
from granplugin.network.raised import passed_on
from granplugin.network.torch_calls import IN_PLACE_ADDS, addends, name_of, tensors_in

SKIP_QUANTIZER = "skip_quantizer"
"""The child of a layer through which its skip input goes."""


class SkipInputs:
    """Lets skip inputs of a model's layers go through the layers' children SKIP_QUANTIZER.

    While the model runs, it follows the result of each such layer, function by function, to the
    first add with a tensor that is not computed from it: what find_skips found in the trace. Its
    hooks are copied with the model. `layers` are modules whose result is theirs; what stands for a
    call within it tells that call's result by `put_out`.
    """

    def __init__(self, model: nn.Module, layers: Sequence[str]) -> None:
        model.register_forward_pre_hook(self._enter)
        model.register_forward_hook(self._leave, always_call=True)
        for layer in layers:
            model.get_submodule(layer).register_forward_hook(self._put_out)

    def _enter(self, model: nn.Module, args: tuple[Any, ...]) -> None:
        _RUNNING.following.append(_Following())
        _RUNNING.following[-1].__enter__()

    def _put_out(self, layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        put_out(layer, output)

    def _leave(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        following = _RUNNING.following.pop()
        following.__exit__(None, None, None)
        if output is not None and following.live:  # None: forward raised
            (missed,) = next(iter(following.live.values()))[1]
            name = next(name for name, module in model.named_modules() if module is missed)
            raise ModelError(
                f"{name.removesuffix('_quantizer')}: the residual add behind it did not take "
                "place; the model's forward does not do the same for every batch"
            )


def put_out(layer: nn.Module, output: Tensor) -> None:
    """Follow this result of a layer to its residual add, where it has a quantizer for that."""
    if SKIP_QUANTIZER in layer._modules and _RUNNING.following:
        branch = (getattr(layer, SKIP_QUANTIZER),)
        _RUNNING.following[-1].live[id(output)] = (output, branch)


class _Following(TorchFunctionMode):
    """`live`: id of a tensor -> it (kept, or its id would be another's) and the branch it is on,
    a tuple of the module for what that is added to."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, tuple[Tensor, tuple[nn.Module]]] = {}

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        given = list(tensors_in((args, kwargs))) if self.live else []
        branch = next((self.live[id(x)][1] for x in given if id(x) in self.live), None)
        if branch is None:
            return passed_on(func, args, kwargs)
        if (whole := opened(func, args, kwargs)) is not None:
            with self:
                return whole(*args, **kwargs)
        added = addends(func, args, kwargs)
        if added and (id(added[0]) in self.live) != (id(added[1]) in self.live):
            left, right = added
            skip_first = id(right) in self.live
            self.live = {i: seen for i, seen in self.live.items() if seen[1] is not branch}
            more = {key: said for key, said in kwargs.items() if key not in ("input", "other")}
            skip = branch[0](left if skip_first else right)
            if skip_first and name_of(func) in IN_PLACE_ADDS:
                # Of a slice, a graph would have the quantized skip put back before it is added to.
                return left.copy_(skip + right)
            return passed_on(func, (skip, right) if skip_first else (left, skip), more)
        result = passed_on(func, args, kwargs)
        self.live |= {id(tensor): (tensor, branch) for tensor in tensors_in(result)}
        return result


class _Running(threading.local):
    """What is followed in this thread: a model within a model has its own."""

    def __init__(self) -> None:
        self.following: list[_Following] = []


_RUNNING = _Running()
