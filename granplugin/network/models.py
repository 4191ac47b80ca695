"""The model that a recipe's callable returns, with its weights, and a key for what it is."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import nn

from granplugin.errors import ModelError
from granplugin.network.batch_norms import fold_behind
from granplugin.network.computed import compute_once
from granplugin.network.copying import copy_of
from granplugin.network.suitable import quantizers_in, refuse_quantizers, unsuitable, unwrapped
from granplugin.network.taken import Quantizers, arrays_of, is_of_quantizer, quantizers_of
from granplugin.network.weights import check_finite, fit_weights, load_weights, read_checkpoint
from granplugin.recipe.callables import blame, resolve
from granplugin.recipe.code_key import code_key, package_of
from granplugin.recipe.model import CallableModel
from granplugin.store.keys import file_key
from granplugin.store.maker import version_of

log = logging.getLogger(__name__)


def device(name: str) -> torch.device:
    """`cpu`, `cuda`, or `auto`: cuda where there is one.

    Raises ModelError when cuda is asked for and torch sees none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ModelError(
            f"device: cuda is asked for, but torch {torch.__version__} sees no GPU; "
            "write cpu or auto"
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


TakeApart = Callable[[nn.Module], tuple[nn.Module, Quantizers]]
"""Of a model that modelopt has quantized: the float one, and its quantizers."""


def build_model(
    spec: CallableModel,
    device: torch.device,
    take_apart: TakeApart | None = None,
    live: nn.Module | None = None,
) -> tuple[nn.Module, Quantizers | None]:
    """The model with its weights, in eval mode on `device`, and the quantizers that it came with
    where the recipe keeps them: what the callable returns, or a copy of a `live` one.

    Weights that the callable draws at random are the same at each call. What only wraps a module
    (DataParallel, torch.compile) is taken off, and weights that torch computes before each call are
    computed once. Raises ModelError when the callable fails or returns no module that can be
    quantized, when the weights cannot be read without running code or do not fit, when a
    parameter is not finite, and for a quantized model or checkpoint that is not to be kept.
    """
    factory = resolve(spec.callable) if live is None else partial(copy_of, live)
    # The caller's random numbers do not depend on whether a model was built.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            model = factory(**spec.args)
        except (Exception, SystemExit) as err:
            raise blame(spec.callable, "calling it", err, ModelError) from err
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"{spec.callable}: it returned {type(model).__name__}, not a torch.nn.Module"
        )
    if said := unsuitable(model):
        raise ModelError(f"{spec.callable}: {said}")
    model, quantizers = _weighted(spec, model, take_apart)
    compute_once(model)
    check_finite(model, str(spec.weights or spec.callable))
    log.info("built %s (%d parameters)", spec.callable, sum(p.numel() for p in model.parameters()))
    return model.to(device).eval(), quantizers


def _weighted(
    spec: CallableModel, model: nn.Module, take_apart: TakeApart | None
) -> tuple[nn.Module, Quantizers | None]:
    """The unwrapped model with the file's weights, without quantizers, and what these were."""
    inside, keep = quantizers_in(model), spec.quantized == "keep"
    saved = read_checkpoint(spec.weights) if spec.weights else None
    with _told(spec.callable):
        if not keep or take_apart is None:
            refuse_quantizers(inside)
    if saved is not None and spec.weights is not None:
        quantizers = quantizers_of(saved.modes, arrays_of(saved.tensors))
        with _told(spec.weights):
            if not keep:
                refuse_quantizers(quantizers.on)
        if inside:
            raise ModelError(
                f"{spec.callable}: it returns a quantized model, and {spec.weights} is of one too; "
                "return the float model"
            )
        model = unwrapped(model)
        if quantizers.folded:  # into parameters: trace takes no weight that torch computes
            compute_once(model)
        fold_behind(model, quantizers.folded)
        own = {
            name: tensor
            for name, tensor in saved.tensors.items()
            if not is_of_quantizer(name, quantizers.states)
        }
        fit_weights(model, own, spec.weights, spec.strip_prefix)
        return model, _some(quantizers, str(spec.weights))
    if spec.weights:
        load_weights(model, spec.weights, spec.state_dict_key, spec.strip_prefix)
    model = unwrapped(model)
    if not keep:
        return model, None
    if not inside or take_apart is None:
        raise ModelError(
            f"{spec.weights or spec.callable}: quantized: keep, and nothing in it is quantized by "
            "modelopt; name a file of mto.save(model, path), or leave it out"
        )
    with _told(spec.callable):
        model, quantizers = take_apart(model)
    return model, _some(quantizers, str(spec.callable))


def _some(quantizers: Quantizers, where: str) -> Quantizers:
    if not quantizers.on:
        raise ModelError(f"{where}: quantized: keep, and every quantizer in it is switched off")
    return quantizers


@contextmanager
def _told(where: object) -> Iterator[None]:
    """What is wrong is said with where."""
    try:
        yield
    except ModelError as err:
        raise ModelError(f"{where}: {err}") from err


def input_names(model: nn.Module) -> tuple[str, ...]:
    """The arguments that the model's forward takes; empty where it takes any by keyword."""
    parameters = inspect.signature(model.forward).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return ()
    return tuple(p.name for p in parameters if p.kind is not p.VAR_POSITIONAL)


def model_key(spec: CallableModel, model: nn.Module) -> str:
    """A hash of everything a model's outputs depend on, the same in every process.

    That is: values of parameters and buffers, structure, arguments, the source files of its
    classes that are not torch's and of the callable's file with the neighbours it imports, and
    the versions of torch and of the installed packages that classes or callable come from.
    """
    digest = hashlib.blake2b(digest_size=16)
    for tensors in (model.named_parameters(), model.named_buffers()):
        for name, tensor in tensors:
            values = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(f"{name} {values.dtype} {tuple(tensor.shape)};".encode())
            digest.update(values.view(torch.uint8).numpy())
    classes = {cls for module in model.modules() for cls in type(module).__mro__}
    classes = {cls for cls in classes if package_of(cls.__module__) not in ("torch", "builtins")}
    files = {file for cls in classes if (file := _file(cls))}
    packages = {package_of(cls.__module__) for cls in classes}
    facts = [
        # A function in a module's repr carries its address.
        re.sub(r" at 0x[0-9a-f]+", "", repr(model)),
        json.dumps(spec.args, sort_keys=True, default=str),
        code_key(spec.callable),
        sorted(file_key(file) for file in files),
        sorted(version_of(package) for package in packages | {"torch"}),
    ]
    digest.update(json.dumps(facts).encode())
    return digest.hexdigest()


def _file(cls: type) -> Path | None:
    try:
        return Path(inspect.getfile(cls))
    except (TypeError, OSError):  # built in, or typed at a prompt
        return None
