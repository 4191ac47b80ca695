"""The named, versioned defaults: what a layer gets before any rule."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

from granplugin.quant.calibrators import Calibrator, least_values
from granplugin.quant.given import Given
from granplugin.quant.granularity import PerChannel, PerTensor
from granplugin.quant.layers import (
    BATCH_NORMS,
    CALL,
    DETECTION,
    EMBEDDING,
    LEAKY,
    LOOKUPS,
    ROUTER,
    SCORES,
    VALUES,
    VOCABULARY,
    Layer,
)  # fmt: skip
from granplugin.quant.site import OPERANDS, Operand
from granplugin.recipe.decisions import Decision
from granplugin.recipe.settings import FLOAT, Settings
from granplugin.suggest import did_you_mean

_MAX, _MSE = Calibrator("max"), Calibrator("mse")
_PER_TENSOR = Settings(format="int8", granularity=PerTensor(), calibrator=_MAX)
_NOTHING = Decision()
_TENSORRT = Decision(
    weight=_PER_TENSOR.model_copy(update={"granularity": PerChannel()}),
    input=_PER_TENSOR,
    bn="fold",
)
_TENSORRT_CONV = _TENSORRT.model_copy(update={"skip": _PER_TENSOR})
_TENSORRT_GROUPED = Decision(weight=_PER_TENSOR, input=_PER_TENSOR, bn="fold")
_TENSORRT_ATTENTION = Decision(input=_PER_TENSOR, other=_PER_TENSOR)
_FLOAT_LOOKUP = Decision(weight=_TENSORRT.weight)
_LONGEST = 512
"""Keys of the longest attention that modelopt's ONNX quantizer quantizes to INT8."""
_MODELOPT = Decision(
    weight=_PER_TENSOR.model_copy(update={"granularity": PerChannel(axis=0)}),
    input=_PER_TENSOR,
    bn="keep",
)
_MODELOPT_PASSIVE = Decision(input=_PER_TENSOR)


def tensorrt_11(layer: Layer) -> Decision:
    """TensorRT 11's placement rules: of weighted layers, inputs per_tensor and weights per_channel
    on the output channels (per_tensor where no axis has them), max; the skip inputs of residual
    adds behind convolutions per_tensor; pools and norms float; batch norms folded, as the engine
    does. Behind linear layers skip inputs stay float: the rule is about the INT8 epilogue of a
    convolution, NVIDIA's own ResNet quantizes the identity and nothing more, and its ONNX
    quantizer takes for residual only what a convolution is added to. Both products of an attention
    over up to 512 keys have both operands per_tensor, as that quantizer does; other products of two
    activations stay float. So do layers with a role in FLOAT_ROLES; a rule with `format: int8` gives
    them what they would have.

    Source: NVIDIA TensorRT documentation, "Explicit Quantization", placement recommendations;
    pytorch-quantization's models/resnet.py (_residual_quantizer); modelopt 0.47's
    onnx/quantization/graph_utils.py (build_non_residual_input_map, find_nodes_from_mha_to_exclude)
    and its default_disabled_quantizers (lm_head, routers, nn.Embedding); what ultralytics keeps
    float of a detector (pull request 26220).
    """
    decision = _tensorrt(layer)
    if left_float("tensorrt@11", layer) is None:
        return decision
    # What is said of them is all there but for the format.
    floats: dict[str, Settings | None] = {
        operand: _as_float(getattr(decision, operand)) for operand in OPERANDS
    }
    return decision.model_copy(update=floats)


FLOAT_ROLES = {
    VOCABULARY: "its channels are the vocabulary",
    ROUTER: "it chooses what computes",
    DETECTION: "it is in a detector's head",
    EMBEDDING: "a lookup, of which no engine is faster in 8 bits",
}
"""Trait -> why tensorrt@11 leaves such a layer float."""


def left_float(defaults: str | Decision, layer: Layer) -> str | None:
    """Why these defaults leave a layer float that could be quantized; None where they do not, or
    are another library's, or are spelt out."""
    if not isinstance(defaults, str) or PRESETS[defaults] not in (tensorrt_11, openvino_2026_4):
        return None
    role = next((why for trait, why in FLOAT_ROLES.items() if trait in layer.traits), None)
    if role or layer.kind is None or "weight" in layer.multiplied or _tensorrt(layer) != _NOTHING:
        return role
    if layer.traits & {SCORES, VALUES}:
        keys = _keys(layer)
        many = f"{keys} keys, more than {_LONGEST}" if keys > 0 else "a number of keys not known"
        return f"an attention over {many}"
    return "a product of two activations, and no attention's"


def _as_float(settings: Settings | None) -> Settings | None:
    return None if settings is None else settings.model_copy(update={"format": FLOAT})


def _tensorrt(layer: Layer) -> Decision:
    kind = layer.kind
    if kind is None:
        return _NOTHING
    if kind.operation == "lookup":
        return _FLOAT_LOOKUP
    if "weight" not in kind.multiplied:
        return _TENSORRT_ATTENTION if 0 < _keys(layer) <= _LONGEST else _NOTHING
    weight = layer.site("weight")
    if weight is None or weight.channel_axis is None:
        return _TENSORRT_GROUPED
    return _TENSORRT_CONV if kind.operation == "convolution" else _TENSORRT


def openvino_2026_4(layer: Layer) -> Decision:
    """tensorrt@11, and the outputs that a residual add reads beside a quantized skip input
    per_tensor. OpenVINO's INT8 convolution adds into itself what is stored as integers, and stores
    the sum in 8 bits; with one of the two in float it stores float32, and adds in a kernel of its
    own. NNCF, OpenVINO's own quantizer, places the same. Ranges of activations are by mse, where a
    sample has values enough for it: of five networks each was nearer to float than by max, by 0.5
    to 2.2 dB; NNCF clips too, to the mean of the samples' largest values.

    Source: observed with OpenVINO 2026.4.1 and NNCF 3.4.0 (bench/peers.py).
    """
    decision = tensorrt_11(layer)
    if decision.skip is not None and layer.site("skip") is not None:
        decision = decision.model_copy(update={"output": _PER_TENSOR})
    by_mse: dict[str, Settings] = {
        site.operand: settings.model_copy(update={"calibrator": _MSE})
        for site in layer.sites
        if (settings := getattr(decision, site.operand)) is not None
        and not site.constant
        and math.prod(PerTensor().block(site)) >= least_values(_MSE)
    }
    return decision.model_copy(update=by_mse)


def _keys(layer: Layer) -> int:
    """How many keys an attention's product is over; 0 for any other product."""
    operand: Operand = "other" if SCORES in layer.traits else "input"
    shape = layer.shape(operand)
    return shape[-1] if shape and layer.traits & {SCORES, VALUES} else 0


def modelopt_0_47(layer: Layer) -> Decision:
    """modelopt 0.47's INT8_DEFAULT_CFG as it is: weights per_channel on axis 0 (for a transposed
    convolution the *input* channels), every input per_tensor - pools and norms too - except of
    batch norms, LeakyReLU and names it excludes; batch norms kept. Embeddings stay float, and calls of
    functions: modelopt has quantizers in modules alone."""
    if layer.type in _MODELOPT_UNTOUCHED or CALL in layer.traits or _modelopt_excludes(layer):
        return _NOTHING
    if layer.kind is None:
        return _MODELOPT_PASSIVE
    return _MODELOPT if "weight" in layer.multiplied else _NOTHING


_MODELOPT_UNTOUCHED = BATCH_NORMS | LEAKY | LOOKUPS
# The patterns of modelopt's default_disabled_quantizers that are about names.
_MODELOPT_EXCLUDED = (
    "*block_sparse_moe.gate*", "*linear_attn.conv1d*", "*self_attention.conv1d*",
    "*linear_attn.in_proj_a*", "*linear_attn.in_proj_b*", "*lm_head*", "*mixer.conv1d*",
    "*mlp.gate.*", "*mlp.shared_expert_gate.*", "*output_layer*", "*proj_out.*", "*router*",
    "mtp.*", "output.*", "*embed_vision*", "*vision_tower*", "*visual*", "*vision_model*",
    "*multi_modal_projector*",
)  # fmt: skip


def _modelopt_excludes(layer: Layer) -> bool:
    quantizer = f"{layer.name}.input_quantizer"
    return any(fnmatch.fnmatchcase(quantizer, glob) for glob in _MODELOPT_EXCLUDED)


PRESETS: dict[str, Callable[[Layer], Decision]] = {
    "tensorrt@11": tensorrt_11,
    "modelopt@0.47": modelopt_0_47,
    "openvino@2026.4": openvino_2026_4,
}
DEFAULT = "tensorrt@11"
"""What a layer gets before any rule, where a recipe does not say."""


def spelt_out(decision: Decision) -> Callable[[Layer], Decision]:
    """Defaults written per operand: what is not said of one that is named is int8, per_tensor, max."""
    named: dict[str, Settings] = {
        operand: _PER_TENSOR.model_copy(update={k: v for k, v in given if v is not None})
        for operand in OPERANDS
        if (given := getattr(decision, operand)) is not None
    }
    complete = decision.model_copy(update=named)
    # A product of two activations is left alone where nothing is said of its second, a lookup always.
    about: Operand = "input" if "other" in named else "weight"

    def of(layer: Layer) -> Decision:
        lookup = layer.kind is not None and layer.kind.operation == "lookup"
        return complete if about in layer.multiplied and not lookup else _NOTHING

    return of


def as_given(given: Sequence[tuple[Operand, Given]]) -> Decision:
    """What a network that comes quantized has of a layer: that, and nothing else, kept as it is."""
    settings: dict[str, Settings] = {
        operand: Settings(
            format=each.format, granularity=each.granularity, calibrator=each.calibrator or _MAX
        )
        for operand, each in given
    }
    return Decision(half="allow", bn="keep").model_copy(update=settings)


def _defaults(value: Any) -> Any:
    if isinstance(value, str) and value not in PRESETS:
        raise ValueError(f"unknown defaults {value!r}{did_you_mean(value, PRESETS)}")
    if not isinstance(value, (str, dict, Decision)):
        raise ValueError(
            f"defaults are a preset ({', '.join(PRESETS)}) or weight:, input: ... keys"
        )
    return value if isinstance(value, (str, Decision)) else Decision.model_validate(value)


DefaultsKey = Annotated[
    str | Decision,
    BeforeValidator(
        _defaults,
        json_schema_input_type=Annotated[str, WithJsonSchema({"enum": list(PRESETS)})] | Decision,
    ),
]
