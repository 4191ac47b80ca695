"""What a type checker knows of `import granplugin`: mypy reads this with the package; none runs it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, assert_type

import numpy as np
from torch import nn

import granplugin
from granplugin.audits.audit_file import FileAudit
from granplugin.pipelines.analyze import Analyzed
from granplugin.pipelines.apply import Applied
from granplugin.pipelines.inspect import Inspection
from granplugin.pipelines.plan import Planned
from granplugin.recipe.loaded import Loaded


class Net(nn.Module):
    pass


def every_name() -> None:
    recipe = granplugin.load("{version: 1}", ["data.batch_size=8"])
    assert_type(recipe, Loaded)
    assert_type(granplugin.plan(recipe, "finer", out="runs/x"), Planned)
    assert_type(granplugin.inspect(Path("recipe.yaml")), Inspection)
    assert_type(granplugin.apply(recipe, "other.yaml", {"version": 1}), Applied)
    assert_type(granplugin.analyze("recipe.yaml", costs=False), Analyzed)
    assert_type(granplugin.audit("model.onnx", batch=2), FileAudit)
    assert_type(granplugin.prepare(Net(), {"version": 1}, {}), Net)
    assert_type(granplugin.quantize(Net(), {"version": 1}, []), Net)
    assert_type(granplugin.modelopt_config("{version: 1}", Net()), dict[str, Any])
    batches = granplugin.calibration_batches(recipe)
    assert_type(batches, Iterator[dict[str, np.ndarray]])
    assert_type(granplugin.export_onnx(Net(), {}, "model.onnx", precision="fp16"), Path)
    try:
        raise granplugin.RecipeError
    except granplugin.UserError as error:
        assert_type(error, granplugin.UserError)
    granplugin.plan(3)  # type: ignore[arg-type]
