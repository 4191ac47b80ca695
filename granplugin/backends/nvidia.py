"""What TensorRT and TensorRT-RTX share: one code path, since their Python APIs are the same.

The engine is a folder: model.engine, its plan as the library wrote it, the build's log, and
engine.json, which says what it was made of and for. TensorRT-RTX builds without a GPU, and then
the plan is all there is to learn from; running takes one, and a torch with CUDA.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from importlib import import_module, metadata
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from granplugin.backends import nvidia_build
from granplugin.backends.base import Engine, LayerPrecision, Options, one_line
from granplugin.backends.engine_plan import EnginePlan, read_inspector_json, read_layers_text
from granplugin.backends.kernels import layer_precisions
from granplugin.backends.nvidia_run import Runner, open_runner
from granplugin.errors import EngineError, ModelError
from granplugin.graph.read.graph import read

_NOT_IN_ENGINE = ("seconds", "memory_mb", "plan")


def version(distributions: tuple[str, ...]) -> str:
    """That of the first of these that is installed."""
    for name in distributions:
        with suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    raise metadata.PackageNotFoundError(distributions[0])


def can_run(library: str) -> str | None:
    """Why an engine of this library cannot run on this machine, or None."""
    try:
        ctypes.CDLL("nvcuda.dll" if hasattr(ctypes, "WinDLL") else "libcuda.so.1")
    except OSError:
        return "there is no NVIDIA driver on this machine"
    import torch

    if not torch.backends.cuda.is_built():
        return f"torch {torch.__version__} is built without CUDA; install one that has it"
    if not torch.cuda.is_available():
        try:
            torch.cuda.init()  # says why, as of a driver too old for this torch
        except (RuntimeError, AssertionError) as err:
            return f"torch finds no GPU that it can use: {one_line(err)}"
        return "torch finds no GPU that it can use; nvidia-smi may say why"
    if library == "tensorrt_rtx":
        target = "SM{}{}".format(*torch.cuda.get_device_capability())
        targets = import_module(library).ComputeCapability.__members__
        if target not in targets:
            return f"{torch.cuda.get_device_name()} is {target.lower()}, which it has no target for"
    return None


def build(library: str, version: str, onnx: Path, out: Path, options: Options) -> Engine:
    """Build in a process of its own, or return what is in `out` if it was built of the same ONNX by
    the same version for the same options (on the same GPU, where that matters) and is intact.
    Raises EngineError as `run_build`, and for an option or a file the library does not take; what
    is in `out` then stays.
    """
    if options.min_batch is None:
        options = replace(options, min_batch=options.batch if can_run(library) else 1)
    what_for = {key: value for key, value in asdict(options).items() if key not in _NOT_IN_ENGINE}
    made_of = {
        "form": 2,
        "library": library,
        "version": version,
        "gpu": _gpu() if library == "tensorrt" else None,
        "onnx_sha256": _sha256(onnx),
        "plan": options.plan,
        "options": json.loads(json.dumps(what_for)),  # tuples become lists, as in the file
    }
    card = _intact_card(out)
    if card is None or {key: card.get(key) for key in made_of} != made_of:
        _check(library, options)
        nodes = weighted_nodes(library, onnx)
        out.parent.mkdir(parents=True, exist_ok=True)
        outer = Path(mkdtemp(dir=out.parent, prefix=".making-"))
        scratch = outer / out.name
        scratch.mkdir()
        try:
            told = nvidia_build.run_build(library, onnx, scratch, options)
            files = [nvidia_build.ENGINE, _plan_file(scratch)]
            hashes = {file: _sha256(scratch / file) for file in files}
            card = made_of | told | {"layers": nodes, "files_sha256": hashes}
            (scratch / "engine.json").write_text(json.dumps(card, indent=1), encoding="utf-8")
            if out.exists():
                shutil.rmtree(out)
            scratch.rename(out)
        finally:
            shutil.rmtree(outer, ignore_errors=True)
    size = (out / nvidia_build.ENGINE).stat().st_size
    return Engine(library, out, size, card["build_seconds"], card["version"])


def plan(engine: Engine) -> EnginePlan:
    """What the engine does. Raises EngineError where its files are not as they were built."""
    _card(engine)
    return _read_plan(engine)


def _read_plan(engine: Engine) -> EnginePlan:
    file = _plan_file(engine.path)
    text = (engine.path / file).read_text(encoding="utf-8")
    return read_layers_text(text) if file.endswith(".txt") else read_inspector_json(text)


def layers(engine: Engine) -> tuple[LayerPrecision, ...]:
    """A layer is int8 (or fp8) where every kernel that multiplies for it reads its input and its
    weight in that type; unknown where the plan has no such kernel, or does not tell.
    """
    listed = _card(engine)["layers"]
    return layer_precisions(engine.backend, listed, _read_plan(engine))


@contextmanager
def open(engine: Engine, version: str) -> Iterator[Runner]:
    """A runner on the first GPU. Raises EngineError where there is none, and where the engine is
    not as it was built, or of another version or GPU.
    """
    card = _card(engine)
    if reason := can_run(engine.backend):
        raise EngineError(f"{engine.backend} cannot run here: {reason}")
    here = (version, card["gpu"] and _gpu())
    if (card["version"], card["gpu"]) != here:
        made, found = (
            " on ".join(filter(None, each)) for each in ((card["version"], card["gpu"]), here)
        )
        raise EngineError(
            f"{engine.path}: built with {engine.backend} {made}, and this is {found}; delete the "
            "folder and build it again"
        )
    yield open_runner(engine)


def _check(library: str, options: Options) -> None:
    """Refuse options that this library does not have."""
    if library != "tensorrt_rtx":
        if options.targets:
            raise EngineError(f"{library} builds for the GPU it runs on; leave targets out")
        return
    if options.timing_cache is not None:
        # It "forces the AOT step to query your system for a GPU" (TensorRT-RTX release notes).
        raise EngineError(f"{library} builds without timing; leave timing_cache out")
    known = [name.lower() for name in import_module(library).ComputeCapability.__members__]
    for target in options.targets:
        if target not in known or not target.startswith("sm"):
            told = ", ".join(sorted(name for name in known if name.startswith("sm")))
            raise EngineError(f"{library} has no target {target!r}; it has {told}")


def weighted_nodes(library: str, onnx: Path) -> list[tuple[str, str, int]]:
    """(module path, node name, values of the weight) of each call of a weighted layer."""
    try:
        products = read(onnx).products
    except ModelError as err:
        raise EngineError(f"{library} refused {onnx.name}: {one_line(err)}") from err
    return [
        (product.node.name.partition("/")[0], product.node.name, product.values or 0)
        for product in products
        if product.weight is not None
    ]


def _card(engine: Engine) -> dict[str, Any]:
    card = _intact_card(engine.path)
    if card is None:
        raise EngineError(
            f"{engine.path}: the engine's files are not as they were built; delete the folder "
            "and build it again"
        )
    return card


def _intact_card(folder: Path) -> dict[str, Any] | None:
    """engine.json, where the files are those it was written for."""
    try:
        card = json.loads((folder / "engine.json").read_text(encoding="utf-8"))
        hashes = card["files_sha256"]
        intact = bool(hashes) and hashes == {file: _sha256(folder / file) for file in hashes}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return card if intact else None


def _plan_file(folder: Path) -> str:
    """Raises EngineError where the library wrote no plan."""
    for file in nvidia_build.LAYERS:
        if (folder / file).is_file():
            return file
    raise EngineError(f"{folder}: the build left no plan of the engine")


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
