"""Layers that run, and of which nothing reaches an output: a graph has no node of them."""

import pytest
import torch
from conftest import NETS, run_main
from torch import nn

from granplugin.network.trace import trace

UNREAD = "no output of the model depends on it"


class Embedder(nn.Module):
    """As a sentence embedder: its pooler runs, and its result is used as `use` says."""

    def __init__(self, use):
        super().__init__()
        self.body, self.pooler, self.head = (nn.Linear(8, 8) for _ in range(3))
        self.use = use

    def forward(self, x):
        h = self.body(x).relu()
        pooled = self.pooler(h).tanh()
        if self.use == "decides" and pooled.sum().item() > 1e9:
            h = -h
        if self.use == "in place":
            h = h.clone()
            h[:, 0] = pooled[:, 0]
        if self.use == "unseen":
            h = h + torch.vmap(torch.sin)(pooled)
        if self.use == "called twice":
            h = self.pooler(h)
        return self.head(h)


@pytest.mark.parametrize("use", ["nothing", "decides", "in place", "unseen", "called twice"])
def test_a_layer_is_unusable_only_where_no_output_can_depend_on_it(use):
    layers = {layer.name: layer for layer in trace(Embedder(use).eval(), torch.ones(2, 8)).layers}
    assert layers["pooler"].unusable == (UNREAD if use == "nothing" else None)
    assert layers["body"].unusable is None and layers["head"].unusable is None


def test_a_layer_of_which_nothing_reaches_an_output_is_left_out_and_said(project):
    project.write(
        "nets.py",
        NETS
        + """

class Single(Tiny):
    def __init__(self):
        super().__init__()
        self.pooler = nn.Linear(8, 8)

    def forward(self, image):
        x = self.bn(self.conv(image)).relu()
        self.pooler(x.mean((2, 3)))
        return self.head(x.mean((2, 3)))
""",
    )
    recipe = project.recipe(model={"callable": "nets.py:Single"})
    done = project.apply()
    assert done.code == 0, done.stderr
    variant = project.report().variants[-1]
    assert variant.quantized_sites == 4  # of conv and head
    assert UNREAD in (project.out / "report.md").read_text()
    planned = run_main("plan", recipe, "--out", project.out)
    assert planned.code == 0 and UNREAD in planned.stdout

    project.recipe(
        model={"callable": "nets.py:Single"}, rules=[{"match": "pooler", "format": "float"}]
    )
    assert run_main("plan", recipe, "--out", project.out).code == 0
    project.recipe(
        model={"callable": "nets.py:Single"}, rules=[{"match": "pooler", "weight": "per_tensor"}]
    )
    refused = run_main("plan", recipe, "--out", project.out)
    assert refused.code == 2 and f"'pooler' cannot be quantized: {UNREAD}" in refused.stderr
