"""The kinds of data that a recipe can name, and how the batches of each are opened."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from granplugin.data.batches import Batch, Batches
from granplugin.data.called import open_called
from granplugin.data.images import open_folder
from granplugin.data.npz import open_npz
from granplugin.quant.site import Shape
from granplugin.recipe.data import CallableSource, FolderSource, NpzSource, Source

Role = Literal["calibration", "evaluation", "analysis"]
"""What a recipe's data are for: a key of its section `data`."""
OPENED_BY: dict[type[Source], Callable[..., Batches]] = {
    NpzSource: open_npz,
    FolderSource: open_folder,
    CallableSource: open_called,
}


def open_data(
    source: Source,
    batch_size: int,
    seed: int,
    role: Role,
    input_names: Sequence[str] = (),
    dynamic: Mapping[str, Mapping[int, str]] = MappingProxyType({}),
) -> Batches:
    """The batches of a recipe's source.

    `input_names` are the arguments that the model's forward takes: other names are refused, and
    the one input of a callable that gives it no name is the first of them. From an .npz or a
    folder, `samples` are drawn with `seed`, without replacement, and stay in their order; from a
    callable, they are the first ones. Samples of a callable may differ in the length of axes that
    are `dynamic` (input -> axis -> name); no batch has samples of two shapes. Raises DataError, here or while iterating, for data that is
    missing, damaged, empty, not finite, or fewer than asked for.
    """
    open_axes = {name: dict(axes) for name, axes in dynamic.items()}
    arguments = (source, batch_size, seed, role, tuple(input_names), open_axes)
    return Opened(arguments, OPENED_BY[type(source)](*arguments))


@dataclass(frozen=True, eq=False)
class Opened:
    """Batches that are sent to another process as what they are opened by."""

    arguments: tuple[Any, ...]
    batches: Batches

    @property
    def samples(self) -> int:
        return self.batches.samples

    def labels(self) -> np.ndarray | None:
        return self.batches.labels()

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)

    def few(self, most: int) -> Batch:
        return self.batches.few(most)

    def shapes(self) -> dict[str, list[Shape]]:
        return self.batches.shapes()

    def key(self) -> str:
        return self.batches.key()

    def __reduce__(self) -> tuple[Callable[..., Batches], tuple[Any, ...]]:
        return open_data, self.arguments
