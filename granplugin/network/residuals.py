"""Residual adds and concatenations: where a layer's result meets tensors it is not computed from.

A layer's skip input is the other operand of the first add that its result, and nothing else, leads
to: an engine fuses that add into the layer, and can keep the sum in 8 bits only where the skip
input is quantized too. Where both operands come from a layer, the one with more layers behind it
that the other does not have is the branch, and the other one the skip. (So does
modelopt.onnx.quantization, build_non_residual_input_map: the longest path to the common ancestor.)
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from granplugin.errors import ModelError
from granplugin.quant.granularity import Shape

_IN_PLACE = frozenset({"add_", "__iadd__"})
_ADDS = _IN_PLACE | {"add", "__add__", "__radd__"}
_CONCATS = frozenset({"cat", "concat", "concatenate"})
_NOTHING_DONE = frozenset(
    "dropout dropout1d dropout2d dropout3d alpha_dropout clone contiguous detach".split()
)

# Functions of one data tensor that are a layer all the same.
LAYER_FUNCTIONS = frozenset(
    "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution "
    "conv_tbc bilinear matmul __matmul__ __rmatmul__ mm bmm addmm addbmm baddbmm mv addmv einsum "
    "tensordot embedding embedding_bag multi_head_attention_forward _native_multi_head_attention "
    "scaled_dot_product_attention lstm gru rnn_tanh rnn_relu lstm_cell gru_cell".split()
)


def name_of(function: Any) -> str:
    """A torch function's name; "" where it has none."""
    return getattr(function, "__name__", "")


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from tensors_in(part)
    elif isinstance(value, dict):
        yield from tensors_in(tuple(value.values()))


def addends(function: Any, args: tuple, kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor] | None:
    """The two tensors that this call adds, or None for a call that adds no two tensors."""
    if name_of(function) not in _ADDS or kwargs.get("alpha", 1) != 1:
        return None
    given = [*args, *(kwargs[key] for key in ("input", "other") if key in kwargs)]
    if len(given) != 2 or not all(isinstance(operand, Tensor) for operand in given):
        return None
    return given[0], given[1]


@dataclass(frozen=True, slots=True, eq=False)
class Op:
    """One function call: the values it read - those of its tensor arguments first, in order - and
    wrote; `at` counts the calls."""

    at: int
    function: Any
    args: tuple
    kwargs: dict
    reads: tuple[int, ...]
    writes: tuple[int, ...]


class Flow(Protocol):
    """What one forward pass computed from what; `data` tells what depends on a model input."""

    ops: Sequence[Op]
    data: Sequence[bool]
    consumers: Sequence[Sequence[Op]]


@dataclass(frozen=True)
class Skip:
    """The value that a layer's result is added to (the first, of several calls), and its shape with
    1 on axis 0."""

    value: int
    shape: Shape


def find_skips(flow: Flow, outputs: Mapping[str, Sequence[int]], ends: set[int]) -> dict[str, Skip]:
    """Layer -> its skip input; `outputs` has, for each layer that runs, the value each of its calls
    put out, and `ends` are the model's own outputs.

    A layer whose result is read by anything else than its residual add has none.
    """
    history = _history(flow, outputs)
    branches: dict[int, dict[str, tuple[int, int]]] = {}
    for layer, numbers in outputs.items():
        met = [_meets(flow, number, ends) for number in numbers]
        if all(met):
            for at, branch, skip in met:
                branches.setdefault(at, {})[layer] = (branch, skip)
    found: dict[str, Skip] = {}
    refused = set()
    for at in sorted(branches):
        # min: of two branches of the same depth, the first operand's.
        layer = min(
            branches[at],
            key=lambda name: (
                -_beyond(history, *branches[at][name]),
                flow.ops[at].reads.index(branches[at][name][0]),
            ),
        )
        refused |= branches[at].keys() - {layer}
        op = flow.ops[at]
        left, right = addends(op.function, op.args, op.kwargs)
        shape = (1, *left.shape[1:]) if left.ndim else ()
        if left.shape != right.shape or not left.is_floating_point():
            refused.add(layer)
        found.setdefault(layer, Skip(branches[at][layer][1], shape))
    return {layer: skip for layer, skip in found.items() if layer not in refused}


def find_concats(flow: Flow) -> dict[int, int]:
    """Value -> the number of the concatenation it is an input or the result of; concatenations
    that have one of these in common count as one."""
    group: dict[int, int] = {}
    for op in flow.ops:
        joined = [number for number in (*op.reads, *op.writes) if flow.data[number]]
        if name_of(op.function) not in _CONCATS or len(joined) < 3:
            continue
        old = {group[number] for number in joined if number in group}
        group |= dict.fromkeys(joined, min(joined))
        group |= {number: min(joined) for number, of in group.items() if of in old}
    return group


def find_same(flow: Flow) -> dict[int, int]:
    """Value -> the one it is a copy of, by functions that do nothing in a forward pass: dropout,
    padding by nothing, copies. An engine's graph has none of them."""
    same: dict[int, int] = {}
    for op in flow.ops:
        if len(op.reads) != 1 or len(op.writes) != 1:
            continue
        pads = [*op.args[1:2], *(op.kwargs[key] for key in ("pad",) if key in op.kwargs)]
        unpadded = name_of(op.function) == "pad" and pads and not any(pads[0])
        if unpadded or name_of(op.function) in _NOTHING_DONE:
            same[op.writes[0]] = same.get(op.reads[0], op.reads[0])
    return same


def _meets(flow: Flow, output: int, ends: set[int]) -> tuple[int, int, int] | None:
    """(position of the add, its operand computed from `output` alone, the other operand)."""
    own, met = {output}, None
    waiting = [op.at for op in flow.consumers[output]]
    heapq.heapify(waiting)
    done = -1
    while waiting:
        at = heapq.heappop(waiting)
        if at == done:
            continue
        done, op = at, flow.ops[at]
        added = addends(op.function, op.args, op.kwargs)
        foreign = [number for number in op.reads if flow.data[number] and number not in own]
        if added and not own.issuperset(op.reads[:2]):
            # A tensor that is no data, such as a position embedding, would be taken for the skip.
            if met or len(foreign) != 1 or foreign[0] not in op.reads[:2]:
                return None
            left, right = op.reads[:2]
            met = (at, left, right) if right == foreign[0] else (at, right, left)
        elif foreign or name_of(op.function) in LAYER_FUNCTIONS:
            return None
        else:
            own.update(op.writes)
            for number in op.writes:
                for reader in flow.consumers[number]:
                    heapq.heappush(waiting, reader.at)
    return None if own & ends else met


def _history(flow: Flow, outputs: Mapping[str, Sequence[int]]) -> list[int]:
    """For each value, the layer calls it is computed from: one bit each."""
    calls = [number for numbers in outputs.values() for number in numbers]
    bit = {number: 1 << position for position, number in enumerate(calls)}
    history = [0] * len(flow.data)
    for op in flow.ops:
        seen = 0
        for number in op.reads:
            seen |= history[number]
        for number in op.writes:
            history[number] = seen | bit.get(number, 0)
    return history


def _beyond(history: Sequence[int], branch: int, skip: int) -> int:
    """How many layer calls are behind `branch` and not behind `skip`."""
    return (history[branch] & ~history[skip]).bit_count()


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
        ours = [id(operand) in self.live for operand in added or ()]
        if len(set(ours)) == 2:
            self.live = {i: seen for i, seen in self.live.items() if seen[1] is not branch}
            return _add(func, *added, branch[0], skip_first=ours[1])
        result = func(*args, **kwargs)
        self.live |= {id(tensor): (tensor, branch) for tensor in tensors_in(result)}
        return result


def _add(func: Any, left: Tensor, right: Tensor, module: nn.Module, skip_first: bool) -> Tensor:
    if not skip_first:
        return func(left, module(right))
    if name_of(func) in _IN_PLACE:
        return func(left.copy_(module(left)), right)
    return func(module(left), right)
