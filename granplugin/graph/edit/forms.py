"""Equal forms of a written graph: the same numbers, for engines that compute the plain one wrongly
or slowly.

An engine's table of capabilities names those that it is given; a form is one entry of FORMS.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from granplugin.graph.edit.apart_zeros import apart_from_shared_zeros, shared_zeros
from granplugin.graph.edit.extrema import apart_from_extrema, quantized_extrema
from granplugin.graph.edit.nonnegative import nonnegative_unsigned, quantizes_nonnegative
from granplugin.graph.edit.rounded_pools import rounded_before_pools, rounded_pools
from granplugin.graph.edit.uncut import apart_from_cuts, cut_products
from granplugin.graph.edit.unsigned import concatenates, unsigned
from granplugin.graph.edit.zero_bias import add_zero_biases, unbiased


@dataclass(frozen=True)
class Form:
    """`asked` tells whether a graph has what the form is for, `write` changes it."""

    asked: Callable[[ir.Model], bool]
    write: Callable[[ir.Model], None]


def _rounds_behind_pools(model: ir.Model) -> bool:
    return next(rounded_pools(model), None) is not None


FORMS: dict[str, Form] = {
    "rounded-pools": Form(_rounds_behind_pools, rounded_before_pools),
    "unsigned-nonnegative": Form(quantizes_nonnegative, nonnegative_unsigned),
    "unsigned-concat": Form(concatenates, unsigned),
    "zero-bias": Form(lambda model: bool(unbiased(model)), add_zero_biases),
    "apart-zeros": Form(lambda model: bool(shared_zeros(model)), apart_from_shared_zeros),
    "uncut": Form(lambda model: bool(cut_products(model)), apart_from_cuts),
    "extremum": Form(lambda model: bool(quantized_extrema(model)), apart_from_extrema),
}


def asked_forms(model: ir.Model, names: Sequence[str]) -> tuple[str, ...]:
    """Those of these forms that a graph has to be written in."""
    return tuple(name for name in names if FORMS[name].asked(model))


def in_forms(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A copy of the graph in these forms, one after another."""
    model = model.clone()
    for name in names:
        FORMS[name].write(model)
    return model
