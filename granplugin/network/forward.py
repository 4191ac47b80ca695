"""One forward pass of a torch model: what goes in, what comes out, and nothing left behind."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from granplugin.errors import ModelError, UserError
from granplugin.network.mistaken import mistaken
from granplugin.network.raised import raised_in
from granplugin.quant.site import Shape

Example: TypeAlias = Tensor | tuple[Any, ...] | Mapping[str, Any]
"""One batch: the only argument of forward, its positional arguments, or its keyword arguments."""


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


@contextmanager
def following(
    model: nn.Module, enter: Callable[[nn.Module, str], object], leave: Callable[[], object]
) -> Iterator[None]:
    """Calls `enter` with a module and its name before each call of its forward, `leave` behind it.
    What a scripted module calls within cannot be followed."""
    hooks = []
    try:
        for name, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue

            def before(module: nn.Module, args: tuple[Any, ...], name: str = name) -> None:
                enter(module, name)

            def behind(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
                leave()

            hooks.append(module.register_forward_pre_hook(before))
            hooks.append(module.register_forward_hook(behind))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def call(
    model: nn.Module, example: Example, within: AbstractContextManager[Any] = nullcontext()
) -> Any:
    """The model's output for one batch, `evaluating`, inside a context.

    Raises ModelError with what forward raised, at which line, and what it was given. What a hook of
    ours raises is no ModelError.
    """
    try:
        with evaluating(model), within:
            if isinstance(example, Mapping):
                return model(**example)
            return model(*example) if isinstance(example, tuple) else model(example)
    except UserError:
        raise
    except Exception as err:
        at = raised_in(model, err)
        if at.ours:
            raise
        given = flatten(
            dict(enumerate(example)) if isinstance(example, tuple) else example, "input"
        )
        told = ", ".join(f"{key} {_kind(tensor)}" for key, tensor in given.items())
        raise ModelError(
            f"the model's forward raised {type(err).__name__}: {err}{at}; it was given {told}"
            f"{mistaken(given, str(err))}"
        ) from err


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def flatten_outputs(output: Any) -> dict[str, Tensor]:
    """The tensors of a model's output by name; None and whatever is no tensor is left out.

    A single tensor is `output`, those of a tuple or list `output_0`, `output_1`, ..., those of a
    dict or dataclass have their key; inside one another, keys are joined with `_`. Raises
    ModelError where there is no tensor, or two get the same name.

    >>> one = torch.ones(1)
    >>> list(flatten_outputs({"logits": one, "hidden": (one, None, one)}))
    ['logits', 'hidden_0', 'hidden_2']
    """
    return flatten(output, "output")


def named_inputs(model: nn.Module, example: Example) -> dict[str, Tensor]:
    """The tensors of one batch, named after forward's parameters; those inside of one another by
    path, as past.0. Raises ModelError."""
    if isinstance(example, Mapping):
        return flatten(dict(example), "input", ".")
    args = example if isinstance(example, tuple) else (example,)
    try:
        bound = inspect.signature(model.forward).bind_partial(*args)
    except TypeError as err:
        raise ModelError(f"the model does not take {len(args)} inputs: {err}") from err
    return flatten(dict(bound.arguments), "input", ".")


def inputs_of(model: nn.Module, batch: Any) -> Example:
    """What of a loader's batch goes into the model: of a tuple or list the first tensors, as many
    as forward has arguments without a default, of a dict what forward takes. Raises ModelError."""
    if isinstance(batch, Tensor):
        return batch
    parameters = inspect.signature(model.forward).parameters.values()
    if isinstance(batch, Mapping):
        names = {p.name for p in parameters}
        if any(p.kind is p.VAR_KEYWORD for p in parameters):
            return dict(batch)
        return {name: value for name, value in batch.items() if name in names}
    if isinstance(batch, (tuple, list)):
        needed = sum(
            p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD, p.KEYWORD_ONLY)
            for p in parameters
        )
        return tuple(batch[: max(needed, 1)])
    raise ModelError(
        f"a batch is a tensor, a tuple, a list or a dict, not of type {type(batch).__name__}"
    )


def batched_shape(tensor: Tensor) -> Shape:
    """The shape with 1 on axis 0, the batch."""
    return (1, *tensor.shape[1:]) if tensor.ndim else ()


def finite(tensor: Tensor) -> bool:
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


def flatten(value: Any, single: str, between: str = "_") -> dict[str, Tensor]:
    """The tensors in a value by name, keys and numbers joined by `between`; a tensor alone is called
    `single`. Raises ModelError where there is none, or two get the same name."""
    leaves = _leaves(value, single, between)
    found = {name: leaf for name, leaf in leaves.items() if isinstance(leaf, Tensor)}
    if not found:
        raise ModelError(f"the model's {single} holds no tensor (it is a {type(value).__name__})")
    return found


def _held(value: Any) -> dict[str, Any]:
    """The attributes in which an object, such as a cache of keys and values, holds tensors, directly
    or inside one another; none of a tensor, a module, or what is no container."""
    if isinstance(value, (Tensor, nn.Module, type)) or not hasattr(value, "__dict__"):
        return {}
    return {name: part for name, part in vars(value).items() if _holds_tensors(part, ())}


def _holds_tensors(value: Any, above: tuple[int, ...]) -> bool:
    if isinstance(value, Tensor):
        return True
    if isinstance(value, (nn.Module, type)) or id(value) in above:
        return False
    above = (*above, id(value))
    if isinstance(value, Mapping):
        return any(_holds_tensors(part, above) for part in value.values())
    if isinstance(value, (tuple, list)):
        return any(_holds_tensors(part, above) for part in value)
    return any(_holds_tensors(part, above) for part in getattr(value, "__dict__", {}).values())


def left_out(output: Any) -> dict[str, str]:
    """What `flatten_outputs` leaves out, by name: the name of its type.

    >>> left_out({"logits": torch.ones(1), "cache": None, "states": (1,)})
    {'cache': 'None', 'states_0': 'int'}
    """
    return {
        name: "None" if leaf is None else type(leaf).__name__
        for name, leaf in _leaves(output, "output").items()
        if not isinstance(leaf, Tensor)
    }


def _leaves(value: Any, single: str, between: str = "_") -> dict[str, Any]:
    found: dict[str, Any] = {}
    inside: list[int] = []

    def walk(value: Any, name: str) -> None:
        if isinstance(value, Mapping):
            for key, part in value.items():
                walk(part, f"{name}{between}{key}" if name else str(key))
        elif isinstance(value, (tuple, list)):
            for i, part in enumerate(value):
                walk(part, f"{name or single}{between}{i}")
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            walk({f.name: getattr(value, f.name) for f in dataclasses.fields(value)}, name)
        elif id(value) not in inside and (held := _held(value)):
            inside.append(id(value))
            walk(held, name)
            inside.pop()
        else:
            name = name or single
            if isinstance(value, Tensor) and isinstance(found.get(name), Tensor):
                raise ModelError(f"two tensors of the model's {single} are named {name!r}")
            if isinstance(value, Tensor) or name not in found:
                found[name] = value

    walk(value, "")
    return found
