"""Transformers' networks from tiny configs, with random weights, and one batch for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}
_TEXT: dict[str, Any] = {"vocab_size": 50, "max_position_embeddings": 32}
_DECODER: dict[str, Any] = {**_TEXT, **_SIZES, "num_key_value_heads": 1, "use_cache": False}
_VISION: dict[str, Any] = {"image_size": 32, "patch_size": 16, **_SIZES}
_BOTH_SIDES = {
    f"{side}_{key}": value
    for side in ("encoder", "decoder")
    for key, value in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 48))
}
_TOKENS = {"input_ids": (8,)}
_PIXELS = {"pixel_values": (3, 32, 32)}


def _detr() -> nn.Module:
    backbone = hf.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic",
        out_features=["stage2"],
    )  # fmt: skip
    config = hf.DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None,
        backbone_config=backbone, d_model=32, num_queries=4, num_labels=3, **_BOTH_SIDES,
    )  # fmt: skip
    return hf.DetrForObjectDetection(config)


def _swin() -> nn.Module:
    config = hf.SwinConfig(
        image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[1, 2], window_size=4,
        num_labels=5,
    )  # fmt: skip
    return hf.SwinForImageClassification(config)


def _clip() -> nn.Module:
    text = {"vocab_size": 50, "max_position_embeddings": 16, "eos_token_id": 2, **_SIZES}
    return hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=_VISION, projection_dim=16))


def _whisper() -> nn.Module:
    config = hf.WhisperConfig(
        vocab_size=60, d_model=32, num_mel_bins=8, max_source_positions=16, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, **_BOTH_SIDES,
    )  # fmt: skip
    return hf.WhisperModel(config).encoder


def _t5() -> nn.Module:
    config = hf.T5Config(
        vocab_size=50, d_model=32, d_kv=16, d_ff=48, num_layers=1, num_heads=2, use_cache=False
    )
    return hf.T5ForConditionalGeneration(config)


def _distilbert() -> nn.Module:
    config = hf.DistilBertConfig(**_TEXT, dim=32, n_layers=1, n_heads=2, hidden_dim=48)
    return hf.DistilBertForSequenceClassification(config)


def _gpt2() -> nn.Module:
    config = hf.GPT2Config(
        vocab_size=50, n_positions=32, n_embd=32, n_layer=1, n_head=2, use_cache=False,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return hf.GPT2LMHeadModel(config)


def _qwen3() -> nn.Module:
    return hf.Qwen3ForCausalLM(hf.Qwen3Config(**_DECODER, head_dim=16, tie_word_embeddings=True))


def _mixtral() -> nn.Module:
    return hf.MixtralForCausalLM(hf.MixtralConfig(**_DECODER, num_local_experts=3))


def _wav2vec2() -> nn.Module:
    config = hf.Wav2Vec2Config(
        vocab_size=20, conv_dim=(16, 16), conv_stride=(4, 4), conv_kernel=(8, 4),
        num_feat_extract_layers=2, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2,
        **_SIZES,
    )  # fmt: skip
    return hf.Wav2Vec2ForCTC(config)


def _segformer() -> nn.Module:
    config = hf.SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[16, 32],
        num_attention_heads=[1, 2], patch_sizes=[7, 3], strides=[4, 2], mlp_ratios=[2, 2],
        decoder_hidden_size=16, num_labels=3,
    )  # fmt: skip
    return hf.SegformerForSemanticSegmentation(config)


_Made = tuple[Callable[[], nn.Module], dict[str, tuple[int, ...]]]
NETS: dict[str, _Made] = {
    "bert": (lambda: hf.BertForSequenceClassification(hf.BertConfig(**_TEXT, **_SIZES)), _TOKENS),
    "distilbert": (_distilbert, _TOKENS),
    "vit": (lambda: hf.ViTForImageClassification(hf.ViTConfig(num_labels=5, **_VISION)), _PIXELS),
    "swin": (_swin, _PIXELS),
    "detr": (_detr, _PIXELS),
    "clip": (_clip, {**_TOKENS, **_PIXELS}),
    "whisper": (_whisper, {"input_features": (8, 32)}),
    "t5": (_t5, {**_TOKENS, "decoder_input_ids": (6,)}),
    "gpt2": (_gpt2, _TOKENS),
    "llama": (lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**_DECODER)), _TOKENS),
    "qwen3": (_qwen3, _TOKENS),
    "mixtral": (_mixtral, _TOKENS),
    "wav2vec2": (_wav2vec2, {"input_values": (640,)}),
    "segformer": (_segformer, _PIXELS),
}


def make(name: str) -> nn.Module:
    """The network in eval mode, the same at each call."""
    torch.manual_seed(0)
    return NETS[name][0]().eval()


def batch(name: str, samples: int = 2) -> dict[str, Tensor]:
    """Random inputs, by name."""
    torch.manual_seed(1)
    return {
        key: torch.randint(3, 50, (samples, *shape))
        if key.endswith("input_ids")
        else torch.randn(samples, *shape)
        for key, shape in NETS[name][1].items()
    }
