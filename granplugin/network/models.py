"""Where a model comes from: the user's callable, its weights, and a key for what they are."""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib.machinery
import importlib.metadata
import importlib.util
import inspect
import json
import logging
import math
import pickle
import re
import sys
import traceback
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from granplugin.errors import ModelError, UserError
from granplugin.recipe.model import ModelSpec
from granplugin.recipe.strict import Target
from granplugin.suggest import did_you_mean

log = logging.getLogger(__name__)

_PRIVATE = "_granplugin_file_"
_LISTED = 3


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


def resolve(target: Target, error: type[UserError] = ModelError) -> Callable[..., Any]:
    """The callable that a recipe names.

    A file is loaded under a private name, with its folder on sys.path only meanwhile. Raises
    `error` when the file, module or name does not exist, is not callable, or raises on import.
    """
    if target.path and not target.path.is_file():
        raise error(f"{target}: there is no file {target.path}")
    try:
        module = _load(target.path) if target.path else importlib.import_module(target.module)
    except (Exception, SystemExit) as err:
        missing = err.name if isinstance(err, ModuleNotFoundError) else None
        if target.module and missing and f"{target.module}.".startswith(f"{missing}."):
            raise error(f"{target}: there is no module {missing!r}; install it") from err
        raise blame(target, "importing it", err, error) from err
    if not hasattr(module, target.name):
        known = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        if target.path:
            own = module.__name__
            known = [key for key in known if getattr(vars(module)[key], "__module__", own) == own]
        else:
            # An installed module may have hundreds of names; only a near one is of use.
            known = difflib.get_close_matches(target.name, known)
        where = target.path.name if target.path else target.module
        hint = did_you_mean(target.name, known)
        raise error(f"{target}: {where} has no {target.name!r}{hint}")
    found = getattr(module, target.name)
    if not callable(found):
        raise error(f"{target}: {target.name!r} is {type(found).__name__}, not a callable")
    return found


def blame(target: Target, doing: str, err: BaseException, error: type[UserError]) -> UserError:
    """The `error` to raise, in one sentence, for what the user's code raised.

    It names the line of the target's file that was running. The traceback goes to the log.
    """
    log.debug("%s: %s raised", target, doing, exc_info=err)
    frames = [
        (frame.filename, frame.lineno)
        for frame in traceback.extract_tb(err.__traceback__)
        if not frame.filename.startswith("<frozen importlib")
        and Path(__file__).parents[1] not in Path(frame.filename).parents
    ]
    frames = [frame for frame in frames if frame[0] == str(target.path)] or frames
    if isinstance(err, SyntaxError) and err.filename:
        frames = [(err.filename, err.lineno)]
    line = f" ({Path(frames[-1][0]).name}:{frames[-1][1]})" if frames else ""
    said = (err.msg if isinstance(err, SyntaxError) else str(err)).strip().partition("\n")[0]
    kind = type(err).__name__
    return error(f"{target}: {doing} raised {f'{kind}: {said}' if said else kind}{line}")


def build_model(spec: ModelSpec, device: torch.device) -> nn.Module:
    """The model with its weights, in eval mode on `device`.

    Weights that the callable draws at random are the same at each call. Raises ModelError when
    the callable fails or returns no module, when the weights cannot be read without running code
    or do not fit, and when a parameter is not finite.
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
    if spec.weights:
        _load_weights(model, spec.weights)
    _check_finite(model, str(spec.weights or spec.callable))
    log.info("built %s (%d parameters)", spec.callable, sum(p.numel() for p in model.parameters()))
    return model.to(device).eval()


def input_names(model: nn.Module) -> tuple[str, ...]:
    """The arguments that the model's forward takes; empty where it takes any by keyword."""
    parameters = inspect.signature(model.forward).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return ()
    return tuple(p.name for p in parameters if p.kind is not p.VAR_POSITIONAL)


def model_key(spec: ModelSpec, model: nn.Module) -> str:
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
    classes = {cls for cls in classes if _package(cls.__module__) not in ("torch", "builtins")}
    files = {file for cls in classes if (file := _file(cls))}
    packages = {_package(cls.__module__) for cls in classes}
    facts = [
        # A function in a module's repr carries its address.
        re.sub(r" at 0x[0-9a-f]+", "", repr(model)),
        json.dumps(spec.args, sort_keys=True, default=str),
        source_key(spec.callable),
        sorted(_file_hash(file) for file in files),
        sorted(_version(package) for package in packages | {"torch"}),
    ]
    digest.update(json.dumps(facts).encode())
    return digest.hexdigest()


def source_key(target: Target) -> str:
    """A hash of a callable's code.

    For a file: of it and of the files beside it that it imports, directly or not. For an installed
    module: of its file and the version of its distribution. Nothing is imported.
    """
    if target.path:
        facts = sorted(_file_hash(file) for file in _with_neighbours(target.path))
    else:
        origin = importlib.util.find_spec(target.module).origin
        facts = [_file_hash(Path(origin)), _version(_package(target.module))]
    return hashlib.blake2b(json.dumps([target.name, *facts]).encode(), digest_size=16).hexdigest()


class _FromSource(importlib.machinery.SourceFileLoader):
    """Neither reads nor writes a .pyc: one misses an edit within the same second."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def _load(path: Path) -> ModuleType:
    source = path.read_bytes()
    name = _PRIVATE + hashlib.blake2b(bytes(path) + b"\0" + source, digest_size=8).hexdigest()
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path, loader=_FromSource(name, str(path)))
    module = importlib.util.module_from_spec(spec)
    _forget_foreign_neighbours(path.parent)
    # Dataclasses and pickle look a class's module up by name.
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent))
    try:
        module.__loader__.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(str(path.parent))
    return module


def _forget_foreign_neighbours(folder: Path) -> None:
    """Another recipe's `layers.py` must not answer when this folder's is imported."""
    files = {name: getattr(module, "__file__", None) for name, module in sys.modules.items()}
    loaded = {Path(file).parent for name, file in files.items() if name.startswith(_PRIVATE)}
    others = loaded - {folder}
    for name, file in files.items():
        top = _package(name)
        here = (folder / f"{top}.py").exists() or (folder / top).is_dir()
        if here and file and not others.isdisjoint(Path(file).parents):
            del sys.modules[name]


def _with_neighbours(path: Path) -> set[Path]:
    found: set[Path] = set()
    queue = [path]
    while queue:
        file = queue.pop()
        if file in found or not file.is_file():
            continue
        found.add(file)
        try:
            nodes = list(ast.walk(ast.parse(file.read_bytes())))
        except SyntaxError:  # it can import nothing either
            continue
        for node in nodes:
            if isinstance(node, ast.Import):
                folder, names = path.parent, [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                folder = file.parents[node.level - 1] if node.level else path.parent
                names = [f"{node.module or ''}.{alias.name}" for alias in node.names]
            else:
                continue
            for parts in (name.strip(".").split(".") for name in names):
                for depth in range(1, len(parts) + 1):
                    place = folder.joinpath(*parts[:depth])
                    queue += [place.with_name(f"{place.name}.py"), place / "__init__.py"]
    return found


def _load_weights(model: nn.Module, path: Path) -> None:
    given = _read_weights(path)
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
        lists = "; ".join(f"{what}: {_first(names)}" for what, names in wrong.items() if names)
        raise ModelError(f"{path}: the weights do not fit the model; {lists}")


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ModelError(f"{path}: there is no such file of weights")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (safetensors.SafetensorError, OSError) as err:
            raise ModelError(f"{path}: this is no safetensors file, or a damaged one") from err
    zipped = zipfile.is_zipfile(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as err:
        with path.open("rb") as file:
            pickled = zipped or file.read(1) == pickle.PROTO
        if not pickled:
            raise ModelError(f"{path}: this is no file of weights") from err
        raise ModelError(
            f"{path}: it holds Python objects besides tensors, and loading them could run any "
            "code; save the model's state_dict as .safetensors"
        ) from err
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as err:
        raise ModelError(
            f"{path}: it is damaged, or not written by torch.save; save the model's state_dict "
            "as .safetensors"
        ) from err
    if _is_state_dict(loaded):
        return loaded
    parts = loaded.items() if isinstance(loaded, dict) else ()
    sets = [key for key, value in parts if _is_state_dict(value)]
    if len(sets) == 1:
        log.info("took %r of %s", sets[0], path)
        return loaded[sets[0]]
    if sets:
        raise ModelError(
            f"{path}: it holds several sets of weights ({_first(sets)}); save the one to use "
            "as .safetensors"
        )
    raise ModelError(f"{path}: it holds no weights, that is names with tensors")


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    )


def _check_finite(model: nn.Module, where: str) -> None:
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


def _first(names: Iterable[str]) -> str:
    names = list(names)
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")


def _package(module: str) -> str:
    return module.partition(".")[0]


def _file(cls: type) -> Path | None:
    try:
        return Path(inspect.getfile(cls))
    except (TypeError, OSError):  # built in, or typed at a prompt
        return None


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def _version(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        # A user's file; or a distribution of another name, whose files' hashes have to do.
        return ""
