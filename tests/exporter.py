"""torch's ONNX exporter in a process of many exports: what is alike for all of them is made once.

A small network's export takes half the time so. The exporter of this version reads the source of
every operator's translation anew for each export, lists each namespace's operators as often, makes
six kernels for each operator that is kept whole, and puts the types of two thousand nested functions
together, which nobody reads.
"""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any


def share_what_exports_have_in_common() -> None:
    """Once it is imported; it does so itself at the first export."""
    registration = sys.modules.get("torch.onnx._internal.exporter._registration")
    if registration is None or _done:
        return
    _done.append(True)
    from torch import _ops
    from torch._export import utils
    from torch.export import exported_program

    registry = registration.ONNXRegistry
    make = functools.cache(registry.from_torchlib)

    def from_torchlib(*args: Any, **kwargs: Any) -> Any:
        made = copy.copy(make(*args, **kwargs))
        made.functions = {name: [*found] for name, found in made.functions.items()}
        return made

    registry.from_torchlib = staticmethod(from_torchlib)
    utils._materialize_cpp_cia_ops = functools.cache(utils._materialize_cpp_cia_ops)
    _ops.Callable = _Callable("Callable", (), {})
    exported_program._override_composite_implicit_decomp = _keeping(
        exported_program._override_composite_implicit_decomp
    )


Operators = Mapping[Any, Callable[..., Any]]


def _keeping(override: Callable[[Operators], AbstractContextManager[None]]) -> Any:
    """`override`, which gives operators other kernels for a time: those of an operator that had the
    same before, and is given the same, are what they were."""
    from torch._subclasses.fake_impls import op_implementations_dict as fakes

    kept: dict[Any, tuple[Any, ...]] = {}

    @contextmanager
    def overridden(operators: Operators) -> Iterator[None]:
        had = {
            op: (_text(each), op.py_kernels.copy(), fakes.get(op)) for op, each in operators.items()
        }
        known = {op for op, before in had.items() if op in kept and kept[op][0] == before}
        with override({op: each for op, each in operators.items() if op not in known}):
            for op in had.keys() - known:
                kept[op] = had[op], op.py_kernels.copy(), fakes[op]
            for op in known:
                _, kernels, fakes[op] = kept[op]
                _give(op, kernels)
            try:
                yield
            finally:
                for op in known:
                    _give(op, had[op][1])
                    del fakes[op]  # as override does, whatever it was

    return overridden


def _text(made: Callable[..., Any]) -> Any:
    """A function, or the same for each that is made anew of the same code and arguments."""
    if not isinstance(made, functools.partial) or made.func.__closure__:
        return made
    return made.func.__code__, made.args, made.keywords


def _give(op: Any, kernels: Mapping[Any, Any]) -> None:
    op.py_kernels.clear()
    op.py_kernels.update(kernels)
    op._dispatch_cache.clear()


class _Callable(type):
    """collections.abc.Callable without what stands in its brackets."""

    def __getitem__(cls, types: object) -> type:
        return cls

    def __instancecheck__(cls, value: object) -> bool:
        return callable(value)


_done: list[bool] = []
