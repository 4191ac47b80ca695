"""What a page shows of each layer: every setting that was tried, what variants ask, what became of
it, and what its channels are like."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from granplugin.planning.rows import Row
from granplugin.report.schema.analysis import Analysis, LayerAnalysis, SettingFigures, Sqnr
from granplugin.report.schema.page import (
    Axis,
    Decided,
    Figure,
    HeatCell,
    KeptForPage,
    LayerRanges,
    PageFinding,
    PageLayer,
    Told,
)
from granplugin.report.schema.run import EngineResult, Report
from granplugin.report.view.analysis_facts import own_and_best
from granplugin.report.view.analysis_reasons import suggested
from granplugin.report.view.page.kept import Kept
from granplugin.report.view.senses import SENSES

MEASURES = (
    Axis(key="output", title="output SQNR, dB (this site alone rounded)", better="more"),
    Axis(key="both", title="output SQNR, dB (with the layer's other site)", better="more"),
    Axis(key="network", title="network SQNR, dB (this layer alone)", better="more"),
    Axis(key="loss", title="loss of the network (this layer alone)", better="less"),
    Axis(key="scales", title="scales stored", better="less"),
    Axis(key="mb", title="MB that its kernels move", better="less"),
)


def layers_of(kept: Kept) -> list[PageLayer]:
    """Layers of the analysis, worst first, then others of the plan in their order."""
    analysed = {each.layer: each for each in kept.analysis.layers} if kept.analysis else {}
    decided = _decided(kept)
    ranges = _ranges(kept.of_run) | _ranges(kept.of_analysis)
    types = {row.layer: row.type for rows in kept.rows.values() for row in rows}
    findings = _findings(kept)
    found = []
    for name in dict.fromkeys([*analysed, *decided]):
        layer = analysed.get(name)
        found.append(
            PageLayer(
                name=name,
                type=layer.type if layer else types.get(name, ""),
                traits=layer.traits if layer else [],
                rank=layer.rank if layer else None,
                why=layer.why if layer else "",
                loss=_loss(layer),
                cells=list(_cells(layer, kept.analysis)) if layer and kept.analysis else [],
                decided=decided.get(name, []),
                findings=findings.get(name, []),
                ranges=ranges.get(name),
            )
        )
    return found


def measures_of(layers: Iterable[PageLayer]) -> list[Axis]:
    """The measures that any cell has a figure of."""
    known = {
        key
        for layer in layers
        for cell in layer.cells
        for key, value in cell.figures.items()
        if value is not None
    }
    return [measure for measure in MEASURES if measure.key in known]


def _loss(layer: LayerAnalysis | None) -> Figure | None:
    if layer is None or layer.alone is None:
        return None
    loss = layer.alone.loss
    return Figure(value=loss.value, low=loss.low, high=loss.high)


def _cells(layer: LayerAnalysis, analysis: Analysis) -> Iterator[HeatCell]:
    for role, settings in (("weight", layer.weights), ("input", layer.inputs)):
        own, _ = own_and_best(settings)
        other = suggested(analysis, layer.layer, role, own, settings) if own else None
        for each in settings:
            yield HeatCell(
                role=role,
                setting=each.setting,
                figures=_figures(each),
                start=each.start,
                chosen=each is (other or own),
                says=_costs(each),
            )


def _figures(each: SettingFigures) -> dict[str, float | None]:
    moved = [cost.mb for cost in each.costs.values() if cost.mb is not None]
    return {
        "output": _db(each.alone),
        "both": _db(each.both),
        "network": _db(each.network.sqnr) if each.network else None,
        "loss": each.network.loss.value if each.network else None,
        "scales": float(each.scales),
        "mb": moved[0] if moved else None,
    }


def _db(sqnr: Sqnr | None) -> float | None:
    return None if sqnr is None or sqnr.db is None or math.isnan(sqnr.db) else sqnr.db


def _costs(each: SettingFigures) -> str:
    return "; ".join(f"{engine} {cost.promise}" for engine, cost in each.costs.items())


def _decided(kept: Kept) -> dict[str, list[Decided]]:
    """By layer, what each variant asks of each of its operands."""
    verdicts = _verdicts(kept.report)
    texts = {
        recipe.path: recipe.text
        for of in (kept.of_run, kept.of_analysis)
        if of
        for recipe in of.recipes
    }
    found: dict[str, list[Decided]] = defaultdict(list)
    for variant, rows in kept.rows.items():
        for row in rows:
            found[row.layer].append(
                Decided(
                    variant=variant,
                    role=row.operand,
                    asked=_asked(row),
                    rule=row.rule,
                    where=row.where,
                    text=rule_text(texts, row.where),
                    engines=verdicts.get((variant, row.site), {}),
                )
            )
    return found


def _asked(row: Row) -> str:
    told = f"{row.format} {row.granularity}" if row.quantized else "float"
    if row.quantized and str(row.calibrator) != "max":
        told += f", {row.calibrator}"
    return f"{told}, bn {row.bn}" if row.bn and row.operand == "weight" else told


def _verdicts(report: Report | None) -> dict[tuple[str, str], dict[str, Told]]:
    found: dict[tuple[str, str], dict[str, Told]] = defaultdict(dict)
    for variant in report.variants if report else ():
        for engine in variant.engines:
            for each in engine.verdicts:
                told = f"{each.verdict}: {each.detail}" if each.detail else each.verdict
                if each.site in engine.made:
                    told += f" (made {engine.made[each.site]})"
                sense = SENSES[each.verdict]
                if each.verdict == "degraded" and each.promise != "native":
                    sense = "doubtful"
                found[variant.name, each.site][engine.engine] = (told, sense)
    return found


def _findings(kept: Kept) -> dict[str, list[PageFinding]]:
    found: dict[str, list[PageFinding]] = defaultdict(list)
    for variant in kept.report.variants if kept.report else ():
        folded = {row.layer for row in kept.rows.get(variant.name, ()) if row.bn == "fold"}
        for engine in variant.engines:
            for name, code, says, instead in _of_layers(engine):
                found[name].append(
                    PageFinding(
                        engine=engine.engine,
                        variant=variant.name,
                        code=code,
                        says=says,
                        instead=instead,
                        rule=_to_paste(name, instead, name in folded),
                    )
                )
    return found


_KEY_AND_VALUE = re.compile(r"\b(weight|input|skip|output|format|bn): (\w+)")


def _to_paste(layer: str, instead: str, folded: bool) -> str:
    """
    >>> _to_paste("a.b", "write weight: per_tensor, with bn: keep where its batch norm is folded", True)
    '- {match: a.b, weight: per_tensor, bn: keep}'
    >>> _to_paste("a", "quantize neighbours alike", True)
    ''
    """
    told = _KEY_AND_VALUE.findall(instead) if instead.startswith("write ") else []
    chosen = [f"{key}: {value}" for key, value in told if key != "bn" or folded]
    name = layer if re.fullmatch(r"[\w.]+", layer) else json.dumps(layer, ensure_ascii=False)
    return f"- {{match: {name}, {', '.join(chosen)}}}" if chosen else ""


def _of_layers(engine: EngineResult) -> Iterator[tuple[str, str, str, str]]:
    for each in engine.findings:
        yield each.layer.rpartition("/")[0] or each.layer, each.code, each.says, each.instead


def _ranges(kept: KeptForPage | None) -> dict[str, LayerRanges]:
    return {each.layer: each for each in kept.layers} if kept else {}


def rule_text(texts: Mapping[str, str], where: str) -> str:
    """The lines of the rule that stands at file:line:column, up to the next thing of its depth;
    empty for a preset's.

    >>> rule_text({"r.yaml": "rules:\\n- match: a\\n  weight: float\\n- match: b\\n"}, "r.yaml:2:3")
    '- match: a\\n  weight: float'
    """
    path, _, rest = where.rpartition(":")
    path, _, line = path.rpartition(":")
    if path not in texts or not line.isdigit() or not rest.isdigit():
        return ""
    lines = texts[path].splitlines()
    first = int(line) - 1
    if first >= len(lines):
        return ""
    while first and not lines[first].lstrip().startswith("-"):
        if _depth(lines[first]) == 0:
            break
        first -= 1
    depth, last = _depth(lines[first]), first + 1
    while last < len(lines) and (not lines[last].strip() or _depth(lines[last]) > depth):
        last += 1
    return "\n".join(lines[first:last]).rstrip()


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip())
