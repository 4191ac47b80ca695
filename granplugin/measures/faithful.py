"""Does an engine compute what its file says? Its outputs, held to the reference's of the same file.

Two right computations of one deep INT8 network can be 19 dB apart: float sums of another order move
values across a rounding boundary, and what flips adds up. Each is then as far from the float
network as the other, so that is what is compared, wherever the two are not near each other anyway.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from granplugin.errors import ModelError
from granplugin.measures.samples import present_or_zero

NEAR_DB = 40.0
"""This near the reference an engine is right, whatever the float network says: 1 % of the signal,
about what bfloat16 arithmetic explains."""
MORE_NOISE_DB = 1.0
"""An engine with this much more noise than the reference computes something else, if its samples
agree on that..."""
ERRORS_OF_THE_MEAN = 3.0
"""... by this many standard errors."""
FEW, FEW_MORE_DB = 4, 3.0
"""So few samples cannot agree on anything, and are held to this."""


@dataclass(frozen=True)
class Faithful:
    """How near an engine is to the reference on `output`, that where it is worst; in dB.

    `apart_db` is the SQNR of the engine's output to the reference's, inf where they are equal;
    `engine_db` and `reference_db` are theirs to the float network's.
    """

    output: str
    apart_db: float
    engine_db: float
    reference_db: float
    samples: int
    wrong: bool


def faithful(
    engine: Mapping[str, np.ndarray],
    reference: Mapping[str, np.ndarray],
    floats: Mapping[str, np.ndarray],
) -> Faithful:
    """Compare the floating outputs of an engine with those of the reference on the same file and
    samples; `floats` are those of the float network. All are output -> (samples, ...).

    Raises ModelError where there is no floating output.
    """
    names = [name for name in reference if np.issubdtype(reference[name].dtype, np.floating)]
    if not names:
        raise ModelError("no output is floating, so an engine cannot be held to the reference")
    found = [
        _of(name, *(present_or_zero(each[name]) for each in (engine, reference, floats)))
        for name in names
    ]
    return min(found, key=lambda each: (not each.wrong, each.apart_db))


def _of(name: str, engine: np.ndarray, reference: np.ndarray, floats: np.ndarray) -> Faithful:
    signal = _energy(floats).sum()
    noise, expected = _energy(engine - floats), _energy(reference - floats)
    apart = _db(_energy(reference).sum(), _energy(engine - reference).sum())
    wrong = apart < NEAR_DB and _noisier(noise, expected)
    return Faithful(
        name, apart, _db(signal, noise.sum()), _db(signal, expected.sum()), len(floats), wrong
    )


def _noisier(noise: np.ndarray, expected: np.ndarray) -> bool:
    """Whether there is more noise than expected, sample by sample."""
    few = len(noise) < FEW
    more = noise.sum() > expected.sum() * 10 ** ((FEW_MORE_DB if few else MORE_NOISE_DB) / 10)
    if few or not more:
        return bool(more)
    difference = noise - expected
    error = difference.std(ddof=1) / np.sqrt(len(difference))
    return bool(difference.mean() > ERRORS_OF_THE_MEAN * error)


def _energy(values: np.ndarray) -> np.ndarray:
    """Of each sample."""
    return np.square(values, dtype=np.float64).reshape(len(values), -1).sum(1)


def _db(signal: float, noise: float) -> float:
    if noise == 0:
        return float("inf")
    return float(10 * np.log10(signal / noise)) if signal else float("-inf")
