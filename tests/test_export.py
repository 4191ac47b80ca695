"""Export of torch models with markers, and folding in the exported graph."""

from __future__ import annotations

import dataclasses
import logging
from collections import namedtuple
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from plan_values import quantized_row
from torch import nn

from granplugin.errors import ModelError
from granplugin.graph.edit.fold import weights_of
from granplugin.graph.edit.nodes import markers, site_of
from granplugin.graph.edit.qdq import insert
from granplugin.graph.files import load_float, save
from granplugin.graph.read.agreement import agreement
from granplugin.graph.read.verify import read_back
from granplugin.network.export import export_float
from granplugin.planning.rows import as_float
from granplugin.quant.folding import Norm, fold
from granplugin.quant.granularity import reduce_blocks


def row_of(site, shape, granularity="per_tensor", fmt="int8", bn=None, bn_name=None):
    return quantized_row(site, shape, granularity, fmt, type="", bn=bn, bn_name=bn_name)


OPS = {
    nn.Conv2d: lambda m, x, w: m._conv_forward(x, w, m.bias),
    nn.ConvTranspose2d: lambda m, x, w: nn.functional.conv_transpose2d(
        x, w, m.bias, m.stride, m.padding, m.output_padding, m.groups
    ),
    nn.Linear: lambda m, x, w: nn.functional.linear(x, w, m.bias),
}


class Marked(nn.Module):
    """A layer with a marker at each of its sites, as modelopt_bridge.marked makes them."""

    def __init__(self, name: str, layer: nn.Module):
        super().__init__()
        self.name = name
        self.__dict__["layer"] = layer
        self._parameters, self._buffers = layer._parameters, layer._buffers

    def mark(self, x, role):
        site = {"site": f"{self.name}.{role}"}
        return torch.onnx.ops.symbolic(
            "granplugin::Site", [x], site, dtype=x.dtype, shape=x.shape, version=1
        )

    def forward(self, x):
        x = self.mark(x, "input")
        if type(self.layer) in OPS:
            x = OPS[type(self.layer)](self.layer, x, self.mark(self.layer.weight, "weight"))
        else:
            x = self.layer(x)
        return self.mark(x, "output")


def export(model, example, path, **kwargs):
    """Export a marked copy of the model, which itself stays as it is."""
    model.eval()
    layers = (*OPS, nn.BatchNorm1d, nn.BatchNorm2d)
    found = {name: m for name, m in model.named_modules() if isinstance(m, layers)}
    for name, layer in found.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, Marked(name, layer))
    try:
        export_float(model, example, path, **kwargs)
    finally:
        for name, layer in found.items():
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer)


def randomize(model):
    """Batch norms as after training: nothing is 0 or 1."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            for tensor in (module.running_mean, module.bias):
                tensor.data.normal_(generator=generator)
            for tensor in (module.running_var, module.weight):
                tensor.data.uniform_(0.5, 2, generator=generator)
    return model.eval()


class Net(nn.Module):
    """Every kind of layer with a batch norm behind it, and a linear layer that is called twice."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.conv_bn = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.depthwise_bn = nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2, groups=2)
        self.up_bn = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 6, bias=False)
        self.fc_bn = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 6)
        self.head_bn = nn.BatchNorm1d(6)
        self.twice = nn.Linear(6, 6)

    def forward(self, x):
        x = nn.functional.pad(x, (0, 1, 0, 1))
        x = torch.relu(self.conv_bn(self.conv(x)))
        x = self.depthwise_bn(self.depthwise(x))
        x = torch.relu(self.up_bn(self.up(x))).mean((2, 3))
        x = torch.relu(self.fc_bn(self.fc(x)))
        x = self.head_bn(self.head(x))
        return self.twice(torch.relu(self.twice(x)))


FOLDED = ("conv", "depthwise", "up", "fc", "head")


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    """(model, path of its float ONNX)"""
    torch.manual_seed(0)
    model, path = randomize(Net()), tmp_path_factory.mktemp("net") / "float.onnx"
    export(model, torch.randn(1, 3, 7, 7), path)
    return model, path


def net_rows(model, path, bn, **granularity):
    """Weights per_channel (or as given by layer), inputs per_tensor."""
    rows = {}
    for marker in markers(load_float(path).graph):
        layer, _, role = site_of(marker).rpartition(".")
        if role == "output" or layer.endswith("bn"):
            continue
        shape = tuple(n if isinstance(n, int) else 1 for n in marker.inputs[0].shape)
        chosen = granularity.get(layer, "per_channel" if role == "weight" else "per_tensor")
        if layer == "up" and chosen == "per_channel":
            chosen = {"per_channel": {"axis": 1}}
        folds = layer in FOLDED
        rows[layer, role] = row_of(
            f"{layer}.{role}", shape, chosen,
            bn=bn if folds else None, bn_name=f"{layer}_bn" if folds else None,
        )  # fmt: skip
    return list(rows.values())


def amax_of(rows, weights):
    return {
        row.site: reduce_blocks(np.abs(weights[row.layer]), row.block)
        if row.operand == "weight"
        else np.full(row.grid, 3.0, np.float32)
        for row in rows
    }


@pytest.mark.parametrize("bn", ["fold", "keep"])
def test_without_quantized_rows_the_graph_is_the_model(net, tmp_path, bn):
    model, path = net
    rows = [as_float(r) for r in net_rows(model, path, bn)]
    save(insert(load_float(path), rows, {}), tmp_path / "model.onnx")
    kinds = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert ("BatchNormalization" in kinds) == (bn == "keep")
    assert "Pad" not in kinds
    for batch in (1, 2, 7):
        x = torch.randn(batch, 3, 7, 7)
        with torch.no_grad():
            expected = model(x).numpy()
        session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
        np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], expected, atol=1e-5)


@pytest.mark.parametrize("bn", ["fold", "keep"])
@pytest.mark.parametrize("choice", ["per_channel", "per_element", {"per_block": {"size": 1}}])
def test_an_exported_network_is_quantized_as_planned(net, tmp_path, bn, choice):
    model, path = net
    floats = load_float(path)
    rows = net_rows(model, path, bn, depthwise=choice, head=choice, twice=choice)
    rows.append(row_of("up.output", (1, 4, 14, 14), bn=bn, bn_name="up_bn"))
    weights = weights_of(floats, rows)
    amax = amax_of(rows, weights)
    save(insert(floats, rows, amax), tmp_path / "model.onnx")
    read_back(tmp_path / "model.onnx", rows, amax, weights)
    feeds = {"x": np.random.default_rng(0).standard_normal((7, 3, 7, 7)).astype(np.float32)}
    found = agreement(tmp_path / "model.onnx", rows, amax, feeds)
    assert found.sites == len(rows) and found.oracle_differs == 0


def test_the_output_of_a_folded_layer_is_quantized_where_its_batch_norm_ended(net, tmp_path):
    _, path = net
    row = row_of("conv.output", (1, 8, 8, 8), bn="fold", bn_name="conv_bn")
    save(
        insert(load_float(path), [row], {"conv.output": np.full(row.grid, 2.0, np.float32)}),
        tmp_path / "model.onnx",
    )
    nodes = onnx.load(tmp_path / "model.onnx").graph.node
    assert [n.name for n in nodes][:4] == [
        "conv/Conv", "conv.output/QuantizeLinear", "conv.output/DequantizeLinear", "Relu",
    ]  # fmt: skip


def test_folded_weights_are_those_of_the_one_arithmetic(net):
    model, path = net
    found = weights_of(load_float(path), net_rows(model, path, "fold"))
    assert set(found) == {*FOLDED, "twice"}
    for layer in FOLDED:
        module, bn = getattr(model, layer), getattr(model, f"{layer}_bn")
        arrays = (bn.weight, bn.bias, bn.running_mean, bn.running_var)
        expected, _ = fold(
            module.weight.detach().numpy(),
            None if module.bias is None else module.bias.detach().numpy(),
            Norm(*(tensor.detach().numpy() for tensor in arrays), bn.eps),
            1 if layer == "up" else 0,
            getattr(module, "groups", 1),
        )
        assert found[layer].tobytes() == expected.tobytes()
    kept = weights_of(load_float(path), net_rows(model, path, "keep"))
    assert (kept["up"] == model.up.weight.detach().numpy()).all()


def test_a_batch_norm_that_does_not_follow_its_layer_is_not_folded(net):
    _, path = net
    for layer, bn_name in (("conv", "up_bn"), ("twice", "head_bn")):
        row = row_of(f"{layer}.input", (1, 3, 8, 8), bn="fold", bn_name=bn_name)
        with pytest.raises(ModelError, match=f"{layer}.*set bn: keep"):
            insert(load_float(path), [row], {})


def test_the_float_file_is_valid_and_runs_with_its_markers(net):
    model, path = net
    onnx.checker.check_model(str(path), full_check=True)
    session = onnxruntime.InferenceSession(path)
    image = torch.randn(3, 3, 7, 7)
    (found,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, model(image).numpy(), rtol=1e-4, atol=1e-5)
    written = insert(load_float(path), [], {})
    assert not written.functions and "granplugin" not in written.opset_imports


def test_nodes_are_named_after_modules_and_nothing_else_is_told(net):
    _, path = net
    model = onnx.load(path)
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert {"conv/Conv", "conv_bn/BatchNormalization", "twice/Gemm", "twice/Gemm_1"} <= set(names)
    assert str(Path(__file__).parent).encode() not in path.read_bytes()
    assert b"site-packages" not in path.read_bytes()
    everything = [*model.graph.node, *model.graph.initializer, *model.graph.value_info]
    assert not any(part.metadata_props or part.doc_string for part in everything)


Pair = namedtuple("Pair", "first second")


@dataclasses.dataclass
class Found:
    boxes: torch.Tensor
    scores: list[torch.Tensor]


class Many(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.ModuleDict({"fc": nn.Linear(4, 4)})

    def forward(self, left, right=None, *, gate=None):
        mixed = self.inner["fc"](left) + (0 if right is None else right)
        return Found(boxes=mixed * (1 if gate is None else gate), scores=[mixed.sum(1), left])


@pytest.mark.parametrize(
    "example",
    [
        torch.ones(1, 4),
        (torch.ones(1, 4), torch.ones(1, 4)),
        {"left": torch.ones(3, 4), "gate": torch.ones(3, 4)},
    ],
    ids=["tensor", "tuple", "dict"],
)
def test_any_inputs_and_outputs_keep_their_names_and_their_batch(tmp_path, example):
    model, path = Many().train(), tmp_path / "model.onnx"
    export_float(model, example, path)
    assert all(module.training for module in model.modules())
    session = onnxruntime.InferenceSession(path)
    args = dict(
        zip(("left", "right"), example if isinstance(example, tuple) else (example,), strict=False)
    )
    args = example if isinstance(example, dict) else args
    assert [value.name for value in session.get_inputs()] == list(args)
    assert [value.name for value in session.get_outputs()] == ["boxes", "scores_0", "scores_1"]
    assert "inner.fc/Gemm" in [node.name for node in onnx.load(path).graph.node]
    for batch in (1, 5):
        feeds = {name: torch.randn(batch, 4) for name in args}
        with torch.no_grad():
            expected = model(**feeds)
        found = session.run(None, {name: x.numpy() for name, x in feeds.items()})
        for x, y in zip((expected.boxes, *expected.scores), found, strict=True):
            np.testing.assert_allclose(x, y, atol=1e-5)


@pytest.mark.parametrize("name", ["logits", "linear", "0.weight"])
def test_outputs_can_be_named_whatever_else_has_that_name(tmp_path, name):
    class Named(nn.Sequential):
        def forward(self, input):
            return {name: super().forward(input)}

    path, model = tmp_path / "model.onnx", Named(nn.Linear(4, 4), nn.Linear(4, 2))
    export_float(model, torch.ones(2, 4), path)
    session = onnxruntime.InferenceSession(path)
    assert [value.name for value in session.get_outputs()] == [name]
    (found,) = session.run([name], {"input": np.ones((3, 4), np.float32)})
    np.testing.assert_allclose(found, model(torch.ones(3, 4))[name].detach(), atol=1e-6)


def test_the_exporter_talks_to_the_log_alone(tmp_path, capfd, caplog):
    with caplog.at_level(logging.DEBUG, logger="granplugin"):
        export_float(nn.Linear(4, 2), torch.ones(2, 4), tmp_path / "model.onnx")
    assert capfd.readouterr() == ("", "")
    assert "exported Linear" in caplog.text


class FixedBatch(nn.Module):
    def forward(self, x):
        return x.reshape(2, 4) if len(x) == 2 else x


class Branches(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Number(nn.Module):
    def forward(self, x):
        return x * int(x.sum())


class Svd(nn.Module):
    def forward(self, x):
        return torch.linalg.svd(x)[1]


BY_VALUE = r"depends on values of the data .*\(test_export.py:\d+, in 'part'\); write it with"


@pytest.mark.parametrize(
    "part, told",
    [
        (FixedBatch(), "takes the batch of 'x' for the constant 2; take sizes from the input"),
        (Branches(), BY_VALUE),
        (Number(), BY_VALUE),
        (Svd(), r"operator aten._linalg_svd \(.* in 'part'\) has no form in ONNX"),
    ],
)
def test_a_model_that_cannot_be_exported_is_one_sentence_and_no_file(tmp_path, part, told):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = part

        def forward(self, x):
            return self.part(x)

    with pytest.raises(ModelError, match=f"cannot be exported to ONNX.*{told}") as caught:
        export_float(Model(), torch.ones(2, 4), tmp_path / "model.onnx")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert not list(tmp_path.iterdir())
