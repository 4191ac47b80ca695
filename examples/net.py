"""The network of the notebooks: five layers for 32x32 digits, with a channel that died in training.

`python net.py` trains it again, in half a minute.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

HERE = Path(__file__).parent
WEIGHTS = HERE / "net.safetensors"
DEAD = 5


def block(inputs: int, outputs: int, kernel: int, stride: int, groups: int) -> nn.Sequential:
    conv = nn.Conv2d(
        inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False
    )
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class Net(nn.Module):
    """`image`, float32 of shape (batch, 1, 32, 32), to logits of shape (batch, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(1, 16, kernel=3, stride=2, groups=1)
        self.depthwise = block(16, 16, kernel=3, stride=1, groups=16)
        self.pointwise = block(16, 32, kernel=1, stride=1, groups=1)
        self.reduce = block(32, 32, kernel=3, stride=2, groups=1)
        self.head = nn.Linear(32, 10)

    def forward(self, image: Tensor) -> Tensor:
        features = self.pointwise(self.depthwise(self.stem(image)))
        return self.head(self.reduce(features).mean((2, 3)))


def build() -> nn.Module:
    model = Net().eval()
    model.load_state_dict(load_file(WEIGHTS))
    return model


def train() -> None:
    with np.load(HERE.parent / "recipes/data/digits.npz") as data:
        arrays = {name: torch.from_numpy(data[name]) for name in data}
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(30):
        for chosen in torch.randperm(len(arrays["train_images"])).split(50):
            with torch.no_grad():  # behind its ReLU this channel is zero, whatever comes in
                model.stem[1].weight[DEAD], model.stem[1].bias[DEAD] = 0, -0.1
            loss = nn.functional.cross_entropy(
                model(arrays["train_images"][chosen]), arrays["train_labels"][chosen].long()
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        model.stem[1].weight[DEAD], model.stem[1].bias[DEAD] = 0, -0.1
        right = model.eval()(arrays["test_images"]).argmax(1) == arrays["test_labels"]
    print(f"top-1 on {len(right)} held-out digits: {100 * right.float().mean():.2f} %")
    save_file(model.state_dict(), WEIGHTS)


if __name__ == "__main__":
    train()
