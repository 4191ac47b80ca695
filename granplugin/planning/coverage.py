"""How much of what a network multiplies a plan quantizes, and why the rest stays float."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from granplugin.planning.rows import Plan, Row
from granplugin.quant.layers import Layer
from granplugin.quant.multiplications import Multiplication


@dataclass(frozen=True, slots=True)
class FloatProducts:
    """Products that stay float for one reason: `what` they are, and in which `places`, each once.

    `macs` are their multiply-accumulates for one sample, 0 where they are not known.
    """

    what: str
    reason: str
    products: int
    macs: int
    places: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Coverage:
    """`quantized` of the `products` have an operand in fewer bits, `half` of these only one.

    `macs` are multiply-accumulates for one sample, `weights` values of stored tensors that are
    multiplied, each tensor once. `floats` are in the order of their multiply-accumulates.
    """

    products: int
    quantized: int
    half: int
    macs: int
    quantized_macs: int
    weights: int
    quantized_weights: int
    floats: tuple[FloatProducts, ...]


def coverage(
    products: Sequence[Multiplication],
    layers: Iterable[Layer],
    plan: Plan,
    zero_sites: Collection[str] = (),
) -> Coverage:
    """What the plan quantizes of all products; layers of `zero_sites` stay float
    whatever it says."""
    by_name = {layer.name: layer for layer in layers}
    rows = {row.site: row for row in plan.rows}
    told: dict[tuple[str, str], list[Multiplication]] = {}
    quantized: list[Multiplication] = []
    half = 0
    reached: set[str] = set()
    for product in products:
        layer = by_name.get(product.place)
        if layer is None or layer.unusable or not layer.multiplied:
            inside = product.place.rpartition(".")[0] in by_name
            told.setdefault(_without_sites(product, layer, inside), []).append(product)
            continue
        own = [row for o in layer.multiplied if (row := rows.get(f"{layer.name}.{o}"))]
        done = [row for row in own if row.quantized]
        if any(row.site in zero_sites for row in own):
            told.setdefault((product.type, "saw only zeros"), []).append(product)
        elif done:
            quantized.append(product)
            half += len(done) < len(layer.multiplied)
            if any(row.operand == "weight" for row in done):
                reached.update(name for name, _ in product.weights)
        else:
            by = _reason(own[0]) if own else "its tensors are not known"
            told.setdefault((product.type, by), []).append(product)
    floats = [
        FloatProducts(
            what,
            reason,
            len(of),
            _macs(of),
            tuple(dict.fromkeys(each.place or "the model itself" for each in of)),
        )
        for (what, reason), of in told.items()
    ]
    weights = {name: values for product in products for name, values in product.weights}
    return Coverage(
        len(products),
        len(quantized),
        half,
        _macs(products),
        _macs(quantized),
        sum(weights.values()),
        sum(values for name, values in weights.items() if name in reached),
        tuple(sorted(floats, key=lambda each: -each.macs)),
    )


_RECURRENCE = "a recurrence is one node, and stays as it is"
_INSIDE = "its products are inside one function"
_WHOLE = {
    **dict.fromkeys(
        "lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell".split(),
        _RECURRENCE,
    ),
    **dict.fromkeys("LSTM GRU RNN".split(), _RECURRENCE),
    **dict.fromkeys("linalg_multi_dot chain_matmul linalg_matrix_power cdist".split(), _INSIDE),
    "vmap": "it is computed inside torch.vmap",
    "Einsum": "it is more than one matrix product of two factors",
    "einsum": "it is more than one matrix product of two factors",
    "addbmm": "it sums its products over the batch",
    "dot": "it multiplies two vectors",
}
"""Function, or operator of a file, that is no layer -> why."""


def _reason(row: Row) -> str:
    """What leaves a site float."""
    return f"by {row.rule}: {row.note}" if row.note else f"by {row.rule}"


def _without_sites(product: Multiplication, layer: Layer | None, inside: bool) -> tuple[str, str]:
    """What such a product is, and why it has no row; `inside` tells that a layer calls it."""
    if layer is None or not layer.multiplied:
        own = product.function == product.type  # a node of a file
        what = product.type if own else f"{product.function} in {product.type}"
        other = "a layer calls it, as by a hook" if inside else "no layer that can be quantized"
        return what, _WHOLE.get(product.function, other)
    why = (layer.unusable or "").partition(", which")[0]
    return product.type, why.removeprefix(f"its class {product.type} has its ")


def _macs(products: Iterable[Multiplication]) -> int:
    return sum(product.macs or 0 for product in products)
