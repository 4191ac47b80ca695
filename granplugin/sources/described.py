"""What a network puts out, as two passes show it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import numpy as np

from granplugin.errors import ModelError
from granplugin.measures.samples import Output, sample_axis
from granplugin.sources.protocol import Batch, Outputs

log = logging.getLogger(__name__)


def described(
    outputs: Outputs, run: Callable[[Batch], Outputs], example: Batch, most: int
) -> Iterator[Output]:
    """The `outputs` of the example, held to those of a pass with one sample more, or where `most`
    are no more, with one less."""
    count = len(next(iter(example.values())))
    other = count + 1 if count < most else count - 1
    try:
        changed = {name: np.concatenate([x, x[:1]])[:other] for name, x in example.items()}
        more = {name: array.shape for name, array in run(changed).items()}
    except ModelError as err:  # it takes one number of samples only
        log.debug("no pass with %d samples: %s", other, err)
        more = {}
    for name, array in outputs.items():
        axis = sample_axis(array.shape, more.get(name), (count, other))
        yield Output(name, str(array.dtype), array.shape, axis)
