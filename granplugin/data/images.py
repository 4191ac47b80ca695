"""Batches of a folder's images: resized, cropped and normalized."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from granplugin.data.arrays import check_names
from granplugin.data.batches import Batch, Drawn, drawn_indices
from granplugin.errors import DataError
from granplugin.reading import read_text, reading, why_unreadable
from granplugin.recipe.data import FolderSource
from granplugin.store.keys import file_key

IMAGES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_SMALL_BYTES = 256 * 2**20
_LABEL_BYTES = 64_000_000
_PIXELS = 2**25
_PIXELS_A_BYTE = 32
"""A JPEG of a photograph has 1 to 5."""
Labelled = list[tuple[Path, int | None]]
"""Files with their class numbers, None without labels."""


def open_folder(
    source: FolderSource,
    batch_size: int,
    seed: int,
    role: str,
    input_names: Sequence[str],
    dynamic: Mapping[str, Mapping[int, str]],
) -> Drawn:
    where = f"{role} data {source.folder}"
    check_names([source.input], input_names, where)
    if said := why_unreadable(source.folder, folder=True):
        raise DataError(f"{where}: {said}")
    if 0 in source.std:
        raise DataError(f"{where}: std divides and cannot be 0")
    with reading(where, DataError, "its files cannot be listed"):
        labelled = (
            _in_list(source.labels, source.folder)
            if source.labels
            else _in_folder(source.folder, where)
        )
    if not labelled:
        raise DataError(f"{where}: there are no images in it ({', '.join(sorted(IMAGES))})")
    chosen = drawn_indices(len(labelled), source.samples, seed, where)
    files = [labelled[index][0] for index in chosen]
    labels = None
    if labelled[0][1] is not None:
        labels = np.array([labelled[index][1] for index in chosen], np.int64)
    shape = _decode(files[0], source, where).shape

    def read(part: slice) -> Batch:
        images = []
        for file in files[part]:
            images.append(_decode(file, source, where))
            if images[-1].shape != shape:
                sizes = [f"{width}x{height}" for _, height, width in (shape, images[-1].shape)]
                raise DataError(
                    f"{where}: {files[0].name} is {sizes[0]} and {file.name} {sizes[1]}; "
                    "make them equal with resize and crop"
                )
        return {source.input: np.stack(images)}

    def facts() -> list[Any]:
        stats = [file.stat() for file in files]
        # Reading a large folder would take longer than what the key saves.
        if sum(stat.st_size for stat in stats) <= _SMALL_BYTES:
            contents: list[Any] = [file_key(file) for file in files]
        else:
            contents = [
                [str(file.relative_to(source.folder)), stat.st_size, stat.st_mtime_ns]
                for file, stat in zip(files, stats, strict=True)
            ]
        settings = source.model_dump(exclude={"folder", "labels", "samples"})
        return ["folder", contents, settings, version("pillow")]

    return Drawn(len(files), batch_size, read, labels, facts)


def _in_folder(folder: Path, where: str) -> Labelled:
    """The images of a folder without labels, or those of its subfolders, numbered by name."""
    flat: Labelled = [(file, None) for file in sorted(folder.iterdir()) if _is_image(file)]
    classes = sorted(
        path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
    nested: Labelled = [
        (file, number)
        for number, path in enumerate(classes)
        for file in sorted(path.rglob("*"))
        if _is_image(file)
    ]
    if flat and nested:
        raise DataError(
            f"{where}: there are images both in it and in its subfolders; "
            "give one subfolder per class, or a label file"
        )
    return flat or nested


def _is_image(file: Path) -> bool:
    # Some systems leave hidden companions such as ._a.png.
    return file.suffix.lower() in IMAGES and not file.name.startswith(".") and file.is_file()


def _in_list(labels: Path, folder: Path) -> Labelled:
    text = read_text(labels, DataError, _LABEL_BYTES)
    labelled: Labelled = []
    for number, row in _rows(text.splitlines(), labels):
        cells = [cell.strip() for cell in row]
        where = f"{labels}:{number}"
        if not any(cells) or (not labelled and cells == ["file", "label"]):
            continue
        if len(cells) != 2 or not re.fullmatch(r"[0-9]{1,9}", cells[1]):
            told = f"{','.join(row)!r}"
            told = told if len(told) <= 100 else f"{told[:100]}..."
            raise DataError(f"{where}: {told} is not file,label with a class number")
        file = folder / cells[0]
        if said := why_unreadable(file):
            told = "there is no image" if said.startswith("no such") else "no image can be read of"
            raise DataError(f"{where}: {told} {cells[0]!r:.200} in {folder}")
        labelled.append((file, int(cells[1])))
    return labelled


def _rows(lines: list[str], labels: Path) -> Iterator[tuple[int, list[str]]]:
    """Each row of a CSV text, and the number of its last line."""
    reader = csv.reader(lines)
    with reading(str(labels), DataError, "not CSV"):
        while (row := next(reader, None)) is not None:
            yield reader.line_num, row


def _check_pixels(size: tuple[int, int], held: int, what: str) -> None:
    """Raises DataError, before anything is decoded, for more pixels than a file of `held` bytes
    can mean: a few bytes may declare any size."""
    pixels = size[0] * size[1]
    if pixels > max(_PIXELS, _PIXELS_A_BYTE * held):
        raise DataError(
            f"{what}: {size[0]}x{size[1]} pixels would be {pixels / 1e6:,.0f} million; "
            f"{_PIXELS / 1e6:,.0f} million are the most"
        )


def _decode(file: Path, source: FolderSource, where: str) -> np.ndarray:
    """One image as float32 (channels, height, width)."""
    with reading(f"{where}: {file.name}", DataError, "is damaged or no image"):
        size = file.stat().st_size
        with Image.open(file) as opened:
            if opened.mode[0] in "IF":
                raise DataError(f"{where}: {file.name} has more than 8 bits a channel; convert it")
            _check_pixels(opened.size, size, f"{where}: {file.name}")
            image = opened.convert("L" if source.grayscale else "RGB")
    width, height = image.size
    if source.resize:
        short = min(width, height)
        width, height = (source.resize * side // short for side in (width, height))
        _check_pixels((width, height), 0, f"{where}: {file.name}, resized")
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    if source.crop:
        if min(width, height) < source.crop:
            raise DataError(
                f"{where}: {file.name} is {width}x{height}, less than crop: {source.crop}; "
                "give a resize that is no smaller"
            )
        left, top = (round((side - source.crop) / 2) for side in (width, height))
        image = image.crop((left, top, left + source.crop, top + source.crop))
    pixels = np.asarray(image, np.float32).reshape(image.height, image.width, -1) / 255
    channels = pixels.shape[2]
    mean, std = (np.array(x[:channels], np.float32) for x in (source.mean, source.std))
    return np.ascontiguousarray(((pixels - mean) / std).transpose(2, 0, 1))
