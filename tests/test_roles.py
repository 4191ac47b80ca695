"""Heads, routers, embeddings and what is of a detector's head are found by structure."""

from __future__ import annotations

from types import SimpleNamespace

import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from granplugin.analysis.settings import ask
from granplugin.analysis.suggestion import suggest
from granplugin.analysis.tried import FLOATING
from granplugin.graph.read.graph import read_graph
from granplugin.network.export import export_float
from granplugin.network.onnx_layers import place_layers
from granplugin.network.trace import trace
from granplugin.planning.coverage import coverage
from granplugin.planning.plan import make_plan
from granplugin.quant.layers import Layer
from granplugin.recipe.analyze import Analyze
from granplugin.recipe.load import load_part

ROLES = {"head", "vocabulary", "router", "embedding", "detection"}
TOKENS = torch.randint(0, 40, (2, 6))


class Decoder(nn.Module):
    """A language model: tokens, positions, kinds of token; experts that a router chooses."""

    def __init__(self, tied: bool = True):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.kinds = nn.Embedding(40, 16), nn.Embedding(2, 16)
        self.positions = nn.Embedding(64, 16)
        self.router, self.pair = nn.Linear(16, 3), nn.Linear(16, 2)
        self.experts = nn.Parameter(torch.randn(3, 16, 16))
        self.norm, self.out = nn.LayerNorm(16), nn.Linear(16, 40, bias=False)
        if tied:
            self.out.weight = self.words.weight

    def forward(self, ids):
        x = self.words(ids) + self.kinds(ids % 2) + self.positions(torch.arange(6))
        flat = x.flatten(0, 1)
        chosen = self.router(flat).softmax(-1).topk(1).indices[:, 0]
        order = chosen.sort().indices
        ends = (chosen.unsqueeze(-1) <= torch.arange(3)).sum(0).int()
        mixed = F.grouped_mm(flat[order], self.experts, offs=ends)
        x = self.norm(x + mixed[order.argsort()].view_as(x))
        return self.out(x), self.pair(x.mean(1))


class Block(nn.Module):
    """A convolution with a batch norm, and an activation."""

    def __init__(self, given: int, made: int, step: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(given, made, 3, step, 1, bias=False)
        self.bn = nn.BatchNorm2d(made)

    def forward(self, x):
        return self.bn(self.conv(x)).relu()


class Detector(nn.Module):
    """As YOLO is made: two scales, boxes as distributions, and masks from a prototype."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.down = Block(1, 8, 2), Block(8, 8, 2)
        self.neck = nn.ConvTranspose2d(8, 8, 2, 2)
        self.box = nn.ModuleList(nn.Sequential(Block(8, 8), nn.Conv2d(8, 16, 1)) for _ in "ab")
        self.kind = nn.ModuleList(nn.Sequential(Block(8, 8), nn.Conv2d(8, 5, 1)) for _ in "ab")
        self.dfl = nn.Conv2d(4, 1, 1, bias=False)
        self.up, self.proto = nn.ConvTranspose2d(8, 8, 2, 2), Block(8, 4)

    def forward(self, image):
        fine = self.stem(image)
        coarse = self.down(fine)
        fine = fine + self.neck(coarse)
        scales = [
            torch.cat((box(x), kind(x)), 1).flatten(2)
            for x, box, kind in zip((fine, coarse), self.box, self.kind, strict=True)
        ]
        boxes, kinds = torch.cat(scales, 2).split((16, 5), 1)
        sides = boxes.unflatten(1, (4, 4)).transpose(1, 2).softmax(1)
        return torch.cat((self.dfl(sides).squeeze(1), kinds.sigmoid()), 1), self.proto(
            self.up(fine)
        )


def roles(layers: tuple[Layer, ...]) -> dict[str, set[str]]:
    return {each.name: found for each in layers if (found := each.traits & ROLES)}


@pytest.mark.parametrize("tied", [True, False])
def test_of_a_language_model_the_embedding_the_router_and_the_head_are_told(tied):
    assert roles(trace(Decoder(tied).eval(), TOKENS).layers) == {
        "words": {"embedding"}, "kinds": {"embedding"}, "positions": {"embedding"},
        "router": {"router"}, "out": {"head", "vocabulary"}, "pair": {"head"},
    }  # fmt: skip


DETECTION = {"box.0.1", "box.1.1", "kind.0.1", "kind.1.1", "dfl", "up"}


def test_of_a_detector_what_stands_bare_in_its_head_is_told():
    found = roles(trace(Detector().eval(), torch.randn(2, 1, 16, 16)).layers)
    assert {name for name, traits in found.items() if "detection" in traits} == DETECTION


def test_a_classifier_a_segmenter_and_joined_features_are_no_detector():
    class Features(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 4, 1), nn.Conv2d(1, 4, 1)
            self.up, self.out = nn.ConvTranspose2d(4, 4, 2, 2), nn.Conv2d(8, 3, 1)

        def forward(self, image):
            mask = self.out(torch.cat((self.up(self.a(image)), self.up(self.b(image))), 1))
            return mask, torch.cat((self.a(image).relu(), self.b(image).relu()), 1)

    found = roles(trace(Features().eval(), torch.randn(2, 1, 8, 8)).layers)
    assert found == {"out": {"head"}}, "a and b are called for the mask too"


@pytest.mark.parametrize(
    ("net", "example"), [(Decoder(), TOKENS), (Detector(), torch.randn(2, 1, 16, 16))]
)
def test_in_a_file_the_same_roles_are_found(net, example, tmp_path):
    net.eval()
    if isinstance(net, Decoder):  # a file has what the exporter knows
        net.experts = nn.Parameter(net.experts[:1])
        net.forward = lambda ids: _dense(net, ids)
    export_float(net, example, tmp_path / "net.onnx")
    graph = read_graph(onnx.load(tmp_path / "net.onnx"), tmp_path / "net.onnx")
    found = roles(tuple(each.layer for each in place_layers(graph)))
    wanted = roles(trace(net, example).layers)
    wanted.pop("positions", None)  # which no data choose: a constant in the file
    told = {name.partition("/")[0]: traits for name, traits in found.items()}
    # The exporter folds a batch norm, whose name the convolution then has.
    wanted |= {"proto.bn": wanted.pop("proto.conv", set())}
    assert told == {name: traits for name, traits in wanted.items() if traits}


def _dense(net: Decoder, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
    x = net.words(ids) + net.kinds(ids % 2) + net.positions(torch.arange(6))
    share = net.router(x).softmax(-1).topk(1)
    x = net.norm(x + (x @ net.experts[0]) * share.indices)
    return net.out(x), net.pair(x.mean(1))


def test_the_defaults_leave_these_float_and_say_why_and_a_rule_switches_them_on(tmp_path):
    def planned(*rules: dict):
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(f"version: 1\nmodel: {{callable: 'a.py:b'}}\nrules: {list(rules)}\n")
        return make_plan(load_part(recipe), traced.layers)

    traced = trace(Decoder().eval(), TOKENS)
    plan = planned()
    floats = {row.layer: row.note for row in plan.rows if row.operand == "weight" and row.note}
    assert floats.keys() == {"words", "kinds", "positions", "router", "out"}
    assert "tensorrt@11 leaves 5 layers float" in plan.notes[0]
    reasons = [each.reason for each in coverage(traced.products, traced.layers, plan).floats]
    assert "by tensorrt@11: its channels are the vocabulary" in reasons
    switched = planned({"match": {"trait": "vocabulary"}, "format": "int8"})
    rows = {row.site: str(row.granularity) for row in switched.quantized}
    assert (rows["out.weight"], rows["out.input"]) == ("per_channel", "per_tensor")
    assert "router.weight" not in rows


def test_analyze_takes_an_embedding_for_a_site_and_tries_the_layers_that_multiply():
    loaded = load_part(
        {"version": 1, "rules": [{"match": {"trait": "embedding"}, "format": "int8"}]}
    )
    layers = trace(Decoder().eval(), TOKENS).layers
    asked, skipped = ask(layers, make_plan(loaded, layers), Analyze(), 64)
    experts = {"matmul", "matmul_1", "matmul_2"}
    assert {each.layer.name for each in asked} == {"router", "pair", "out"} | experts
    assert not any("words" in each.site for each in skipped)


def test_a_rule_that_leaves_one_factor_of_a_call_float_can_be_planned():
    class Net(nn.Module):
        def forward(self, x):
            return (x @ x.mT).softmax(-1) @ x

    layers = trace(Net(), torch.ones(2, 3, 4)).layers
    own = next(row for row in make_plan(load_part({"version": 1}), layers).quantized)
    network = SimpleNamespace(sites={own.site: SimpleNamespace(rows=[own], own=own)}, tried={})
    (found,) = suggest({own.site: FLOATING}, {}, network, {}, {own.site: "so"}, layers)
    plan = make_plan(load_part({"version": 1, "rules": [found.rule]}), layers)
    assert own.site not in {row.site for row in plan.quantized}


def test_a_call_that_is_left_float_is_one_rule():
    class Net(nn.Module):
        def forward(self, x):
            return (x @ x.mT).softmax(-1) @ x

    layers = trace(Net(), torch.ones(2, 3, 4)).layers
    first, second, *_ = make_plan(load_part({"version": 1}), layers).quantized
    assert first.layer == second.layer
    sites = {row.site: SimpleNamespace(rows=[row], own=row) for row in (first, second)}
    network = SimpleNamespace(sites=sites, tried={})
    floats = dict.fromkeys(sites, FLOATING)
    (found,) = suggest(floats, {}, network, {}, dict.fromkeys(sites, "so"), layers)
    assert found.rule == {"match": first.layer, "input": "float", "other": "float"}
    plan = make_plan(load_part({"version": 1, "rules": [found.rule]}), layers)
    assert not {row.layer for row in plan.quantized} & {first.layer}
