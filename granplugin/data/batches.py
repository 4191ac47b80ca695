"""Where batches come from: an .npz, a callable or a folder of images, always in the same order."""

from __future__ import annotations

import csv
import hashlib
import json
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image

from granplugin.errors import DataError
from granplugin.recipe.schema import CallableSource, FolderSource, NpzSource, Source, Target
from granplugin.suggest import did_you_mean

Batch = dict[str, np.ndarray]
IMAGES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_SMALL_BYTES = 256 * 2**20


class Batches(Protocol):
    """Samples in a fixed order, in batches; can be iterated any number of times.

    A batch maps arguments of forward to arrays with the samples on axis 0: `batch_size` of them,
    fewer in the last batch. Floats are float32; integers and booleans are as given. The arrays
    are the caller's to change.
    """

    @property
    def samples(self) -> int: ...

    def labels(self) -> np.ndarray | None:
        """Class numbers, int64 of shape (samples,), or None for data without labels."""

    def __iter__(self) -> Iterator[Batch]: ...

    def key(self) -> str:
        """A hash of all samples, their order and labels; the same for every batch size."""


def open_data(
    source: Source,
    batch_size: int,
    seed: int,
    role: Literal["calibration", "evaluation", "analysis"],
    input_names: Sequence[str] = (),
) -> Batches:
    """The batches of a recipe's source.

    `input_names` are the arguments that the model's forward takes: other names are refused, and
    the one input of a callable that gives it no name is the first of them. From an .npz or a
    folder, `samples` are drawn with `seed`, without replacement, and stay in their order; from a
    callable, they are the first ones. Raises DataError, here or while iterating, for data that is
    missing, damaged, empty, not finite, or fewer than asked for.
    """
    match source:
        case NpzSource():
            return _open_npz(source, batch_size, seed, role, input_names)
        case FolderSource():
            return _open_folder(source, batch_size, seed, role, input_names)
        case CallableSource():
            from granplugin.network.models import resolve

            return _Called(
                source.callable,
                resolve(source.callable, DataError),
                source.args,
                source.samples,
                batch_size,
                tuple(input_names),
                f"{role} data {source.callable}",
            )


@dataclass(frozen=True, eq=False)
class _Drawn:
    """Samples that can be read in any order: an .npz or a folder."""

    samples: int
    batch_size: int
    read: Callable[[slice], Batch]
    known_labels: np.ndarray | None
    facts: Callable[[], list[Any]]

    def labels(self) -> np.ndarray | None:
        return None if self.known_labels is None else self.known_labels.copy()

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, self.samples, self.batch_size):
            yield self.read(slice(start, min(start + self.batch_size, self.samples)))

    def key(self) -> str:
        return self._key

    @cached_property
    def _key(self) -> str:
        labels = None if self.known_labels is None else self.known_labels.tolist()
        return _hash([*self.facts(), labels])


def _open_npz(
    source: NpzSource, batch_size: int, seed: int, role: str, input_names: Sequence[str]
) -> _Drawn:
    where = f"{role} data {source.npz}"
    _check_names(source.inputs, input_names, where)
    wanted = dict.fromkeys([*source.inputs.values(), *([source.labels] if source.labels else [])])
    arrays = _read_npz(source.npz, list(wanted), where)
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name!r} has {length}" for name, length in lengths.items())
        raise DataError(f"{where}: axis 0 counts the samples, but {told}")
    chosen = _choose(next(iter(lengths.values())), source.samples, seed, where)
    inputs = {
        argument: _numbers(
            arrays[name] if len(chosen) == len(arrays[name]) else arrays[name][chosen],
            f"{where}: array {name!r}",
            chosen,
        )
        for argument, name in source.inputs.items()
    }
    labels = None
    if source.labels:
        labels = _class_numbers(arrays[source.labels], f"{where}: array {source.labels!r}")[chosen]

    def read(part: slice) -> Batch:
        # A model may work in place on its input.
        return {argument: values[part].copy() for argument, values in inputs.items()}

    def facts() -> list[Any]:
        return ["npz", _file_hash(source.npz), source.inputs, chosen.tolist()]

    return _Drawn(len(chosen), batch_size, read, labels, facts)


def _read_npz(path: Path, names: Iterable[str], where: str) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise DataError(f"{where}: there is no such file")
    if not zipfile.is_zipfile(path):
        raise DataError(f"{where}: this is no .npz file; write one with numpy.savez")
    arrays = {}
    name = None
    try:
        with np.load(path, allow_pickle=False) as npz:
            for name in names:
                if name not in npz.files:
                    hint = did_you_mean(name, npz.files)
                    raise DataError(f"{where}: there is no array {name!r}{hint}")
                arrays[name] = np.asarray(npz[name])
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError) as err:
        if "allow_pickle" in str(err):
            raise DataError(
                f"{where}: array {name!r} holds Python objects, which could run any code; "
                "save numbers"
            ) from err
        raise DataError(f"{where}: the file is damaged") from err
    for name, array in arrays.items():
        if not array.ndim:
            raise DataError(f"{where}: array {name!r} is one number and has no axis of samples")
    return arrays


def _open_folder(
    source: FolderSource, batch_size: int, seed: int, role: str, input_names: Sequence[str]
) -> _Drawn:
    where = f"{role} data {source.folder}"
    _check_names([source.input], input_names, where)
    if not source.folder.is_dir():
        raise DataError(f"{where}: there is no such folder")
    if 0 in source.std:
        raise DataError(f"{where}: std divides and cannot be 0")
    found = _listed(source) if source.labels else _found(source.folder, where)
    if not found:
        raise DataError(f"{where}: there are no images in it ({', '.join(sorted(IMAGES))})")
    chosen = _choose(len(found), source.samples, seed, where)
    files = [found[index][0] for index in chosen]
    labels = None
    if found[0][1] is not None:
        labels = np.array([found[index][1] for index in chosen], np.int64)
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
            contents: list[Any] = [_file_hash(file) for file in files]
        else:
            contents = [
                [str(file.relative_to(source.folder)), stat.st_size, stat.st_mtime_ns]
                for file, stat in zip(files, stats, strict=True)
            ]
        settings = source.model_dump(exclude={"folder", "labels", "samples"})
        return ["folder", contents, settings, version("pillow")]

    return _Drawn(len(files), batch_size, read, labels, facts)


def _found(folder: Path, where: str) -> list[tuple[Path, int | None]]:
    """The images of a folder without labels, or those of its subfolders, numbered by name."""
    flat = [(file, None) for file in sorted(folder.iterdir()) if _is_image(file)]
    classes = sorted(
        path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
    nested = [
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


def _listed(source: FolderSource) -> list[tuple[Path, int | None]]:
    try:
        text = source.labels.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as err:
        raise DataError(f"{source.labels}: there is no such text file of labels") from err
    found: list[tuple[Path, int | None]] = []
    reader = csv.reader(text.splitlines())
    for row in reader:
        cells = [cell.strip() for cell in row]
        where = f"{source.labels}:{reader.line_num}"
        if not any(cells) or (not found and cells == ["file", "label"]):
            continue
        if len(cells) != 2 or not cells[1].isdecimal():
            raise DataError(f"{where}: {','.join(row)!r} is not file,label with a class number")
        file = source.folder / cells[0]
        if not file.is_file():
            raise DataError(f"{where}: there is no image {cells[0]!r} in {source.folder}")
        found.append((file, int(cells[1])))
    return found


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


@dataclass(frozen=True, eq=False)
class _Called:
    """What a callable gives, called anew for each pass."""

    target: Target
    function: Callable[..., Any]
    args: dict[str, Any]
    limit: int | None
    batch_size: int
    input_names: tuple[str, ...]
    where: str
    # Of each batch of the first pass: labels and inputs of different orders must not be paired.
    checksums: list[int] = field(default_factory=list)

    @property
    def samples(self) -> int:
        return self._counted[0]

    def labels(self) -> np.ndarray | None:
        return None if self._counted[1] is None else self._counted[1].copy()

    def __iter__(self) -> Iterator[Batch]:
        return _rebatch((inputs for inputs, _ in self._chunks()), self.batch_size)

    def key(self) -> str:
        """Of the callable's code, its arguments and `samples`: not of files that it reads."""
        from granplugin.network.models import source_key

        code = source_key(self.target)
        return _hash(["callable", code, self.args, self.limit, self.input_names[:1]])

    @cached_property
    def _counted(self) -> tuple[int, np.ndarray | None]:
        """Samples and labels, at the cost of one pass."""
        count, labels = 0, []
        for inputs, numbers in self._chunks():
            count += _length(inputs)
            labels.append(numbers)
        return count, None if labels[0] is None else np.concatenate(labels)

    def _chunks(self) -> Iterator[tuple[Batch, np.ndarray | None]]:
        """Inputs and labels of each of the callable's own batches, up to `limit` samples."""
        count = number = 0
        first = None
        for number, given in enumerate(self._given(), 1):
            place = f"{self.where}: batch {number}"
            inputs, labels = self._named(given, place)
            length = _length(inputs)
            if self.limit is not None:
                length = min(length, self.limit - count)
            indices = np.arange(count, count + length)
            inputs = {
                name: _numbers(values[:length], f"{place}: {name!r}", indices)
                for name, values in inputs.items()
            }
            if labels is not None:
                labels = _class_numbers(labels[:length], f"{place}: its labels")
            kind = ", ".join(f"{name} {list(v.shape[1:])}" for name, v in inputs.items())
            kind += " and no labels" if labels is None else " and labels"
            first = first or kind
            if kind != first:
                raise DataError(f"{place} has {kind} per sample, but batch 1 has {first}")
            self._check_repeats(number, [*inputs.values(), *([] if labels is None else [labels])])
            count += length
            yield inputs, labels
            if count == self.limit:
                return
        if number < len(self.checksums):
            raise self._other()
        if count < (self.limit or 1):
            asked = f", and samples: {self.limit} are asked for" if self.limit and count else ""
            raise DataError(f"{self.where}: it gives {count or 'no'} samples{asked}")

    def _given(self) -> Iterator[Any]:
        from granplugin.network.models import blame

        try:
            batches = self.function(**self.args)
            # A batch by itself can be iterated too, and would be taken apart.
            alone = isinstance(batches, (Mapping, tuple, str)) or hasattr(batches, "shape")
            if alone or not hasattr(batches, "__iter__"):
                kind = type(batches).__name__
                raise DataError(f"{self.where}: it returned {kind}, not a list of batches")
            yield from batches
        except DataError:
            raise
        except (Exception, SystemExit) as err:
            raise blame(self.target, "giving batches", err, DataError) from err

    def _named(self, given: Any, place: str) -> tuple[Batch, np.ndarray | None]:
        """A batch: {argument: array}, (inputs, labels), (inputs,) or one array."""
        labels = None
        if isinstance(given, (tuple, list)):
            if len(given) not in (1, 2):
                raise DataError(
                    f"{place} has {len(given)} parts; write {{argument: array}} or (inputs, labels)"
                )
            given, labels = given if len(given) == 2 else (given[0], None)
        if not isinstance(given, Mapping):
            if not self.input_names:
                raise DataError(f"{place} does not name its input; write {{argument: array}}")
            given = {self.input_names[0]: given}
        if not given:
            raise DataError(f"{place} has no inputs")
        _check_names(given, self.input_names, place)
        inputs = {name: _array(values, f"{place}: {name!r}") for name, values in given.items()}
        if labels is not None:
            labels = _array(labels, f"{place}: its labels")
        lengths = {len(values) for values in [*inputs.values(), labels] if values is not None}
        if len(lengths) > 1:
            told = " and ".join(map(str, sorted(lengths)))
            raise DataError(f"{place} has arrays of {told} samples")
        return inputs, labels

    def _check_repeats(self, number: int, arrays: list[np.ndarray]) -> None:
        checksum = 0
        for values in arrays:
            checksum = zlib.crc32(np.ascontiguousarray(values), checksum)
        if number > len(self.checksums):
            self.checksums.append(checksum)
        elif checksum != self.checksums[number - 1]:
            raise self._other()

    def _other(self) -> DataError:
        return DataError(
            f"{self.where}: it gives other samples at each call; "
            "do not shuffle or augment, or seed it inside"
        )


def _rebatch(chunks: Iterable[Batch], size: int) -> Iterator[Batch]:
    held: list[Batch] = []
    room = size
    for chunk in chunks:
        start, length = 0, _length(chunk)
        while length - start >= room:
            yield _join([*held, _part(chunk, start, start + room)])
            held, start, room = [], start + room, size
        if start < length:
            held.append(_part(chunk, start, length))
            room -= length - start
    if held:
        yield _join(held)


def _part(batch: Batch, start: int, stop: int) -> Batch:
    # The user's callable may fill one buffer again and again.
    return {name: values[start:stop].copy() for name, values in batch.items()}


def _join(parts: list[Batch]) -> Batch:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _length(batch: Batch) -> int:
    return len(next(iter(batch.values())))


def _array(values: Any, what: str) -> np.ndarray:
    """An array from what is one, from nested lists, or from a torch tensor on any device."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        # numpy has no bfloat16.
        values = (values.float() if values.is_floating_point() else values).numpy()
    try:
        array = np.asarray(values)
    except ValueError as err:
        raise DataError(f"{what} is no array: its rows have different lengths") from err
    if not array.ndim:
        raise DataError(f"{what} is {type(values).__name__} and has no axis of samples")
    return array


def _numbers(values: np.ndarray, what: str, indices: np.ndarray) -> np.ndarray:
    """Floats as float32, integers and booleans as they are; `indices` number the samples."""
    if values.dtype.kind not in "fiub":
        raise DataError(f"{what} has type {values.dtype}, not numbers")
    if values.dtype.kind != "f":
        return values
    with np.errstate(over="ignore"):
        values = values.astype(np.float32, copy=False)
    finite = np.isfinite(values)
    if not finite.all():
        index = int(np.argmin(finite.reshape(len(values), -1).all(1)))
        kind = "NaN" if np.isnan(values[index]).any() else "Inf"
        raise DataError(f"{what} holds {kind}, first in sample {indices[index]}; remove it")
    return values


def _class_numbers(values: np.ndarray, what: str) -> np.ndarray:
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise DataError(
            f"{what} is {values.dtype} {list(values.shape)}; labels are one integer per sample"
        )
    if len(values) and values.min() < 0:
        index = int(np.argmax(values < 0))
        raise DataError(f"{what} holds {values[index]} at {index}; classes count from 0")
    return values.astype(np.int64)


def _choose(total: int, samples: int | None, seed: int, where: str) -> np.ndarray:
    if not total:
        raise DataError(f"{where}: there are no samples in it")
    if samples is None:
        return np.arange(total)
    if samples > total:
        raise DataError(f"{where}: it has {total} samples, and samples: {samples} are asked for")
    return np.sort(np.random.default_rng(seed).choice(total, samples, replace=False))


def _check_names(given: Iterable[str], input_names: Sequence[str], where: str) -> None:
    for name in given:
        if input_names and name not in input_names:
            hint = did_you_mean(str(name), input_names)
            raise DataError(f"{where}: the model's forward takes no {name!r}{hint}")


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def _hash(facts: list[Any]) -> str:
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
