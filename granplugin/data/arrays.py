"""What a batch may hold: arrays of finite numbers, whole class numbers, known names."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from granplugin.errors import DataError
from granplugin.suggest import did_you_mean


def check_names(given: Iterable[str], input_names: Sequence[str], where: str) -> None:
    """Raises DataError for a name that forward does not take; any will do where it names none."""
    for name in given:
        if input_names and str(name).partition(".")[0] not in input_names:
            hint = did_you_mean(str(name), input_names)
            raise DataError(f"{where}: the model's forward takes no {name!r}{hint}")


def by_path(values: Any, name: str) -> dict[str, Any]:
    """What a value of the batch holds by path, where it holds arrays inside one another: in dicts,
    dataclasses and tuples.

    >>> list(by_path({"past": ({"key": [1]}, {"key": [2]})}, ""))
    ['past.0.key', 'past.1.key']
    """
    if dataclasses.is_dataclass(values) and not isinstance(values, type):
        values = {each.name: getattr(values, each.name) for each in dataclasses.fields(values)}
    if isinstance(values, tuple) and any(map(_is_container, values)):
        values = dict(enumerate(values))
    if not isinstance(values, Mapping):
        return {name: values}
    return {
        path: leaf
        for key, part in values.items()
        for path, leaf in by_path(part, f"{name}.{key}" if name else str(key)).items()
    }


def _is_container(part: Any) -> bool:
    return bool(getattr(part, "ndim", 0)) or isinstance(part, (tuple, Mapping))


def as_array(values: Any, what: str) -> np.ndarray:
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
        raise DataError(
            f"{what} is {type(values).__name__} and has no axis of samples; make what is the same for "
            "all a constant of the network (docs/onnx-files.md)"
        )
    return array


def finite_numbers(values: np.ndarray, what: str, indices: np.ndarray) -> np.ndarray:
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


def class_numbers(values: np.ndarray, what: str) -> np.ndarray:
    """int64, one per sample."""
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise DataError(
            f"{what} is {values.dtype} {list(values.shape)}; labels are one integer per sample"
        )
    if len(values) and values.min() < 0:
        index = int(np.argmax(values < 0))
        raise DataError(f"{what} holds {values[index]} at {index}; classes count from 0")
    return values.astype(np.int64)
