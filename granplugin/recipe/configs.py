"""modelopt's configs as they are written: its presets by name, YAML files of its recipes' form.

Nothing of modelopt is imported, so each entry keeps the line that it stands on, and `check` answers
without torch.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from granplugin.errors import RecipeError
from granplugin.reading import read_text
from granplugin.recipe.source import MAX_BYTES
from granplugin.recipe.yaml_text import Location, Mark, parse_all
from granplugin.suggest import did_you_mean

LIBRARY = "modelopt_recipes"
"""The folder of modelopt's YAML files, beside its package."""
ENDINGS = (".yaml", ".yml", ".json")
"""Of a file that holds a config."""
_PRESETS = "configs/ptq/presets/model"
_MOST_FILES = 200
_NAME = re.compile(r"(?:modelopt(?:@(?P<version>[0-9.]+))?:)?(?P<name>.+)")
_IMPORT = "$import"


@dataclass(frozen=True)
class Config:
    """A config of modelopt's: what it is called, its values in `quantize` or the whole, and where
    each entry of quant_cfg is written. `own` tells that it is one that modelopt ships."""

    name: str
    value: dict[str, Any]
    marks: tuple[Mark, ...]
    own: bool


def read_config(said: str) -> Config:
    """The config that `said` names: a preset (`modelopt:INT8_DEFAULT_CFG`, or the name alone), a
    file of modelopt's library (`modelopt:general/ptq/fp8_default-kv_fp8`) or one of its form. `modelopt@0.47:` insists on the version that is installed.

    Raises RecipeError: no such preset or file, another version, or what is no such file.
    """
    match = _NAME.fullmatch(said)
    version, name = (match["version"], match["name"]) if match else (None, said)
    if version is not None:
        _check_version(said, version)
    own = said.startswith("modelopt:") or version is not None
    library = _library()
    if library is not None:
        known = presets(library)
        if name in known:
            path = library / f"{known[name]}.yaml"
            return _config(name, path, library, own=True)
        if own:
            below = _below(library, name)
            if below is None:
                raise RecipeError(f"modelopt has no {name!r}{did_you_mean(name, known)}")
            return _config(below.stem, below, library, own=True)
    elif own:
        raise RecipeError(f"{said!r}: modelopt's own configs are not installed")
    if re.fullmatch(r"[A-Z0-9_]+_CFG", name):
        raise RecipeError(f"modelopt has no {name!r}{did_you_mean(name, presets(library))}")
    path = Path(name)
    if path.suffix not in ENDINGS:
        raise RecipeError(
            f"{name!r} is neither a preset of modelopt's nor a file of its form, {' or '.join(ENDINGS)}"
        )
    return _config(path.stem, path, library, own=False)


def presets(library: Path | None) -> dict[str, str]:
    """modelopt's presets: the name in `modelopt.torch.quantization` -> its file below `library`."""
    if library is None:
        return {}
    source = library.parent / "modelopt/torch/quantization/config.py"
    if not source.is_file():
        return {}
    found = {}
    for statement in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            call = statement.value
            if statement.target.id.endswith("_CFG") and isinstance(call, ast.Call):
                if len(call.args) == 1 and isinstance(call.args[0], ast.Constant):
                    found[statement.target.id] = str(call.args[0].value)
    return found


def _library() -> Path | None:
    spec = find_spec(LIBRARY)
    places = list(spec.submodule_search_locations or ()) if spec else []
    return Path(places[0]) if places else None


def _check_version(said: str, version: str) -> None:
    try:
        installed = metadata.version("nvidia-modelopt")
    except metadata.PackageNotFoundError as err:
        raise RecipeError(f"{said!r}: modelopt is not installed") from err
    if not f"{installed}.".startswith(f"{version}."):
        raise RecipeError(
            f"{said!r}: modelopt {installed} is installed, whose presets may be others; write "
            f"modelopt@{'.'.join(installed.split('.')[:2])}: or install that version"
        )


def _below(library: Path, name: str) -> Path | None:
    """A file of the library; its ending, and where presets lie, may be left out."""
    if ".." in Path(name).parts or Path(name).is_absolute():
        return None
    for place in (library, library / _PRESETS):
        for ending in ("", ".yaml", ".yml"):
            path = place / f"{name}{ending}"
            if path.suffix in (".yaml", ".yml") and path.is_file():
                return path
    return None


def _config(name: str, path: Path, library: Path | None, own: bool) -> Config:
    reader = _Files(library)
    value, marks = reader.read(path, ())
    where = reader.shown(path)
    if isinstance(value, list):
        value, marks = {"quant_cfg": value}, {("quant_cfg", *at): m for at, m in marks.items()}
    at: Location = ()
    if isinstance(value, Mapping) and isinstance(value.get("quantize"), Mapping):
        value, at = value["quantize"], ("quantize",)
    if not isinstance(value, dict) or "quant_cfg" not in value:
        raise RecipeError(f"{where}: no config of modelopt: it has no key 'quant_cfg'")
    whole, listed = Mark(where, 1, 1), value["quant_cfg"]
    keys: list[str | int] = list(
        listed
        if isinstance(listed, dict)
        else range(len(listed) if isinstance(listed, list) else 0)
    )
    places = tuple(marks.get((*at, "quant_cfg", key), whole) for key in keys)
    return Config(name, value, places, own)


class _Files:
    """Files of modelopt's, with what they import in place."""

    def __init__(self, library: Path | None) -> None:
        self.library = library
        self.count = 0

    def shown(self, path: Path) -> str:
        """Files of the library by their place in it."""
        if self.library is not None and path.is_relative_to(self.library):
            return f"{LIBRARY}/{path.relative_to(self.library)}"
        return str(path)

    def read(self, path: Path, chain: tuple[Path, ...]) -> tuple[Any, dict[Location, Mark]]:
        where = self.shown(path)
        self.count += 1
        if path in chain or self.count > _MOST_FILES:
            raise RecipeError(f"{where}: imports itself, or over {_MOST_FILES} files")
        documents = parse_all(read_text(path, RecipeError, MAX_BYTES), where)
        if len(documents) > 2:
            raise RecipeError(
                f"{where}: {len(documents)} documents; modelopt's files have one or two"
            )
        header = documents[0][0] if len(documents) == 2 else None
        value, marks = documents[-1] if documents else (None, {})
        if isinstance(header, Mapping) and isinstance(value, dict):
            value, marks = {**header, **value}, {**documents[0][1], **marks}
        imports = (header if isinstance(header, Mapping) else value) or {}
        named = imports.get("imports") if isinstance(imports, Mapping) else None
        if named is not None and not isinstance(named, Mapping):
            raise RecipeError(f"{where}: imports are names with files, not {named!r:.60}")
        known = {
            name: self.read(self._file(file, where), (*chain, path))
            for name, file in (named or {}).items()
        }
        if isinstance(value, dict):
            value = {key: inside for key, inside in value.items() if key != "imports"}
        found: dict[Location, Mark] = {}
        return _Imports(known, marks, found, where).put(value, (), ()), found

    def _file(self, said: Any, where: str) -> Path:
        """As modelopt looks for an import: from the current folder, then in its library."""
        if not isinstance(said, str) or not said:
            raise RecipeError(f"{where}: an import is a file, not {said!r:.60}")
        for ending in ("", ".yml", ".yaml"):
            path = Path(f"{said}{ending}")
            if path.suffix in (".yml", ".yaml") and path.is_file():
                return path
        below = _below(self.library, said) if self.library else None
        if below is None:
            raise RecipeError(
                f"{where}: imports {said!r}, which is neither below the current folder nor in "
                "modelopt's library"
            )
        return below


@dataclass(frozen=True)
class _Imports:
    """A value with `$import` replaced by what the names stand for; `found` takes its marks."""

    known: Mapping[Any, tuple[Any, Mapping[Location, Mark]]]
    marks: Mapping[Location, Mark]
    found: dict[Location, Mark]
    where: str

    def put(self, value: Any, at: Location, to: Location) -> Any:
        if at in self.marks:
            self.found[to] = self.marks[at]
        if isinstance(value, dict):
            merged: dict[str, Any] = {}
            names = value.get(_IMPORT, [])
            for name in names if isinstance(names, list) else [names]:
                imported = self._named(name)[0]
                if not isinstance(imported, dict):
                    raise RecipeError(f"{self._place(at)}: $import {name!r} is no mapping")
                merged |= imported
            inline = {key: inside for key, inside in value.items() if key != _IMPORT}
            return merged | {
                key: self.put(inside, (*at, key), (*to, key)) for key, inside in inline.items()
            }
        if not isinstance(value, list):
            return value
        listed: list[Any] = []
        for index, item in enumerate(value):
            if isinstance(item, dict) and set(item) == {_IMPORT}:
                for entry, mark in self._items(item[_IMPORT], (*at, index)):
                    self.found[*to, len(listed)] = mark
                    listed.append(entry)
            else:
                listed.append(self.put(item, (*at, index), (*to, len(listed))))
        return listed

    def _items(self, name: Any, at: Location) -> Iterator[tuple[Any, Mark]]:
        """What a list's entry stands for: the entries of an imported list, or the one value."""
        value, marks = self._named(name)
        here = self.marks[at]
        if not isinstance(value, list):
            yield value, marks.get((), here)
            return
        for index, entry in enumerate(value):
            yield entry, marks.get((index,), here)

    def _named(self, name: Any) -> tuple[Any, Mapping[Location, Mark]]:
        if not isinstance(name, str) or name not in self.known:
            hint = did_you_mean(str(name), [str(each) for each in self.known])
            raise RecipeError(f"{self.where}: nothing is imported as {name!r}{hint}")
        return self.known[name]

    def _place(self, at: Location) -> str:
        return str(self.marks.get(at, self.where))
