"""Makes what the digits recipes ship: data/digits.npz and weights/*_digits.safetensors.

    python recipes/train_digits.py data            # needs scikit-learn
    python recipes/train_digits.py mobilenet
    python recipes/train_digits.py efficientnet

The images are the 1,797 of the UCI "Optical Recognition of Handwritten Digits" set that
scikit-learn carries (E. Alpaydin and C. Kaynak, 1998, doi:10.24432/C50P49, CC BY 4.0): 8x8 pixels
of 0..16, here resized to 32x32 and scaled to -1..1. Training is plain - SGD, no augmentation, no
label smoothing, no dropout - and keeps the last epoch: the held-out images choose nothing.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from networks import efficientnet_b0, mobilenet_v2
from safetensors.torch import save_file
from torch import Tensor, nn

HERE = Path(__file__).parent
DATA = HERE / "data" / "digits.npz"
NETWORKS = {"mobilenet": mobilenet_v2, "efficientnet": efficientnet_b0}
BATCH = 50


def digits() -> dict[str, np.ndarray]:
    """1,000 images to train and calibrate, 797 held out: each split stratified by label.

    Images are float32 (count, 1, 32, 32), labels int64 (count,).
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    loaded = load_digits()
    small = torch.from_numpy(loaded.images)[:, None]
    resized = nn.functional.interpolate(small, (32, 32), mode="bilinear", align_corners=False)
    # 129 grey levels instead of 1,025 shrink the file by a fifth and are exact in float32.
    images = ((resized * 8).round() / 64 - 1).float().numpy()
    labels = loaded.target.astype(np.int64)
    train, test = train_test_split(
        np.arange(len(labels)), train_size=1000, stratify=labels, random_state=0
    )
    return {
        "train_images": images[train],
        "train_labels": labels[train],
        "test_images": images[test],
        "test_labels": labels[test],
    }


def train(network: nn.Module, images: Tensor, labels: Tensor, epochs: int, rate: float) -> None:
    """SGD with momentum over a shuffled epoch at a time; the rate warms up, then falls to 0."""
    optimizer = torch.optim.SGD(
        network.parameters(), rate, momentum=0.9, weight_decay=4e-5, nesterov=True
    )
    steps = epochs * math.ceil(len(images) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=steps, cycle_momentum=False
    )
    network.train()
    for epoch in range(epochs):
        started, total = time.perf_counter(), 0.0
        for chosen in torch.randperm(len(images)).split(BATCH):
            loss = nn.functional.cross_entropy(network(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(chosen)
        seconds = time.perf_counter() - started
        print(f"epoch {epoch + 1}/{epochs}  loss {total / len(images):.4f}  {seconds:.1f} s")


@torch.inference_mode()
def top1(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Percentage of `images` whose largest logit is the label's."""
    network.eval()
    predicted = torch.cat([network(batch).argmax(1) for batch in images.split(100)])
    return 100 * (predicted == labels).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["data", *NETWORKS])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--rate", type=float, default=0.1, help="the largest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="the file to write instead of the shipped one")
    args = parser.parse_args()
    if args.what == "data":
        np.savez_compressed(args.out or DATA, **digits())
        return

    # The sums of a convolution depend on the number of threads, and with them every later digit.
    torch.set_num_threads(2)
    torch.manual_seed(args.seed)
    with np.load(DATA) as arrays:
        data = {name: torch.from_numpy(arrays[name]) for name in arrays}
    network = NETWORKS[args.what]()
    started = time.perf_counter()
    train(network, data["train_images"], data["train_labels"], args.epochs, args.rate)
    print(f"trained {args.what} in {time.perf_counter() - started:.0f} s")
    print(f"held-out top-1 {top1(network, data['test_images'], data['test_labels']):.2f} %")
    out = args.out or HERE / "weights" / f"{args.what}_digits.safetensors"
    save_file(network.state_dict(), out)


if __name__ == "__main__":
    main()
