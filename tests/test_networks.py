"""The shipped networks and images are what the recipes and the README say they are."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

RECIPES = Path(__file__).parents[1] / "recipes"
WEIGHTS = {
    "mobilenet_v2": RECIPES / "weights" / "mobilenet_digits.safetensors",
    "efficientnet_b0": RECIPES / "weights" / "efficientnet_digits.safetensors",
}


def build(name: str) -> torch.nn.Module:
    return runpy.run_path(str(RECIPES / "networks.py"))[name]()


@pytest.fixture
def script(monkeypatch) -> dict:
    """What recipes/train_digits.py defines."""
    monkeypatch.syspath_prepend(RECIPES)
    return runpy.run_path(str(RECIPES / "train_digits.py"))


@pytest.fixture(scope="module")
def digits() -> dict[str, torch.Tensor]:
    with np.load(RECIPES / "data" / "digits.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


@pytest.fixture(scope="module", params=list(WEIGHTS))
def trained(request) -> torch.nn.Module:
    network = build(request.param)
    network.load_state_dict(load_file(WEIGHTS[request.param]), strict=True)
    return network.eval()


@torch.inference_mode()
def test_shipped_weights_recognise_96_percent_of_the_held_out_images(trained, digits):
    predicted = torch.cat([trained(image).argmax(1) for image in digits["test_images"].split(100)])
    assert (predicted == digits["test_labels"]).float().mean() >= 0.96


@torch.inference_mode()
@pytest.mark.parametrize("count", [1, 7, 24])
def test_an_image_gets_the_same_logits_in_any_batch(trained, digits, count):
    images = digits["test_images"][:count]
    one_by_one = torch.cat([trained(image) for image in images.split(1)])
    torch.testing.assert_close(trained(images), one_by_one, rtol=1e-3, atol=1e-3)


def test_both_weight_files_together_stay_below_8_megabytes():
    assert sum(path.stat().st_size for path in WEIGHTS.values()) < 8_000_000


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_seed_decides_the_trained_weights(name, script, digits):
    def trained(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        network = build(name)
        images, labels = digits["train_images"][:24], digits["train_labels"][:24]
        script["train"](network, images, labels, epochs=1, rate=0.1)
        return network.state_dict()

    first, again, other = trained(3), trained(3), trained(4)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


def test_no_image_is_in_both_splits(digits):
    splits = [digits["train_images"], digits["test_images"]]
    assert [len(split) for split in splits] == [1000, 797]
    assert len({image.numpy().tobytes() for image in torch.cat(splits)}) == 1797


def test_both_splits_hold_every_digit_in_the_same_proportion(digits):
    train, test = (torch.bincount(digits[f"{split}_labels"]) for split in ("train", "test"))
    torch.testing.assert_close(train / 1000, test / 797, rtol=0, atol=2e-3)


def test_images_are_ready_to_feed(digits):
    for split in ("train", "test"):
        images, labels = digits[f"{split}_images"], digits[f"{split}_labels"]
        assert images.dtype == torch.float32 and labels.dtype == torch.int64
        assert images.shape == (len(labels), 1, 32, 32)
        assert images.min() >= -1 and images.max() <= 1


def test_the_script_rebuilds_the_shipped_images_exactly(script, digits):
    pytest.importorskip("sklearn", reason="the images come from scikit-learn")
    rebuilt = script["digits"]()
    assert rebuilt.keys() == digits.keys()
    for name, array in rebuilt.items():
        np.testing.assert_array_equal(array, digits[name].numpy())
