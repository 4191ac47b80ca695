"""What the inputs and outputs of a model's layers hold, seen while data runs through it.

Every reduction is exact and independent of the order: the same tensors give the same statistics
bit for bit, however they are batched.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import reduce
from typing import Any, TypeVar

import torch
from torch import nn

from granplugin.calibration.seen import not_finite, seen_of, statistics_of
from granplugin.calibration.statistics import Need, Statistics
from granplugin.errors import ModelError
from granplugin.modelopt_bridge.library import TensorQuantizer
from granplugin.network.forward import evaluating

log = logging.getLogger(__name__)

T = TypeVar("T")
ForwardLoop = Callable[[nn.Module], object]


def observe(model: nn.Module, needs: Iterable[Need], forward_loop: ForwardLoop) -> Statistics:
    """Run `forward_loop(model)` once, in float, and collect what is needed at each site.

    `model` is converted by modelopt; its quantizers are off while this runs. Raises ModelError
    naming the first layer that saw NaN or Inf, a site that does not exist, or one that was never
    reached.
    """
    sites = seen_of(needs)
    reached: dict[str, None] = {}
    samples = 0

    def count(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal samples
        samples += next((len(x) for x in _tensors((args, kwargs)) if x.ndim), 0)

    def watch(site: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            reached[site] = None
            # What is counted of an output is added up: no residual add of that output.
            with torch._C.DisableTorchFunction():
                for seen in sites[site]:
                    seen.add(args[0].detach().float())

        return hook

    quantizers = [m for m in model.modules() if isinstance(m, TensorQuantizer)]
    enabled = [quantizer for quantizer in quantizers if quantizer.is_enabled]
    hooks = [model.register_forward_pre_hook(count, with_kwargs=True)]
    try:
        for site in sites:
            hooks.append(quantizer_of(model, site).register_forward_pre_hook(watch(site)))
        for quantizer in enabled:
            quantizer.disable()
        with evaluating(model):
            forward_loop(model)
    finally:
        for hook in hooks:
            hook.remove()
        for quantizer in enabled:
            quantizer.enable()

    if (broken := not_finite(sites, reached)) is not None:
        raise ModelError(
            f"{broken}: NaN or Inf during calibration, and in no layer before it; "
            "look at this layer's weights and at the calibration data"
        )
    if missing := sorted(sites.keys() - reached.keys()):
        raise ModelError(
            f"{missing[0]}: never reached during calibration{_and_more(missing)}; "
            "set its format to float"
        )
    log.debug("observed %d sites on %d samples", len(sites), samples)
    return statistics_of(sites, samples)


def of_all_processes(own: Statistics) -> Statistics:
    """The statistics of all processes of torch.distributed together, the same in each of them;
    one's own where there is no other."""
    return reduce(Statistics.merge, of_every_process(own))


def of_every_process(own: T) -> list[T]:
    """What each process of torch.distributed has; one's own alone where there is no other."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [own]
    every = [own] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(every, own)
    return every


@contextmanager
def weights_seen(model: nn.Module, layers: Iterable[str]) -> Iterator[dict[str, torch.Tensor]]:
    """Layer -> the weight that went through its quantizer last, once the model has run meanwhile."""
    found: dict[str, torch.Tensor] = {}

    def watch(layer: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            found[layer] = args[0].detach()

        return hook

    hooks = [
        quantizer_of(model, f"{layer}.weight").register_forward_pre_hook(watch(layer))
        for layer in layers
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def quantizer_of(model: nn.Module, site: str) -> TensorQuantizer:
    """modelopt's at this site. Raises ModelError."""
    try:
        return model.get_submodule(f"{site}_quantizer".removeprefix("."))
    except AttributeError as err:
        raise ModelError(
            f"{site}: modelopt has no quantizer there; set its format to float"
        ) from err


def _tensors(value: object) -> Iterable[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
