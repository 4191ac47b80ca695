"""For scripts that call modelopt themselves: calibration_batches, prepare, modelopt_config and
export_onnx.

model = granplugin.prepare(model, "recipe.yaml", example)
model = mtq.quantize(model, granplugin.modelopt_config("recipe.yaml", model), forward_loop)
granplugin.export_onnx(model, example, "model.onnx")
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
from torch import nn

from granplugin.data.batches import SAME_BITS, Batch
from granplugin.engines import PRECISIONS
from granplugin.errors import DataError, ModelError, RecipeError
from granplugin.network.batch_norms import check_folding
from granplugin.network.forward import Example, call, inputs_of, named_inputs
from granplugin.network.modules import weight_of
from granplugin.network.suitable import is_quantizer, wrapped
from granplugin.network.taken import take
from granplugin.network.trace import trace
from granplugin.planning.plan import make_plan
from granplugin.planning.row_json import row_from_json
from granplugin.planning.rows import QuantizedRow
from granplugin.quant.layers import Layer
from granplugin.recipe.forms import RecipeForm
from granplugin.recipe.load import load_part, load_recipe
from granplugin.recipe.loaded import Loaded, LoadedPart
from granplugin.results.values import FP32
from granplugin.runs.session import calibration_batches as batches_of
from granplugin.runs.session import open_calibration
from granplugin.sources import open_network

Model = TypeVar("Model", bound=nn.Module)

_MARK = "_granplugin_prepared"


@dataclass(frozen=True)
class _Prepared:
    layers: tuple[Layer, ...]
    folded: frozenset[str]


def calibration_batches(recipe: RecipeForm | Loaded) -> Iterator[Batch]:
    """The samples that `apply` calibrates this recipe on, in its order and batches.

    Each batch maps arguments of forward to arrays with the samples on axis 0, the caller's to
    change; floats are float32. There are 16 or more samples in a batch where `data.batch_size` and
    the data allow it. The recipe's model is built, for the names of its inputs. Raises
    RecipeError, ModelError, and DataError, also while iterating, as `apply` does.
    """
    loaded = recipe if isinstance(recipe, Loaded) else load_recipe(recipe)
    calibration = open_calibration(loaded, open_network(loaded))
    return batches_of(calibration, loaded.recipe.data.batch_size)


def prepare(model: Model, recipe: RecipeForm | LoadedPart, example: Example) -> Model:
    """Remember the model's layers, and make sure that the batch norms that the recipe folds can be;
    mtq.quantize folds them once it has calibrated.

    Of the recipe (its forms: granplugin.api.verbs) only rules, defaults and share count: it need
    not say a model or data, and the files it names need not be there.

    `example` is one small batch: a tensor, a tuple of arguments, or a dict of keyword arguments of
    forward. Outputs on it are compared with and without folding; the model stays as it is. Call it
    before mtq.quantize. Raises RecipeError where the recipe does not fit the model, ModelError
    where folding would change it.
    """
    if any(map(is_quantizer, model.modules())):
        raise ModelError("the model has quantizers; call granplugin.prepare before mtq.quantize")
    traced = trace(model, example)
    plan = make_plan(_loaded(recipe), traced.layers)
    if plan.moved:
        raise RecipeError(
            f"{plan.moved[0].where}: {plan.moved[0].algorithm} changes weights before anything is "
            "quantized; call granplugin.run_algorithm first, and leave algorithm: out here"
        )
    check_folding(model, traced, plan.folded, example)
    setattr(model, _MARK, _Prepared(traced.layers, plan.folded))
    return model


def modelopt_config(recipe: RecipeForm | LoadedPart, model: nn.Module) -> dict[str, Any]:
    """The config for `mtq.quantize(model, config, forward_loop)`. Of the recipe only rules, defaults
    and share count, as in `prepare`.

    Conversion then leaves modules without sites as they are, and gives quantizers to the operands
    of calls that multiply, and to the skip inputs of layers that a residual add joins.

    Importing this registers granplugin's calibration mode with modelopt; a process that only
    restores (`mto.restore`) such a model needs `import granplugin.modelopt_bridge` first. Raises
    ModelError for a model that was not prepared, or prepared for a recipe that folds other layers.
    """
    return _config(_loaded(recipe), model)


def _config(
    loaded: LoadedPart, model: nn.Module, training: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """The config, with the keys of the recipe's section `qat` where the model is to be trained."""
    from granplugin import modelopt_bridge

    prepared = getattr(model, _MARK, None)
    if prepared is None:
        raise ModelError(
            "the model was not prepared: call granplugin.prepare(model, recipe, example) first, "
            "which finds the layers the rules are about"
        )
    plan = make_plan(loaded, prepared.layers)
    if plan.folded != prepared.folded:
        name = min(plan.folded ^ prepared.folded)
        was = "folded" if name in prepared.folded else "kept"
        raise ModelError(
            f"the model was prepared for another recipe: the batch norm behind {name} is {was}; "
            "prepare it with this recipe"
        )
    modelopt_bridge.want_quantizers(model, prepared.layers)
    return modelopt_bridge.config(plan.quantized, plan.folds(prepared.layers), training)


def quantize(
    model: Model,
    recipe: RecipeForm | LoadedPart,
    loader: Iterable[Any],
    *,
    example: Example | None = None,
) -> Model:
    """A model to fine-tune in a loop of one's own: modelopt's, quantized as the recipe says, ranges
    calibrated on all batches of `loader`, in place.

    Rounding is straight-through. Ranges stay as calibrated or are learned, batch norms that are kept
    are updated or frozen: the recipe's section `qat`. The optimizer is made of its parameters
    afterwards. A batch is a tensor, a tuple or list (its first tensors are forward's arguments, what
    follows, such as labels, is left out) or a dict with these; `example`, one small batch, is by
    default the first of them. Processes of torch.distributed calibrate on all their batches
    together. Raises RecipeError, ModelError and DataError, as `prepare` and mtq.quantize do.
    """
    from granplugin import modelopt_bridge

    if said := wrapped(model):
        raise ModelError(said)
    batches = [inputs_of(model, batch) for batch in loader]
    if not batches:
        raise DataError("the loader has no batch to calibrate on; is it an iterator, used up?")
    loaded, training = _loaded(recipe), model.training
    model = prepare(model.eval(), loaded, example if example is not None else batches[0])
    config = _config(loaded, model, loaded.recipe.qat.model_dump())

    def run(model: nn.Module) -> None:
        for batch in batches:
            call(model, batch)

    modelopt_bridge.quantize(model, config, run)
    return model.train(training)


def export_onnx(
    model: nn.Module, example: Example, path: str | Path, precision: str = FP32
) -> Path:
    """Write a model that modelopt has quantized - as `quantize` or `modelopt_config` say, or any
    config of its own - as Q/DQ ONNX, dynamic batch.

    `precision` is that of the float part: fp32, fp16 or bf16. In fp16, nodes stay float32 whose
    values on the first 16 samples of `example` are too large for it; `apply` looks at the first
    ones of its calibration data. The file is read back and compared with the plan before it gets
    its name. Raises ModelError for a model that modelopt did not quantize, or in ways that no
    plan says, and for another precision, Unhonoured where the file is not the plan's.
    """
    if precision not in PRECISIONS:
        raise ModelError(f"precision is one of {', '.join(PRECISIONS)}, not {precision!r}")
    from granplugin import modelopt_bridge
    from granplugin.graph.edit.fold import weights_of
    from granplugin.graph.edit.precision import convert, too_large
    from granplugin.graph.edit.qdq import insert
    from granplugin.graph.files import load_float, save
    from granplugin.graph.read.verify import read_back
    from granplugin.network.export import export_float

    path = Path(path)
    if said := wrapped(model):
        raise ModelError(said)
    if modelopt_bridge.is_ours(model):
        rows, amax = _recorded(modelopt_bridge.sites_of(model))
    else:
        model, rows, amax = _taken(model, example)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".granplugin-") as folder:
        scratch = Path(folder) / path.name
        with modelopt_bridge.marked(model):
            export_float(model, example, scratch)
        floats = load_float(scratch)
        save(insert(floats, rows, amax), scratch)
        weights = weights_of(floats, rows)
        read_back(scratch, rows, amax, weights)
        if precision != FP32:
            keep = too_large(scratch, _first(model, example)) if precision == "fp16" else []
            save(convert(scratch, precision, {row.site for row in rows}, keep), scratch)
            read_back(scratch, rows, amax, weights, precision=precision, keep=keep)
        scratch.replace(path)
    return path


def _recorded(
    sites: Sequence[Mapping[str, Any]],
) -> tuple[list[QuantizedRow], dict[str, np.ndarray]]:
    """The rows that granplugin's mode recorded, and the ranges that their quantizers have."""
    # Whatever is folded has been folded in the model itself.
    rows = [replace(row_from_json(site), bn=None) for site in sites]
    grids = {row.site: site["grid"] for row, site in zip(rows, sites, strict=True)}
    amax = {site: grid for site, grid in grids.items() if grid is not None}
    return [row for row in rows if row.quantized and (row.site in amax or row.dynamic)], amax


def _taken(
    model: nn.Module, example: Example
) -> tuple[nn.Module, list[QuantizedRow], dict[str, np.ndarray]]:
    """A copy of a model that modelopt has quantized by another config, with quantizers where
    granplugin has sites; rows and ranges as they were taken over."""
    from granplugin import modelopt_bridge

    plain, quantizers = modelopt_bridge.take_apart(model)
    if not quantizers.on:
        raise ModelError(
            "the model was not quantized: call granplugin.quantize(model, recipe, loader), or "
            "mtq.quantize, first"
        )
    traced = trace(plain, example)
    layers, amax = take(quantizers, traced.layers, partial(weight_of, plain))
    rows = list(make_plan(load_part({"version": 1}), layers).quantized)
    converted, _ = modelopt_bridge.convert(plain, (), lambda model: None, layers)
    return converted, rows, amax


def _first(model: nn.Module, example: Example) -> Batch:
    """As many samples of the example as `apply` looks at."""
    tensors = named_inputs(model, example)
    return {name: t[:SAME_BITS].detach().cpu().numpy() for name, t in tensors.items()}


def _loaded(recipe: RecipeForm | LoadedPart) -> LoadedPart:
    return recipe if isinstance(recipe, LoadedPart) else load_part(recipe)
