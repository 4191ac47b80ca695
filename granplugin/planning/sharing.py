"""Who reads which Q/DQ: the sites of one tensor that have one pair, and those with one scale."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeGuard

from granplugin.partition import joined
from granplugin.planning.rows import AnyRow, QuantizedRow, Row
from granplugin.quant.calibrators import Calibrator
from granplugin.quant.layers import Layer
from granplugin.quant.site import Shape
from granplugin.recipe.decisions import Share
from granplugin.recipe.loaded import LoadedPart
from granplugin.recipe.match import missing, select


def ranges_of(row: QuantizedRow) -> tuple[Calibrator, float | None, str | None, str | None]:
    """What decides a row's ranges: rows of one tensor that have it alike have the same."""
    return row.calibrator, row.amax, row.share, row.given


def pair_readers(rows: Sequence[AnyRow]) -> dict[str, QuantizedRow]:
    """Skip input -> the first layer's input that reads the same tensor through the same Q/DQ, for
    those where there is one: same format and blocks, and ranges found alike."""
    skips = [row for row in rows if row.operand == "skip" and isinstance(row, QuantizedRow)]
    tensors = {row.at.tensor for row in skips}
    first: dict[tuple[object, ...], QuantizedRow] = {}
    for row in rows:
        if row.at.tensor in tensors and _reads(row):
            first.setdefault((*_tensor(row), *ranges_of(row)), row)
    readers = ((row.site, first.get((*_tensor(row), *ranges_of(row)))) for row in skips)
    return {site: reader for site, reader in readers if reader is not None}


def shared_skips(rows: Sequence[AnyRow]) -> frozenset[str]:
    """The layers whose skip input another layer reads through the same Q/DQ."""
    readers = pair_readers(rows)
    return frozenset(row.layer for row in rows if row.operand == "skip" and row.site in readers)


def one_pair(rows: Sequence[Row], ranged: frozenset[str]) -> list[Row]:
    """A skip input whose range no rule decides gets that of the first layer that reads the same
    tensor in the same blocks: they then have one Q/DQ. `ranged` are the sites of which a rule says
    the calibrator or amax."""
    tensors = {row.at.tensor for row in rows if row.operand == "skip"}
    first: dict[tuple[object, ...], QuantizedRow] = {}
    for row in rows:
        if row.at.tensor in tensors and _reads(row):
            first.setdefault(_tensor(row), row)
    found = [
        replace(row, calibrator=reader.calibrator, amax=reader.amax)
        if row.operand == "skip"
        and row.quantized
        and row.given is None
        and row.site not in ranged
        and (reader := first.get(_tensor(row))) is not None
        else row
        for row in rows
    ]
    readers = pair_readers(found)
    return [
        replace(row, note=f"one Q/DQ with {readers[row.site].site}") if row.site in readers else row
        for row in found
    ]


def following(rows: Sequence[Row], before: Sequence[Row]) -> list[Row]:
    """The rows, where a skip input that had one Q/DQ with a layer's input `before` has its ranges
    still."""
    by_site = {row.site: row for row in rows}
    readers = {site: by_site[row.site] for site, row in pair_readers(before).items()}
    return [
        replace(row, calibrator=reader.calibrator, amax=reader.amax)
        if row.quantized and (reader := readers.get(row.site)) is not None and reader.quantized
        else row
        for row in rows
    ]


def tensors_of(layers: Sequence[Layer]) -> dict[str, int]:
    """Site -> the number of its tensor, where it has one."""
    return {
        site.name: site.tensor
        for layer in layers
        for site in layer.sites
        if site.tensor is not None
    }


def one_scale(rows: Sequence[Row], layers: Sequence[Layer], loaded: LoadedPart) -> list[Row]:
    """The rows with what the recipe's `share` puts together; RecipeError, at its line, for sites
    that cannot have one scale."""
    by_site = {row.site: row for row in rows if row.quantized}
    groups: list[tuple[str, list[str]]] = []
    for index, said in enumerate(loaded.recipe.share):
        where = str(loaded.mark("share", index))
        for sites in _groups(index, said, by_site, layers, loaded):
            _check_alike(index, [by_site[site] for site in sites], loaded)
            groups.append((f"{where} {sites[0]}", sites))
    one = joined(sites for _, sites in groups)
    named = {one[sites[0]]: name for name, sites in groups}
    label = {site: named[standing] for site, standing in one.items()}
    # What has one Q/DQ keeps it.
    readers = {site: reader.site for site, reader in pair_readers(rows).items()}
    label |= {s: label[reader] for s, reader in readers.items() if reader in label}
    count = Counter(label.values())
    return [
        replace(
            row,
            share=label[row.site],
            note=row.note or f"one scale with {count[label[row.site]] - 1} more: share",
        )
        if row.quantized and row.site in label
        else row
        for row in rows
    ]


def _reads(row: AnyRow) -> TypeGuard[QuantizedRow]:
    """Whether a layer computes with this activation, its range found before."""
    if not isinstance(row, QuantizedRow) or row.dynamic or row.at.tensor is None:
        return False
    return not row.at.constant and row.operand not in ("skip", "output")


def _tensor(row: QuantizedRow) -> tuple[int | None, str, Shape]:
    return row.at.tensor, row.format, row.block


def _groups(
    index: int,
    said: str | Share,
    by_site: Mapping[str, QuantizedRow],
    layers: Sequence[Layer],
    loaded: LoadedPart,
) -> list[list[str]]:
    """The quantized sites that one item of `share` puts together."""
    if isinstance(said, Share):
        if (wrong := missing(said.match, layers)) is not None:
            raise loaded.error(("share", index, "match", *wrong[0]), wrong[1])
        names = [layers[n].name for n in select(said.match, layers)]
        sites = [site for name in names if (site := f"{name}.{said.role}") in by_site]
        if len(sites) < 2:
            raise loaded.error(
                ("share", index),
                f"two {said.role}s at least share a scale; of the layers this matches, "
                f"{len(sites)} have theirs quantized",
            )
        return [sites]
    around: dict[int, list[str]] = {}
    for layer in layers:
        for each in layer.sites:
            if each.concat is not None:
                around.setdefault(each.concat, []).append(each.name)
    # The output of a layer with a folded batch norm is that batch norm's.
    seen_as = {row.observed: site for site, row in by_site.items()}
    found = [[seen_as[site] for site in sites if site in seen_as] for sites in around.values()]
    found = [sites for sites in found if len(sites) > 1]
    if not found:
        raise loaded.error(
            ("share", index), "the model has no concatenation with two quantized sites around it"
        )
    return found


def _check_alike(index: int, rows: Sequence[QuantizedRow], loaded: LoadedPart) -> None:
    first = rows[0]
    for row in rows:
        if row.dynamic:
            raise loaded.error(("share", index), f"{row.site!r} has scales computed at run time")
        grids = {row.grid, first.grid} if max(row.scales, first.scales) > 1 else set()
        if row.format != first.format or len(grids) > 1:
            raise loaded.error(
                ("share", index),
                f"{first.site!r} is {first.format} {first.granularity} and {row.site!r} "
                f"{row.format} {row.granularity}: what shares a scale has one format and as "
                "many scales",
            )
