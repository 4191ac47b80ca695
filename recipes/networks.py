"""The two networks of the digits recipes, as in their papers but narrowed, for 32x32 images.

Both take `image`, float32 of shape (batch, channels, height, width), and return logits of shape
(batch, classes). Strides follow the papers except for the stem, which keeps the 32x32 resolution.
"""

from __future__ import annotations

from torch import Tensor, nn

# (expansion, channels, blocks, stride of the first block, kernel)
# MobileNetV2, arXiv:1801.04381, table 2.
MOBILENET_STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 32, 3, 2, 3),
    (6, 64, 4, 2, 3),
    (6, 96, 3, 1, 3),
    (6, 160, 3, 2, 3),
    (6, 320, 1, 1, 3),
)

# EfficientNet-B0, arXiv:1905.11946, table 1.
EFFICIENTNET_STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)


class ConvBn(nn.Sequential):
    """A convolution that keeps the size (or halves it, stride 2), its BN and an activation."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        activation: type[nn.Module] | None,
        stride: int = 1,
        groups: int = 1,
    ):
        super().__init__()
        self.conv = nn.Conv2d(
            inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(outputs)
        if activation is not None:
            self.act = activation()


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate in 0..1 computed from all channels' means."""

    def __init__(self, channels: int, squeezed: int):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.act = nn.SiLU()
        self.restore = nn.Conv2d(squeezed, channels, 1)
        self.gate = nn.Sigmoid()

    def forward(self, features: Tensor) -> Tensor:
        return features * self.gate(self.restore(self.act(self.reduce(self.pool(features)))))


class InvertedResidual(nn.Sequential):
    """Expand (1x1), depthwise, squeeze-excite if asked for, project (1x1), and the residual add."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        expansion: int,
        stride: int,
        kernel: int,
        activation: type[nn.Module],
        squeeze_excite: bool,
    ):
        super().__init__()
        hidden = inputs * expansion
        if expansion != 1:
            self.expand = ConvBn(inputs, hidden, 1, activation)
        self.depthwise = ConvBn(hidden, hidden, kernel, activation, stride, groups=hidden)
        if squeeze_excite:
            # A quarter of the block's inputs, not of its expanded channels: the paper's ratio.
            self.squeeze_excite = SqueezeExcite(hidden, inputs // 4)
        self.project = ConvBn(hidden, outputs, 1, None)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, features: Tensor) -> Tensor:
        result = super().forward(features)
        return features + result if self.residual else result


class Network(nn.Module):
    """`features` (stem, blocks, head), the mean over the image, and a linear `classifier`."""

    def __init__(self, features: nn.Sequential, classes: int):
        super().__init__()
        self.features = features
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(features[-1].conv.out_channels, classes)
        _initialize(self)

    def forward(self, image: Tensor) -> Tensor:
        return self.classifier(self.pool(self.features(image)).flatten(1))


def mobilenet_v2(width: float = 0.5, classes: int = 10, channels: int = 1) -> Network:
    """MobileNetV2 (arXiv:1801.04381): inverted residuals with ReLU6.

    As in the paper, the head keeps its 1280 channels at a `width` below 1.
    """
    features = _features(MOBILENET_STAGES, width, max(width, 1.0), channels, nn.ReLU6, False)
    return Network(features, classes)


def efficientnet_b0(width: float = 0.5, classes: int = 10, channels: int = 1) -> Network:
    """EfficientNet-B0 (arXiv:1905.11946): inverted residuals with SiLU and squeeze-excite."""
    features = _features(EFFICIENTNET_STAGES, width, width, channels, nn.SiLU, True)
    return Network(features, classes)


def _features(
    stages: tuple[tuple[int, ...], ...],
    width: float,
    head_width: float,
    channels: int,
    activation: type[nn.Module],
    squeeze_excite: bool,
) -> nn.Sequential:
    inputs = _scaled(32, width)
    features = nn.Sequential(ConvBn(channels, inputs, 3, activation))
    for expansion, outputs, blocks, first_stride, kernel in stages:
        outputs = _scaled(outputs, width)
        for stride in (first_stride, *[1] * (blocks - 1)):
            features.append(
                InvertedResidual(
                    inputs, outputs, expansion, stride, kernel, activation, squeeze_excite
                )
            )
            inputs = outputs
    return features.append(ConvBn(inputs, _scaled(1280, head_width), 1, activation))


def _scaled(channels: int, width: float) -> int:
    """`channels * width` to the nearest multiple of 8, never losing more than a tenth."""
    scaled = max(8, int(channels * width + 4) // 8 * 8)
    return scaled if scaled >= 0.9 * channels * width else scaled + 8


def _initialize(network: nn.Module) -> None:
    """Fan-out normal convolutions (arXiv:1502.01852) and a small normal classifier."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
