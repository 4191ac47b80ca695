"""modelopt's quantizers given amax grids, and read back: a plan's effect on a converted model."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from granplugin.calibration.statistics import ranged
from granplugin.errors import ModelError
from granplugin.modelopt_bridge.library import (
    ModeloptStateManager,
    QuantizerAttributeConfig,
    TensorQuantizer,
)
from granplugin.network.taken import LEARNED, cells_of, trained_amax
from granplugin.planning.quantize_config import (
    METHOD,
    attributes,
    quantizer_name,
    site_entry,
)
from granplugin.planning.row_json import row_from_json
from granplugin.planning.rows import QuantizedRow, Row
from granplugin.quant.granularity import expand
from granplugin.quant.layers import BATCH_NORMS
from granplugin.quant.site import Shape

log = logging.getLogger(__name__)


def set_quantizers(
    model: nn.Module,
    rows: Iterable[Row],
    amax: Mapping[str, np.ndarray | None],
    *,
    passing: bool = False,
) -> None:
    """Make a converted model behave as the quantized rows say, with `amax`: site -> grid.

    modelopt takes an amax of blocks as large as the tensor. `passing`: it is there only while its
    quantizer runs, and the model serves for its outputs alone.

    A site whose amax is None stays float, unless its row is dynamic, and its layer with it
    (`ranged`); those are counted and logged. What is in no row stays float too. Raises ModelError where modelopt has no quantizer for a row.
    """
    quantizers = _quantizers(model)
    for quantizer in quantizers.values():
        _forget(quantizer)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    planned = [row for row in rows if row.quantized]
    live = ranged(planned, {site for site, grid in amax.items() if grid is not None})
    for row in planned:
        name = quantizer_name(row)
        if name not in quantizers:
            raise ModelError(
                f"{row.site}: modelopt has no quantizer there; set its format to float"
            )
        if row in live:
            _set(quantizers[name], row, amax.get(row.site), device, passing)
    if left := [row.site for row in planned if row not in live]:
        log.warning(
            "%d of the sites to quantize stay float, since they or their layers' other factor only "
            "ever see zeros: %s",
            len(left),
            ", ".join(left),
        )


def refuse_unfolded(model: nn.Module, rows: Iterable[Row]) -> None:
    """ModelError where a row counts on a folded batch norm that `model` still has."""
    modules = dict(model.named_modules())
    for row in rows:
        # modelopt names its classes after the original's: QuantBatchNorm2d.
        kind = type(modules.get(row.bn_name)).__name__.removeprefix("Quant")
        if row.bn == "fold" and kind in BATCH_NORMS:
            raise ModelError(
                f"{row.layer}: the plan folds {row.bn_name} into it, and the config does not; take "
                "that of granplugin.modelopt_config(recipe, model)"
            )


def load_amax(
    model: nn.Module,
    rows: Iterable[Row],
    amax: Mapping[str, np.ndarray | None],
    *,
    passing: bool = False,
) -> None:
    """set_quantizers, recorded: `sites_of` and `mto.save` then speak of these rows (not of what is
    only `passing`)."""
    quantized = [row for row in rows if row.quantized]
    refuse_unfolded(model, quantized)
    set_quantizers(model, quantized, amax, passing=passing)
    _record(model)["sites"] = [site_entry(row) for row in quantized]


def sites_of(model: nn.Module) -> list[dict[str, Any]]:
    """What the granplugin mode was last configured with, also after `mto.restore`.

    Each is site_entry's dict, and "grid": the amax in its quantizer as a float32 array of the
    grid's shape, None where that quantizer is off or finds it at run time. Raises ModelError for a
    model that granplugin did not quantize, or one with other quantizers switched on.
    """
    sites = [dict(site) for site in _record(model)["sites"]]
    quantizers = _quantizers(model)
    ours = {site["quantizer"] for site in sites}
    foreign = [n for n, q in quantizers.items() if q.is_enabled and n not in ours]
    if foreign:
        raise ModelError(
            f"{foreign[0]} is switched on and not in granplugin's config; quantize with "
            "granplugin.modelopt_config(recipe, model) alone"
        )
    for site in sites:
        quantizer = quantizers[site["quantizer"]]
        row = row_from_json(site)
        static = row.quantized and quantizer.is_enabled and not row.dynamic
        site["grid"] = _grid(quantizer, row) if row.quantized and static else None
    return sites


def fake_quantize(x: np.ndarray, row: QuantizedRow, amax: np.ndarray | None) -> np.ndarray:
    """modelopt's own fake-quant of one tensor, x: (float32) row.shape, or any batch of it; a
    dynamic row has no amax."""
    quantizer = TensorQuantizer()
    _set(quantizer, row, amax, torch.device("cpu"))
    with torch.no_grad():
        return quantizer(torch.from_numpy(np.ascontiguousarray(x))).numpy()


def _quantizers(model: nn.Module) -> dict[str, TensorQuantizer]:
    """By name; a layer that has several names is called by its first."""
    return {
        f"{layer}.{name}".lstrip("."): child
        for layer, module in model.named_modules()
        for name, child in module._modules.items()
        if isinstance(child, TensorQuantizer)
    }


def _set(
    quantizer: TensorQuantizer,
    row: QuantizedRow,
    amax: np.ndarray | None,
    device: torch.device,
    passing: bool = False,
) -> None:
    quantizer.set_from_attribute_config(QuantizerAttributeConfig(**attributes(row), enable=True))
    if row.dynamic:
        return
    assert amax is not None, f"{row.site} has a range"

    def spell_out(*_: Any) -> None:
        values = torch.from_numpy(expand(amax, _part(row)).copy()).to(device)
        quantizer.amax = values if row.scales > 1 else values.reshape(())

    if not passing:
        spell_out()
        return
    quantizer._granplugin_hooks = (
        quantizer.register_forward_pre_hook(spell_out),
        quantizer.register_forward_hook(lambda *_: _drop_amax(quantizer)),
    )


def _part(row: QuantizedRow) -> Shape:
    """How often an amax is repeated on each axis: not at all where there is one for the axis."""
    return tuple(part if cells > 1 else 1 for part, cells in zip(row.block, row.grid, strict=True))


def _grid(quantizer: TensorQuantizer, row: QuantizedRow) -> np.ndarray:
    amax = quantizer.amax.detach().float().cpu().numpy()
    if quantizer.backend == LEARNED:
        amax = trained_amax(amax)
    return cells_of(quantizer_name(row), row.shape, row.block, amax)


def _forget(quantizer: TensorQuantizer) -> None:
    quantizer.disable()
    for hook in vars(quantizer).pop("_granplugin_hooks", ()):
        hook.remove()
    _drop_amax(quantizer)


def _drop_amax(quantizer: TensorQuantizer) -> None:
    # modelopt refuses an amax of another shape while it has one.
    if hasattr(quantizer, "_amax"):
        del quantizer._amax


def is_ours(model: nn.Module) -> bool:
    """Whether granplugin's mode has the last word on every quantizer that is on."""
    states = (
        ModeloptStateManager(model).state_dict() if ModeloptStateManager.is_converted(model) else []
    )
    configs = [state["config"] for mode, state in states if mode == f"{METHOD}_calibrate"]
    ours = {site["quantizer"] for site in configs[-1]["sites"]} if configs else set()
    return bool(configs) and all(
        name in ours for name, quantizer in _quantizers(model).items() if quantizer.is_enabled
    )


def _record(model: nn.Module) -> dict[str, Any]:
    """The config of the last granplugin mode in modelopt's own state of the model."""
    if ModeloptStateManager.is_converted(model):
        for name, state in reversed(ModeloptStateManager(model).state_dict()):
            if name == f"{METHOD}_calibrate":
                return state["config"]
    raise ModelError(
        "the model was not quantized by granplugin; call mtq.quantize(model, "
        "granplugin.modelopt_config(recipe, model), forward_loop) first"
    )
