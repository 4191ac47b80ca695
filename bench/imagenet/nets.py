"""Two networks with their ImageNet weights, and pictures, as prepare.py has fetched them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

FOLDER = Path(
    os.environ.get("GRANPLUGIN_BENCH", Path.home() / ".cache" / "granplugin-bench" / "imagenet")
)
FETCHED = FOLDER / "evaluation.npz"
_MEAN, _STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
# Filters in front of the depthwise convolution for each one behind it, filters, repeats, stride.
_BLOCKS = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
    (6, 320, 1, 1),
)  # fmt: skip


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(),
    )


class _Inverted(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, wider: int) -> None:
        super().__init__()
        hidden = inputs * wider
        self.added = stride == 1 and inputs == outputs
        layers = [] if wider == 1 else [_conv(inputs, hidden, 1)]
        layers += [
            _conv(hidden, hidden, 3, stride, hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        ]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x) if self.added else self.conv(x)


class MobileNetV2(nn.Module):
    """MobileNetV2 1.0 (Sandler et al., 2018, table 2), with torchvision's names of its weights."""

    def __init__(self) -> None:
        super().__init__()
        layers, inputs = [_conv(3, 32, 3, 2)], 32
        for wider, outputs, repeats, stride in _BLOCKS:
            for number in range(repeats):
                layers.append(_Inverted(inputs, outputs, 1 if number else stride, wider))
                inputs = outputs
        self.features = nn.Sequential(*layers, _conv(inputs, 1280, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, 1000))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(image).mean((2, 3)))


def mobilenet_v2() -> nn.Module:
    """torchvision's first ImageNet weights (71.9 % on the validation set, by its own account)."""
    model = MobileNetV2()
    model.load_state_dict(torch.load(FOLDER / "mobilenet_v2.pth", weights_only=True))
    return model.eval()


class _Lite0(nn.Module):
    """EfficientNet-Lite0, its padding as a layer of its own in front of each convolution."""

    def __init__(self) -> None:
        super().__init__()
        sys.path.insert(0, str(FOLDER / "packages"))
        from efficientnet_lite_pytorch import EfficientNet

        self.net = EfficientNet.from_name("efficientnet-lite0")

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.net(image)


def lite0() -> nn.Module:
    """The TPU team's ImageNet weights (75.1 % on the validation set, by its own account)."""
    model = _Lite0()
    model.net.load_state_dict(torch.load(FOLDER / "lite0.pth", weights_only=True))
    return model.eval()


def pictures(part: str, scale: str, samples: int | None = None) -> Iterator[dict[str, np.ndarray]]:
    """Crops of 224, (n, 3, 224, 224), in steps of 16; scaled as the network was trained: "imagenet"
    by mean and deviation, "tpu" (x - 127) / 128."""
    with np.load(FOLDER / f"{part}.npz") as file:
        crops = file["image"][:samples]
    for start in range(0, len(crops), 16):
        x = crops[start : start + 16].astype(np.float32)
        x = (x / 255 - _MEAN) / _STD if scale == "imagenet" else (x - 127) / 128
        yield {"image": np.ascontiguousarray(x.transpose(0, 3, 1, 2), dtype=np.float32)}
