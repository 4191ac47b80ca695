"""A run and an analysis for a page: small with hostile names, or large."""

from __future__ import annotations

import json
from pathlib import Path

from report_values import HOSTILE, report
from test_analysis_report import layer, network

from granplugin.planning.row_json import row_to_json
from granplugin.planning.rows import QuantizedRow
from granplugin.quant.granularity import PerTensor
from granplugin.quant.site import Site
from granplugin.report.schema.page import (
    EnginePlanOf,
    Histogram,
    KeptForPage,
    Kernel,
    LayerRanges,
    RecipeText,
)
from granplugin.report.view.page.kept import Kept

BAD = (
    HOSTILE,
    "</script><script>window.hacked=1</script>",
    "<img src=x onerror=window.hacked=1>",
    "\u202eabc",
    "a" * 300,
)


def kept(layers: int = 6) -> Kept:
    """A run and an analysis whose every name is hostile, of so many layers."""
    names = [f"{BAD[at % len(BAD)]}{at}" for at in range(layers)]
    rows = tuple(
        QuantizedRow(
            at=Site(name, "weight", (8, 1, 3, 3), 0), type="Conv2d", rule=HOSTILE,
            where="r.yaml:2:3", format="int8", granularity=PerTensor(),
        )
        for name in names
    )  # fmt: skip
    kernels = [
        Kernel(
            name=name, does="low", arithmetic="int8 > half", bytes=100 * at, nodes=[f"{name}/Conv"]
        )
        for at, name in enumerate(names)
    ]
    texts = [RecipeText(path="r.yaml", text=f"rules:\n- match: {HOSTILE}\n", sha256="0")]
    ranges = [
        LayerRanges(
            layer=name, before=[1.0, 0.5], after=[1.0, 300.0],
            input=Histogram(edges=[0.5, 1, 2], counts=[3, 4]), clips={HOSTILE: 1.5},
        )
        for name in names
    ]  # fmt: skip
    return Kept(
        name=HOSTILE,
        report=report(),
        analysis=network([layer(at + 1, name, 4.0, 10.0, 40.0) for at, name in enumerate(names)]),
        rows={"fp32": (), HOSTILE: rows},
        plans=tuple(
            EnginePlanOf(engine="tensorrt_rtx", variant=variant, kernels=kernels)
            for variant in ("fp32", HOSTILE)
        ),
        of_run=KeptForPage(layers=ranges, recipes=texts, command="granplugin apply r.yaml"),
    )


def big_run(folder: Path, layers: int) -> None:
    """A run folder of so many layers, with an analysis of them and an engine's plans."""
    folder.mkdir()
    names = [f"blocks.{at // 4}.part{at % 4}.conv" for at in range(layers)]
    found = report("recipe")
    (folder / "report.json").write_text(found.model_dump_json())
    (folder / "analysis.json").write_text(
        network([layer(at + 1, name, 4.0, 10.0, 40.0) for at, name in enumerate(names)])
        .model_dump_json()
    )  # fmt: skip
    rows = [
        QuantizedRow(
            at=Site(name, role, (64, 64, 3, 3), 0), type="Conv2d", rule="coarse",
            where="r.yaml:2:3", format="int8", granularity=PerTensor(),
        )
        for name in names
        for role in ("weight", "input")
    ]  # fmt: skip
    listed = [row_to_json(row) for row in rows]
    variants = dict.fromkeys(("tensorrt@11", "recipe", "a", "b"), listed)
    (folder / "plan.json").write_text(json.dumps({"version": 2, "variants": variants}))
    ranges = [
        LayerRanges(
            layer=name, before=[0.5] * 64, after=[0.25] * 64, clips={"per_tensor, max": 1.5},
            input=Histogram(edges=[2.0 ** (at / 4) for at in range(41)], counts=[9] * 40),
        )
        for name in names
    ]  # fmt: skip
    kept = KeptForPage(layers=ranges, recipes=[], command="granplugin analyze r.yaml")
    (folder / "analysis_page.json").write_text(kept.model_dump_json())
    tensor = {"Name": "x", "Dimensions": [1, 64, 56, 56], "Datatype": "Int8"}
    kernels = [
        {
            "Name": name, "LayerType": "correlation", "Inputs": [tensor], "Outputs": [tensor],
            "Constants": [tensor], "Metadata": f"[ONNX Layer: {name}/Conv]",
        }
        for name in names
    ]  # fmt: skip
    for variant in found.variants:
        place = folder / "variants" / variant.name / "tensorrt_rtx"
        place.mkdir(parents=True)
        (place / "layers.json").write_text(json.dumps({"Layers": kernels, "I/O Tensors": []}))
