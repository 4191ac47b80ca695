"""pytorch-quantization itself: what it saves is read to the bit, what it exports is audited, and what
is written for it runs."""

from __future__ import annotations

import json
import sys
import types

import numpy as np
import pytest
import torch
from conftest import run_main
from test_audit import needs_rtx
from torch import nn

import granplugin
from granplugin.calibration.statistics import export_amax, import_amax
from granplugin.convert.to_pytorch_quantization import program
from granplugin.network.trace import trace
from granplugin.planning.plan import make_plan
from granplugin.quant.formats import FORMATS, fake_quantize, scale_of
from granplugin.quant.granularity import reduce_blocks
from granplugin.recipe.load import load_part


@pytest.fixture(scope="module")
def library():
    """pytorch-quantization, which runs on the CPU without its CUDA extension."""
    sys.modules.setdefault("pytorch_quantization.cuda_ext", types.ModuleType("cuda_ext"))
    return pytest.importorskip(
        "pytorch_quantization",
        reason="pytorch-quantization 2.1.3 is not installed: nothing here is held to the real "
        'library; pip install -c constraints.txt -e ".[test]"',
    )


@pytest.fixture(autouse=True)
def as_imported(library, monkeypatch):
    """A program that runs sets the library's defaults and adds to its list of modules: for its test."""
    from pytorch_quantization import nn as quant_nn
    from pytorch_quantization import quant_modules

    for made in vars(quant_nn).values():
        for name in ("default_quant_desc_input", "default_quant_desc_weight"):
            if isinstance(made, type) and hasattr(made, name):
                monkeypatch.setattr(made, name, getattr(made, name))
    helper = quant_modules.QuantModuleReplacementHelper()
    monkeypatch.setattr(quant_modules, "_quant_module_helper_object", helper)


class Made(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(4, 8, 3, padding=1)
        self.body = nn.Conv2d(8, 8, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.body(self.stem(x).relu())
        return self.head(self.norm(self.pool(x).flatten(1)))


PINNED = [
    {"match": {"type": ["Conv2d", "Linear"]}, "format": "int8", "weight": "per_channel"},
    {"match": "body", "weight": "per_tensor", "input": {"calibrator": {"percentile": 99.0}}},
    {"match": "head", "weight": {"per_channel": {"axis": 1}}, "input": {"amax": 3.0}},
    {"match": "norm", "input": {"format": "int8", "granularity": "per_tensor"}},
]


def program_of(rules, model, example):
    layers = trace(model, example).layers
    plan = make_plan(load_part({"version": 1, "defaults": {"bn": "keep"}, "rules": rules}), layers)
    text, lost = program(plan, layers, "r.yaml")
    module: dict = {}
    exec(compile(text, "made.py", "exec"), module)
    return plan, module, lost


def test_the_program_runs_with_the_real_library_and_rounds_as_the_plan(library, tmp_path):
    torch.manual_seed(0)
    model, data = Made().eval(), torch.randn(16, 4, 8, 8)
    plan, module, lost = program_of(PINNED, model, data)
    assert lost == ["norm.input: it has no class for such layers; they stay float"]
    statistics = {}
    hooks = [
        layer.register_forward_pre_hook(lambda m, args, n=name: statistics.update({n: args[0]}))
        for name, layer in model.named_modules()
    ]
    model(data)
    for hook in hooks:
        hook.remove()
    weights = model.state_dict()
    amax, rows = {}, {row.site: row for row in plan.quantized if row.layer != "norm"}
    for site, row in rows.items():
        weighted = row.operand == "weight"
        tensor = weights[site] if weighted else statistics[row.layer].abs().amax(0, keepdim=True)
        amax[site] = reduce_blocks(tensor.detach().abs().numpy(), row.block)
    export_amax(tmp_path / "amax.json", rows.values(), amax)

    ours = module["quantize"](Made).eval()
    ours.load_state_dict(weights)
    assert module["load_amax"](ours, tmp_path / "amax.json") == []
    assert set(found := module["quantizers"](ours)) == set(rows)
    for site, quantizer in found.items():
        row, held = rows[site], np.asarray(quantizer._amax)
        assert np.array_equal(held.reshape(row.grid), amax[site])
        tensor = weights[site] if row.operand == "weight" else statistics[row.layer]
        x, fmt = tensor.detach().numpy(), FORMATS[row.format]
        block = row.block if row.operand == "weight" else x.shape
        with torch.no_grad():
            rounded = quantizer(torch.from_numpy(x.copy())).numpy()
        # It rounds x * (127 / amax), and the oracle x / (amax / 127): ties may differ by a step.
        step = amax[site].max() / fmt.largest
        off = np.abs(rounded - fake_quantize(x, scale_of(amax[site], fmt), block, fmt))
        assert (off > step / 2).mean() < 1e-3 and off.max() < 1.5 * step

    fresh = module["quantize"](Made).eval()
    fresh.load_state_dict(weights)
    module["calibrate"](fresh, lambda net: net(data))
    calibrated = module["quantizers"](fresh)
    assert float(calibrated["head.input"]._amax) == 3.0
    assert torch.equal(calibrated["stem.input"]._amax.max(), data.abs().max())
    assert float(calibrated["body.input"]._amax) < float(statistics["body"].abs().max())


def initialized(calib_method, **compute):
    """A network of quant_modules.initialize(), calibrated by the library."""
    from pytorch_quantization import nn as quant_nn
    from pytorch_quantization import quant_modules
    from pytorch_quantization.tensor_quant import QuantDescriptor

    descriptor = QuantDescriptor(calib_method=calib_method)
    for kind in (quant_nn.QuantConv2d, quant_nn.QuantLinear, quant_nn.QuantAdaptiveAvgPool2d):
        kind.set_default_quant_desc_input(descriptor)
    quant_modules.initialize(["LSTM", "LSTMCell"])
    try:
        torch.manual_seed(0)
        model = Made().eval()
    finally:
        quant_modules.deactivate()
    found = [each for each in model.modules() if isinstance(each, quant_nn.TensorQuantizer)]
    for each in found:
        each.disable_quant()
        each.enable_calib()
    with torch.no_grad():
        model(torch.randn(16, 4, 8, 8, generator=torch.Generator().manual_seed(0)))
    for each in found:
        histogram = type(each._calibrator).__name__ == "HistogramCalibrator"
        each.load_calib_amax(**(compute if histogram else {}))
        each.enable_quant()
        each.disable_calib()
    return model


@pytest.mark.parametrize(
    ("method", "compute"),
    [("max", {}), ("histogram", {"method": "percentile", "percentile": 99.9})],
)
def test_what_it_saves_is_read_to_the_bit(library, tmp_path, monkeypatch, method, compute):
    monkeypatch.chdir(tmp_path)
    model = initialized(method, **compute)
    torch.save({f"module.{k}": v for k, v in model.state_dict().items()}, "trained.pth")
    done = run_main("convert", "trained.pth", "--out", "base.yaml")
    assert done.code == 0, done.stderr
    assert "not in it" not in done.stdout
    layers = trace(Made().eval(), torch.randn(2, 4, 8, 8)).layers
    plan = make_plan(load_part(tmp_path / "base.yaml"), layers)
    given = import_amax(tmp_path / "base.amax.json", plan.quantized)
    live = {
        name.replace("._", ".").removesuffix("_quantizer"): each._amax
        for name, each in model.named_modules()
        if hasattr(each, "_amax")
    }
    assert {row.site for row in plan.quantized} == set(live)
    for row in plan.quantized:
        amax = given.get(row.site, np.float32(row.amax or 0))
        assert np.array_equal(np.asarray(live[row.site]).reshape(row.grid), amax.reshape(row.grid))


class Block(nn.Module):
    """The names that pytorch-quantization's BERT and ResNet give their quantizers."""

    def __init__(self, quantizer=nn.Identity):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.dense = nn.Linear(8, 8)
        for name in ("matmul_q", "matmul_k", "matmul_a", "matmul_v", "add_residual", "softmax"):
            self.add_module(f"{name}_input_quantizer", quantizer())

    def forward(self, x):
        q, k = self.matmul_q_input_quantizer(self.query(x)), self.key(x).mT
        scores = (q @ self.matmul_k_input_quantizer(k)).softmax(-1)
        value = self.matmul_v_input_quantizer(self.value(x))
        mixed = self.matmul_a_input_quantizer(scores) @ value
        return self.dense(mixed) + self.add_residual_input_quantizer(x)


def test_the_names_of_its_examples_are_known(library, tmp_path, monkeypatch):
    from pytorch_quantization import nn as quant_nn

    monkeypatch.chdir(tmp_path)
    model = nn.ModuleDict({"block": Block(quant_nn.TensorQuantizer)})
    for number, each in enumerate(each for each in model.modules() if hasattr(each, "_calibrator")):
        each.amax = 1.0 + number
    state = model.state_dict() | {
        f"block.{name}._{role}_quantizer._amax": torch.tensor(0.5)
        for name in ("query", "key", "value", "dense")
        for role in ("weight", "input")
    }
    torch.save(state, "bert.pth")
    done = run_main("convert", "bert.pth", "--out", "base.yaml")
    assert done.code == 0, done.stderr
    assert "not in it: block.softmax_input_quantizer: is at no weight, input or skip" in done.stdout

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = Block()

        def forward(self, x):
            return self.block(x)

    layers = trace(Net().eval(), torch.randn(2, 4, 8)).layers
    plan = make_plan(load_part(tmp_path / "base.yaml"), layers)
    amax = {row.site: row.amax for row in plan.quantized}
    assert amax["block.matmul.input"] == 1.0 and amax["block.matmul.other"] == 2.0
    assert amax["block.matmul_1.input"] == 3.0 and amax["block.matmul_1.other"] == 4.0
    assert amax["block.dense.skip"] == 5.0
    assert len(amax) == 8 + 5


@pytest.mark.parametrize(
    ("descriptor", "operand", "setting"),
    [
        ({"num_bits": 8}, "weight", {"format": "int8", "granularity": "per_tensor"}),
        ({"num_bits": 4}, "weight", {"format": "int4", "granularity": "per_tensor"}),
        ({"axis": None}, "input", "per_tensor"),
        ({"axis": (0,)}, "weight", "per_channel"),
        ({"axis": (1,)}, "weight", {"per_channel": {"axis": 1}}),
        ({"axis": (1,)}, "input", {"per_channel": {"axis": 1}}),
        ({"amax": 3.0}, "input", {"granularity": "per_tensor", "amax": 3.0}),
        ({}, "input", {"per_tensor": {"dynamic": True}}),
    ],
)
def test_a_descriptor_is_the_line_of_a_recipe_beside_it(library, descriptor, operand, setting):
    """The table of docs/pytorch-quantization.md."""
    from pytorch_quantization import nn as quant_nn
    from pytorch_quantization.tensor_quant import QuantDescriptor

    torch.manual_seed(0)
    rule = {"match": "stem", "format": "int8", "half": "allow", operand: setting}
    layers = trace(Made(), torch.zeros(2, 4, 8, 8)).layers
    plan = make_plan(load_part({"version": 1, "defaults": {"bn": "keep"}, "rules": [rule]}), layers)
    row = next(row for row in plan.quantized if row.site == f"stem.{operand}")
    x = torch.randn(row.shape)
    theirs = quant_nn.TensorQuantizer(QuantDescriptor(**descriptor))(x).numpy()
    fmt, amax = FORMATS[row.format], reduce_blocks(x.abs().numpy(), row.block)
    scale = scale_of(amax if row.amax is None else np.full_like(amax, row.amax), fmt)
    ours = fake_quantize(x.numpy(), scale, row.block, fmt)
    # Ties alone: round(x * (127 / amax)) there, round(x / (amax / 127)) here.
    assert (np.abs(theirs - ours) > 1e-5).mean() < 2e-3


def test_what_it_quantizes_by_default_is_the_recipe_of_the_page(library):
    from pytorch_quantization import nn as quant_nn
    from pytorch_quantization import quant_modules

    quant_modules.initialize(float_module_list=["Linear"])
    try:
        model = Made()
    finally:
        quant_modules.deactivate()
    theirs = {
        name.replace("._", ".").removesuffix("_quantizer"): each.axis
        for name, each in model.named_modules()
        if isinstance(each, quant_nn.TensorQuantizer)
    }
    rules = [
        {"match": {"type": "AdaptiveAvgPool2d"}, "input": "int8"},
        {"match": {"type": "Linear"}, "format": "float"},
    ]
    defaults = {"weight": "per_channel", "input": "per_tensor", "bn": "keep"}
    part = load_part({"version": 1, "defaults": defaults, "rules": rules})
    plan = make_plan(part, trace(Made(), torch.zeros(2, 4, 8, 8)).layers)
    ours = {row.site: 0 if row.scales > 1 else None for row in plan.quantized}
    assert theirs == ours


@needs_rtx
def test_what_it_exports_is_audited_site_by_site(library, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = initialized("max")
    monkeypatch.setattr(library.nn.TensorQuantizer, "use_fb_fake_quant", True)
    example = torch.randn(1, 4, 8, 8)
    torch.onnx.export(model, (example,), "net.onnx", opset_version=13, dynamo=False)
    done = run_main("audit", "net.onnx", "--json")
    assert done.code in (0, 3), done.stderr
    rows = {(row["layer"], row["role"]): row for row in json.loads(done.stdout)["sites"]}
    assert {key for key in rows if "Conv" in key[0]} == {
        (f"/{name}/Conv", role) for name in ("stem", "body") for role in ("weight", "input")
    }
    assert "per_channel" in rows["/stem/Conv", "weight"]["granularity"]
    assert rows["/stem/Conv", "input"]["verdict"] == "honoured"
    np.savez("x.npz", x=example.repeat(4, 1, 1, 1).numpy())
    recipe = {
        "version": 1,
        "model": {"onnx": "net.onnx", "strip": True},
        "data": {"calibration": {"npz": "x.npz", "inputs": {"x": "x"}}},
        "engines": ["onnxruntime"],
        "optional_engines": [],
    }
    planned = granplugin.plan(recipe, out=tmp_path / "run")
    assert {"/stem/Conv", "/body/Conv"} <= {layer.name for layer in planned.layers}
    assert any("are stripped" in note for note in planned.plan.notes)
