"""Why a model cannot be exported to ONNX: what was found, at which line, and the way out."""

from __future__ import annotations

import re
import sys
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.utils._python_dispatch import TorchDispatchMode

from granplugin.errors import ModelError, UserError
from granplugin.network.call_quantizers import left_behind
from granplugin.network.forward import call, copied, following
from granplugin.network.raised import Raised, is_users, line_of, passed_on, raised_in
from granplugin.translate import one_line
from granplugin.words import first

_BEFORE = "return the part before it from model.callable, or export it yourself and name model.onnx"
_BY_VALUES = frozenset(
    "nms nonzero masked_select unique unique_dim _unique _unique2 unique_consecutive bincount "
    "repeat_interleave".split()
)
"""Operators whose results are as large as values of the data say."""
_TORCHS = ("aten", "prims", "torchvision", "quantized")
_STATIC = re.compile(
    r"You marked L\['([^']+)'\].*?\.size\(\)\[(\d+)\].*?\(?constant \(?(\d+)", re.DOTALL
)
_MISSING = re.compile(r"No ONNX function found for <OpOverload\(op='([^']+)'")


def why_not(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    shapes: Any,
    error: Exception | None,
) -> str:
    """The reason in one sentence; `error` is the exporter's, None where it made something else than
    the model's graph. Runs the model, and torch.export once more: of several ways that the
    exporter tries, it tells of the last. An error of ours is raised."""
    program = None
    try:
        with left_behind():
            program = torch.export.export(
                model, args, kwargs=kwargs, dynamic_shapes=_dynamic(shapes), strict=False
            )
    except Exception as again:  # it runs the user's code: anything can come out of it
        error = again
    if error is None:
        return "torch.export follows it by its second way only, which loses where sites are"
    root = error
    while isinstance(root.__cause__, Exception):
        root = root.__cause__
    if missing := _MISSING.search(str(root)):
        at = _called(program, missing[1]) if program else ""
        domain = missing[1].partition(".")[0]
        own = (
            f"; for an engine that has a plugin for it, write model: custom_ops: [{domain}]"
            if domain not in _TORCHS
            else ""
        )
        return f"the operator {missing[1]}{at} has no form in ONNX; {_BEFORE}{own}"
    if isinstance(root, GuardOnDataDependentSymNode):
        return (
            "what it computes depends on values of the data - an if, a loop, a number taken out of "
            f"a tensor - which a graph cannot follow{raised_in(model, error)}"
            f"{_by_values(model, args, kwargs)}; write it with tensors (torch.where), or {_BEFORE}"
        )
    if static := _STATIC.search(str(root)):
        name, axis, size = static[1], int(static[2]), static[3]
        if axis:
            return (
                f"it takes axis {axis} of {name!r} for the constant {size}; take sizes from the "
                "input, as in x.reshape(*x.shape[:2], -1), or leave it out of model.dynamic"
            )
        return (
            f"it takes the batch of {name!r} for the constant {size}"
            f"{_elsewhere(model, args, kwargs)}; take sizes from the input, as in "
            "x.reshape(x.shape[0], ...) - len(x) is a constant to torch.export -, or write model: "
            "static_batch: true for files that take data.batch_size samples and no other number"
        )
    where = raised_in(model, error)
    if where.ours and not isinstance(error, UserError):
        raise error
    return f"{one_line(root)}{where}"


def chosen_by_values(model: nn.Module, kwargs: dict[str, Any]) -> str | None:
    """What in the model chooses by values of the data, as one pass shows it, and the way out; None
    where nothing does."""
    found = _by_values(model, (), kwargs)
    return f"what is put out depends on values of the data{found}; {_BEFORE}" if found else None


def _by_values(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """The operators that make sizes or numbers of values, as one pass shows them."""
    calls = _ByValues()
    inside = [""]
    try:
        with following(model, lambda module, name: inside.append(name), inside.pop):
            calls.inside = inside
            call(model, copied(kwargs or args), calls)
    except ModelError:
        return ""
    return f"; it has {first(list(calls.found))}" if calls.found else ""


class _ByValues(TorchDispatchMode):
    """`found`: each such operator, with its line and module; `inside` are the modules that run."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, None] = {}
        self.inside: list[str] = [""]

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        space, _, name = func._schema.name.partition("::")
        if name in _BY_VALUES:
            told = "torchvision.ops.nms" if space == "torchvision" else f"{space}.{name}"
            at = Raised(False, _lines(sys._getframe(1)), self.inside[-1] or None)
            self.found[f"{told}{at}"] = None
        return passed_on(func, args, kwargs)


def _lines(frame: FrameType | None) -> str | None:
    """The innermost line that is not torch's; where that is an installed library's, also the one
    that called into it."""
    inner = None
    while frame is not None and frame.f_code is not call.__code__:
        if is_users(frame):
            line = line_of(frame.f_code, frame.f_lineno)
            inner = inner or line
            if "site-packages" not in frame.f_code.co_filename:
                return inner if inner == line else f"{inner}, called at {line}"
        frame = frame.f_back
    return inner


def _dynamic(shapes: Any) -> Any:
    """What names axes, as torch.export has it."""
    if isinstance(shapes, str):
        return torch.export.Dim.DYNAMIC
    if isinstance(shapes, dict):
        return {key: _dynamic(value) for key, value in shapes.items()}
    if isinstance(shapes, (tuple, list)):
        return type(shapes)(map(_dynamic, shapes))
    return shapes


def _called(program: torch.export.ExportedProgram, operator: str) -> str:
    """The line and module that called the operator, as the program's nodes remember them."""
    name = operator.rpartition(".")[2].strip("_")
    for node in program.graph.nodes:
        if name in str(node.target):
            line = re.findall(
                r'File "[^"]*?([^/"]+)", line (\d+)', node.meta.get("stack_trace") or ""
            )
            stack = list((node.meta.get("nn_module_stack") or {}).values())
            return str(
                Raised(False, ":".join(line[-1]) if line else None, stack[-1][0] if stack else None)
            )
    return ""


def _elsewhere(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """What the model says to one sample more."""

    def more(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.ndim:
            return torch.cat([value, value[:1]])
        if isinstance(value, dict):
            return {key: more(part) for key, part in value.items()}
        if type(value) in (tuple, list):
            return type(value)(map(more, value))
        return value

    try:
        call(
            model,
            copied(more(kwargs) if kwargs else more(args)),
        )
    except ModelError as err:
        return f", and with one sample more {str(err).partition('; it was given')[0]}"
    return ""
