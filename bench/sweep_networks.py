"""The networks of the sweep: how each is made, and random samples for it.

`size` of one sample is smaller than these networks' own: it changes neither the products nor what
engines do with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

SAMPLES = 16


def _torchvision(name: str, **args: Any) -> nn.Module:
    import torchvision.models as models
    from torchvision.models import segmentation, video

    of = next(module for module in (models, segmentation, video) if hasattr(module, name))
    return getattr(of, name)(weights=None, **args)


def _timm(name: str, **args: Any) -> nn.Module:
    import timm

    return timm.create_model(name, pretrained=False, num_classes=10, **args)


def _ultralytics(kind: str, name: str, **args: Any) -> nn.Module:
    from ultralytics.nn import tasks

    return getattr(tasks, kind)(f"{name}.yaml", ch=3, nc=8, verbose=False, **args)


def _maxvit() -> nn.Module:
    from torchvision.models.maxvit import MaxVit

    return MaxVit(
        input_size=(64, 64), stem_channels=16, partition_size=4, block_channels=[16, 32],
        block_layers=[1, 1], head_dim=16, stochastic_depth_prob=0.0, num_classes=10,
    )  # fmt: skip


def _mvit() -> nn.Module:
    from torchvision.models.video import mvit

    blocks = [
        mvit.MSBlockConfig(
            num_heads=n, input_channels=32, output_channels=32 * n, kernel_q=[3, 3, 3],
            kernel_kv=[3, 3, 3], stride_q=[1, n, n], stride_kv=[1, 3 - n, 3 - n],
        )
        for n in (1, 2)
    ]  # fmt: skip
    return mvit.MViT(
        spatial_size=(32, 32), temporal_size=4, block_setting=blocks, residual_pool=True,
        residual_with_cls_embed=False, rel_pos_embed=True, proj_after_attn=True, num_classes=10,
    )  # fmt: skip


def _hidden() -> dict[str, int]:
    return {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
    }


def _transformers(model: str, config: str, /, **args: Any) -> nn.Module:
    import transformers

    return getattr(transformers, model)(getattr(transformers, config)(**args))


def _detr() -> nn.Module:
    import transformers

    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1] * 4, out_features=["stage4"]
    )
    sizes = {
        f"{side}_{key}": value
        for side in ("encoder", "decoder")
        for key, value in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 64))
    }
    return _transformers(
        "DetrForObjectDetection", "DetrConfig", use_timm_backbone=False, backbone=None,
        use_pretrained_backbone=False, backbone_config=backbone, d_model=64, num_queries=10,
        num_labels=5, **sizes,
    )  # fmt: skip


def _whisper() -> nn.Module:
    sizes = {
        f"{side}_{key}": value
        for side in ("encoder", "decoder")
        for key, value in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 128))
    }
    return _transformers(
        "WhisperModel", "WhisperConfig", vocab_size=200, d_model=64, max_source_positions=20,
        num_mel_bins=16, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=3,
        **sizes,
    ).encoder  # fmt: skip


_Make = Callable[[], nn.Module]
_IMAGE, _TOKENS = {"x": (3, 96, 96)}, {"input_ids": (12,)}
_V = {"vocab_size": 200}
_DECODER = {**_V, "max_position_embeddings": 64, "use_cache": False, "num_key_value_heads": 2}
_VISION = {"image_size": 32, "patch_size": 8}
_MOE = {"moe_intermediate_size": 48, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 16}
_PIXELS = {"pixel_values": (3, 32, 32)}


def shapes_of(name: str) -> dict[str, tuple[int, ...]]:
    """Input -> the shape of one sample."""
    return _named(name)[1]


def _named(name: str) -> tuple[_Make, dict[str, tuple[int, ...]]]:
    """How a network is made, and the shapes of one sample; integers are tokens."""
    hf, h = _transformers, _hidden()
    special: dict[str, tuple[_Make, dict[str, tuple[int, ...]]]] = {
        **{
            name: (partial(_ultralytics, *of), {"x": (3, 128, 128)})
            for name, of in ULTRALYTICS.items()
        },
        "yolov8n-pose": (
            lambda: _ultralytics("PoseModel", "yolov8n-pose", data_kpt_shape=(5, 3)),
            {"x": (3, 128, 128)},
        ),
        "maxvit": (_maxvit, {"x": (3, 64, 64)}),
        "mvit": (_mvit, {"x": (3, 4, 32, 32)}),
        **{
            name: (partial(_timm, name, img_size=64, **args), {"x": (3, 64, 64)})
            for name, args in SIZED.items()
        },
        "r3d_18": (lambda: _torchvision("r3d_18"), {"x": (3, 8, 32, 32)}),
        "googlenet": (
            lambda: _torchvision("googlenet", aux_logits=False, init_weights=True),
            {"x": (3, 96, 96)},
        ),
        "vit_small": (
            lambda: _timm("vit_small_patch16_224", img_size=96, depth=4),
            {"x": (3, 96, 96)},
        ),
        "swin_tiny": (
            lambda: _timm("swin_tiny_patch4_window7_224", img_size=112),
            {"x": (3, 112, 112)},
        ),
        "bert": (lambda: hf("BertForSequenceClassification", "BertConfig", **_V, **h), _TOKENS),
        "distilbert": (
            lambda: hf(
                "DistilBertForSequenceClassification", "DistilBertConfig", **_V, dim=64,
                n_layers=2, n_heads=4, hidden_dim=128,
            ),
            _TOKENS,
        ),
        "vit": (lambda: hf("ViTForImageClassification", "ViTConfig", **_VISION, **h), _PIXELS),
        "swin": (
            lambda: hf(
                "SwinForImageClassification", "SwinConfig", image_size=32, patch_size=2,
                embed_dim=24, depths=[2, 2], num_heads=[2, 4], window_size=4,
            ),
            _PIXELS,
        ),
        "detr": (_detr, {"pixel_values": (3, 64, 64)}),
        "clip": (
            lambda: hf(
                "CLIPModel", "CLIPConfig", projection_dim=32,
                text_config={**_V, "max_position_embeddings": 16, "eos_token_id": 2, **h},
                vision_config={**_VISION, **h},
            ),
            {**_TOKENS, **_PIXELS},
        ),
        "whisper encoder": (_whisper, {"input_features": (16, 40)}),
        "t5": (
            lambda: hf(
                "T5ForConditionalGeneration", "T5Config", **_V, d_model=64, d_kv=16, d_ff=128,
                num_layers=2, num_heads=4, use_cache=False, decoder_start_token_id=0,
            ),
            {**_TOKENS, "decoder_input_ids": (8,)},
        ),
        "gpt2": (
            lambda: hf(
                "GPT2LMHeadModel", "GPT2Config", **_V, n_positions=64, n_embd=64, n_layer=2,
                n_head=4, use_cache=False,
            ),
            _TOKENS,
        ),
        "llama": (lambda: hf("LlamaForCausalLM", "LlamaConfig", **_DECODER, **h), _TOKENS),
        "qwen3": (
            lambda: hf(
                "Qwen3ForCausalLM", "Qwen3Config", **_DECODER, **h, head_dim=16,
                tie_word_embeddings=True,
            ),
            _TOKENS,
        ),
        "mixtral": (
            lambda: hf(
                "MixtralForCausalLM", "MixtralConfig", **_DECODER, **h, num_local_experts=4
            ),
            _TOKENS,
        ),
        "qwen3-moe": (
            lambda: hf("Qwen3MoeForCausalLM", "Qwen3MoeConfig", **_DECODER, **h, **_MOE), _TOKENS
        ),
        "wav2vec2": (
            lambda: hf(
                "Wav2Vec2ForCTC", "Wav2Vec2Config", vocab_size=32, **h, conv_dim=(32, 32, 32),
                conv_stride=(5, 2, 2), conv_kernel=(10, 3, 3), num_feat_extract_layers=3,
                num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
            ),
            {"input_values": (1600,)},
        ),
        "segformer": (
            lambda: hf(
                "SegformerForSemanticSegmentation", "SegformerConfig", num_labels=5,
                hidden_sizes=[16, 16, 32, 32], depths=[1] * 4, num_attention_heads=[1, 1, 2, 2],
                decoder_hidden_size=32,
            ),
            {"pixel_values": (3, 64, 64)},
        ),
    }  # fmt: skip
    if name in special:
        return special[name]
    if name in (*TORCHVISION, *MORE_TORCHVISION):
        shapes = {"input": _IMAGE["x"]} if name.startswith("lraspp") else _IMAGE
        return lambda: _torchvision(name, **SEGMENTS.get(name, {})), shapes
    return lambda: _timm(name), _IMAGE


SEGMENTS = {"deeplabv3_mobilenet_v3_large": {"weights_backbone": None}}
SEGMENTS["lraspp_mobilenet_v3_large"] = {"weights_backbone": None}
TORCHVISION = (
    "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "resnet50", "regnet_y_400mf",
    "densenet121", "googlenet", "convnext_tiny", *SEGMENTS, "r3d_18",
)  # fmt: skip
TIMM = (
    "tf_efficientnet_b0", "nf_resnet26", "mobilenetv4_conv_small", "ghostnet_100",
    "efficientvit_b0", "fastvit_t8", "vit_small", "swin_tiny",
)  # fmt: skip
FUSED = "yolo11n, fused"
ULTRALYTICS = {
    "yolo11n": ("DetectionModel", "yolo11n"),
    FUSED: ("DetectionModel", "yolo11n"),
    "yolov8n-seg": ("SegmentationModel", "yolov8n-seg"),
    "yolov8n-obb": ("OBBModel", "yolov8n-obb"),
    "yolov8n-cls": ("ClassificationModel", "yolov8n-cls"),
    "yolo26n": ("DetectionModel", "yolo26n"),
    "rtdetr-l": ("RTDETRDetectionModel", "rtdetr-l"),
}
TRANSFORMERS = (
    "bert", "distilbert", "vit", "swin", "detr", "clip", "whisper encoder", "t5", "gpt2", "llama",
    "qwen3", "mixtral", "qwen3-moe", "wav2vec2", "segformer",
)  # fmt: skip
MORE_TORCHVISION = ("shufflenet_v2_x0_5", "mnasnet0_5", "maxvit", "mvit")
SIZED: dict[str, dict[str, Any]] = {
    "coatnet_pico_rw_224": {},
    "levit_128s": {},
    "beit_base_patch16_224": {"depth": 2},
    "efficientformerv2_s0": {},
}
MORE_TIMM = (
    "resnest14d", "mobilevit_xxs", "edgenext_xx_small", "xcit_nano_12_p8_224", "pvt_v2_b0",
    "starnet_s1", *SIZED,
)  # fmt: skip
NAMES = (
    *TORCHVISION, *TIMM, *ULTRALYTICS, "yolov8n-pose", *TRANSFORMERS, *MORE_TORCHVISION, *MORE_TIMM,
)  # fmt: skip
STATIC = ("rtdetr-l",)
"""Those that are exported with one batch size alone."""


def build(name: str) -> nn.Module:
    """The network in eval mode; its batch norms have seen 64 random samples, and what its maker
    sets to zero, for training to begin with, is drawn."""
    torch.manual_seed(0)
    make, _ = _named(name)
    model = make()
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = None
        norm.reset_running_stats()
        norm.train()
    with torch.no_grad():
        for batch in data(name, 64 if norms else 0):
            model(**{key: torch.from_numpy(values) for key, values in batch.items()})
    return model.eval().fuse(verbose=False) if name == FUSED else model.eval()


def data(name: str, samples: int = SAMPLES, seed: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """Random samples, in batches of 8: tokens and floats."""
    shapes = shapes_of(name)
    random = np.random.default_rng(seed)
    for _ in range(samples // 8):
        yield {
            key: random.integers(3, 200, (8, *shape))
            if key.endswith("input_ids")
            else random.standard_normal((8, *shape), np.float32)
            for key, shape in shapes.items()
        }
