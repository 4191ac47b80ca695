"""Batches of a folder's images: resized, cropped and normalized."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from granplugin.data.arrays import check_names
from granplugin.data.batches import Batch, Drawn, drawn_indices
from granplugin.errors import DataError
from granplugin.recipe.data import FolderSource
from granplugin.store.keys import file_key

IMAGES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_SMALL_BYTES = 256 * 2**20
Labelled = list[tuple[Path, int | None]]
"""Files with their class numbers, None without labels."""


def open_folder(
    source: FolderSource, batch_size: int, seed: int, role: str, input_names: Sequence[str]
) -> Drawn:
    where = f"{role} data {source.folder}"
    check_names([source.input], input_names, where)
    if not source.folder.is_dir():
        raise DataError(f"{where}: there is no such folder")
    if 0 in source.std:
        raise DataError(f"{where}: std divides and cannot be 0")
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
    try:
        text = labels.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as err:
        raise DataError(f"{labels}: there is no such text file of labels") from err
    labelled: Labelled = []
    reader = csv.reader(text.splitlines())
    for row in reader:
        cells = [cell.strip() for cell in row]
        where = f"{labels}:{reader.line_num}"
        if not any(cells) or (not labelled and cells == ["file", "label"]):
            continue
        if len(cells) != 2 or not cells[1].isdecimal():
            raise DataError(f"{where}: {','.join(row)!r} is not file,label with a class number")
        file = folder / cells[0]
        if not file.is_file():
            raise DataError(f"{where}: there is no image {cells[0]!r} in {folder}")
        labelled.append((file, int(cells[1])))
    return labelled


def _decode(file: Path, source: FolderSource, where: str) -> np.ndarray:
    """One image as float32 (channels, height, width)."""
    try:
        with Image.open(file) as image:
            if image.mode[0] in "IF":
                raise DataError(f"{where}: {file.name} has more than 8 bits a channel; convert it")
            image = image.convert("L" if source.grayscale else "RGB")
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as err:
        raise DataError(f"{where}: {file.name} is damaged or no image") from err
    width, height = image.size
    if source.resize:
        short = min(width, height)
        width, height = (source.resize * side // short for side in (width, height))
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
