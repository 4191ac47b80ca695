"""The model that a recipe's callable returns, with its weights, and a key for what it is."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import re
from pathlib import Path

import torch
from torch import nn

from granplugin.errors import ModelError
from granplugin.network.computed import compute_once
from granplugin.network.suitable import unsuitable, unwrapped
from granplugin.network.weights import check_finite, load_weights
from granplugin.recipe.callables import blame, resolve
from granplugin.recipe.code_key import code_key, package_of, version_of
from granplugin.recipe.model import CallableModel
from granplugin.store.keys import file_key

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


def build_model(spec: CallableModel, device: torch.device) -> nn.Module:
    """The model with its weights, in eval mode on `device`.

    Weights that the callable draws at random are the same at each call. What only wraps a module
    (DataParallel, torch.compile) is taken off, and weights that torch computes before each call are
    computed once. Raises ModelError when the callable fails or returns no module that can be
    quantized, when the weights cannot be read without running code or do not fit, and when a
    parameter is not finite.
    """
    factory = resolve(spec.callable)
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
    if spec.weights:
        load_weights(model, spec.weights, spec.state_dict_key, spec.strip_prefix)
    model = unwrapped(model)
    compute_once(model)
    check_finite(model, str(spec.weights or spec.callable))
    log.info("built %s (%d parameters)", spec.callable, sum(p.numel() for p in model.parameters()))
    return model.to(device).eval()


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
