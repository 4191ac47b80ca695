"""The callables that a recipe names: found, loaded from files, and blamed for what they raise."""

from __future__ import annotations

import difflib
import hashlib
import importlib.machinery
import importlib.util
import logging
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

from granplugin.errors import ModelError, UserError
from granplugin.reading import why_unreadable
from granplugin.recipe.code_key import package_of
from granplugin.recipe.strict import Target, is_pythons_own
from granplugin.suggest import did_you_mean

log = logging.getLogger(__name__)

_PRIVATE = "_granplugin_file_"


def named(target: Target, error: type[UserError] = ModelError) -> Any:
    """What a name of a file or a module stands for.

    A file is loaded under a private name, with its folder on sys.path only meanwhile. Raises
    `error` when the file, module or name does not exist, or it raises on import.
    """
    if target.path and (said := why_unreadable(target.path)):
        raise error(f"{target}: {said}: {target.path}")
    try:
        module = _load(target.path) if target.path else importlib.import_module(target.module or "")
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
    return getattr(module, target.name)


def resolve(target: Target, error: type[UserError] = ModelError) -> Callable[..., Any]:
    """The callable that a recipe names. Raises `error` as `named` does, and where it is not
    callable."""
    found: Callable[..., Any] = named(target, error)
    if not callable(found):
        raise error(f"{target}: {target.name!r} is {type(found).__name__}, not a callable")
    if _is_pythons_own(found):
        raise error(f"{target}: {target.name!r} is Python's own; name a callable of your code")
    return found


def _is_pythons_own(found: Any) -> bool:
    """Whether this is a function or class of the standard library under another module's name."""
    named = isinstance(found, (FunctionType, BuiltinFunctionType, type))
    return named and is_pythons_own(getattr(found, "__module__", None) or "builtins")


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


class _FromSource(importlib.machinery.SourceFileLoader):
    """Neither reads nor writes a .pyc: one misses an edit within the same second."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def _load(path: Path) -> ModuleType:
    source = path.read_bytes()
    name = _PRIVATE + hashlib.blake2b(bytes(path) + b"\0" + source, digest_size=8).hexdigest()
    if name in sys.modules:
        return sys.modules[name]
    loader = _FromSource(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None  # there is a loader
    module = importlib.util.module_from_spec(spec)
    _forget_foreign_neighbours(path.parent)
    # Dataclasses and pickle look a class's module up by name.
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent))
    try:
        loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(str(path.parent))
    return module


def _forget_foreign_neighbours(folder: Path) -> None:
    """Another recipe's `layers.py` must not answer when this folder's is imported."""
    files = {name: getattr(module, "__file__", None) for name, module in sys.modules.items()}
    loaded = {
        Path(file).parent for name, file in files.items() if file and name.startswith(_PRIVATE)
    }
    # Of thousands of modules those are looked for here that came from such a folder.
    others = tuple(f"{each}{os.sep}" for each in loaded - {folder})
    for name, file in files.items():
        if file and file.startswith(others):
            top = package_of(name)
            if (folder / f"{top}.py").exists() or (folder / top).is_dir():
                del sys.modules[name]
