"""Layers and rows of a plan, as tests write them."""

from granplugin.planning.rows import QuantizedRow
from granplugin.quant.granularity import PerBlock, parse_granularity
from granplugin.quant.layers import Layer, sites_of
from granplugin.quant.site import Site


def layer_of(name, type="Conv2d", shapes=None, tensors=None, groups=1, **facts):
    """A layer with these operands -> shapes, and operands -> numbers of their tensors."""
    sites = sites_of(name, type, shapes or {}, groups, tensors or {})
    return Layer(name, type, sites, groups=groups, **facts)


def quantized_row(
    site, shape, granularity="per_tensor", format="int8", channel_axis=0, block=None, **changed
):
    """A quantized row of the site `layer.operand`; `block` instead of a granularity."""
    place, _, operand = site.rpartition(".")
    at = Site(place, operand, shape, channel_axis)
    chosen = PerBlock(shape=block) if block else parse_granularity(granularity)
    facts = {"type": "Conv2d", "rule": "r1", "where": "recipe.yaml:3:5", **changed}
    row = QuantizedRow(at=at, format=format, granularity=chosen, **facts)
    assert row.block, "DoesNotApply where it has none"
    return row
