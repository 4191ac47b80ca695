"""The full-width networks of the benchmarks: transformers' architectures with random values.

Latency, size and memory depend on shapes and not on what was learned. The values are such that
activations stay in an ordinary range: numbers close to zero would be slow for their own reasons,
and those beyond float16's range would stay float32.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from transformers import (
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

SIZE = 224


def mobilenet_v2() -> PreTrainedModel:
    """MobileNetV2 1.0, 3.5 million parameters, with its zero padding as separate nodes."""
    return _randomized(MobileNetV2ForImageClassification(MobileNetV2Config(num_labels=1000)))


def resnet_50() -> PreTrainedModel:
    """ResNet-50, 25.6 million parameters."""
    return _randomized(ResNetForImageClassification(ResNetConfig(num_labels=1000)))


def vit_s_16() -> PreTrainedModel:
    """ViT-S/16, 22 million parameters."""
    torch.manual_seed(0)
    config = ViTConfig(
        num_labels=1000, hidden_size=384, num_attention_heads=6, intermediate_size=1536
    )
    return ViTForImageClassification(config).eval()


def vit_b_16() -> PreTrainedModel:
    """ViT-B/16, 86 million parameters."""
    torch.manual_seed(0)
    return ViTForImageClassification(ViTConfig(num_labels=1000)).eval()


def images(
    samples: int, batch: int = 16, size: int = SIZE, seed: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """Random images (batch, 3, size, size), float32, made as they are asked for."""
    for start in range(0, samples, batch):
        random = np.random.default_rng(seed + start)
        shape = (min(batch, samples - start), 3, size, size)
        yield {"pixel_values": random.standard_normal(shape, dtype=np.float32)}


def _randomized(model: PreTrainedModel) -> PreTrainedModel:
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.5)
            module.momentum = None  # the mean and variance of all batches so far
    with torch.no_grad():
        model.train()(**{name: torch.from_numpy(x) for name, x in next(images(8)).items()})
    return model.eval()
