"""Block shapes: what they cut, what refining them does, and what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from granplugin.quant.formats import FORMATS, fake_quantize, quantize, scale_of
from granplugin.quant.granularity import (
    GRANULARITIES,
    DoesNotApply,
    PerBlock,
    PerChannel,
    PerElement,
    PerTensor,
    PerToken,
    expand,
    grid,
    parse_granularity,
    reduce_blocks,
    scales,
    written,
)
from granplugin.quant.site import OPERANDS, Site

axes = st.integers(-5, 5)
granularities = st.one_of(
    st.builds(PerTensor, dynamic=st.booleans()),
    st.builds(PerToken, dynamic=st.booleans()),
    st.just(PerElement()),
    st.builds(PerChannel, axis=st.none() | axes),
    st.builds(PerBlock, size=st.integers(1, 9), axis=st.none() | axes),
    st.builds(PerBlock, shape=st.lists(st.integers(1, 9), min_size=1, max_size=5).map(tuple)),
)


@st.composite
def sites(draw):
    """Inputs and outputs have 1 on axis 0, for any batch."""
    role = draw(st.sampled_from(OPERANDS))
    rank = draw(st.integers(2, 5))
    shape = tuple(draw(st.lists(st.integers(1, 12), min_size=rank, max_size=rank)))
    if role != "weight":
        return Site("a", role, (1, *shape[1:]), draw(st.sampled_from([1, rank - 1])))
    return Site("a", role, shape, draw(st.sampled_from([0, 1, None])))


@given(sites(), granularities)
def test_blocks_tile_the_tensor_or_are_refused_in_one_sentence(site, granularity):
    try:
        block = granularity.block(site)
    except DoesNotApply as err:
        said = str(err)
        assert said and "\n" not in said and said == said.strip() and not said.endswith(".")
        return
    cells = grid(site.shape, block)
    assert tuple(np.multiply(cells, block)) == site.shape
    assert scales(site.shape, block) == np.prod(cells)


@given(sites(), granularities)
def test_a_scale_of_an_input_never_depends_on_the_sample(site, granularity):
    if site.constant:
        site = Site("a", "input", (1, *site.shape[1:]), 1)
    try:
        block = granularity.block(site)
    except DoesNotApply:
        return
    assert block[0] == 1 and grid(site.shape, block)[0] == 1


@settings(deadline=None)
@given(sites(), st.data())
def test_each_value_has_the_scale_of_its_own_block(site, data):
    shape = site.shape
    block = tuple(
        data.draw(st.sampled_from([d for d in range(1, n + 1) if n % d == 0])) for n in shape
    )
    values = data.draw(hnp.arrays(np.int64, shape, elements=st.integers(0, 1000)))
    cells = reduce_blocks(values, block)
    spread = expand(cells, block)
    for index in np.ndindex(shape):
        cell = tuple(i // part for i, part in zip(index, block, strict=True))
        assert spread[index] == cells[cell]
        inside = tuple(slice(c * p, (c + 1) * p) for c, p in zip(cell, block, strict=True))
        assert cells[cell] == values[inside].max()


@given(granularities)
def test_a_granularity_survives_its_own_text(granularity):
    assert parse_granularity(written(granularity)) == granularity


moderate = st.floats(-(2.0**20), 2.0**20, width=32).map(lambda x: x if abs(x) > 2.0**-20 else 1.0)


@given(st.data(), st.sampled_from(list(FORMATS)))
def test_refining_the_blocks_never_enlarges_an_error_bound(data, name):
    shape = (data.draw(st.integers(1, 4)), 2 * data.draw(st.integers(1, 4)), 3)
    values = data.draw(hnp.arrays(np.float32, shape, elements=moderate))
    fmt = FORMATS[name]
    chain = [
        PerTensor(),
        PerChannel(),
        PerBlock(shape=(1, 2, 3)),
        PerBlock(size=3, axis=2),
        PerElement(),
    ]
    bounds = []
    for granularity in chain:
        block = granularity.block(Site("a", "weight", shape, 0))
        scale = scale_of(reduce_blocks(np.abs(values), block), fmt)
        bound = expand(scale, block) / 2
        error = np.abs(fake_quantize(values, scale, block, fmt) - values)
        if fmt.integer:  # of a float format the step, not the scale, bounds the error
            assert (error <= bound * (1 + 1e-5)).all()
        bounds.append(bound)
    for coarse, fine in zip(bounds, bounds[1:], strict=False):
        assert (fine <= coarse).all()


@given(
    hnp.arrays(np.float32, (4, 6), elements=moderate),
    hnp.arrays(np.int64, (4, 1), elements=st.integers(-8, 8)),
)
def test_per_channel_does_not_see_channels_scaled_by_powers_of_two(weight, exponents):
    block = PerChannel().block(Site("a", "weight", weight.shape, 0))
    factors = np.exp2(exponents).astype(np.float32)
    fmt = FORMATS["int8"]

    def through(values):
        scale = scale_of(reduce_blocks(np.abs(values), block), fmt)
        return fake_quantize(values, scale, block, fmt)

    assert np.array_equal(through(weight * factors), through(weight) * factors)


def test_per_tensor_loses_the_channels_that_are_scaled_down():
    weight = np.array([[0.5, -1.0], [0.75, 1.0]], np.float32)
    factors = np.array([[1.0], [2.0**-10]], np.float32)
    block = PerTensor().block(Site("a", "weight", weight.shape, 0))
    scale = scale_of(reduce_blocks(np.abs(weight * factors), block), FORMATS["int8"])
    assert not quantize(weight * factors, scale, block, FORMATS["int8"])[1].any()


def test_an_axis_counts_from_either_end():
    site = Site("a", "weight", (2, 3, 4), 0)
    assert PerChannel(axis=-1).block(site) == (2, 3, 1)
    assert PerChannel(axis=2).block(site) == (2, 3, 1)


@pytest.mark.parametrize(
    ("granularity", "shape", "role", "axis", "said"),
    [
        (PerChannel(axis=4), (8, 3, 3, 3), "weight", 0, "axis 4 is out of range for [8, 3, 3, 3]"),
        (PerChannel(axis=-5), (8, 3, 3, 3), "weight", 0, "axis -5 is out of range"),
        (PerChannel(), (8, 2, 3, 3), "weight", None, "no single axis is the output channel"),
        (PerChannel(axis=0), (1, 8, 4, 4), "input", 1, "axis 0 of an input is the batch"),
        (PerChannel(axis=-4), (1, 8, 4, 4), "output", 1, "axis 0 of an output is the batch"),
        (PerChannel(), (1,), "input", 1, "has no channel axis"),
        (PerBlock(size=4, axis=0), (1, 8, 4, 4), "input", 1, "axis 0 of an input is the batch"),
        (PerBlock(shape=(2, 8, 4, 4)), (1, 8, 4, 4), "input", 1, "axis 0 is the batch"),
        (PerBlock(size=5, axis=1), (8, 12), "weight", 0, "5 does not divide axis 1 of [8, 12]; 4"),
        (PerBlock(shape=(1, 2)), (8, 2, 3), "weight", 0, "has 2 axes, the tensor [8, 2, 3] has 3"),
        (PerToken(), (8, 3), "weight", 0, "a weight has no tokens"),
        (PerToken(), (1, 64), "input", 1, "cannot differ between samples"),
        (PerToken(), (1, 8, 4, 4), "input", 1, "last axis is the features"),
    ],
)
def test_what_cannot_be_is_refused_with_its_reason(granularity, shape, role, axis, said):
    with pytest.raises(DoesNotApply) as caught:
        granularity.block(Site("a", role, shape, axis))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("per_chanel", "did you mean 'per_channel'?"),
        ("per_block", "either size"),
        ({"per_block": {"size": 4, "shape": [1, 4]}}, "either size"),
        ({"per_block": {"shape": [1, 4], "axis": 1}}, "not both"),
        ({"per_block": {"size": 0}}, "a positive integer"),
        ({"per_block": {"size": True}}, "a positive integer"),
        ({"per_block": {"shape": [1, 0]}}, "a list of positive integers"),
        (
            {"per_block": {"shape": 4}},
            "per_block: shape must be a list of positive integers, not 4",
        ),
        ({"per_channel": {"axis": None}}, "per_channel: axis must be an integer, not None"),
        (
            {"per_block": {"shape": 4}},
            "per_block: shape must be a list of positive integers, not 4",
        ),
        ({"per_channel": {"axis": None}}, "per_channel: axis must be an integer, not None"),
        ({"per_block": {"shape": []}}, "a list of positive integers"),
        ({"per_block": {"siz": 4}}, "did you mean 'size'?"),
        ({"per_block": 16}, "by name"),
        ({"per_channel": {"axis": 1.5}}, "an integer"),
        ({"per_element": {"axis": 1}}, "takes no parameters"),
        ({"per_tensor": {"axis": 1}}, "no parameter 'axis'"),
        ({"per_token": {"dynamic": "yes"}}, "true or false"),
        ({"per_tensor": {}, "per_token": {}}, "one name"),
        (["per_tensor"], "a granularity is a name"),
        (3, "a granularity is a name"),
    ],
)
def test_a_granularity_that_is_none_is_refused(text, said):
    with pytest.raises(ValueError) as caught:
        parse_granularity(text)
    assert said in str(caught.value)


@given(st.recursive(st.none() | st.integers() | st.text(max_size=4) | st.sampled_from(
    [*GRANULARITIES, "size", "axis", "shape"]), lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from([*GRANULARITIES, "size", "axis", "shape", "x"]), inner,
                      max_size=2), max_leaves=6))  # fmt: skip
def test_anything_else_is_a_granularity_or_a_sentence(value):
    try:
        parse_granularity(value)
    except ValueError as err:
        assert "\n" not in str(err)
