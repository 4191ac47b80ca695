"""init: a commented recipe to start from, after a look at the network and at the data, if any.

Where no data are given it writes a function for them too, which has to be filled in: ranges found
on made-up samples would say nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from granplugin.data.npz import arrays_in
from granplugin.data.open import open_data
from granplugin.errors import DataError, ModelError, RunError
from granplugin.measures.metrics import unserved
from granplugin.pipelines.inspect import Inspection
from granplugin.pipelines.inspect import inspect as look
from granplugin.recipe.load import load_recipe
from granplugin.sources import open_network
from granplugin.sources.onnx_network import OnnxNetwork
from granplugin.sources.protocol import Network
from granplugin.starting.sample_shapes import Guess, shapes_of
from granplugin.starting.text import DATA_FILE, Known, data_module, starter
from granplugin.store.arrays import save_arrays
from granplugin.store.whole_file import write_whole


@dataclass(frozen=True, slots=True)
class Started:
    """What was written: `data` is a module to be filled in, if one is needed."""

    recipe: Path
    data: Path | None


def init(
    target: str,
    data: str | None = None,
    weights: Path | None = None,
    shapes: Sequence[str] = (),
    out: Path | None = None,
) -> Started:
    """Write a recipe for `target` - file.py:function, module:function or a float ONNX file -, which
    `data` - an .npz file, a folder of images, file.py:function - calibrate.

    `shapes`, as image=3x224x224, are of one sample, where no data tell and none can be guessed.
    Raises UserError; nothing that is there is overwritten.
    """
    model = _model(target, weights)
    name = _name(target)
    path = out or Path(f"{name}.yaml")
    _free(path)
    spec = {"version": 1, "model": model, "data": _nothing()}
    network = open_network(load_recipe(spec, data=False))
    names = network.input_names
    section = None if data is None else _data(data, names)
    guess = _guess(network, shapes_of(shapes)) if section is None else None
    seen, unclassed = _look(network, model, section, guess)
    module = path.parent / DATA_FILE if section is None else None
    text = starter(Known(name, model, section, guess, names, seen.output(), unclassed))
    files = {path: text}
    if module is not None:
        _free(module)
        files[module] = data_module(names, guess)
    for file, content in files.items():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, content.encode())
        except OSError as err:
            raise RunError(f"{file}: cannot be written: {err.strerror}; give --out") from err
    return Started(path, module)


def _guess(network: Network, told: Mapping[str, tuple[int, ...]]) -> Guess | None:
    """Shapes and types of one sample that the network runs with."""
    if isinstance(network, OnnxNetwork):
        return network.sample(told)
    from granplugin.sources.torch_network import TorchNetwork
    from granplugin.starting.guess import guess_of

    assert isinstance(network, TorchNetwork), "it is a file, or torch's"
    return guess_of(network.module(), network.input_names, told)


def _model(target: str, weights: Path | None) -> dict[str, Any]:
    if target.endswith(".onnx"):
        if weights is not None:
            raise ModelError("an ONNX file holds its weights; leave --weights out")
        return {"onnx": target}
    if ":" not in target:
        raise ModelError(
            f"{target}: give the function that returns the network, as file.py:function or "
            "module:function, or a file.onnx"
        )
    return {"callable": target} | ({"weights": str(weights)} if weights else {})


def _name(target: str) -> str:
    if target.endswith(".onnx"):
        return Path(target).stem
    return target.rpartition(":")[2].rpartition(".")[2]


def _free(path: Path) -> None:
    if path.exists():
        raise RunError(f"{path}: is there already; give --out, or move it away")


def _nothing() -> dict[str, Any]:
    return {"calibration": {"npz": "none.npz", "inputs": {"x": "x"}}}


def _data(data: str, names: Sequence[str]) -> dict[str, Any]:
    """The source as a recipe has it, with what forward's arguments are called there."""
    path = Path(data)
    if path.suffix == ".npz":
        return {"npz": data} | _arrays(data, names)
    if path.is_dir():
        return {"folder": data, "input": names[0] if names else "image", "resize": 256, "crop": 224}
    if ":" in data:
        return {"callable": data}
    raise DataError(f"{data}: neither an .npz file, nor a folder, nor file.py:function")


def _arrays(data: str, names: Sequence[str]) -> dict[str, Any]:
    """Inputs by their names, else in their order; labels are the only integers of one dimension."""
    arrays = arrays_in(Path(data), data)
    labels = [
        name
        for name, (shape, dtype) in arrays.items()
        if len(shape) == 1 and np.issubdtype(dtype, np.integer)
    ]
    rest = [name for name in arrays if name not in labels]
    same = {name: name for name in names if name in rest}
    inputs = same or dict(zip(names, rest, strict=False))
    if not inputs:
        raise DataError(f"{data}: has no array that could be forward's {names[0]!r}")
    return {"inputs": inputs} | ({"labels": labels[0]} if len(labels) == 1 else {})


def _look(
    network: Network, model: dict[str, Any], section: dict[str, Any] | None, guess: Guess | None
) -> tuple[Inspection, str | None]:
    """Inspect it on the data given, or on noise of the shape that runs, which tells shapes; without
    either, all that the modules tell. And why no output has classes, where that is seen."""
    with tempfile.TemporaryDirectory() as scratch:
        source = section
        if guess:
            rng, file = np.random.default_rng(0), Path(scratch) / "noise.npz"
            arrays: dict[str, np.ndarray] = {
                name: rng.standard_normal((2, *shape)).astype(kind)
                if np.issubdtype(kind, np.floating)
                else np.zeros((2, *shape), kind)
                for name, (shape, kind) in guess.items()
            }
            save_arrays(file, arrays)
            source = {"npz": str(file), "inputs": {name: name for name in arrays}}
        data = {"calibration": source, "batch_size": 2} if source else _nothing()
        spec = {"version": 1, "model": model, "data": data}
        loaded = load_recipe(spec, data=source is not None)
        seen = look(loaded, Path(scratch) / "run")
        if source is None:
            return seen, None
        first = open_data(loaded.recipe.data.calibration, 2, 0, "calibration", network.input_names)
        return seen, unserved("agreement", network.outputs(next(iter(first))))
