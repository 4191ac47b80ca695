"""Batches of an .npz file's arrays."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from granplugin.data.arrays import check_names, class_numbers, finite_numbers
from granplugin.data.batches import Batch, Drawn, drawn_indices
from granplugin.errors import DataError
from granplugin.recipe.data import NpzSource
from granplugin.store.keys import file_key
from granplugin.suggest import did_you_mean


def open_npz(
    source: NpzSource, batch_size: int, seed: int, role: str, input_names: Sequence[str]
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
