"""How a network that comes quantized quantizes one of its sites."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from granplugin.quant import calibrators, granularity
from granplugin.quant.calibrators import Calibrator
from granplugin.quant.granularity import (
    Granularity,
    PerBlock,
    PerChannel,
    PerElement,
    PerTensor,
    PerToken,
)
from granplugin.quant.site import Shape, Site


@dataclass(frozen=True, slots=True)
class Given:
    """What the network's own quantizer does at a site. `calibrator` is how its ranges were found,
    None where nothing tells; `ranges` a key of their values, None where they are found at run
    time."""

    format: str
    granularity: Granularity
    calibrator: Calibrator | None = None
    ranges: str | None = None


def given_to_json(given: Given) -> dict[str, Any]:
    """As JSON values."""
    return {
        "format": given.format,
        "granularity": granularity.written(given.granularity),
        "calibrator": calibrators.written(given.calibrator) if given.calibrator else None,
        "ranges": given.ranges,
    }


def given_from_json(data: Mapping[str, Any]) -> Given:
    """The inverse of given_to_json."""
    said = data["calibrator"]
    return Given(
        data["format"],
        granularity.parse_granularity(data["granularity"]),
        calibrators.parse_calibrator(said) if said else None,
        data["ranges"],
    )


def named(site: Site, block: Shape) -> Granularity:
    """The granularity, in a recipe's words, whose block at this site is `block`.

    >>> print(named(Site("conv", "weight", (8, 3, 3, 3), 0), (1, 3, 3, 3)))
    per_channel
    >>> print(named(Site("fc", "weight", (8, 32), 0), (1, 16)))
    per_block(size 16, axis 1)
    """
    shape = site.shape
    if block == shape:
        return PerTensor()
    kept = [at for at, (part, n) in enumerate(zip(block, shape, strict=True)) if part != n]
    if len(kept) == 1 and block[kept[0]] == 1:
        return PerChannel() if kept[0] == site.channel_axis else PerChannel(axis=kept[0])
    if set(block) == {1}:
        return PerElement()
    long = [at for at, part in enumerate(block) if part > 1]
    if len(long) == 1:
        tokens = not site.constant and site.channel_axis == len(shape) - 1 == long[0]
        if tokens and block[-1] == shape[-1]:
            return PerToken()
        return PerBlock(size=block[long[0]], axis=long[0])
    return PerBlock(shape=block)
