"""torch's ONNX exporter in a process of many exports: what is alike for all of them is made once.

A small network's export takes half the time so. The exporter of this version reads the source of
every operator's translation anew for each export, lists each namespace's operators as often, and
puts the types of two thousand nested functions together, which nobody reads.
"""

from __future__ import annotations

import copy
import functools
import sys
from typing import Any


def share_what_exports_have_in_common() -> None:
    """Once it is imported; it does so itself at the first export."""
    registration = sys.modules.get("torch.onnx._internal.exporter._registration")
    if registration is None or _done:
        return
    _done.append(True)
    from torch import _ops
    from torch._export import utils

    registry = registration.ONNXRegistry
    make = functools.cache(registry.from_torchlib)

    def from_torchlib(*args: Any, **kwargs: Any) -> Any:
        made = copy.copy(make(*args, **kwargs))
        made.functions = {name: [*found] for name, found in made.functions.items()}
        return made

    registry.from_torchlib = staticmethod(from_torchlib)
    utils._materialize_cpp_cia_ops = functools.cache(utils._materialize_cpp_cia_ops)
    _ops.Callable = _Callable("Callable", (), {})


class _Callable(type):
    """collections.abc.Callable without what stands in its brackets."""

    def __getitem__(cls, types: object) -> type:
        return cls

    def __instancecheck__(cls, value: object) -> bool:
        return callable(value)


_done: list[bool] = []
