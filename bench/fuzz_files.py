"""Damaged side files - arrays, images, labels, weights, amax, statistics, what trtexec wrote - through
the readers that open them.

python bench/fuzz_files.py --count 10000 --save
"""

from __future__ import annotations

import io
import json
import os
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from campaign import damaged, main
from PIL import Image
from safetensors.torch import save as save_safetensors

from granplugin.backends.nvidia import trtexec
from granplugin.backends.nvidia.plan_reader import read_plan, read_profile_json
from granplugin.calibration.statistics import Need, Statistics, import_amax
from granplugin.data.open import open_data
from granplugin.network.weights import load_weights
from granplugin.recipe.data import FolderSource, NpzSource

warnings.simplefilter("ignore")


def attempt(rng: Random) -> str:
    """One file of some kind, damaged, and read."""
    _scratch()
    kind = rng.choice(list(KINDS))
    suffix, content, read = KINDS[kind]
    path = Path(f"file{suffix}")
    made = rng.choice(content())
    path.write_bytes(damaged(rng, made) if rng.random() < 0.95 else made)
    read(path)
    return kind


def _arrays() -> list[bytes]:
    arrays = {"x": np.arange(24, dtype=np.float32).reshape(4, 6), "y": np.arange(4)}
    return [
        _bytes(lambda file, save=save: save(file, **arrays))
        for save in (np.savez, np.savez_compressed)
    ]


def _npz(path: Path) -> None:
    source = NpzSource(npz=path, inputs={"x": "x"}, labels="y", samples=None)
    list(open_data(source, 2, 0, "calibration"))


def _images() -> list[bytes]:
    pixels = Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3))
    found = [
        _bytes(lambda file, form=form, **more: pixels.save(file, form, **more))
        for form in ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM", "GIF")
    ]
    for compression in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg"):
        found.append(_bytes(lambda file, c=compression: pixels.save(file, "TIFF", compression=c)))
    return [
        *found,
        _bytes(lambda file: pixels.convert("1").save(file, "TIFF", compression="group4")),
    ]


def _image(path: Path) -> None:
    path.replace("images/a.png")
    list(
        open_data(
            FolderSource(folder=Path("images"), input="x", resize=8, crop=8, samples=None),
            1,
            0,
            "calibration",
        )
    )


def _labels() -> list[bytes]:
    return [b"file,label\nb.png,0\nb.png,12\n", 'b.png,3\r\n"b.png",4\r\n'.encode("utf-8-sig")]


def _labelled(path: Path) -> None:
    source = FolderSource(folder=Path("labelled"), labels=path, input="x", resize=8, samples=None)
    list(open_data(source, 1, 0, "calibration"))


class _Small(torch.nn.Linear):
    def __init__(self) -> None:
        super().__init__(3, 2)


def _torch() -> list[bytes]:
    state = _Small().state_dict()
    return [
        _bytes(
            lambda file, new=new, of=of: torch.save(of, file, _use_new_zipfile_serialization=new)
        )
        for new in (True, False)
        for of in (state, {"model": state, "epoch": 3})
    ]


def _weights(path: Path) -> None:
    load_weights(_Small(), path)


def _amax() -> list[bytes]:
    site = {"format": "int8", "shape": [4, 6], "block": [4, 6], "amax": [[1.5]]}
    return [json.dumps({"granplugin_amax": 1, "sites": {"a.weight": site}}).encode()]


def _statistics() -> list[bytes]:
    path = Path("made.safetensors")
    need = Need("a.input", (4, 6), True, (4, 6))
    Statistics({need: np.ones((1, 1), np.float32)}, {need: np.ones(8, np.int64)}, 4).save(
        path, "key"
    )
    return [path.read_bytes()]


def _layers() -> list[bytes]:
    tensor = {"Name": "x", "Dimensions": [1, 4], "Datatype": "Int8", "DataType": "Int8"}
    layer = {
        "Name": "fc",
        "LayerType": "gemm",
        "Inputs": [tensor],
        "Outputs": [tensor],
        "Metadata": "[ONNX Layer: fc]",
    }
    json_ = json.dumps({"Layers": [layer], "I/O Tensors": [tensor]})
    text = (
        "Layers:\nName: fc, LayerType: gemm, Inputs: [ { Name: x, Dimensions: [1,4], Strides: [4,1], "
        "StrideOrder: [1,0], Datatype: Int8, Format: Row }], Constants: [], Outputs: [], TacticName: t, "
        "StreamId: 0, Metadata: [ONNX Layer: fc]\n\nI/O Tensors:\n Name: x, IOMode: Input, DataType: Float, "
        "Dimensions: [1,4], Location: Device, ProfileInfo: []\n\nEngine Metadata:\n"
    )
    return [json_.encode(), text.encode()]


def _profile() -> list[bytes]:
    return [json.dumps([{"count": 9}, {"name": "fc", "timeMs": 1.5, "averageMs": 0.1}]).encode()]


def _trtexec() -> list[bytes]:
    times = [{"startComputeMs": 1.0, "computeMs": 0.5}] * 3
    outputs = [{"name": "y", "dimensions": "1x4", "values": [1.0, 2.0, 3.0, 4.0]}]
    return [json.dumps(times).encode(), json.dumps(outputs).encode()]


def _read_trtexec(path: Path) -> None:
    text = path.read_text("utf-8", "replace")
    kind = trtexec.kind_of(text)
    if kind == "times":
        trtexec.read_times(text)
    if kind == "output":
        trtexec.read_outputs(text, {"y": "float32"})


def _text(read: Callable[[str], Any]) -> Callable[[Path], None]:
    return lambda path: read(path.read_text("utf-8", "replace"))


def _bytes(write: Callable[[Any], object]) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


KINDS: dict[str, tuple[str, Callable[[], list[bytes]], Callable[[Path], None]]] = {
    "npz": (".npz", cache(_arrays), _npz),
    "image": (".png", cache(_images), _image),
    "labels": (".csv", cache(_labels), _labelled),
    "torch": (".pt", cache(_torch), _weights),
    "safetensors": (
        ".safetensors",
        cache(lambda: [save_safetensors(_Small().state_dict())]),
        _weights,
    ),
    "amax": (".json", cache(_amax), lambda path: import_amax(path, ())),
    "statistics": (".safetensors", cache(_statistics), lambda path: Statistics.load(path, "key")),
    "layers": (".json", cache(_layers), _text(read_plan)),
    "profile": (".json", cache(_profile), _text(read_profile_json)),
    "trtexec": (".json", cache(_trtexec), _read_trtexec),
}
"""Kind -> its suffix, good files of it, and what reads one."""


@cache
def _scratch() -> None:
    os.chdir(tempfile.mkdtemp(prefix="granplugin-fuzz-"))
    for folder in ("images", "labelled"):
        Path(folder).mkdir()
    Image.new("RGB", (10, 10)).save("labelled/b.png")


if __name__ == "__main__":
    main("fuzz_files", attempt, 10_000)
