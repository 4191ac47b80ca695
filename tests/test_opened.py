"""Functions that hide their products are opened into them: einsum, bags of embeddings, experts."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import Project, run_main
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import granplugin
import granplugin.modelopt_bridge as bridge
from granplugin.modelopt_bridge.library import mto, mtq
from granplugin.network.forward import call
from granplugin.network.opened import opened
from granplugin.network.trace import trace

SIZES = dict(zip("bcdfhijkmnoqw", (2, 5, 5, 6, 3, 3, 4, 8, 4, 3, 6, 7, 2), strict=True))
MATRIX_PRODUCTS = [
    "bnd,df->bnf", "bnd,fd->bnf", "df,bnd->bnf", "bnd,bmd->bnm", "bqhd,bkhd->bhqk",
    "bhqk,bkhd->bqhd", "...d,df->...f", "b...d,b...fd->b...f", "bnd,df", "nd,md", "bnhk,hkd->bnd",
    "bnd,dhk->bnhk", "oc,bchw->bohw", "bhd,bhkd->bhk", "bd,d->b", "bnd,ndf->bnf", "kc,bcn->bkn",
]  # fmt: skip
OTHERS = [
    "bn,bn->b", "i,j->ij", "ij,ij->", "bnd,bnd->bnd", "iij,jk->ik", "bnd,df->b", "bnd,df,fk->bnk",
]  # fmt: skip


def factors(equation: str) -> list[Tensor]:
    def drawn(term: str) -> Tensor:
        before, dots, behind = term.partition("...")
        sizes = [[SIZES[each] for each in part] for part in (before, behind)]
        return torch.randn(*sizes[0], *(2, 3)[: len(dots)], *sizes[1])

    return [drawn(term) for term in equation.partition("->")[0].split(",")]


@pytest.mark.parametrize("equation", MATRIX_PRODUCTS)
def test_an_einsum_that_is_a_matrix_product_is_computed_as_one(equation):
    given = factors(equation)
    parts = opened(torch.einsum, (equation, *given), {})
    with FlopCounterMode(display=False) as counted:
        torch.testing.assert_close(
            parts(equation, *given), torch.einsum(equation, *given), rtol=1e-4, atol=1e-5
        )
    assert counted.get_total_flops()


@pytest.mark.parametrize("equation", OTHERS)
def test_any_other_einsum_stays_whole(equation):
    assert opened(torch.einsum, (equation, *factors(equation)), {}) is None


X, Y, Z = torch.randn(2, 3, 4, 5), torch.randn(4, 5, 6), torch.randn(7, 5)
CALLS = [
    (torch.tensordot, (X, Y), {}), (torch.tensordot, (X, Y), {"dims": ([3], [1])}),
    (torch.inner, (X, Z), {}), (torch.inner, (X, Z[0]), {}),
    (F.bilinear, (X, X[..., :3], torch.randn(6, 5, 3), torch.randn(6)), {}),
]  # fmt: skip
IDS, TABLE = torch.tensor([[1, 2, 2], [0, 0, 3]]), torch.randn(4, 5)
CALLS += [
    (F.embedding_bag, (IDS, TABLE), {"mode": mode, "padding_idx": at})
    for mode in ("sum", "mean", "max")
    for at in (None, 0, -2)
]
WEIGHTED = {"mode": "sum", "per_sample_weights": torch.rand(2, 3)}
CALLS.append((F.embedding_bag, (IDS, TABLE), WEIGHTED))
ENDS = torch.tensor([2, 2, 6], dtype=torch.int32)
CALLS.append((F.grouped_mm, (torch.randn(6, 8), torch.randn(3, 8, 16)), {"offs": ENDS}))
HELD = [nn.Parameter(torch.randn(*shape)) for shape in ((7, 4), (4, 5, 6), (3, 4, 5, 6), (1, 5, 6))]
CALLS += [
    (torch.matmul, (HELD[0], X), {}), (torch.matmul, (HELD[1], torch.randn(2, 1, 6, 7)), {}),
    (torch.matmul, (X, HELD[3]), {}),
    (torch.matmul, (torch.randn(8, 1, 4, 2, 5), HELD[2]), {}),
    (torch.matmul, (X[0, 0], HELD[2]), {}),
    (torch.einsum, ("bnhkd,nhde->benhk", torch.randn(2, 3, 4, 7, 5), HELD[2]), {}),
    (torch.einsum, ("nhde,bnhd->bnhe", HELD[2], torch.randn(2, 3, 4, 5)), {}),
    (torch.add, (X, X), {"alpha": 0.5}), (Tensor.add_, (X, X), {"alpha": 0.5}),
]  # fmt: skip


@pytest.mark.parametrize(("function", "args", "said"), CALLS)
def test_the_parts_compute_what_torchs_function_does(function, args, said):
    parts = opened(function, args, said)
    given = [[each.clone() if each is X else each for each in args] for _ in range(2)]
    torch.testing.assert_close(
        parts(*given[0], **said), function(*given[1], **said), rtol=1e-4, atol=1e-5
    )


def test_bags_of_several_lengths_and_a_weight_that_is_changed_stay_whole():
    assert opened(F.embedding_bag, (IDS[0], TABLE, torch.tensor([0, 1])), {}) is None
    assert opened(F.embedding_bag, (IDS, TABLE), {"max_norm": 1.0}) is None


NETS = '''
"""What is looked up, and products that other functions hide."""

import torch
from torch import nn
from torch.nn import functional as F


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.bag = nn.Embedding(32, 16), nn.EmbeddingBag(32, 16, mode="sum")
        self.table, self.left = nn.Parameter(torch.randn(32, 16)), nn.Parameter(torch.randn(16, 16))
        self.heads = nn.Parameter(torch.randn(16, 2, 8))
        self.each = nn.Parameter(torch.randn(8, 16, 16))
        self.bilinear = nn.Bilinear(16, 16, 8)

    def forward(self, image):
        ids = (image[:, 0, 0].abs() * 9).long().clamp(max=31)
        x = self.words(ids) + F.embedding(ids, self.table)
        x = torch.einsum("bnd,df->bnf", x, self.left) + torch.tensordot(x, self.left, 1)
        q = torch.einsum("bnd,dhk->bhnk", x, self.heads)
        shares = torch.einsum("bhnk,bhmk->bhnm", q, q).softmax(-1)
        x = x + torch.einsum("bhnm,bhmk->bnhk", shares, q).flatten(2)
        x = torch.einsum("bnf,nfk->bnk", x, self.each)
        return self.bilinear(x.mean(1), self.bag(ids))
'''
LAYERS = {
    "words": "Embedding", "embedding": "Embedding", "bag": "Embedding", "matmul": "Linear",
    "matmul_1": "Linear", "matmul_2": "Linear", "matmul_3": "MatMul", "matmul_4": "MatMul",
    **{f"matmul_{n}": "Linear" for n in range(5, 13)}, "bilinear": "Linear",
}  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    """A run whose embeddings are quantized, which they are not by default."""
    project = Project(tmp_path_factory.mktemp("opened"))
    project.write("nets.py", NETS)
    rows = {"weight": {"format": "int8", "granularity": "per_channel"}}
    rules = [{"match": {"type": "Embedding"}, **rows}]
    project.recipe(model={"callable": "nets.py:Net"}, rules=rules)
    assert project.apply().code == 0
    return project


@pytest.fixture(scope="module")
def net(project) -> nn.Module:
    names: dict = {}
    exec(NETS, names)
    return names["Net"]().eval()


def test_lookups_and_what_is_opened_are_layers(net):
    image = torch.randn(2, 1, 8, 8)
    traced = trace(net, image)
    by_name = {layer.name: layer for layer in traced.layers}
    assert {name: layer.type for name, layer in by_name.items()} == LAYERS
    assert not any(layer.unusable for layer in traced.layers)
    for name in ("words", "embedding", "bag"):
        assert by_name[name].operands == ("weight", "output")
    assert "attention_scores" in by_name["matmul_3"].traits
    assert "attention_values" in by_name["matmul_4"].traits
    assert {product.place for product in traced.products} == LAYERS.keys() - {
        "words", "embedding", "bag",
    }  # fmt: skip


def test_each_product_of_the_dispatcher_is_one_that_was_opened(net):
    image, counted = torch.randn(2, 1, 8, 8), FlopCounterMode(display=False)
    call(net, image, counted)
    found = {each.place: each.macs for each in trace(net, image).products}
    bilinear = found.pop("bilinear")
    assert bilinear == 16 * 16 * 8, "torch counts nothing of its own operator"
    assert sum(found.values()) == counted.get_total_flops() // 4


def test_rows_of_an_embedding_are_stored_in_integers_and_all_is_as_modelopt_computes_it(project):
    variant = project.report().variants[-1]
    assert (variant.coverage.quantized, variant.coverage.products) == (14, 14)
    assert variant.agreement.oracle_differs == variant.agreement.modelopt_differs == 0
    assert variant.agreement.network_sqnr_db > 50


def test_ranges_that_were_changed_and_weights_that_were_trained_come_back(net, tmp_path):
    """As after fine-tuning: of modules, calls and what is opened."""
    names: dict = {}
    exec(NETS, names)
    image = torch.randn(16, 1, 8, 8)
    recipe = {
        "version": 1,
        "rules": [{"match": {"trait": "embedding"}, "format": "int8"}],
    }
    model = granplugin.prepare(names["Net"]().eval(), recipe, image)
    model = mtq.quantize(
        model, granplugin.modelopt_config(recipe, model), lambda module: module(image)
    )
    calibrated = model(image)
    quantizers = {
        name: module for name, module in model.named_modules() if hasattr(module, "_amax")
    }
    assert {"words.weight_quantizer", "bag.weight_quantizer", "matmul_3.other_quantizer"} <= (
        quantizers.keys()
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(image).square().mean().backward()
    assert model.words.weight.grad.any() and model.heads.grad.any() and model.each.grad.any()
    optimizer.step()
    for quantizer in quantizers.values():
        quantizer.amax = quantizer.amax * 0.9
    with torch.no_grad():
        trained = model(image)
    mto.save(model, tmp_path / "model.pt")
    restored = mto.restore(names["Net"]().eval(), tmp_path / "model.pt").eval()
    with torch.no_grad():
        assert torch.equal(restored(image), trained)
    assert not torch.equal(calibrated, trained)
    assert quantizers.keys() == {
        name for name, module in restored.named_modules() if hasattr(module, "_amax")
    }
    for site, other in zip(bridge.sites_of(model), bridge.sites_of(restored), strict=True):
        assert site["quantizer"] == other["quantizer"] and (site["grid"] == other["grid"]).all()


def test_inspect_tells_the_ranges_of_weights_that_are_computed(project, net):
    told = run_main("inspect", project.folder / "recipe.yaml", "--out", project.out, "--json")
    layers = {layer["name"]: layer for layer in json.loads(told.stdout)["layers"]}
    held = net.heads.detach().flatten(1).abs().amax(0)  # (in, out), as einsum has it
    assert layers["matmul_2"]["weight"]["amax"] == pytest.approx(held.max().item(), rel=1e-3)
    assert layers["bilinear"]["weight"]["spread"] > 1
