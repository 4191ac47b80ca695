"""The full-width networks of the benchmarks: transformers' architectures with random values.

Latency, size and memory depend on shapes and not on what was learned. The values are such that
activations stay in an ordinary range: numbers close to zero would be slow for their own reasons.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import nn
from transformers import (
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
)

SIZE = 224


def mobilenet_v2() -> PreTrainedModel:
    """MobileNetV2 1.0, 3.5 million parameters, with its zero padding as separate nodes."""
    return _randomized(MobileNetV2ForImageClassification(MobileNetV2Config(num_labels=1000)))


def resnet_50() -> PreTrainedModel:
    """ResNet-50, 25.6 million parameters."""
    return _randomized(ResNetForImageClassification(ResNetConfig(num_labels=1000)))


def images(samples: int, batch: int = 16) -> Iterator[dict[str, np.ndarray]]:
    """Random images (batch, 3, 224, 224), float32, made as they are asked for."""
    for start in range(0, samples, batch):
        random = np.random.default_rng(start)
        shape = (min(batch, samples - start), 3, SIZE, SIZE)
        yield {"pixel_values": random.standard_normal(shape, dtype=np.float32)}


def _randomized(model: PreTrainedModel) -> PreTrainedModel:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.5)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()
