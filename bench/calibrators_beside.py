"""Ranges of pytorch-quantization's calibrators beside those of a recipe's, on the same tensors.

python bench/calibrators_beside.py --save      (needs pytorch-quantization: the extra `test`)
"""

from __future__ import annotations

import argparse
import sys
import types
from pathlib import Path

import numpy as np
import torch

from granplugin.quant.calibrators import Calibrator, amax_of, histogram
from granplugin.quant.formats import FORMATS, fake_quantize, scale_of

HERE = Path(__file__).resolve().parent
SHAPE = (64, 64, 16, 16)


def tensors() -> dict[str, torch.Tensor]:
    """What inputs of layers are like."""
    made = torch.Generator().manual_seed(0)
    normal = torch.randn(SHAPE, generator=made)
    far = normal.clone()
    far.view(-1)[::100_003] *= 20
    return {
        "normal": normal,
        "behind ReLU": normal.relu(),
        "normal with 11 outliers": far,
        "Laplace": torch.distributions.Laplace(0.0, 1.0).icdf(
            torch.rand(SHAPE, generator=made).clamp(1e-6, 1 - 1e-6)
        ),
    }


def theirs(x: torch.Tensor) -> dict[str, float]:
    """In four batches, as it is calibrated."""
    # It runs on the CPU without its extension, but for mse, which asks for a GPU by name.
    sys.modules.setdefault("pytorch_quantization.cuda_ext", types.ModuleType("cuda_ext"))
    torch.Tensor.cuda = lambda self: self
    from pytorch_quantization import calib

    most, seen = calib.MaxCalibrator(8, None, False), calib.HistogramCalibrator(8, None, False)
    for batch in x.chunk(4):
        most.collect(batch)
        seen.collect(batch)
    return {
        "max": float(most.compute_amax()),
        "percentile 99.99": float(seen.compute_amax("percentile", percentile=99.99)),
        "entropy": float(seen.compute_amax("entropy")),
        "mse": float(seen.compute_amax("mse")),
    }


CALIBRATORS = {
    "max": Calibrator(),
    "percentile 99.99": Calibrator("percentile", 99.99),
    "entropy": Calibrator("entropy"),
    "mse": Calibrator("mse"),
}


def ours(x: torch.Tensor) -> dict[str, float]:
    counts, largest = histogram(x.numpy()), float(x.abs().max())
    return {
        name: amax_of(each, counts, largest, FORMATS["int8"]) for name, each in CALIBRATORS.items()
    }


def loss(x: torch.Tensor, amax: float) -> float:
    """SQNR in dB of the tensor rounded to int8 with this range."""
    scale = scale_of(np.float32(amax).reshape([1] * x.ndim), FORMATS["int8"])
    error = fake_quantize(x.numpy(), scale, tuple(x.shape), FORMATS["int8"]) - x.numpy()
    return float(10 * np.log10(np.square(x.numpy()).sum() / np.square(error).sum()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", action="store_true", help="write bench/results")
    args = parser.parse_args()
    lines = [f"{'':<26}{'calibrator':<18}{'theirs':>9}{'here':>9}{'ratio':>8}{'dB':>8}{'dB':>8}"]
    for name, x in tensors().items():
        there, here = theirs(x), ours(x)
        for each in CALIBRATORS:
            a, b = there[each], here[each]
            lines.append(
                f"{name:<26}{each:<18}{a:>9.4f}{b:>9.4f}{b / a:>8.3f}{loss(x, a):>8.2f}{loss(x, b):>8.2f}"
            )
    text = "\n".join(lines)
    print(text)
    if args.save:
        (HERE / "results" / "calibrators_beside.txt").write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
