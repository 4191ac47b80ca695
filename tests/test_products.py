"""What multiplies is found: as many products as an independent count at torch's dispatcher sees, or
the difference is told with its reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
import transformers_nets
from conftest import Project
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from granplugin.network.computed import compute_once
from granplugin.network.forward import evaluating
from granplugin.network.trace import Traced, trace
from granplugin.planning.coverage import Coverage, coverage
from granplugin.planning.plan import make_plan
from granplugin.recipe.load import load_part

MULTIPLY = frozenset(
    "mm bmm addmm baddbmm mv addmv dot addbmm convolution conv_tbc _trilinear _grouped_mm "
    "_euclidean_dist mkldnn_rnn_layer".split()
)


class Dispatched(TorchDispatchMode):
    """Counts the operators that multiply."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        name = name.removesuffix("_")
        self.seen[name] += name in MULTIPLY
        return func(*args, **(kwargs or {}))


def looked_at(model: nn.Module, given: dict) -> tuple[Counter, Traced, Coverage]:
    counted = Dispatched()
    compute_once(model)
    with evaluating(model), sdpa_kernel(SDPBackend.MATH), counted:
        model(**given)
    traced = trace(model, given)
    plan = make_plan(load_part({"version": 1}), traced.layers)
    return counted.seen, traced, coverage(traced.products, traced.layers, plan)


def calls(traced: Traced) -> int:
    """Of layers that multiply and ran."""
    ran = {product.place for product in traced.products}
    return sum(layer.calls for layer in traced.layers if layer.name in ran)


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


class Net(nn.Module):
    """A network that computes one thing."""

    def __init__(self, computed: Callable, held: nn.Module | nn.Parameter | None):
        super().__init__()
        self.computed, self.held = computed, held

    def forward(self, x):
        return self.computed(x, self.held)


ROWS, IMAGE = (2, 3, 4), (2, 3, 8, 8)
LAYERS: dict[str, tuple[Callable, Callable, tuple[int, ...]]] = {
    "conv1d": (F.conv1d, lambda: weight(5, 3, 2), ROWS),
    "conv2d": (F.conv2d, lambda: weight(5, 3, 2, 2), IMAGE),
    "conv3d": (F.conv3d, lambda: weight(5, 3, 2, 2, 2), (2, 3, 4, 4, 4)),
    "conv_transpose2d": (F.conv_transpose2d, lambda: weight(3, 5, 2, 2), IMAGE),
    "linear": (F.linear, lambda: weight(5, 4), ROWS),
    "matmul": (torch.matmul, lambda: weight(4, 5), ROWS),
    "torch.linalg.matmul": (torch.linalg.matmul, lambda: weight(4, 5), ROWS),
    "@": (lambda x, w: x @ w, lambda: weight(4, 5), ROWS),
    "mm": (torch.mm, lambda: weight(4, 5), (2, 4)),
    "addmm": (lambda x, w: torch.addmm(x[:, :1], x, w), lambda: weight(4, 5), (2, 4)),
    "bmm": (lambda x, _: torch.bmm(x, x.mT), lambda: None, ROWS),
    "baddbmm": (lambda x, _: torch.baddbmm(x[:, :, :1], x, x.mT), lambda: None, ROWS),
    "baddbmm_": (lambda x, _: (x @ x.mT).baddbmm_(x, x.mT), lambda: None, ROWS),
    "einsum": (lambda x, w: torch.einsum("bnd,dhk->bhnk", x, w), lambda: weight(4, 2, 3), ROWS),
    "tensordot": (lambda x, w: torch.tensordot(x, w, 1), lambda: weight(4, 5), ROWS),
    "inner": (torch.inner, lambda: weight(5, 4), ROWS),
    "bilinear": (lambda x, m: m(x, x), lambda: nn.Bilinear(4, 4, 5), ROWS),
    "attention": (
        lambda x, m: m(x, x, x)[0],
        lambda: nn.MultiheadAttention(4, 2, batch_first=True),
        ROWS,
    ),
    "encoder": (
        lambda x, m: m(x),
        lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
        ROWS,
    ),
    "decoder": (lambda x, m: m(x, x), lambda: nn.TransformerDecoderLayer(4, 2, 8), ROWS),
    "called twice": (lambda x, m: m(m(x)), lambda: nn.Linear(4, 4), ROWS),
    "weight first": (lambda x, w: w @ x, lambda: weight(5, 3), ROWS),
    "weight first in an einsum": (
        lambda x, w: torch.einsum("oi,bic->boc", w, x),
        lambda: weight(5, 3),
        ROWS,
    ),
}


@pytest.mark.parametrize("what", LAYERS)
def test_each_operator_that_multiplies_is_a_call_of_a_layer(what):
    computed, held, shape = LAYERS[what]
    seen, traced, covered = looked_at(Net(computed, held()).eval(), {"x": torch.randn(shape)})
    assert calls(traced) == seen.total()
    assert not any(layer.unusable for layer in traced.layers)
    assert not any("no layer" in each.reason for each in covered.floats)


OTHERS = {
    "mv": (torch.mv, lambda: weight(4), (2, 4), "vector"),
    "dot": (lambda x, w: torch.dot(x[0], w), lambda: weight(4), (2, 4), "two vectors"),
    "addbmm": (lambda x, w: torch.addbmm(w, x, x.mT), lambda: weight(3, 3), ROWS, "over the batch"),
    "einsum of three": (
        lambda x, w: torch.einsum("bd,de,ef->bf", x, w, w),
        lambda: weight(4, 4),
        (2, 4),
        "more than one",
    ),
    "multi_dot": (
        lambda x, w: torch.linalg.multi_dot([x, w, w]),
        lambda: weight(4, 4),
        (2, 4),
        "inside one function",
    ),
    "cdist": (torch.cdist, lambda: weight(30, 4), (30, 4), "inside one function"),
    "conv_tbc": (
        lambda x, w: torch.conv_tbc(x, w, w[0, 0]),
        lambda: weight(2, 4, 4),
        ROWS,
        "no layer",
    ),
    "lstm": (lambda x, m: m(x)[0], lambda: nn.LSTM(4, 5), ROWS, "recurrence"),
    "gru_cell": (lambda x, m: m(x), lambda: nn.GRUCell(4, 5), (2, 4), "recurrence"),
    "rnn_cell": (lambda x, m: m(x), lambda: nn.RNNCell(4, 5), (2, 4), "recurrence"),
    "vmap": (
        lambda x, w: torch.vmap(torch.matmul, (1, 0), 1)(x, w),
        lambda: weight(3, 4, 5),
        ROWS,
        "inside torch.vmap",
    ),
    "complex": (
        lambda x, w: torch.view_as_real(torch.complex(x, x) @ torch.complex(w, w)),
        lambda: weight(4, 5),
        ROWS,
        "complex numbers",
    ),
    "double": (lambda x, w: x.double() @ w.double(), lambda: weight(4, 5), ROWS, "in float64"),
    "exchanged": (
        lambda x, m: torch.func.functional_call(m, {"weight": 2 * m.weight}, (x,)),
        lambda: nn.Linear(4, 5),
        ROWS,
        "functional_call",
    ),
    "activations": (lambda x, _: x @ x.mT, lambda: None, ROWS, "no attention's"),
    "batches of matrices": (
        lambda x, w: x.unsqueeze(1) @ (2 * w),
        lambda: weight(3, 4, 5),
        ROWS,
        "3 axes",
    ),
    "weight first": (lambda x, w: 2 * w @ x, lambda: weight(5, 3), ROWS, "first operand"),
    "a module of constants": (
        lambda x, m: x + m(torch.ones(len(x), 1, 4)),
        lambda: nn.Linear(4, 4),
        ROWS,
        "no data reaches it",
    ),
    "constant": (lambda x, w: x + (w @ w)[0], lambda: weight(4, 4), ROWS, "no data reaches it"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_any_other_is_told_with_the_reason_why_it_stays_float(what):
    computed, held, shape, reason = OTHERS[what]
    seen, traced, covered = looked_at(Net(computed, held()).eval(), {"x": torch.randn(shape)})
    assert seen.total() and covered.quantized == 0
    assert len(traced.products) == covered.products == 1
    assert reason in covered.floats[0].reason


@pytest.mark.parametrize("function", [torch.bmm, torch.matmul, torch.ops.aten.bmm.default])
def test_of_experts_in_one_parameter_each_is_a_layer(function):
    net = Net(lambda x, w: function(x.expand(EXPERTS, 2, 4), w), weight(EXPERTS, 4, 5))
    _, traced, covered = looked_at(net.eval(), {"x": torch.randn(1, 2, 4)})
    assert [layer.shape("weight") for layer in traced.layers] == [(5, 4)] * EXPERTS
    assert covered.quantized == covered.products == EXPERTS


def test_what_a_layers_hook_multiplies_is_told_apart():
    held = nn.Linear(4, 4)
    held.register_forward_hook(lambda module, given, result: result @ result.mT)
    seen, _, covered = looked_at(Net(lambda x, m: m(x), held).eval(), {"x": torch.randn(ROWS)})
    assert (covered.products, covered.quantized) == (seen.total(), 1)
    assert "as by a hook" in covered.floats[0].reason


EXPERTS = 3


@pytest.mark.parametrize("name", transformers_nets.NETS)
def test_of_transformers_networks_every_product_is_found(name):
    seen, traced, covered = looked_at(transformers_nets.make(name), transformers_nets.batch(name))
    # An expert is a product of its own, and one operator multiplies for all.
    there = seen.total() + seen["_grouped_mm"] * (EXPERTS - 1)
    assert calls(traced) == there == covered.products
    reasons = {each.reason for each in covered.floats}
    assert not any("no layer" in reason for reason in reasons)
    assert bool(seen["_grouped_mm"]) == (name == "mixtral")
    # What data do not reach, and a learned first operand (DETR's queries), engines leave.
    left = ("by tensorrt@11", "no data reaches it", "its weight is its first operand")
    assert all(each.startswith(left) for each in reasons)


@pytest.mark.parametrize("name", ["gpt2", "mixtral", "swin", "t5", "wav2vec2"])
def test_transformers_networks_are_quantized_and_computed_as_modelopt_does(name, tmp_path):
    project = Project(tmp_path)
    project.write("nets.py", f"import transformers_nets\ndef net(): return {_MAKE}({name!r})\n")
    given = {k: v.numpy() for k, v in transformers_nets.batch(name, 32).items()}
    project.arrays = given
    arrays = {"npz": "data.npz", "inputs": {key: key for key in given}}
    project.recipe(
        model={"callable": "nets.py:net"},
        data={"calibration": arrays, "evaluation": arrays},
        metrics=["sqnr_db"],
        baselines=[],
    )
    done = project.apply()
    assert done.code == 0, done.stderr
    variant = project.report().variants[-1]
    agreement = variant.agreement
    assert agreement.oracle_differs == agreement.modelopt_differs == 0
    assert np.isfinite(agreement.network_sqnr_db) and agreement.network_sqnr_db > 40


_MAKE = "transformers_nets.make"
