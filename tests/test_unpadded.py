"""data.mask: ranges are of what is real, whatever stands in the padding."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from granplugin.calibration.statistics import needs_of
from granplugin.data.unpadded import unpadded
from granplugin.errors import DataError, RecipeError
from granplugin.planning.plan import make_plan
from granplugin.recipe.load import load_recipe
from granplugin.runs.session import Session
from granplugin.store.run_folder import open_run

NET = '''
import numpy as np
import torch
from torch import nn


class Net(nn.Module):
    """One attention, which leaves the padding out, and a mean over what is real."""

    def __init__(self, longest=None):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.q = nn.Embedding(20, 8), nn.Linear(8, 8)
        self.k, self.head = nn.Linear(8, 8), nn.Linear(8, 3)
        self.at = nn.Parameter(torch.randn(longest or 1, 8))

    def forward(self, tokens, mask):
        x, real = self.embed(tokens) + self.at, mask[..., None].float()
        scores = self.q(x) @ self.k(x).transpose(1, 2) + (mask[:, None].float() - 1) * 1e4
        x = scores.softmax(-1) @ x
        return self.head((x * real).sum(1) / real.sum(1))


def data(padding="none", mask="mask"):
    random = np.random.default_rng(0)
    real = [random.integers(1, 20, n) for n in random.integers(2, 10, 24)]
    if padding == "none":
        for tokens in real:
            yield {"tokens": tokens[None], mask: np.ones((1, len(tokens)), np.int64)}
        return
    tokens, told = random.integers(0, 20, (24, 12)), np.zeros((24, 12), np.int64)
    for at, each in enumerate(real):
        here = slice(0, len(each)) if padding == "right" else slice(12 - len(each), 12)
        tokens[at, here], told[at, here] = each, 1
    if padding == "holes":
        told[5, 6:] = 0, 1, 0, 0, 1, 0
    yield {"tokens": tokens, mask: told}
'''
CALIBRATORS = ({"calibrator": "max"}, {"calibrator": {"percentile": 99.0}}, {"calibrator": "mse"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("masked")
    (path / "nets.py").write_text(NET)
    names: dict = {}
    exec(NET, names)
    tokens = torch.ones(2, 5, dtype=torch.int64)
    axes = {name: {0: "batch", 1: "length"} for name in ("tokens", "mask")}
    for file, open_axes in (("net.onnx", axes), ("fixed.onnx", {n: {0: "batch"} for n in axes})):
        torch.onnx.export(
            names["Net"]().eval(), (tokens, tokens), path / file, dynamo=False,
            input_names=["tokens", "mask"], dynamic_axes=open_axes,
        )  # fmt: skip
    return path


@contextmanager
def session(folder, model, padding, mask=("mask",), **data):
    recipe = {
        "version": 1,
        "model": model,
        "data": {
            "calibration": {"callable": "nets.py:data", "args": {"padding": padding}},
            "mask": list(mask),
            "batch_size": 8,
            **data,
        },
        "rules": [
            {"match": name, "input": {"granularity": "per_tensor", **how}}
            for name, how in zip(("q", "k", "head"), CALIBRATORS, strict=True)
            if "callable" in model
        ],
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    with open_run(folder / "run") as run:
        yield Session(load_recipe(path), run)


TORCH = {
    "callable": "nets.py:Net",
    "dynamic": {name: {1: "length"} for name in ("tokens", "mask")},
}


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("model", [TORCH, {"onnx": "net.onnx"}], ids=["torch", "onnx"])
def test_ranges_of_padded_samples_with_a_mask_are_those_without_padding(folder, model, padding):
    def ranges(padding, mask):
        with session(folder, model, padding, mask) as opened:
            seen = opened.collect(needs_of(make_plan(opened.loaded, opened.layers).rows))
        counts = {need.site: counts for need, counts in seen.counts.items()}
        return {need.site: amax for need, amax in seen.amax.items()}, counts

    amax, counts = ranges("none", ())
    masked, of_masked = ranges(padding, ("mask",))
    assert masked.keys() == amax.keys() and len(amax) >= 7
    for site in amax:
        np.testing.assert_allclose(masked[site], amax[site], rtol=1e-6)
    for site in counts:
        assert counts[site].sum() == of_masked[site].sum()
        # A last bit may move a value to the next bin.
        assert np.abs(of_masked[site] - counts[site]).sum() <= 0.01 * counts[site].sum()
    padded, _ = ranges(padding, ())
    assert any((padded[site] > amax[site] * 1.01).any() for site in amax)


@pytest.mark.parametrize(
    "model, padding, mask, told",
    [
        (TORCH, "right", ("masks",), "recipe.yaml:.*mask 'masks' is none of the inputs: tokens, mask"),
        (TORCH, "right", ("tokens",), "'tokens' holds other numbers than 1 .real. and 0"),
        (TORCH, "holes", ("mask",), "'mask': sample 5 has padding between real positions"),
        (
            {"callable": "nets.py:Net", "args": {"longest": 12}}, "right", ("mask",),
            "the network takes no samples without their padding, as of tokens",
        ),
        ({"onnx": "fixed.onnx"}, "right", ("mask",), r"takes no samples without.*takes \[any, 5\]"),
        (
            {"callable": "nets.py:Net", "static_batch": True}, "right", ("mask",),
            "with model.static_batch the network takes whole batches alone",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_cut_is_refused_with_the_way_out(folder, model, padding, mask, told):
    with (
        pytest.raises((DataError, RecipeError), match=told),
        session(folder, model, padding, mask) as opened,
    ):
        opened.collect(needs_of(make_plan(opened.loaded, opened.layers).rows))


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=6), st.data())
def test_cut_samples_are_what_was_padded(sizes, data):
    """Pictures in a larger frame, with a number for each column beside them."""
    axes = {"mask": {1: "h", 2: "w"}, "x": {2: "h", 3: "w"}, "columns": {1: "w"}}
    mask, x, columns = np.zeros((len(sizes), 4, 3)), np.zeros((len(sizes), 2, 4, 3)), []
    real = [(np.full((2, h, w), at + 1.0), h, w) for at, (h, w) in enumerate(sizes) if h and w]
    for at, (h, w) in enumerate(sizes):
        top, left = data.draw(st.integers(0, 4 - h)), data.draw(st.integers(0, 3 - w))
        mask[at, top : top + h, left : left + w] = 1
        x[at, :, top : top + h, left : left + w] = at + 1
        columns.append(np.where(mask[at].any(0), at + 1, 0))
    batch = {"mask": mask, "x": x, "columns": np.array(columns)}
    if not real:
        with pytest.raises(DataError, match="no sample has"):
            list(unpadded([batch], ["mask"], axes))
        return
    found = [
        (pixels, row)
        for cut in unpadded([batch], ["mask"], axes)
        for pixels, row, whole in zip(cut["x"], cut["columns"], cut["mask"], strict=True)
        if whole.all()
    ]
    assert sorted((p.shape, p.flat[0]) for p, _ in found) == sorted(
        (p.shape, p.flat[0]) for p, *_ in real
    )
    assert all((p == p.flat[0]).all() and (row == p.flat[0]).all() for p, row in found)
