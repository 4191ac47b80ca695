"""modelopt's algorithms that change weights, run on a copy of a network."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from granplugin.errors import ModelError
from granplugin.modelopt_bridge.chatter import quiet
from granplugin.modelopt_bridge.library import mtq
from granplugin.modelopt_bridge.observe import ForwardLoop
from granplugin.network.changed_linear import Change
from granplugin.network.copying import copy_of
from granplugin.network.forward import evaluating
from granplugin.planning.quantize_config import native_attributes, quantizer_name
from granplugin.planning.rows import QuantizedRow

_BRANCH = ("svdquant_lora_a", "svdquant_lora_b")
"""Of a weight's quantizer: the factors that read the input, and put out, of a low-rank branch."""


def moved(
    model: nn.Module,
    rows: Iterable[QuantizedRow],
    algorithm: Mapping[str, Any],
    forward_loop: ForwardLoop,
) -> dict[str, Change]:
    """Linear layer -> what an algorithm of modelopt's made of it while these rows, and no others, are
    quantized. The model stays as it is.

    Raises ModelError for a row that modelopt's own quantizers do not have.
    """
    entries: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
    for row in rows:
        attributes = native_attributes(row)
        if isinstance(attributes, str):
            raise ModelError(f"{row.site}: {attributes}")
        name = glob.escape(quantizer_name(row))
        entries.append({"quantizer_name": name, "cfg": attributes})
    config = {"quant_cfg": entries, "algorithm": dict(algorithm)}
    with quiet(), evaluating(model):
        quantized = mtq.quantize(copy_of(model), config, forward_loop)
    layers: dict[str, Change] = {}
    for name, module in quantized.named_modules():
        scale = getattr(getattr(module, "input_quantizer", None), "_pre_quant_scale", None)
        if isinstance(scale, torch.Tensor):
            branch = (getattr(module.weight_quantizer, each, None) for each in _BRANCH)
            layers[name] = Change(scale.detach(), module.weight.detach(), *branch)
    return layers
