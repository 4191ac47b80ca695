"""Batches of an .npz file's arrays."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from granplugin.data.arrays import check_names, class_numbers, finite_numbers
from granplugin.data.batches import Batch, Drawn, drawn_indices
from granplugin.errors import DataError
from granplugin.reading import reading, why_unreadable
from granplugin.recipe.data import NpzSource
from granplugin.store.keys import file_key
from granplugin.suggest import did_you_mean

_UNPACKED = 2**28
_UNPACKED_A_BYTE = 64
"""What a compressed file may unpack to: more is a bomb. Zeros alone are packed 1,000 to 1."""


def open_npz(
    source: NpzSource,
    batch_size: int,
    seed: int,
    role: str,
    input_names: Sequence[str],
    dynamic: Mapping[str, Mapping[int, str]],
) -> Drawn:
    where = f"{role} data {source.npz}"
    check_names(source.inputs, input_names, where)
    wanted = dict.fromkeys([*source.inputs.values(), *([source.labels] if source.labels else [])])
    arrays = _read_npz(source.npz, list(wanted), where)
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name!r} has {length}" for name, length in lengths.items())
        raise DataError(f"{where}: axis 0 counts the samples, but {told}")
    chosen = drawn_indices(next(iter(lengths.values())), source.samples, seed, where)
    inputs = {
        argument: finite_numbers(
            arrays[name] if len(chosen) == len(arrays[name]) else arrays[name][chosen],
            f"{where}: array {name!r}",
            chosen,
        )
        for argument, name in source.inputs.items()
    }
    labels = None
    if source.labels:
        labels = class_numbers(arrays[source.labels], f"{where}: array {source.labels!r}")[chosen]

    def read(part: slice) -> Batch:
        # A model may work in place on its input.
        return {argument: values[part].copy() for argument, values in inputs.items()}

    def facts() -> list[Any]:
        return ["npz", file_key(source.npz), source.inputs, chosen.tolist()]

    return Drawn(len(chosen), batch_size, read, labels, facts)


def arrays_in(path: Path, where: str) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape and type of each array, read from the headers alone. Raises DataError."""
    if said := why_unreadable(path):
        raise DataError(f"{where}: {said}")
    with reading(where, DataError, "the file is damaged"):
        if not zipfile.is_zipfile(path):
            raise DataError(f"{where}: this is no .npz file; write one with numpy.savez")
        found = {}
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                with archive.open(member) as file:
                    shape, dtype, _ = _header(file)
                    found[member.filename.removesuffix(".npy")] = shape, dtype
        return found


def _read_npz(path: Path, names: Iterable[str], where: str) -> dict[str, np.ndarray]:
    if said := why_unreadable(path):
        raise DataError(f"{where}: {said}")
    with reading(where, DataError, "the file is damaged"):
        if not zipfile.is_zipfile(path):
            raise DataError(f"{where}: this is no .npz file; write one with numpy.savez")
        with zipfile.ZipFile(path) as archive:
            held = path.stat().st_size
            return {name: _read_array(archive, name, held, where) for name in names}


def _read_array(archive: zipfile.ZipFile, name: str, held: int, where: str) -> np.ndarray:
    """One array of a file of `held` bytes; nothing is allocated that its header does not have room
    for in the archive."""
    members = {each.filename: each for each in archive.infolist()}
    member = members.get(f"{name}.npy") or members.get(name)
    if member is None:
        hint = did_you_mean(name, [each.removesuffix(".npy") for each in members])
        raise DataError(f"{where}: there is no array {name!r}{hint}")
    what = f"{where}: array {name!r}"
    if member.flag_bits & 1:
        raise DataError(f"{where}: the file is encrypted; write one that is not")
    if member.file_size > max(_UNPACKED, _UNPACKED_A_BYTE * held):
        raise DataError(
            f"{what} would be {member.file_size / 1e9:.1f} GB, of a file of {held / 1e6:.1f} MB; "
            "save it with numpy.savez, uncompressed"
        )
    with reading(what, DataError, "the file is damaged"), archive.open(member) as file:
        shape, dtype, begin = _header(file)
        if dtype.hasobject:
            raise DataError(f"{what} holds Python objects, which could run any code; save numbers")
        if not shape:
            raise DataError(
                f"{what} is one number and has no axis of samples; make what is the same for all "
                "a constant of the network (docs/onnx-files.md)"
            )
        if begin + math.prod(shape) * dtype.itemsize != member.file_size:
            raise DataError(f"{what}: the file is damaged: it is not as long as its header says")
        if shape[0] and not math.prod(shape):
            raise DataError(f"{what} is {list(shape)}, which holds no numbers")
    with reading(what, DataError, "the file is damaged"), archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape and type of a .npy, and how many bytes say so."""
    version = np.lib.format.read_magic(file)
    if version[0] == 1:
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    else:  # 2.0 has a longer header, and 3.0 names of fields in UTF-8, which no numbers have
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    return shape, dtype, file.tell()
