"""An engine that refuses, in the recipe's words: which layer it is about, and which rule's line.

A parser's error names a node. A crash names nothing, so layers are left float until it builds.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from time import monotonic

import onnx_ir as ir

from granplugin.backends import calls
from granplugin.backends.base import Backend, BuildFailed, Options
from granplugin.errors import EngineError, LackError
from granplugin.graph.files import load_float
from granplugin.planning.rows import Row
from granplugin.progress import stage
from granplugin.recipe.presets import PRESETS
from granplugin.results.values import Built
from granplugin.runs.culprit import culprit
from granplugin.runs.variants import write_quantized
from granplugin.store.companions import whole_bytes

log = logging.getLogger(__name__)

SEARCH_SECONDS = 120
"""How long to look for the layer, while somebody waits."""
HANGS = 10
"""A build that takes so many times as long as that of the float network hangs."""


def explain(
    built: Built, module: Backend, options: Options, cache: Path, failed: BuildFailed
) -> EngineError:
    """The same failure with the variant, and where it can be found the layer and its rule. Raises
    LackError where there was no room for what it writes."""
    _check_room(cache, built.file(module.name).path)
    reason = in_words_of(built, module.name, failed)
    rows = built.quantized_for(module.name)
    wheres = rules_of(rows)
    of = next(filter(None, (_row(node, rows) for node in failed.nodes)), None)
    if of:
        where = {of.layer: of.where if of.rule not in PRESETS else wheres[of.layer]}
        return EngineError(f"{reason}; that is of {said(where)}{_FLOAT}")
    if not wheres:
        return EngineError(reason)
    return EngineError(f"{reason}; {_search(built, module, options, cache, wheres)}")


def _check_room(cache: Path, file: Path) -> None:
    """Raises LackError where as much as this file has cannot be written beside the cache: libraries
    that write themselves do not say why they could not."""
    try:
        with TemporaryFile(dir=cache) as probe:
            probe.write(bytes(min(2**20 + 2 * whole_bytes(file), _PROBED)))
            probe.flush()
    except OSError as err:
        raise LackError(f"{cache}: {err.strerror or err}") from err


_PROBED = 2**26


def in_words_of(built: Built, engine: str, failed: EngineError) -> str:
    """What an engine said of a variant's file, or of what it made of it, by the variant's name."""
    told = str(failed)
    if told.startswith(start := f"variant {built.job.name}: "):
        return told
    file = built.file(engine).path
    for name in (engine_name(file, engine), file.name, file.stem):
        told = told.replace(name, "it")
    makers = dict(_makers(load_float(file).graph))
    words = re.findall(r"[\w.:/]*\w", told)
    for name in {word for word in words if re.search(r"[\d_]", word)} & makers.keys():
        told = re.sub(rf"(?<![\w.:/]){re.escape(name)}(?![\w:/])", makers[name], told)
    return f"{start}{told}"


def _makers(graph: ir.Graph, of: str = "") -> Iterator[tuple[str, str]]:
    """The names of nodes and values that are the exporter's -> the node that they are in or made
    by, whose name begins with the layer's."""
    for node in graph:
        named = node.name if node.name and "/" in node.name else of
        if named:
            yield from (
                (each, named) for each in (node.name, *(v.name for v in node.outputs)) if each
            )
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                yield from _makers(attribute.as_graph(), named)


def engine_name(onnx: Path, engine: str, again: bool = False) -> str:
    """The name of the folder of the engine that is made of a file."""
    return f"engine-{onnx.stem}-{engine}{'-again' if again else ''}"


def rules_of(rows: Sequence[Row]) -> dict[str, str]:
    """Layer -> the place of its rule: of several one that the user wrote, if there is one."""
    wheres = {row.layer: row.where for row in rows}
    return wheres | {row.layer: row.where for row in reversed(rows) if row.rule not in PRESETS}


_FLOAT = ": write format: float for it"


def _search(
    built: Built,
    module: Backend,
    options: Options,
    cache: Path,
    wheres: dict[str, str],
) -> str:
    log.warning("%s could not build %s; looking for the layer", module.name, built.job.name)
    start = monotonic()
    limit = options.seconds
    with (
        TemporaryDirectory(dir=cache, prefix=".making-") as name,
        stage(f"looking for the layer for at most {SEARCH_SECONDS} s") as running,
    ):
        onnx = Path(name) / "model.onnx"

        def fails(kept: Sequence[str]) -> bool:
            running.done()
            running.now(f"with {len(kept)} of {len(wheres)} layers quantized")
            write_quantized(built, module.name, kept, onnx)
            try:
                calls.build(module, onnx, Path(name) / "engine", replace(options, seconds=limit))
            except LackError:
                raise
            except EngineError as err:
                log.debug("%s fails with %d layers: %s", module.name, len(kept), err)
                return True
            return False

        began = monotonic()
        if fails(()):
            return "it fails with nothing quantized, too"
        limit = min(limit, HANGS * (1 + monotonic() - began))
        found = culprit(
            tuple(wheres),
            lambda kept: bool(kept) and fails(kept),
            lambda: monotonic() - start < SEARCH_SECONDS,
        )
        log.info("found after %.0f s: %s", monotonic() - start, found)
        parts = said({layer: wheres[layer] for layer in found.parts})
        if not found.exact:
            first, last = found.parts[0], found.parts[-1]
            return (
                f"{len(found.parts)} layers from {first!r} to {last!r} are enough for it, and "
                f"{SEARCH_SECONDS} s were not enough to tell which"
            )
        if len(found.parts) > 1:
            return f"it fails where {parts} are all quantized: write format: float for one of them"
        if fails([layer for layer in wheres if layer not in found.parts]):
            return f"{parts} is enough for it, and there are others{_FLOAT}, and see"
        return f"it builds without {parts}{_FLOAT}"


def _row(node: str, rows: Sequence[Row]) -> Row | None:
    """The row that a node is of: nodes are called layer/Conv and layer.weight/QuantizeLinear."""
    for place in ("site", "layer"):
        of = [row for row in rows if node.startswith(f"{getattr(row, place)}/")]
        if of:
            return of[0]
    return None


def said(layers: Mapping[str, str]) -> str:
    """Layers and the places of their rules, in words."""
    told = [f"{layer!r} ({where})" for layer, where in layers.items()]
    return f"layer{'s' if len(told) > 1 else ''} {' and '.join(told)}"
