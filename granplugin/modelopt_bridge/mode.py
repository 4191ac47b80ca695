"""The calibration mode that `{"method": "granplugin", "sites": [...]}` names inside mtq.quantize.

modelopt records mode and sites in the model's state: `mto.save` and `mto.restore` carry them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from granplugin.calibration.statistics import Need, Statistics, find_amax, needs_of, share_amax
from granplugin.errors import DataError
from granplugin.modelopt_bridge.chatter import quiet
from granplugin.modelopt_bridge.learned import learn, tie
from granplugin.modelopt_bridge.library import (
    BaseCalibrateModeDescriptor,
    CalibrateModeRegistry,
    ModeloptField,
    QuantizeAlgorithmConfig,
    QuantModule,
    mtq,
    restore_quantizer_state,
)
from granplugin.modelopt_bridge.observe import (
    ForwardLoop,
    observe,
    of_all_processes,
    weights_seen,
)
from granplugin.modelopt_bridge.places import want_quantizers
from granplugin.modelopt_bridge.quantizers import refuse_unfolded, set_quantizers
from granplugin.modelopt_bridge.starts import squares_seen, start_weights
from granplugin.network.batch_norms import fold_behind, freeze_batch_norms, is_folded, norm_of
from granplugin.network.modules import Stored, stored
from granplugin.planning.quantize_config import METHOD, config
from granplugin.planning.row_json import row_from_json
from granplugin.planning.rows import QuantizedRow
from granplugin.quant.layers import Layer, layer_from_json


class CalibrationConfig(QuantizeAlgorithmConfig):
    """The sites to quantize, as site_entry writes them."""

    method: Literal["granplugin"] = ModeloptField(METHOD)
    sites: list[dict[str, Any]] = ModeloptField(
        default=[], title="The plan's quantized rows.", validate_default=True
    )
    folded: list[dict[str, Any]] = ModeloptField(
        default=[], title="The layers whose batch norms are folded.", validate_default=True
    )
    training: dict[str, Any] = ModeloptField(
        default={}, title="A recipe's section qat.", validate_default=True
    )


def calibrate(
    model: nn.Module,
    forward_loop: ForwardLoop | None = None,
    *,
    sites: list[dict[str, Any]],
    folded: list[dict[str, Any]],
    training: dict[str, Any],
) -> None:
    """Find the amax of each site, from its weight or from one run of `forward_loop(model)`, and
    set its quantizer; every other quantizer is off afterwards. Then fold the batch norms that are
    to be: the network is calibrated as it is, as `apply` does. Processes of torch.distributed
    calibrate on the data of all of them. Raises DataError, ModelError.
    """
    folding = {
        layer.name: (layer, norm)
        for layer in map(layer_from_json, folded)
        if not is_folded(norm := norm_of(model, layer))
    }
    planned = [row for site in sites if (row := row_from_json(site)).quantized]
    refuse_unfolded(model, [row for row in planned if row.layer not in folding])
    rows = [row if row.layer in folding else replace(row, bn=None) for row in planned]
    needs = needs_of(rows)
    if needs and forward_loop is None:
        raise DataError(
            f"{min(need.site for need in needs)}: inputs and outputs need calibration data; give "
            "mtq.quantize a forward_loop, or pin their ranges with amax"
        )
    statistics = Statistics({}, {}, 0)
    learned = rows if training.get("learn_ranges") else []
    weighed = [row.layer for row in rows if row.operand == "weight"]
    with weights_seen(model, weighed) as weights, squares_seen(model, learned) as squares:
        if forward_loop is not None:
            statistics = of_all_processes(observe(model, needs, forward_loop))
    found = {
        row.site: find_amax(row, statistics, _weight_of(model, row, weights, folding))
        for row in rows
        if not row.dynamic
    }
    amax = {site: grid for site, grid in found.items() if grid is not None}
    set_quantizers(model, rows, share_amax(rows, amax))
    learn(model, learned)
    start_weights(
        model,
        learned,
        lambda row: torch.from_numpy(_weight_of(model, row, weights, folding)),
        squares(),
    )
    fold_behind(model, [layer for layer, _ in folding.values()])
    _freeze(model, training)


def _restore(model: nn.Module, config: CalibrationConfig, metadata: dict[str, Any]) -> nn.Module:
    """A fresh model made what calibration made of the one that was saved, but for the tensors."""
    fold_behind(model, map(layer_from_json, config.folded))
    _freeze(model, config.training)
    model = restore_quantizer_state(model, config, metadata)
    tie(model, [row for site in config.sites if (row := row_from_json(site)).quantized])
    return model


def _freeze(model: nn.Module, training: Mapping[str, Any]) -> None:
    if training.get("batch_norms") == "frozen":
        freeze_batch_norms(model)


@CalibrateModeRegistry.register_mode
class CalibrationMode(BaseCalibrateModeDescriptor):
    """What modelopt calls for the method `granplugin`."""

    _calib_func = calibrate
    _supports_layerwise = False

    @property
    def config_class(self) -> type[QuantizeAlgorithmConfig]:
        return CalibrationConfig

    @property
    def restore(self) -> Callable[..., nn.Module]:
        return _restore


def convert(
    model: nn.Module,
    needs: Iterable[Need],
    forward_loop: ForwardLoop,
    layers: Iterable[Layer] | None = None,
) -> tuple[nn.Module, Statistics]:
    """Convert `model` with every quantizer in place and off, and collect `needs` in one pass. Where
    `layers` are given, these alone are converted, with quantizers of skip inputs and of calls.

    Runs as a calibration of no sites inside mtq.quantize, so that the model can be saved,
    exported with markers, or given any plan's amax by `load_amax`.
    """
    seen: list[Statistics] = []
    if layers is not None:
        want_quantizers(model, layers)
    with quiet():
        model = mtq.quantize(
            model, config([]), lambda model: seen.append(observe(model, needs, forward_loop))
        )
    return model, seen[0]


def quantize(
    model: nn.Module, config: dict[str, Any], forward_loop: Callable[[nn.Module], object]
) -> None:
    """mtq.quantize, in place. Raises DataError, ModelError."""
    with quiet():
        mtq.quantize(model, config, forward_loop)


def _weight_of(
    model: nn.Module,
    row: QuantizedRow,
    seen: Mapping[str, Tensor],
    folding: Mapping[str, tuple[Layer, nn.Module]],
) -> np.ndarray | None:
    """The row's weight as float32 numpy, as it will be; None for an input or output."""
    if row.operand != "weight":
        return None
    if row.layer in folding:
        layer, norm = folding[row.layer]
        if held := stored(model, layer):
            return held.folded(norm)[0]
        if row.layer in seen:
            return Stored(row.type, layer.groups, seen[row.layer], None).folded(norm)[0]
    module = dict(model.named_modules()).get(row.layer)
    weight = module.weight if isinstance(module, QuantModule) else seen.get(row.layer)
    if weight is None:
        raise DataError(
            f"{row.site}: a forward pass tells what is multiplied there; give mtq.quantize a "
            "forward_loop"
        )
    return weight.detach().to(torch.float32).cpu().numpy()
