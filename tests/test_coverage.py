"""What of a network is quantized is counted over everything that it multiplies."""

import pytest
import torch
from conftest import run_main
from plan_values import layer_of, quantized_row
from torch import nn
from torch.nn import functional as F

from granplugin.network.trace import trace
from granplugin.planning.coverage import coverage
from granplugin.planning.rows import Plan
from granplugin.quant.multiplications import Multiplication, macs
from granplugin.report.build.covered import covered
from granplugin.report.view.coverage import coverage_items, coverage_line


class Functional(nn.Module):
    """A layer, and a convolution that is none, with 8 times its multiply-accumulates."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)
        self.w = nn.Parameter(torch.randn(24, 8, 1, 1))

    def forward(self, x):
        return F.conv2d(self.a(x).relu(), self.w)


class Standardised(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, (self.weight - self.weight.mean()) / self.weight.std(), self.bias)


class Attention(nn.Module):
    """Queries are the values: two products of activations, and a recurrence behind them."""

    def __init__(self):
        super().__init__()
        self.q, self.rnn = nn.Linear(4, 4), nn.LSTM(4, 5, batch_first=True)

    def forward(self, x):
        q = self.q(self.q(x))
        return self.rnn(F.scaled_dot_product_attention(q, q, q))[0] @ x.new_ones(5, 2)


def found(model, *shape):
    return trace(model.eval(), torch.randn(2, *shape)).products


def test_a_functional_convolution_is_counted_with_its_weight():
    own, called = found(Functional(), 3, 5, 5)
    assert (own.place, own.type, own.macs) == ("a", "Conv2d", 25 * 3 * 8)
    assert (called.place, called.type, called.function) == ("conv2d", "Functional", "conv2d")
    assert called.macs == 25 * 8 * 24
    assert called.weights == (("w", 8 * 24),)


def test_products_of_activations_and_recurrences_are_counted_for_one_sample():
    products = found(Attention(), 6, 4)
    by = {each.function: each for each in products}
    assert list(by) == ["linear", "matmul", "lstm"]
    assert by["linear"].macs == 2 * 6 * 4 * 4, "called twice, and one product"
    scores, values, last = (each for each in products if each.function == "matmul")
    assert scores.macs == values.macs == 6 * 6 * 4, "what one function of torch hides"
    assert by["lstm"].macs == 6 * 20 * (4 + 5)
    assert sum(values for _, values in by["lstm"].weights) == 20 * (4 + 5)
    assert last.macs == 6 * 5 * 2
    assert not last.weights, "what it multiplies is not stored"


def test_an_attention_layer_is_four_products():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.mha = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x):
            return self.mha(x, x, x, need_weights=False)[0]

    products = found(Net(), 3, 4)
    assert {product.type for product in products} == {"MultiheadAttention"}
    places = ["mha.linear", "mha.matmul", "mha.matmul_1", "mha.out_proj"]
    assert [product.place for product in products] == places
    assert [product.macs for product in products] == [3 * 4 * 12, *[3 * 3 * 4] * 2, 3 * 4 * 4]
    weights = [dict(product.weights) for product in products]
    assert weights == [{"mha.in_proj_weight": 48}, {}, {}, {"mha.out_proj.weight": 16}]


@pytest.mark.parametrize(
    "layer, shape",
    [
        (nn.Conv2d(4, 6, 3, stride=2, groups=2), (4, 9, 9)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2), (4, 5, 5)),
        (nn.Conv1d(4, 6, 3), (4, 9)),
        (nn.Linear(4, 6), (7, 4)),
    ],
)
def test_a_layers_products_are_those_that_its_shapes_tell(layer, shape):
    traced = trace(nn.Sequential(layer).eval(), torch.randn(2, *shape))
    (product,), (described,) = traced.products, traced.layers
    assert product.macs == macs(described)


def planned(*quantized):
    """A plan of layers a (Conv2d) and b, whose forward is its own; these sites of a quantized."""
    shapes = {"weight": (8, 3, 1, 1), "input": (1, 3, 5, 5), "output": (1, 8, 5, 5)}
    layers = [
        layer_of("a", shapes=shapes),
        layer_of("b", shapes=shapes, unusable="its class Std has its own forward, which ..."),
    ]
    products = [
        Multiplication("a", "Conv2d", "conv2d", 600, (("a.weight", 24),)),
        Multiplication("b", "Std", "conv2d", 1200, (("b.weight", 48),)),
        Multiplication("", "Net", "matmul", 200, ()),
    ]
    rows = [quantized_row(f"a.{operand}", shapes[operand]) for operand in quantized]
    return products, layers, Plan(tuple(rows))


def test_the_line_tells_shares_of_all_products_and_why_the_rest_is_float():
    told = covered(coverage(*planned("weight", "input")))
    assert coverage_line(told) == (
        "quantizes 1 of 3 products, 30 % of multiply-accumulates, 33 % of weights; float: "
        "1 Std (own forward), 1 matmul in Net (no layer that can be quantized)"
    )
    assert [item.names for item in coverage_items(told)] == [("b",), ("the model itself",)]


def test_a_product_of_which_one_operand_is_quantized_is_said_to_be_half():
    assert "1 of 3 products (1 of them one operand alone)" in coverage_line(
        covered(coverage(*planned("weight")))
    )
    nothing = coverage(*planned("input"))
    assert nothing.quantized_weights == 0, "its weight is float"


def test_what_saw_only_zeros_is_float():
    zeros = coverage(*planned("weight", "input"), ("a.weight", "a.input"))
    assert zeros.quantized == 0
    assert ("Conv2d", "saw only zeros") in [(each.what, each.reason) for each in zeros.floats]


def test_weights_that_are_standardised_count_as_their_modules():
    own, other = found(nn.Sequential(nn.Conv2d(3, 4, 1), Standardised(4, 2, 1)), 3, 5, 5)
    assert other.weights == (("1.weight", 8),)
    assert (own.type, other.type) == ("Conv2d", "Standardised")


@pytest.mark.parametrize("verb", ["plan", "inspect"])
def test_plan_and_inspect_say_it(project, verb):
    done = run_main(verb, project.recipe(), "--out", project.out)
    assert done.code == 0, done.stderr
    assert "the recipe quantizes 3 of 3 products, 100 %" in " ".join(done.stdout.split())


def test_rules_that_change_nothing_are_called_so_by_plan(project):
    same = {"match": {"type": "Conv2d"}, "weight": "per_channel"}
    told = "the rules change nothing: the plan is that of tensorrt@11 alone"
    path = project.recipe(rules=[same])
    assert told in " ".join(run_main("plan", path, "--out", project.out).stdout.split())
    path = project.recipe(rules=[{**same, "weight": "per_tensor"}])
    assert told not in " ".join(run_main("plan", path, "--out", project.out).stdout.split())
