"""inspect: what weights are like, and the verb that tells it without data or modelopt."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from granplugin.folding import channel_ranges
from granplugin.trace import folded, trace, weight_axis
from granplugin.weight_facts import weight_facts

CHANNELS = 8


@st.composite
def layers_with_batch_norms(draw):
    """(module, bn, its Layer): any weighted type, with statistics of all sizes."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    groups = draw(st.sampled_from([1, 2, 8]))
    kind = draw(st.sampled_from(["Linear", "Conv2d", "ConvTranspose2d", "Conv1d"]))
    if kind == "Linear":
        module, bn, x = nn.Linear(8, CHANNELS), nn.BatchNorm1d(CHANNELS), torch.ones(2, 8)
    else:
        rank = int(kind[-2])
        module = getattr(nn, kind)(8, CHANNELS, 3, groups=groups, bias=draw(st.booleans()))
        bn = getattr(nn, f"BatchNorm{rank}d")(CHANNELS)
        x = torch.ones(2, 8, *(5,) * rank)
    with torch.no_grad():
        module.weight *= 10.0 ** draw(st.integers(-4, 4))
        bn.weight.normal_()
        bn.running_var.uniform_(1e-3, 10.0 ** draw(st.integers(-2, 4)))
    (layer,) = (found for found in trace(nn.Sequential(module, bn), x).layers if found.bn)
    return module, bn, layer


@settings(max_examples=40, deadline=None)
@given(layers_with_batch_norms())
def test_facts_behind_a_batch_norm_are_those_of_the_folded_weight(case):
    module, bn, layer = case
    facts = weight_facts(module, bn, layer)
    for weight, ranges in (
        (module.weight.detach().numpy(), facts.ranges_before),
        (folded(module, bn)[0], facts.ranges_after),
    ):
        assert np.array_equal(ranges, channel_ranges(weight, weight_axis(module), layer.groups))
        assert ranges.max() == abs(weight).max()
    assert facts.spread_after == layer.spread
    assert facts.spread_after == max(facts.ranges_after) / np.median(facts.ranges_after)


@settings(max_examples=40, deadline=None)
@given(layers_with_batch_norms(), st.integers(0, CHANNELS - 1), st.integers(0, CHANNELS - 1))
def test_a_channel_scaled_by_its_batch_norm_is_the_widest_only_after_folding(case, wide, dead):
    module, bn, layer = case
    with torch.no_grad():
        bn.weight.copy_(torch.sqrt(bn.running_var + bn.eps))
        bn.weight[wide] *= 1e4
        if dead != wide:
            bn.weight[dead] = 0
    untouched = weight_facts(module, None, layer)
    facts = weight_facts(module, bn, layer)
    assert facts.widest_after == wide and facts.outliers_after == (wide,)
    assert facts.dead_after == ((dead,) if dead != wide else ())
    assert facts.spread_after > 100 * facts.spread_before
    assert np.array_equal(facts.ranges_before, untouched.ranges_before)
    assert np.array_equal(untouched.ranges_after, untouched.ranges_before)
    assert facts.outliers_before == facts.dead_before == ()


def test_a_weight_of_zeros_is_dead_and_has_no_spread():
    module = nn.Conv2d(2, 3, 1)
    nn.init.zeros_(module.weight)
    (layer,) = trace(nn.Sequential(module), torch.ones(1, 2, 1, 1)).layers
    facts = weight_facts(module, None, layer)
    assert facts.dead_after == (0, 1, 2)
    assert (facts.spread_after, facts.widest_after, facts.outliers_after) == (None, None, ())
