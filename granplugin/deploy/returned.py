"""Files that came back: which they are, what export they are of, and where the run keeps them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from granplugin.backends.nvidia import trtexec
from granplugin.deploy.manifest import Exported, Manifest
from granplugin.errors import EngineError, UserError
from granplugin.store.run_folder import RunFolder
from granplugin.suggest import did_you_mean
from granplugin.words import first

_EXTRAS = ("build.log", "engine_bytes.txt")
RESULTS = ("layers", "profile", "times", "output")
"""Kinds of files that say something by themselves."""

Files = Mapping[str, str]
"""Stored name -> text: layers.json, profile.json, times-b<size>-<round>.json, output-<batch>.json,
and what the script notes of the build."""


def gather(
    path: Path, variant: str | None, exports: Mapping[str, Exported], left: list[str]
) -> list[tuple[str, str, dict[str, str]]]:
    """(engine, variant, files) of a results folder, a variant's folder or a single file. What of a
    folder is none of them is `left` out, with why; UserError where nothing else is in it."""
    if not path.exists():
        raise UserError(f"{path}: there is no such file or folder")
    if (path / "inputs").is_dir() and (path / "variants").is_dir():
        if not (path / "results").is_dir():
            raise UserError(f"{path}: it was exported and has no results yet; run its script there")
        path = path / "results"
    if path.is_dir() and (path / "manifest.json").exists() and not variant:
        exported = _checked(path / "manifest.json", exports)
        folders = sorted(each for each in path.iterdir() if each.is_dir())
        found = []
        for each in folders:
            try:
                found.append(
                    (_named(each, each.name, exported), _folder_files(each, exported, left))
                )
            except UserError as err:
                left.append(str(err))
        found = [(name, files) for name, files in found if files]
        if not found:
            raise UserError(left[0] if left else f"{path}: there are no results in it")
        return [(exported.manifest.engine, name, files) for name, files in found]
    folder = path if path.is_dir() else path.parent
    beside = [up / "manifest.json" for up in (folder, folder.parent)]
    manifest = next((each for each in beside if each.exists()), None)
    if manifest:
        exported = _checked(manifest, exports)
    elif variant and len(exports) == 1:
        (exported,) = exports.values()
    else:
        raise UserError(
            f"{path}: there is no manifest.json beside it that says what it belongs to; give the "
            "results folder" + (", or --variant NAME" if len(exports) == 1 else "")
        )
    name = _named(path, variant or folder.name, exported)
    files = _folder_files(path, exported, left) if path.is_dir() else _file(path, exported)
    if not files:
        raise UserError(left[0] if left else f"{path}: there are no results in it")
    return [(exported.manifest.engine, name, files)]


def _named(path: Path, name: str, exported: Exported) -> str:
    if name not in exported.variants:
        hint = did_you_mean(name, exported.variants)
        raise UserError(f"{path}: no variant {name!r} was exported{hint}; say --variant NAME")
    return name


def _checked(path: Path, exports: Mapping[str, Exported]) -> Exported:
    """The run's export that this manifest is of. Raises UserError with what differs."""
    try:
        theirs = Manifest.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as err:
        raise UserError(f"{path}: not a manifest that granplugin export wrote") from err
    if theirs.engine not in exports:
        raise UserError(f"{path}: it is of {theirs.engine}, which this run was not exported for")
    ours = exports[theirs.engine].manifest
    differs = [
        f"{name}'s {what}"
        for name in sorted(ours.variants.keys() & theirs.variants.keys())
        for what, key in (("ONNX file", "onnx_sha256"), ("plan", "plan_key"))
        if getattr(ours.variants[name], key) != getattr(theirs.variants[name], key)
    ]
    differs += sorted(ours.variants.keys() ^ theirs.variants.keys())
    if ours.inputs_sha256 != theirs.inputs_sha256:
        differs.append("the evaluation inputs")
    if differs:
        raise UserError(
            f"{path}: these are results of another export; what differs: {first(differs)}"
        )
    return exports[theirs.engine]


def _folder_files(folder: Path, exported: Exported, left: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".json" and path.name != "manifest.json":
            try:
                found |= _file(path, exported)
            except UserError as err:
                left.append(str(err))
        elif path.name in _EXTRAS:
            found[path.name] = _text(path)
    return found if any(name not in _EXTRAS for name in found) else {}


def _file(path: Path, exported: Exported) -> dict[str, str]:
    """One file under the name it is kept by."""
    text = _text(path)
    try:
        kind = trtexec.kind_of(text)
    except EngineError as err:
        raise EngineError(f"{path}: {err}; export it again") from err
    if kind is None:
        raise UserError(
            f"{path}: it is none of trtexec's files (--exportLayerInfo, --exportProfile, "
            "--exportTimes, --exportOutput)"
        )
    if kind == "times":
        said = re.search(r"-b(\d+)-(\d+)$", path.stem)
        size, number = said.groups() if said else (max(exported.manifest.sizes), 1)
        return {f"times-b{size}-{number}.json": text}
    if kind == "output":
        said = re.search(r"-(\d+)$", path.stem)
        return {f"output-{int(said[1]) if said else 0:03d}.json": text}
    return {f"{kind}.json": text}


def kind_of(name: str) -> str:
    """Of a file by the name it is kept by."""
    return re.split(r"[-.]", name)[0]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as err:
        raise UserError(f"{path}: cannot be read: {getattr(err, 'strerror', '') or err}") from err


def folder_of(run: RunFolder, engine: str, variant: str) -> Path:
    return run.results / "variants" / variant / f"imported-{engine}"


def files_of(run: RunFolder, engine: str, variant: str) -> dict[str, str]:
    folder = folder_of(run, engine, variant)
    return {path.name: _text(path) for path in folder.iterdir()} if folder.is_dir() else {}
