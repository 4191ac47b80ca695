"""The layers of a model and how values flow between them, seen in one eager forward pass.

Module hooks say which layer reads and writes which tensor; a TorchFunctionMode sees every function
call between them. A value is what a tensor holds until it is changed in place: then every tensor on
the same storage gets a new value. (torch.fx cannot trace most transformers models; this can.)
It does not see inside TorchScript and torch.vmap: that is what granplugin.prepare's proof is for.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import is_parametrized
from torch.overrides import TorchFunctionMode

from granplugin.errors import DataError, ModelError, UserError
from granplugin.network.residuals import (
    LAYER_FUNCTIONS,
    Op,
    find_concats,
    find_same,
    find_skips,
    name_of,
    tensors_in,
)
from granplugin.quant.folding import channel_ranges, fold, spread
from granplugin.quant.granularity import Shape
from granplugin.quant.layers import PASSIVE, WEIGHTED, Layer

log = logging.getLogger(__name__)

Example = Tensor | tuple[Any, ...] | Mapping[str, Any]
"""One batch: the only argument of forward, its positional arguments, or its keyword arguments."""


@dataclass(frozen=True, slots=True)
class Traced:
    """What one forward pass shows of a model.

    `layers` are in the order of their first call, those that never run at the end. `batch_norms`
    maps a layer to the batch norm that can be folded into it. `inputs` and `outputs` map names to
    shapes with 1 on axis 0 (the batch).
    """

    layers: tuple[Layer, ...]
    batch_norms: dict[str, str]
    inputs: dict[str, Shape]
    outputs: dict[str, Shape]


def trace(model: nn.Module, example: Example) -> Traced:
    """Run the model once, in eval mode and without gradients, and describe it.

    All activations of this pass are held in memory: give it a small batch. The model is left as it
    was. Raises ModelError for a model that cannot run, has a parametrized weight, or whose layers
    put out NaN or Inf (naming the first), and DataError where these are in the example.
    """
    modules = _sited(model)
    for name, module in modules.items():
        if _base_class(module).__name__ in WEIGHTED and is_parametrized(module, "weight"):
            raise ModelError(
                f"the weight of layer {name!r} is parametrized, which modelopt cannot convert; "
                "call torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight') first"
            )
    values = _Values()
    calls: dict[str, list[_Call]] = {}
    broken: list[str] = []

    def before(name: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        tensor = next(tensors_in((args, kwargs)), None)
        if tensor is not None:
            with torch._C.DisableTorchFunction():
                seen = _Call(values.number(tensor), batched_shape(tensor))
                calls.setdefault(name, []).append(seen)

    def after(name: str, module: nn.Module, args: tuple, output: Any) -> None:
        tensor = next(tensors_in(output), None)
        if tensor is None or name not in calls:
            return
        with torch._C.DisableTorchFunction():
            seen = calls[name][-1]
            seen.output, seen.output_shape = values.number(tensor), batched_shape(tensor)
            if not broken and not _finite(tensor):
                broken.append(name)

    hooks = []
    try:
        for name, module in modules.items():
            hooks.append(module.register_forward_pre_hook(partial(before, name), with_kwargs=True))
            hooks.append(module.register_forward_hook(partial(after, name)))
        given = copied(example)
        inputs = named_inputs(model, given)
        starts = {values.number(tensor, data=True) for tensor in inputs.values()}
        try:
            outputs = flatten_outputs(call(model, given, values))
        except ModelError as err:
            raise (_not_finite(broken[0], modules, inputs) if broken else err) from err.__cause__
    finally:
        for hook in hooks:
            hook.remove()
    if broken:
        raise _not_finite(broken[0], modules, inputs)
    for name, tensor in outputs.items():
        if not _finite(tensor):
            raise ModelError(
                f"the model's output {name!r} holds NaN or Inf, although every layer before it "
                "is finite; it cannot be compared"
            )
    ends = {values.number(tensor) for tensor in outputs.values()}
    found = _batch_norms(model, modules, calls, values, ends)
    weighted = {
        n: seen for n, seen in calls.items() if _base_class(modules[n]).__name__ in WEIGHTED
    }
    skips = find_skips(values, {n: [c.output for c in seen] for n, seen in weighted.items()}, ends)
    concats, same = find_concats(values), find_same(values)
    from_input, to_output = values.reached_from(starts), values.leading_to(ends)

    layers = []
    for name in [*calls, *(name for name in modules if name not in calls)]:
        module, seen = modules[name], calls.get(name)
        layer = _describe(name, module, modules.get(found.get(name)))
        if seen is None:
            weight = getattr(module, "weight", None)
            if weight is not None and values.consumers[values.number(weight)]:
                why = "the module is never called: its weight is read directly"
            else:
                why = "never runs in the forward pass"
            layers.append(dataclasses.replace(layer, unusable=layer.unusable or why))
            continue
        first, skip = seen[0], skips.get(name)
        tensors = {"input": first.input, "output": first.output, "skip": skip and skip.value}
        tensors = {role: same.get(number, number) for role, number in tensors.items()}
        traits = set(layer.traits)
        traits |= {"first"} if any(c.input in from_input for c in seen) else set()
        traits |= {"last"} if any(c.output in to_output for c in seen) else set()
        layers.append(
            dataclasses.replace(
                layer,
                calls=len(seen),
                input_shape=first.input_shape,
                output_shape=first.output_shape,
                input_id=tensors["input"],
                output_id=tensors["output"],
                skip_shape=skip and skip.shape,
                skip_id=tensors["skip"],
                concats=tuple((role, concats[n]) for role, n in tensors.items() if n in concats),
                traits=frozenset(traits),
                bn=found.get(name),
                varying=len({(c.input_shape, c.output_shape) for c in seen}) > 1,
            )
        )
    log.info("%d layers, %d with a batch norm that can be folded", len(layers), len(found))
    return Traced(
        layers=tuple(layers),
        batch_norms=found,
        inputs={name: batched_shape(tensor) for name, tensor in inputs.items()},
        outputs={name: batched_shape(tensor) for name, tensor in outputs.items()},
    )


def untraced(model: nn.Module) -> tuple[Layer, ...]:
    """What the modules alone say, in the order of their registration: types, weights' shapes and
    their traits. Nothing is run, so of a Layer's other facts none is known, and no batch norm."""
    return tuple(_describe(name, module, None) for name, module in _sited(model).items())


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients, and every layer called; all as it was afterwards."""
    training = {module: module.training for module in model.modules()}
    fast = torch.backends.mha.get_fastpath_enabled()
    model.eval()
    # One fused kernel for an nn.TransformerEncoderLayer reads its weights and calls no layer.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            yield
    finally:
        for module, flag in training.items():
            module.training = flag
        torch.backends.mha.set_fastpath_enabled(fast)


def call(model: nn.Module, example: Example, within: AbstractContextManager = nullcontext()) -> Any:
    """The model's output for one batch, `evaluating`, inside a context.

    Raises ModelError with what forward raised.
    """
    try:
        with evaluating(model), within:
            if isinstance(example, Mapping):
                return model(**example)
            return model(*example) if isinstance(example, tuple) else model(example)
    except UserError:
        raise
    except Exception as err:
        raise ModelError(f"the model's forward raised {type(err).__name__}: {err}") from err


def flatten_outputs(output: Any) -> dict[str, Tensor]:
    """The tensors of a model's output by name; None and whatever is no tensor is left out.

    A single tensor is `output`, those of a tuple or list `output_0`, `output_1`, ..., those of a
    dict or dataclass have their key; inside one another, keys are joined with `_`. Raises
    ModelError where there is no tensor, or two get the same name.

    >>> one = torch.ones(1)
    >>> list(flatten_outputs({"logits": one, "hidden": (one, None, one)}))
    ['logits', 'hidden_0', 'hidden_2']
    """
    return _flatten(output, "output")


def named_inputs(model: nn.Module, example: Example) -> dict[str, Tensor]:
    """The tensors of one batch, named after forward's parameters. Raises ModelError."""
    if isinstance(example, Mapping):
        return _flatten(dict(example), "input")
    args = example if isinstance(example, tuple) else (example,)
    try:
        bound = inspect.signature(model.forward).bind_partial(*args)
    except TypeError as err:
        raise ModelError(f"the model does not take {len(args)} inputs: {err}") from err
    return _flatten(dict(bound.arguments), "input")


def batched_shape(tensor: Tensor) -> Shape:
    """The shape with 1 on axis 0, the batch."""
    return (1, *tensor.shape[1:]) if tensor.ndim else ()


@dataclass(slots=True)
class _Call:
    input: int
    input_shape: Shape
    output: int | None = None
    output_shape: Shape | None = None


# These return no tensor and yet look at the values.
_READERS = frozenset(
    "item tolist numpy __array__ __float__ __int__ __index__ __bool__ equal allclose".split()
)


class _Values(TorchFunctionMode):
    """Records which function read and wrote which value."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[Op] = []
        self.data: list[bool] = []
        self.producer: list[Op | None] = []
        self.consumers: list[list[Op]] = []
        self._current: dict[int, int] = {}
        # Kept alive, or Python would give a new tensor an old one's id.
        self._tensors: list[Tensor] = []
        self._on_storage: dict[int, list[int]] = defaultdict(list)

    def number(self, tensor: Tensor, data: bool = False) -> int:
        """The value the tensor holds now; `data` where it depends on a model input."""
        known = self._current.get(id(tensor))
        if known is not None:
            return known
        self._tensors.append(tensor)
        self._on_storage[_storage(tensor)].append(id(tensor))
        return self._new(id(tensor), data)

    def _new(self, tensor_id: int, data: bool) -> int:
        number = self._current[tensor_id] = len(self.data)
        self.data.append(data)
        self.producer.append(None)
        self.consumers.append([])
        return number

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = list(tensors_in((args, kwargs)))
        versions = [_version(tensor) for tensor in given]
        result = func(*args, **kwargs)
        reads = [self.number(tensor) for tensor in given]
        changed = [t for t, version in zip(given, versions) if _version(t) != version]
        new = [t for t in tensors_in(result) if id(t) not in self._current]
        if not changed and not new and name_of(func) not in _READERS:
            return result  # a shape, a flag, or the very tensor that was given
        # Whatever shares the changed storage is read and written too.
        touched = [
            tensor_id for tensor in changed for tensor_id in self._on_storage[_storage(tensor)]
        ]
        reads = tuple(dict.fromkeys([*reads, *(self._current[i] for i in touched)]))
        data = any(self.data[number] for number in reads)
        writes = [self._new(i, data) for i in dict.fromkeys(touched)]
        writes += [self.number(tensor, data) for tensor in new]
        op = Op(len(self.ops), func, args, kwargs, reads, tuple(writes))
        self.ops.append(op)
        for number in reads:
            self.consumers[number].append(op)
        for number in op.writes:
            self.producer[number] = op
        return result

    def reached_from(self, numbers: set[int]) -> set[int]:
        """What is computed from these values by functions of one tensor."""
        reached = set(numbers)
        for op in self.ops:
            if self._source(op) in reached:
                reached.update(op.writes)
        return reached

    def leading_to(self, numbers: set[int]) -> set[int]:
        """What these values are computed from by functions of one tensor."""
        leading = set(numbers)
        for op in reversed(self.ops):
            if not leading.isdisjoint(op.writes) and (source := self._source(op)) is not None:
                leading.add(source)
        return leading

    def _source(self, op: Op) -> int | None:
        """The only value this operates on; None for several, or for the work of a layer."""
        read = [number for number in op.reads if self.data[number]]
        if len(read) != 1 or name_of(op.function) in LAYER_FUNCTIONS:
            return None
        return read[0]


def _batch_norms(
    model: nn.Module,
    modules: dict[str, nn.Module],
    calls: Mapping[str, list[_Call]],
    values: _Values,
    ends: set[int],
) -> dict[str, str]:
    """Layer -> the batch norm that is the one reader of its output, where folding is exact."""
    owners = Counter(
        id(p) for m in model.modules() for p in m._parameters.values() if p is not None
    )
    by_mean = {
        id(m.running_mean): name
        for name, m in modules.items()
        if isinstance(m, _BatchNorm) and m.running_mean is not None
    }

    def readers(tensor: Tensor) -> list[Op]:
        return values.consumers[values.number(tensor)]

    found = {}
    for name, seen in calls.items():
        module = modules[name]
        weight = module._parameters.get("weight")  # not there: computed by a hook
        if (
            _base_class(module).__name__ not in WEIGHTED
            or weight is None
            or weight.dtype != torch.float32  # fold's result is float32
            or seen[0].output in ends
            or owners[id(weight)] != 1
            or len(readers(weight)) != 1  # called once, and read by nothing else
        ):
            continue
        output, producer = seen[0].output, readers(weight)[0]
        if (
            output is None
            or values.producer[output] is not producer
            or (module.bias is not None and values.number(module.bias) not in producer.reads)
            or len(values.consumers[output]) != 1
            or values.consumers[output][0].function is not F.batch_norm
        ):
            continue
        op = values.consumers[output][0]
        given = inspect.signature(F.batch_norm).bind(*op.args, **op.kwargs).arguments
        bn_name = by_mean.get(id(given["running_mean"]))
        bn = modules.get(bn_name)
        if (
            bn_name in calls
            and type(bn).forward is _BatchNorm.forward
            # A hook of the user's does not change the result, and there is one call.
            and calls[bn_name][0].output in op.writes
            and len(readers(bn.running_mean)) == 1
            and not given.get("training", False)
            # Else axis 1, which batch norm scales, is not the layer's channels.
            and len(seen[0].output_shape) == weight.ndim
        ):
            found[name] = bn_name
    return found


def _sited(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that have sites, by name."""
    return {name: m for name, m in model.named_modules() if _base_class(m) is not None}


def _describe(name: str, module: nn.Module, bn: nn.Module | None) -> Layer:
    """What the module alone says, with the spread of its weight behind its batch norm."""
    base = _base_class(module)
    unusable = None
    if type(module).forward is not base.forward:
        unusable = (
            f"its class {type(module).__name__} has its own forward, which modelopt does not "
            "quantize"
        )
    if base.__name__ not in WEIGHTED:
        return Layer(name, base.__name__, unusable=unusable)
    groups = getattr(module, "groups", 1)
    traits = set()
    if groups > 1:
        traits.add("depthwise" if groups == module.in_channels else "grouped")
    if base is not nn.Linear and set(module.kernel_size) == {1}:
        traits.add("pointwise")
    return Layer(
        name,
        base.__name__,
        weight_shape=tuple(module.weight.shape),
        groups=groups,
        traits=frozenset(traits),
        spread=_spread(module, bn),
        unusable=unusable,
    )


def _spread(module: nn.Module, bn: nn.Module | None) -> float | None:
    weight = module.weight.detach().float().cpu().numpy() if bn is None else folded(module, bn)[0]
    return spread(channel_ranges(weight, weight_axis(module), getattr(module, "groups", 1)))


def weight_axis(module: nn.Module) -> int:
    """The output-channel axis of a layer's weight, as granplugin.quant.folding takes it."""
    return 1 if _base_class(module).__name__.startswith("ConvTranspose") else 0


def folded(module: nn.Module, bn: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    """The weight and bias (float32) of `module` with the batch norm behind it folded in."""
    weight, bias, gamma, beta, mean, var = (
        None if tensor is None else tensor.detach().cpu().numpy()
        for tensor in (
            module.weight,
            module.bias,
            bn.weight,
            bn.bias,
            bn.running_mean,
            bn.running_var,
        )
    )
    groups = getattr(module, "groups", 1)
    return fold(weight, bias, gamma, beta, mean, var, bn.eps, weight_axis(module), groups)


def _base_class(module: nn.Module) -> type[nn.Module] | None:
    """The class of torch.nn that modelopt would know this module by."""
    return _registered(type(module))


@cache
def _registered(cls: type) -> type | None:
    for base in cls.__mro__:
        if base.__name__ in WEIGHTED | PASSIVE and getattr(nn, base.__name__) is base:
            return base
    return None


def _version(tensor: Tensor) -> int:
    # Tensors made in inference mode have no version: changes in place go unseen there.
    return 0 if tensor.is_inference() else tensor._version


def _storage(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage()._cdata
    except NotImplementedError:  # sparse, or inside torch.vmap
        return id(tensor)


def _finite(tensor: Tensor) -> bool:
    # A finite sum has only finite terms, and is cheaper than looking at each of them; but finite
    # terms may have an infinite sum.
    return (
        not tensor.is_floating_point()
        or bool(torch.isfinite(tensor.sum()))
        or bool(torch.isfinite(tensor).all())
    )


def copied(example: Example) -> Example:
    """The same batch in tensors of its own: a model may change what it is given."""
    if isinstance(example, Tensor):
        return example.clone()
    if isinstance(example, Mapping):
        return {key: copied(value) for key, value in example.items()}
    if isinstance(example, (tuple, list)):
        return type(example)(copied(value) for value in example)
    return example


def _flatten(value: Any, single: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def walk(value: Any, name: str) -> None:
        if isinstance(value, Tensor):
            name = name or single
            if name in found:
                raise ModelError(f"two tensors of the model's {single} are named {name!r}")
            found[name] = value
        elif isinstance(value, Mapping):
            for key, part in value.items():
                walk(part, f"{name}_{key}" if name else str(key))
        elif isinstance(value, (tuple, list)):
            for i, part in enumerate(value):
                walk(part, f"{name or single}_{i}")
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            walk({f.name: getattr(value, f.name) for f in dataclasses.fields(value)}, name)

    walk(value, "")
    if not found:
        raise ModelError(f"the model's {single} holds no tensor (it is a {type(value).__name__})")
    return found


def _not_finite(
    layer: str, modules: Mapping[str, nn.Module], inputs: Mapping[str, Tensor]
) -> UserError:
    """Why `layer` is the first whose output is not finite."""
    for name, tensor in inputs.items():
        if not _finite(tensor):
            return DataError(
                f"the model's input {name!r} holds NaN or Inf, and so does the output of {layer!r}"
            )
    for name, tensor in modules[layer].state_dict().items():
        if not _finite(tensor):
            return ModelError(f"the weights hold NaN or Inf: '{layer}.{name}'")
    return ModelError(
        f"the output of layer {layer!r} holds NaN or Inf, the first to do so; its weights and the "
        "model's inputs are finite"
    )
