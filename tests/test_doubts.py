"""Data that ranges are found on are held to those that the network is measured on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from granplugin.data.doubts import doubts_between, doubts_of, outlying
from granplugin.data.portrait import portraits

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def pixels(count, seed=0):
    """Images whose samples differ in brightness and contrast as photographs do, (n, 3, 8, 8)."""
    random = np.random.default_rng(seed)
    light = random.normal(MEAN, 0.08, (count, 3))[:, :, None, None] + random.normal(
        0, 0.1, (count, 1, 1, 1)
    )
    contrast = random.uniform(0.12, 0.28, (count, 1, 1, 1))
    return np.clip(light + contrast * random.standard_normal((count, 3, 8, 8)), 0, 1)


def normalized(images, mean=MEAN, std=STD):
    return ((images - mean[:, None, None]) / std[:, None, None]).astype(np.float32)


def seen(images, name="image"):
    return portraits({name: np.asarray(images)})


def told(calibration, other, role="evaluation"):
    return list(doubts_between(seen(calibration), seen(other), role))


RAW = (255 * pixels(64)).astype(np.float32)
OTHER_SCALES = {
    "0 to 255": RAW,
    "bytes": RAW.astype(np.uint8),
    "0 to 1": RAW / 255,
    "-1 to 1": RAW / 127.5 - 1,
    "mean subtracted only": RAW - 255 * MEAN[:, None, None],
    "normalized twice": normalized(normalized(pixels(64))),
    "normalized as pixels of 0 to 255": normalized(RAW),
}


@pytest.mark.parametrize("kind", OTHER_SCALES)
@pytest.mark.parametrize("swapped", [False, True])
def test_another_scale_is_told_whichever_side_has_it(kind, swapped):
    pair = [OTHER_SCALES[kind], normalized(pixels(64, 1))]
    (doubt,) = told(*(reversed(pair) if swapped else pair))
    assert "not scaled alike" in doubt.said and doubt.breaks


@settings(max_examples=20)
@given(st.integers(0, 500), st.sampled_from([1, 4, 8, 16, 64, 128]), st.sampled_from([8, 64, 128]))
def test_samples_of_one_kind_are_not_doubted(seed, calibration, other):
    for make in (
        lambda n, s: normalized(pixels(n, s)),
        lambda n, s: np.random.default_rng(s).standard_normal((n, 12)).astype(np.float32),
        lambda n, s: np.random.default_rng(s).integers(0, 999, (n, 12)),
    ):
        found = told(make(calibration, seed + 1000), make(other, seed + 2000))
        assert [doubt.said for doubt in found if doubt.breaks] == []


def test_exchanged_colours_are_told_from_images_of_other_things():
    ours = normalized(pixels(128))
    theirs = normalized(pixels(128, 1)[:, ::-1])
    (doubt,) = told(ours, theirs)
    assert "one is RGB and the other BGR" in doubt.said and doubt.breaks
    assert told(ours, normalized(pixels(128, 1))) == []
    # Skies against woods: other colours, but not those exchanged.
    assert told(ours, normalized(np.clip(pixels(128, 1) + [[[0.3]], [[0.1]], [[0.1]]], 0, 1))) == []


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.ones((32, 3, 8, 8), np.float32), "is 1 everywhere"),
        (np.zeros((32, 3, 8, 8), np.float32), "is 0 everywhere"),
        (normalized(pixels(1)), "one sample decides all ranges"),
        (np.repeat(normalized(pixels(1)), 64, 0), "nearly the same (64 were looked at)"),
        (
            normalized(pixels(1)) + np.random.default_rng(0).normal(0, 1e-3, (64, 3, 8, 8)),
            "nearly the same",
        ),
        (normalized(pixels(8)), None),
    ],
)
def test_calibration_data_that_show_nothing_are_told(images, words):
    found = list(doubts_of(seen(images)))
    assert (len(found) == 1 and words in found[0].said and found[0].breaks) if words else not found


def test_a_sample_that_decides_a_maximum_alone_is_told_where_it_is_not_usual():
    images = normalized(pixels(64))
    images[17] *= 100
    (doubt,) = outlying(seen(images))
    assert "where the median sample's reaches" in doubt.said and not doubt.breaks
    assert not list(outlying(seen(images), [seen(images[:20])]))
    assert not list(outlying(seen(normalized(pixels(64)))))


def test_values_beyond_what_calibration_shows_are_told():
    random = np.random.default_rng(0)
    ours = np.clip(random.standard_normal((64, 100)), -1.5, 1.5)
    (doubt,) = told(ours, random.standard_normal((64, 100)))
    assert "lies beyond 1.5" in doubt.said and not doubt.breaks


def test_data_of_another_scale_are_said_and_no_limit_is_judged(project):
    images = project.arrays["images"]
    project.arrays["raw"] = 100 + 50 * images
    raw = {"npz": "data.npz", "inputs": {"image": "raw"}}
    sound = {"npz": "data.npz", "inputs": {"image": "images"}, "labels": "labels"}
    data = {"calibration": raw, "evaluation": sound, "batch_size": 16}
    project.recipe(data=data, limits={"top1_drop": 90.0}, engines=["onnxruntime"])
    from conftest import run_main

    recipe = project.folder / "recipe.yaml"
    done = run_main("plan", recipe, "--out", project.out)
    assert done.code == 0 and "not scaled alike" in " ".join(done.stdout.split())
    done = project.apply()
    assert done.code == 4 and "not scaled alike" in done.stderr
    report = project.report()
    assert "not scaled alike" in report.broken_baseline
    assert [limit.verdict for limit in report.limits] == ["cannot tell"]
    done = run_main("analyze", recipe, "--no-costs", "--out", project.folder / "other")
    told = " ".join(done.stdout.split())
    assert done.code == 4 and "Cannot tell whether anything needs to change: the cal" in told


@pytest.mark.parametrize(
    ("times", "shift", "breaks"),
    [(1.0, 0.0, None), (1.6, 1.0, None), (0.3, 0.0, False), (82.0, 0.0, True), (1.0, 5.0, True)],
)
def test_what_the_first_batch_norm_was_not_trained_on_is_told(times, shift, breaks):
    import torch
    from torch import nn

    from granplugin.network.first_norm import first_norm
    from granplugin.runs.doubtful import unlike_training

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(1, 1))
    images = torch.from_numpy(normalized(pixels(64)))
    net[1].momentum = None
    with torch.no_grad():
        net[:2].train()(images)
    net.eval()
    net.forward = lambda image: nn.Sequential.forward(net, image)
    fresh = torch.from_numpy(normalized(pixels(16, 1)))
    if shift:
        net[1].running_mean += shift * net[1].running_var.sqrt()
    # The layer behind the norm would refuse these shapes: it does not run.
    seen = first_norm(net, {"image": fresh * times})
    doubts = list(unlike_training(seen))
    assert [doubt.breaks for doubt in doubts] == ([] if breaks is None else [breaks])
    net[1].num_batches_tracked.zero_()
    assert first_norm(net, {"image": fresh}) is None


def test_one_channel_of_another_scale_is_told_among_sound_ones():
    features = np.random.default_rng(0).standard_normal((2, 64, 30)) * np.logspace(-2, 3, 30)
    assert not told(*features)
    features[1, :, 4] *= 50
    (doubt,) = told(*features)
    assert "1 of 30 channels of" in doubt.said and "(4)" in doubt.said and doubt.breaks


def test_ranges_that_the_evaluation_data_leave_far_behind_are_told_at_their_sites(project):
    import json

    shape = [1, 1, 8, 8]
    site = {"format": "int8", "shape": shape, "block": shape, "amax": [[[[0.25]]]]}
    amax = {"granplugin_amax": 1, "sites": {"conv.input": site}}
    project.write("amax.json", json.dumps(amax))
    project.recipe(limits={"top1_drop": 90.0}, statistics={"import": "amax.json"})
    done = project.apply()
    told = "1 of 3 sites the evaluation data reach up to 14 times as far as the ranges (conv.input)"
    assert done.code == 4 and told in done.stderr, done.stderr
    assert told in project.report().broken_baseline
