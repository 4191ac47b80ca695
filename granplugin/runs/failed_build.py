"""A build that failed, in the recipe's words: which layer it is about, and which rule's line.

A parser's error names a node. A crash names nothing, so layers are left float until it builds.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic

from granplugin.backends.base import Backend, BuildFailed, Options
from granplugin.errors import EngineError
from granplugin.planning.rows import Row
from granplugin.progress import stage
from granplugin.recipe.presets import PRESETS
from granplugin.results.values import Built
from granplugin.runs.culprit import culprit
from granplugin.runs.variants import write_quantized

log = logging.getLogger(__name__)

SEARCH_SECONDS = 120
"""How long to look for the layer, while somebody waits."""
HANGS = 10
"""A build that takes so many times as long as that of the float network hangs."""


def explain(
    built: Built, module: Backend, options: Options, cache: Path, failed: BuildFailed
) -> EngineError:
    """The same failure with the variant, and where it can be found the layer and its rule."""
    rows = built.quantized_for(module.name)
    # Of a layer's rules one that the user wrote, if there is one.
    wheres = {row.layer: row.where for row in rows}
    wheres |= {row.layer: row.where for row in reversed(rows) if row.rule not in PRESETS}
    file = built.file(module.name).path.name
    told = f"variant {built.job.name}: {str(failed).replace(file, 'it')}"
    of = next(filter(None, (_row(node, rows) for node in failed.nodes)), None)
    if of:
        where = {of.layer: of.where if of.rule not in PRESETS else wheres[of.layer]}
        return EngineError(f"{told}; that is of {_said([of.layer], where)}{_FLOAT}")
    if not wheres:
        return EngineError(told)
    return EngineError(f"{told}; {_search(built, module, options, cache, wheres)}")


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
                module.build(onnx, Path(name) / "engine", replace(options, seconds=limit))
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
        said = _said(found.parts, wheres)
        if not found.exact:
            first, last = found.parts[0], found.parts[-1]
            return (
                f"{len(found.parts)} layers from {first!r} to {last!r} are enough for it, and "
                f"{SEARCH_SECONDS} s were not enough to tell which"
            )
        if len(found.parts) > 1:
            return f"it fails where {said} are all quantized: write format: float for one of them"
        if fails([layer for layer in wheres if layer not in found.parts]):
            return f"{said} is enough for it, and there are others{_FLOAT}, and see"
        return f"it builds without {said}{_FLOAT}"


def _row(node: str, rows: Sequence[Row]) -> Row | None:
    """The row that a node is of: nodes are called layer/Conv and layer.weight/QuantizeLinear."""
    for place in ("site", "layer"):
        of = [row for row in rows if node.startswith(f"{getattr(row, place)}/")]
        if of:
            return of[0]
    return None


def _said(layers: Sequence[str], wheres: dict[str, str]) -> str:
    said = [f"{layer!r} ({wheres[layer]})" for layer in layers]
    return f"layer{'s' if len(said) > 1 else ''} {' and '.join(said)}"
