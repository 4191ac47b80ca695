"""Weights from a file, without running code that it may hold; and whether they are finite."""

from __future__ import annotations

import logging
import math
import pickle
import zipfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from granplugin.errors import ModelError
from granplugin.reading import check_file, reading
from granplugin.suggest import did_you_mean
from granplugin.words import first

log = logging.getLogger(__name__)


def load_weights(
    model: nn.Module, path: Path, key: str | None = None, prefix: str | None = None
) -> None:
    """Load a file's weights into the model: of several sets that of this `key`, and without this
    `prefix` of their names. Raises ModelError where they do not fit, or cannot be read without
    running code."""
    fit_weights(model, read_weights(path, key), path, prefix)


def fit_weights(
    model: nn.Module, given: Mapping[str, Tensor], path: Path, prefix: str | None = None
) -> None:
    """The same of weights that were read of the file."""
    if prefix is not None:
        if strange := [name for name in given if not name.startswith(prefix)]:
            raise ModelError(f"{path}: strip_prefix: {prefix} is no prefix of {first(strange)}")
        given = {name.removeprefix(prefix): values for name, values in given.items()}
    own = model.state_dict()
    clashing = [
        name
        for name, values in given.items()
        if name in own and not is_lazy(own[name]) and own[name].shape != values.shape
    ]
    fitting = {name: values for name, values in given.items() if name not in clashing}
    try:
        missing, unexpected = model.load_state_dict(fitting, strict=False)
    except RuntimeError as err:
        raise ModelError(f"{path}: the model refused these weights: {err}") from err
    # safetensors keeps one name of tensors that share memory.
    loaded = {own[name].data_ptr() for name in fitting if name in own} - {0}
    missing = [
        name
        for name in missing
        if name not in clashing and not (name in own and own[name].data_ptr() in loaded)
    ]
    shapes = [
        f"{name} ({list(given[name].shape)} in the file, {list(own[name].shape)} in the model)"
        for name in clashing
    ]
    wrong = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    if any(wrong.values()):
        lists = "; ".join(f"{what}: {first(names)}" for what, names in wrong.items() if names)
        of_quantizers = unexpected and all(name.endswith("_quantizer._amax") for name in unexpected)
        hint = (
            "; they are ranges of quantizers, whose formats and granularities no state dict holds: save "
            "the model with mto.save(model, path), or make a recipe of this with granplugin convert"
            if of_quantizers
            else _prefix_hint(given, own)
        )
        raise ModelError(f"{path}: the weights do not fit the model; {lists}{hint}")


def _prefix_hint(given: Collection[str], own: Collection[str]) -> str:
    """What to write where the names are the model's but for what they begin with: wrappers
    (DataParallel, Lightning, torch.compile) put it there."""
    missing = next((name for name in own if name not in given), "")
    prefixes = [name.removesuffix(missing) for name in given if missing and name.endswith(missing)]
    for prefix in prefixes:
        if prefix and {name.removeprefix(prefix) for name in given} >= set(own):
            return f"; their names begin with {prefix!r}: write strip_prefix: {prefix!r}"
    return ""


def read_weights(path: Path, key: str | None = None) -> dict[str, Tensor]:
    """A file's tensors by name; of a file with several sets that of `key`, as `ema.shadow`. Raises
    ModelError where it cannot be read without running code."""
    check_file(path, ModelError)
    if path.suffix == ".safetensors":
        with reading(str(path), ModelError, "this is no safetensors file, or a damaged one"):
            return load_file(path)
    with reading(str(path), ModelError, _DAMAGED):
        loaded = _torch_file(path)
    sets = dict(_sets(loaded))
    if key is not None:
        if key not in sets:
            hint = did_you_mean(key, [name for name in sets if name])
            raise ModelError(f"{path}: it holds no set of weights {key!r}{hint}")
        return sets[key]
    if not sets:
        raise ModelError(f"{path}: it holds no weights, that is names with tensors")
    if len(sets) > 1:
        raise ModelError(
            f"{path}: it holds several sets of weights ({first(list(sets))}); say which: "
            f"state_dict_key: {next(iter(sets))}"
        )
    ((name, found),) = sets.items()
    if name:
        log.info("took %r of %s", name, path)
    return found


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What mto.save wrote: the modes that modelopt recorded, in order, and the state dict."""

    modes: list[tuple[str, dict[str, Any]]]
    tensors: dict[str, Tensor]


def read_checkpoint(path: Path) -> Checkpoint | None:
    """A file of mto.save, or one of torch.save with what mto.modelopt_state returned under
    `modelopt_state`; None for any other. Raises ModelError as read_weights does, and where the
    state is none of modelopt's or has no weights beside it."""
    check_file(path, ModelError)
    if path.suffix == ".safetensors":
        return None
    with reading(str(path), ModelError, _DAMAGED):
        loaded = _torch_file(path)
        if not isinstance(loaded, dict) or "modelopt_state" not in loaded:
            return None
        state = loaded.pop("modelopt_state")
        modes = [(str(mode), dict(each)) for mode, each in state["modelopt_state_dict"]]
    sets = dict(_sets(loaded))
    chosen = "model_state_dict" if "model_state_dict" in sets else next(iter(sets), None)
    if chosen is None or (len(sets) > 1 and chosen != "model_state_dict"):
        raise ModelError(
            f"{path}: it holds modelopt's state and {len(sets)} sets of weights; save it with "
            "mto.save(model, path)"
        )
    return Checkpoint(modes, sets[chosen])


_LEVELS = 3
"""How deep a set of weights may lie in what was saved."""


def _sets(value: Any, at: str = "", level: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The sets of weights in what was saved, by their keys; "" where it is one itself."""
    if _is_state_dict(value):
        yield at, value
    elif isinstance(value, dict) and level < _LEVELS:
        for key, inside in value.items():
            if isinstance(key, str):
                yield from _sets(inside, f"{at}.{key}".lstrip("."), level + 1)


_DAMAGED = (
    "it is damaged, or not written by torch.save; save the model's state_dict as .safetensors"
)


def _torch_file(path: Path) -> Any:
    """What torch.save wrote, if it is tensors and plain values."""
    zipped = zipfile.is_zipfile(path)
    if zipped:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(each.file_size for each in archive.infolist())
            if any(each.filename.endswith("constants.pkl") for each in archive.infolist()):
                raise ModelError(
                    f"{path}: this is a TorchScript module, not weights; save its "
                    "state_dict() as .safetensors"
                )
        if unpacked > _PADDED * path.stat().st_size:  # torch packs nothing
            raise ModelError(f"{path}: {_DAMAGED}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as err:
        with path.open("rb") as file:
            pickled = zipped or file.read(1) == pickle.PROTO
        if not pickled:
            raise ModelError(f"{path}: this is no file of weights") from err
        raise ModelError(
            f"{path}: it holds Python objects besides tensors, and loading them could run any "
            "code; save the model's state_dict as .safetensors"
        ) from err


_PADDED = 2


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    )


def check_finite(model: nn.Module, where: str) -> None:
    """Raises ModelError, naming it, for a parameter that is not finite, a buffer that holds NaN, or
    either without values."""
    for kind, tensors in (
        ("parameter", model.named_parameters()),
        ("buffer", model.named_buffers()),
    ):
        for name, tensor in tensors:
            if is_lazy(tensor) or tensor.is_meta:
                raise ModelError(f"{where}: {kind} {name!r} has no values; initialize the model")
            if not tensor.is_floating_point() or not tensor.numel():
                continue
            # Several times faster than isfinite, and NaN comes through; 8-bit floats lack it.
            ends = (tensor.float() if tensor.itemsize == 1 else tensor).detach().aminmax()
            low, high = (end.item() for end in ends)
            # A buffer may be an attention mask with -inf.
            if math.isnan(low) or (kind == "parameter" and math.inf in (-low, high)):
                what = "NaN" if math.isnan(low) else "Inf"
                raise ModelError(f"{where}: {kind} {name!r} holds {what}; use finite weights")
