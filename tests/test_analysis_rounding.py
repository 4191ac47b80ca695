"""Roundings of activations against the oracle, bit for bit, and against modelopt."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_values import quantized_row

from granplugin.analysis.rounding import rounding
from granplugin.graph.read.verify_lowered import run_time_scales
from granplugin.quant.formats import FORMATS, fake_quantize, scale_of
from granplugin.quant.granularity import DoesNotApply

CPU = torch.device("cpu")
GRANULARITIES = [
    "per_tensor",
    "per_token",
    "per_element",
    {"per_channel": {"axis": 1}},
    {"per_channel": {"axis": -1}},
    {"per_block": {"size": 2}},
    {"per_block": {"size": 3, "axis": 1}},
    {"per_block": {"size": 4, "axis": 1}},
]
DYNAMIC = [{"per_tensor": {"dynamic": True}}, {"per_token": {"dynamic": True}}]

OF_INPUTS = [name for name, fmt in FORMATS.items() if fmt.block is None]


def make_row(shape, granularity, fmt):
    return quantized_row("l.input", shape, granularity, fmt, len(shape) - 1, type="Linear")


@st.composite
def cases(draw, granularities):
    """A row, a batch for it of values on and off the rounding boundaries, and a generator."""
    shape = (1, *draw(st.lists(st.sampled_from([1, 2, 6, 12]), min_size=1, max_size=4)))
    fmt = draw(st.sampled_from(OF_INPUTS))
    try:
        row = make_row(shape, draw(st.sampled_from(granularities)), fmt)
    except DoesNotApply:
        row = make_row(shape, granularities[0], fmt)
    rng = np.random.default_rng(draw(st.integers(0, 9999)))
    x = rng.standard_normal((draw(st.integers(1, 4)), *shape[1:])).astype(np.float32)
    if draw(st.booleans()):
        x = np.round(x * 8) / 8
    if draw(st.booleans()):
        x[0] = 0
    size = np.float32(2.0 ** draw(st.integers(-110, 110)))
    return row, x * size, rng, size


def assert_same(found, expected):
    """Equal, and no more said of the sign of a zero."""
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == expected.dtype == np.float32


@settings(deadline=None, max_examples=300)
@given(cases(GRANULARITIES), st.booleans())
def test_static_scales_round_as_the_oracle_does(case, in_place):
    row, x, rng, size = case
    fmt = FORMATS[row.format]
    # Ties and saturation: whole and halved multiples of the scale.
    amax = rng.choice([0.5, 1, fmt.largest / 4, 3.7], row.grid).astype(np.float32) * size
    scale = np.repeat(scale_of(amax, fmt), len(x), 0)
    expected = fake_quantize(x, scale, (1, *row.block[1:]), fmt)
    given = torch.from_numpy(x.copy())
    for values in (given.clone(), given.transpose(0, -1).contiguous().transpose(0, -1)):
        out = values if in_place else None
        found = rounding(row, amax, CPU)(values, out=out)
        assert found is out or not in_place
        assert_same(found.numpy(), expected)
        assert in_place or torch.equal(values, given)


@settings(deadline=None, max_examples=200)
@given(cases(DYNAMIC))
def test_scales_of_run_time_are_those_of_the_lowered_graph(case):
    row, x, _, _ = case
    found = rounding(row, None, CPU)(torch.from_numpy(x.copy())).numpy()
    assert_same(found, fake_quantize(x, *run_time_scales(row, x), FORMATS[row.format]))
    alone = [rounding(row, None, CPU)(torch.from_numpy(part[None].copy())).numpy() for part in x]
    assert_same(found, np.concatenate(alone))


@pytest.mark.parametrize("fmt", OF_INPUTS)
@pytest.mark.parametrize("granularity", [*GRANULARITIES, *DYNAMIC], ids=str)
def test_modelopt_rounds_alike_but_for_a_step_at_boundaries(granularity, fmt):
    from granplugin.modelopt_bridge import fake_quantize as modelopts

    row = make_row((1, 12, 6), granularity, fmt)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 12, 6)).astype(np.float32)
    amax = None if row.dynamic else rng.uniform(0.5, 3, row.grid).astype(np.float32)
    found = rounding(row, amax, CPU)(torch.from_numpy(x)).numpy()
    differs = ~np.isclose(found, modelopts(x, row, amax), rtol=1e-5, atol=1e-6)
    assert differs.mean() <= 0.001
