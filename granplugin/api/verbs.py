"""The verbs as functions: a recipe in any form in, what the command line prints as a value out.

A recipe is a file (str or Path), its text (a str with a line break or a `: ` in it, or that begins
with `{`), a dict of its keys, or what `load` returned. Relative paths in a text or a dict start at
the current folder, and errors name a place in it as `<recipe>:3:5` or `<recipe>:rules[0].match`.
`out` is the run folder, by default runs/<name>; the recipe's name is by default its file's, and
`recipe` for one that is in no file.

All raise UserError - RecipeError, ModelError, DataError, RunError, EngineError - where the user
must change something; its text is one sentence with the place and the way out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from granplugin.engines import AUDITED
from granplugin.recipe.forms import RecipeForm
from granplugin.recipe.load import load_recipe
from granplugin.recipe.loaded import Loaded

if TYPE_CHECKING:
    from torch import nn

    from granplugin.audits.audit_file import FileAudit
    from granplugin.pipelines.analyze import Analyzed
    from granplugin.pipelines.apply import Applied
    from granplugin.pipelines.inspect import Inspection
    from granplugin.pipelines.plan import Planned


def load(
    recipe: RecipeForm, settings: Sequence[str] = (), *, model: nn.Module | None = None
) -> Loaded:
    """Read and validate a recipe; `settings` change single keys, as `data.batch_size=8`. A `model`
    stands in place of the recipe's, as it is: verbs leave it alone, and take over how modelopt has
    quantized it.

    Its files must be there. Raises RecipeError, a line per mistake.

    >>> load("{version: 1, rules: [{match: conv, wieght: per_tensor}]}")
    Traceback (most recent call last):
    granplugin.errors.RecipeError: <recipe>:1:1: key 'model' is missing
    <recipe>:1:1: key 'data' is missing
    <recipe>:1:36: unknown key 'wieght'; did you mean 'weight'?
    """
    if model is None:
        return load_recipe(recipe, settings)
    from granplugin.network.suitable import quantizers_in

    quantized = bool(quantizers_in(model))
    return load_recipe(recipe, settings, live=model, quantized=quantized)


def plan(
    recipe: RecipeForm | Loaded, variant: str | None = None, *, out: str | Path | None = None
) -> Planned:
    """What each site gets, which rule decided it, and what each engine promises for it. Nothing is
    calibrated; the model runs once, on two samples. `variant` is the name of one in the recipe."""
    loaded = recipe if isinstance(recipe, Loaded) else load(recipe)
    from granplugin.pipelines.plan import plan

    return plan(loaded, variant, _path(out))


def inspect(recipe: RecipeForm | Loaded, *, out: str | Path | None = None) -> Inspection:
    """The layers: shapes, how even their weights' ranges are before and after folding, defaults.

    Where the data are not there, what the modules alone say; `refused` of what is returned says
    why the recipe's rules do not fit the model.
    """
    loaded = recipe if isinstance(recipe, Loaded) else load_recipe(recipe, data=False)
    from granplugin.pipelines.inspect import inspect

    return inspect(loaded, _path(out))


def apply(
    recipe: RecipeForm | Loaded, *more: RecipeForm | Loaded, out: str | Path | None = None
) -> Applied:
    """Build and measure the baselines, the recipes and their variants, and compare them. Several
    recipes have one model, data and engines.

    Raises Unhonoured where a written graph, read back, is not what its plan says.
    """
    loaded = [each if isinstance(each, Loaded) else load(each) for each in (recipe, *more)]
    from granplugin.pipelines.apply import apply

    return apply(loaded, _path(out))


def analyze(
    recipe: RecipeForm | Loaded,
    *,
    costs: bool = True,
    statistics: str | Path | None = None,
    out: str | Path | None = None,
) -> Analyzed:
    """Which layer loses what, at which granularity, and why; and the overrides it takes.

    Without `costs` no engine is built to count kernels and MB; `statistics` is the
    statistics.safetensors of an earlier analysis of the same model and data.
    """
    loaded = recipe if isinstance(recipe, Loaded) else load(recipe)
    from granplugin.pipelines.analyze import analyze

    return analyze(loaded, costs, _path(statistics), _path(out))


def audit(
    onnx: str | Path,
    backend: str = AUDITED[0],
    *,
    layers: str | Path | None = None,
    profile: str | Path | None = None,
    plan: str | Path | None = None,
    batch: int = 1,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> FileAudit:
    """What an engine does with any Q/DQ ONNX file: a verdict for every quantized site, and lint.

    Without `layers` the engine is built here for `batch` samples, an input with other open lengths
    for its shape in `shapes` or a usual one; `layers` is that of one built elsewhere (trtexec's --exportLayerInfo, or layers.txt of a run) and `profile` its times
    (--exportProfile). `plan` is the plan.json of the run that the file is of.
    """
    from granplugin.pipelines.audit import audit

    said = [f"{name}={'x'.join(map(str, shape))}" for name, shape in (shapes or {}).items()]
    return audit(Path(onnx), backend, _path(layers), _path(profile), _path(plan), batch, said)


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)
