"""granplugin.quantize: a model that is fine-tuned in a loop of one's own gives what was trained."""

from __future__ import annotations

import copy
import runpy
from pathlib import Path

import modelopt.torch.opt as mto
import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from conftest import Project
from torch import nn

import granplugin
from granplugin.errors import DataError, ModelError
from granplugin.measures.intervals import tango_interval

pytestmark = pytest.mark.usefixtures("one_thread")

BLOCKS = {"weight": {"per_block": {"size": 3, "axis": 3}}}


def of(project: Project) -> nn.Module:
    torch.manual_seed(0)
    return runpy.run_path(str(project.folder / "nets.py"))["tiny"]()


def batches(project: Project) -> list[tuple[torch.Tensor, torch.Tensor]]:
    images, labels = (torch.from_numpy(project.arrays[key]) for key in ("images", "labels"))
    return list(zip(images.split(32), labels.split(32), strict=True))


def train(model: nn.Module, project: Project, optimizer: torch.optim.Optimizer) -> None:
    for images, labels in batches(project):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()


def logits(model: nn.Module, project: Project) -> np.ndarray:
    model.eval()
    with torch.no_grad():
        return model(torch.from_numpy(project.arrays["images"])).numpy()


def of_file(written: bytes, **inputs: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(written).run(None, inputs)[0]


@pytest.mark.parametrize(
    ("bn", "qat", "still"),
    [
        ("fold", {}, {"amax"}),
        ("fold", {"learn_ranges": True}, set()),
        ("keep", {"batch_norms": "frozen"}, {"amax", "running"}),
        ("keep", {}, {"amax"}),
    ],
    ids=["folded", "folded, learned", "frozen", "updated"],
)
def test_export_and_apply_give_what_was_trained(bn, qat, still, project):
    rules = [{"match": ["conv", "depthwise"], "bn": bn}, {"match": "depthwise", **BLOCKS}]
    recipe = project.recipe(rules=rules, qat=qat)
    model = granplugin.quantize(of(project).train(), recipe, batches(project))
    assert model.training
    before = {name: values.clone() for name, values in model.state_dict().items()}
    train(model, project, torch.optim.Adam(model.parameters(), 3e-3))
    same = {name for name, values in model.state_dict().items() if values.equal(before[name])}
    assert {word for word in ("amax", "running") if any(word in name for name in same)} == still
    assert "conv.weight" not in same
    trained = logits(model, project)
    path = granplugin.export_onnx(model, batches(project)[0][0], project.folder / "trained.onnx")
    found = of_file(path.read_bytes(), image=project.arrays["images"])
    np.testing.assert_allclose(found, trained, atol=1e-5)
    if not qat:  # what is told apart by these two is in the model already
        return
    mto.save(model, project.folder / "trained.pth")
    done = project.apply(recipe, "--from", project.folder / "trained.pth")
    assert done.code == 0, done.stderr
    assert project.onnx() == path.read_bytes()


def test_training_goes_on_where_it_was_saved(project):
    recipe = project.recipe(rules=[{"match": "depthwise", **BLOCKS}], qat={"learn_ranges": True})
    model = granplugin.quantize(of(project), recipe, batches(project))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    train(model, project, optimizer)
    mto.save(model, project.folder / "half.pth")
    torch.save(optimizer.state_dict(), project.folder / "optimizer.pth")
    train(model, project, optimizer)
    again = mto.restore(of(project), project.folder / "half.pth")
    resumed = torch.optim.Adam(again.parameters(), 3e-3)
    resumed.load_state_dict(torch.load(project.folder / "optimizer.pth"))
    train(again, project, resumed)
    for (name, ours), (_, theirs) in zip(
        model.state_dict().items(), again.state_dict().items(), strict=True
    ):
        assert ours.equal(theirs), name


def test_two_epochs_bring_the_digits_back():
    """With one scale for each weight, as a filter behind a dead channel wants it, half is lost."""
    examples = Path(__file__).parents[1] / "examples"
    build = runpy.run_path(str(examples / "net.py"))["build"]
    with np.load(examples.parent / "recipes/data/digits.npz") as data:
        images, labels = (torch.from_numpy(data[f"train_{key}"]) for key in ("images", "labels"))
        held_out, right = (
            torch.from_numpy(data[f"test_{key}"][:400]) for key in ("images", "labels")
        )

    def correct(model: nn.Module) -> np.ndarray:
        with torch.no_grad():
            return (model.eval()(held_out).argmax(1) == right).numpy()

    def lost(model: nn.Module) -> tuple[float, float]:
        now = correct(model)
        return tango_interval(int((before & ~now).sum()), int((now & ~before).sum()), len(now))

    before, calibration = correct(build()), images[:128].split(32)
    coarse = {"version": 1, "rules": [{"match": {"type": "Conv2d"}, "weight": "per_tensor"}]}
    assert lost(granplugin.quantize(build(), coarse, calibration))[0] > 30
    recipe = {**coarse, "qat": {"learn_ranges": True}}
    model = granplugin.quantize(build(), recipe, calibration).train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)
    torch.manual_seed(0)
    for chosen in [*torch.randperm(1000).split(50), *torch.randperm(1000).split(50)]:
        optimizer.zero_grad()
        F.cross_entropy(model(images[chosen]), labels[chosen]).backward()
        optimizer.step()
    assert lost(model)[0] <= 0  # that it is more accurate than before may be shown


def test_sites_that_share_a_scale_learn_one_range(tmp_path):
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)), torch.randn(16, 8)
    recipe = {"version": 1, "share": [{"match": ["0", "1"]}], "qat": {"learn_ranges": True}}
    model = granplugin.quantize(copy.deepcopy(net), recipe, [x])
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    start = model[0].input_quantizer._amax.item()
    model(x).square().mean().backward()
    optimizer.step()
    mto.save(model, tmp_path / "shared.pth")
    again = mto.restore(net, tmp_path / "shared.pth")
    for each in (model, again):
        assert each[0].input_quantizer._amax is each[1].input_quantizer._amax
    assert again[0].input_quantizer._amax.item() != start


@pytest.mark.parametrize("kind", ["depthwise", "grouped", "transposed", "linear"])
def test_a_learned_range_starts_without_what_multiplies_zeros_alone(kind):
    """A filter behind a dead channel would take the range of all others."""
    torch.manual_seed(0)
    layer, filters = {
        "depthwise": (nn.Conv2d(4, 4, 3, groups=4), (1,)),
        "grouped": (nn.Conv2d(4, 8, 3, groups=2), (slice(0, 4), 1)),
        "transposed": (nn.ConvTranspose2d(4, 4, 3, groups=2), (1,)),
        "linear": (nn.Linear(4, 8), (slice(None), 1)),
    }[kind]
    x = torch.randn(16, 4, *[5] * (layer.weight.ndim - 2))
    x[:, 1] = 0
    with torch.no_grad():
        layer.weight[filters] = 500.0
    coarse = [{"match": "0", "weight": "per_tensor"}]
    recipe = {"version": 1, "qat": {"learn_ranges": True}, "rules": coarse}
    model = granplugin.quantize(nn.Sequential(copy.deepcopy(layer)), recipe, [x])
    assert model[0].weight_quantizer._amax.item() < 1
    pinned = {"match": "0", "weight": {"amax": 400.0, "granularity": "per_tensor"}}
    held = granplugin.quantize(
        nn.Sequential(copy.deepcopy(layer)), {**recipe, "rules": [pinned]}, [x]
    )
    assert held[0].weight_quantizer._amax.item() == 400


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.mix = nn.Parameter(torch.randn(8, 8))

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return F.linear(F.scaled_dot_product_attention(q, k, v), self.mix)


def test_calls_of_functions_are_trained_through_their_quantizers(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(16, 4, 8)
    recipe = {"version": 1, "qat": {"learn_ranges": True}}
    model = granplugin.quantize(Attention(), recipe, [x])
    on = [m for m in model.modules() if getattr(m, "is_enabled", False)]
    assert len(on) == 8  # two linear layers, and both products of the attention
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    model(x).square().sum().backward()
    assert all(each.grad is not None and each.grad.any() for each in model.parameters())
    optimizer.step()
    path = granplugin.export_onnx(model, x, tmp_path / "trained.onnx")
    with torch.no_grad():
        np.testing.assert_allclose(of_file(path.read_bytes(), x=x.numpy()), model(x), atol=1e-5)


class Mixed(nn.Module):
    """One call of a function: each quantizer is compiled for itself, which takes a second."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.randn(8, 8))

    def forward(self, x):
        return F.linear(x, self.mix)


def test_a_compiled_model_computes_the_same_and_is_exported_as_it_was_before(tmp_path):
    x = torch.randn(16, 8)
    model = granplugin.quantize(Mixed(), {"version": 1, "qat": {"learn_ranges": True}}, [x])
    compiled = torch.compile(model, backend="eager")
    assert compiled(x).equal(model(x)) and not model(x).equal(x @ model.mix.T)
    with pytest.raises(ModelError, match="give that model"):
        granplugin.export_onnx(compiled, x, tmp_path / "compiled.onnx")


RANK = """
import sys, torch, torch.nn.functional as F
from torch import nn
import granplugin
rank, folder = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", f"file://{folder}/met", rank=rank, world_size=2)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
torch.manual_seed(1 + rank)
x = torch.randn(32, 8) * (1 + rank)
model = granplugin.quantize(model, {"version": 1, "qat": {"learn_ranges": True}}, [x])
calibrated = {name: values.clone() for name, values in model.state_dict().items()}
shared = nn.parallel.DistributedDataParallel(model)
optimizer = torch.optim.SGD(shared.parameters(), 0.1)
for _ in range(2):
    optimizer.zero_grad()
    shared(x).square().mean().backward()
    optimizer.step()
torch.save((calibrated, model.state_dict(), x.abs().max()), f"{folder}/{rank}.pt")
"""


def test_processes_of_one_training_have_the_same_ranges(forks, tmp_path):
    runs = [forks.start(["-c", RANK, str(rank), str(tmp_path)]) for rank in (0, 1)]
    assert [run.wait() for run in runs] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    largest = max(first[2], second[2])
    for ours, theirs in zip(first[:2], second[:2], strict=True):
        assert all(values.equal(theirs[name]) for name, values in ours.items())
    assert first[0]["0.input_quantizer._amax"] == largest
    assert any(not values.equal(first[1][n]) for n, values in first[0].items() if "amax" in n)


def test_what_cannot_be_quantized_in_place_is_one_sentence():
    x, recipe = torch.randn(4, 3), {"version": 1}
    with pytest.raises(ModelError, match="compiled"):
        granplugin.quantize(torch.compile(nn.Linear(3, 3)), recipe, [x])
    with pytest.raises(ModelError, match="wrapped in DataParallel"):
        granplugin.quantize(nn.DataParallel(nn.Linear(3, 3)), recipe, [x])
    with pytest.raises(DataError, match="no batch to calibrate on"):
        granplugin.quantize(nn.Linear(3, 3), recipe, iter(()))
    quantized = granplugin.quantize(nn.Linear(3, 3), recipe, [x])
    with pytest.raises(ModelError, match="has quantizers"):
        granplugin.quantize(quantized, recipe, [x])


def test_learned_ranges_have_the_gradient_of_the_step_where_it_is_smooth():
    """Of the quantization error a range's gradient is known: what clips wants it wider."""
    x = torch.tensor([[0.3, -2.0, 5.0, 0.1]])
    layer = nn.Sequential(nn.Linear(4, 1, bias=False))
    model = granplugin.quantize(layer, {"version": 1, "qat": {"learn_ranges": True}}, [x / 2])
    quantizer = model[0].input_quantizer
    y = quantizer(x)
    (grad,) = torch.autograd.grad(y.sum(), quantizer._amax)
    # 5 is clipped to amax; 127 * x / amax is rounded for the others.
    ratio = x[0] * 127 / quantizer._amax.detach()
    step = torch.where(ratio > 127, torch.tensor(127.0), ratio.round() - ratio).sum()
    torch.testing.assert_close(grad, step / 127 / (4 * 127) ** 0.5)
