"""What an analysis asks: the settings to try at each layer and at the recipe's other sites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from granplugin.analysis.settings import Asked, Skipped, ask, ask_of_site, label
from granplugin.calibration.statistics import Need, needs_of
from granplugin.planning.rows import Plan, QuantizedRow
from granplugin.quant.calibrators import BINS
from granplugin.quant.layers import Layer
from granplugin.recipe.analyze import Analyze


@dataclass(frozen=True)
class Questions:
    """`plan` is the recipe's. `layers` are asked about by their weight and input; `sites` has the
    rows to try, the recipe's own first, of what it quantizes that is no factor of such a layer's
    product; `skipped` is what was not asked, and why."""

    plan: Plan
    layers: tuple[Asked, ...]
    sites: Mapping[str, tuple[QuantizedRow, ...]]
    skipped: tuple[Skipped, ...]

    @property
    def others(self) -> tuple[QuantizedRow, ...]:
        """The recipe's own row of each site."""
        return tuple(rows[0] for rows in self.sites.values())


def ask_all(
    layers: Sequence[Layer], plan: Plan, wanted: Analyze, calibration_samples: int
) -> Questions:
    """What `wanted` asks of a plan, as far as histograms fit into analyze.memory_mb."""
    asked, skipped = ask(layers, plan, wanted, calibration_samples)
    asked, over = _within_budget(asked, wanted.memory_mb)
    skipped = (*skipped, *over)
    analyzed = {each.layer.name for each in asked}
    by_name = {layer.name: layer for layer in layers}
    sites: dict[str, tuple[QuantizedRow, ...]] = {}
    for row in plan.quantized:
        if row.operand in ("weight", "input") and row.layer in analyzed:
            continue
        sites[row.site], refused = ask_of_site(by_name[row.layer], row, wanted, calibration_samples)
        skipped += refused
    return Questions(plan, asked, sites, skipped)


def _within_budget(
    asked: Sequence[Asked], memory_mb: int
) -> tuple[tuple[Asked, ...], list[Skipped]]:
    """What is asked, without the inputs whose histograms do not fit: those with the fewest scales
    are served first. The recipe's own are always served."""
    sizes: dict[Need, float] = {}
    for each in asked:
        for row in each.inputs:
            for need in needs_of([row]):
                if need.histogram:
                    sizes[need] = row.scales * BINS * 8 / 2**20
    own = {n for each in asked for row in each.start for n in needs_of([row])}
    served: set[Need] = set()
    left = float(memory_mb)
    for need, size in sorted(sizes.items(), key=lambda item: (item[0] not in own, item[1])):
        if size <= left or need in own:
            served.add(need)
            left -= size
    kept, over = [], []
    for each in asked:
        inputs = []
        for row in each.inputs:
            if all(not need.histogram or need in served for need in needs_of([row])):
                inputs.append(row)
            else:
                size = row.scales * BINS * 8 / 2**20
                reason = f"its histograms take {size:.0f} MB more than analyze.memory_mb leaves"
                over.append(Skipped(row.site, label(row), reason))
        kept.append(replace(each, inputs=tuple(inputs)))
    return tuple(kept), over
