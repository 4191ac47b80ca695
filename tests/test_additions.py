"""The table of docs/architecture.md, done: one of each kind is added to a copy of the package, in the
files that its row names and in no more, and the verbs take them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper
from test_architecture import ROOT, rows_of

METRICS, FORMATS = "granplugin/measures/metrics.py", "granplugin/quant/formats.py"
CALIBRATORS, LAYERS = "granplugin/quant/calibrators.py", "granplugin/quant/layers.py"
GRANULARITY, PRESETS = "granplugin/quant/granularity.py", "granplugin/recipe/presets.py"
ENGINES, MODELS = "granplugin/engines.py", "granplugin/recipe/model.py"
RENDERERS = "granplugin/report/render/__init__.py"

ENTERED = {
    "metric": {
        METRICS: [
            (
                "METRICS: dict",
                """\
def mean_error(outputs, reference, labels, classes=None):
    errors = [np.abs(outputs[name] - reference[name]).mean() for name in outputs]
    return Score(float(np.mean(errors)), None, higher_is_better=False)


""",
            ),
            (
                '    "top1": Metric',
                '    "mean_error": Metric(mean_error, "", False, True, "mean"),\n',
            ),
        ]
    },
    "calibrator": {
        CALIBRATORS: [
            ('    "mse": lambda', '    "half": lambda counts, largest, fmt, number: largest / 2,\n')
        ]
    },
    "granularity": {
        GRANULARITY: [
            (
                "Granularity = PerTensor",
                """\
class PerPair(_Granularity):
    kind = "per_pair"

    def block(self, site):
        return _replace(site.shape, {site.channel_axis: 2})


""",
            ),
            ("PerTensor | PerChannel", "PerPair | "),
            ("PerTensor, PerChannel, PerToken", "PerPair, "),
        ]
    },
    "format": {
        FORMATS: [
            (
                '        Format("int8"',
                '        Format("int6", 6, -32, 31, 1, np.dtype(np.int8), 6),\n',
            )
        ]
    },
    "preset": {PRESETS: [('    "tensorrt@11": ten', '    "own@1": lambda layer: _TENSORRT,\n')]},
    "kind of product": {
        LAYERS: [
            ('    "Conv": _CON', '    "DeformConv": Kind(*_DEFORMED),\n'),
            (
                "PRODUCTS: dict",
                '_DEFORMED = "convolution", ("weight", "input"), ("DeformConv",), 1\n',
            ),
        ]
    },
    "backend": {
        ENGINES: [
            (
                '        EngineFacts(\n            name="openvino"',
                """\
        EngineFacts(
            name="mirror", backend="granplugin.backends.mirror:Mirror", what_for="a second one",
            package="onnxruntime", distributions=("onnxruntime",), extra=None, device="cpu",
            precisions=("fp32",),
        ),
""",
            )
        ],
        "granplugin/backends/mirror.py": """\
from granplugin.backends.onnxruntime import OnnxRuntime


class Mirror(OnnxRuntime):
    pass
""",
    },
    "source of networks": {
        MODELS: [
            (
                "Model = CallableModel",
                """\
class GzippedModel(OnnxModel):
    opened_by: ClassVar[str] = "granplugin.sources.gzipped:GzippedNetwork"

    onnx: File | None = None
    gzipped: File

    @property
    def files(self):
        return (self.gzipped,)


""",
            ),
            ("CallableModel | OnnxModel\nM", "GzippedModel | "),
            ('"callable": CallableModel, "onnx"', '"gzipped": GzippedModel, '),
        ],
        "granplugin/sources/gzipped.py": """\
import gzip

import onnx

from granplugin.network.onnx_file import shaped
from granplugin.sources.onnx_network import OnnxNetwork


class GzippedNetwork(OnnxNetwork):
    @classmethod
    def open(cls, loaded):
        path = loaded.recipe.model.gzipped
        return cls(shaped(onnx.load_from_string(gzip.decompress(path.read_bytes())), path))
""",
    },
    "renderer": {
        RENDERERS: [
            ('    "terminal": t', '    "titles": titles.render,\n'),
            ("html, markdown, terminal\n", "titles, "),
        ],
        "granplugin/report/render/titles.py": "def render(view):\n    return view.title\n",
    },
    "verb": {
        "granplugin/pipelines/hello.py": """\
from granplugin.engines import ENGINES


def hello():
    return ", ".join(ENGINES)
""",
        "granplugin/cli/hello.py": '''\
"""Engines, in a line."""

from granplugin.stdout import say


def hello() -> int:
    from granplugin.pipelines.hello import hello

    say(hello())
    return 0
''',
    },
}
"""Kind -> file -> what stands in front of which text of it; or the whole of a new file."""


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A folder with the changed copy."""
    folder = tmp_path_factory.mktemp("additions")
    shutil.copytree(ROOT / "granplugin", folder / "granplugin")
    for files in ENTERED.values():
        for name, entries in files.items():
            path = folder / name
            if isinstance(entries, str):
                assert not path.exists()
                path.write_text(entries)
                continue
            text = path.read_text(encoding="utf-8")
            for before, entry in entries:
                assert text.count(before) == 1, (name, before)
                text = text.replace(before, entry + before)
            path.write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("kind", ENTERED)
def test_a_row_of_the_table_names_what_was_changed_for_it(kind):
    (row,) = [row for row in rows_of("| to add a | touch | files |") if row[0] == kind]
    named = set(re.findall(r"`(granplugin/[^`]+)`", row[1]))
    changed = {name for name, entries in ENTERED[kind].items() if not isinstance(entries, str)}
    assert changed <= named and len(ENTERED[kind]) <= int(row[2])


def deformed():
    """x - an offset, a convolution with it - y."""
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["offset"], "offset", pads=[1] * 4),
        helper.make_node("DeformConv", ["x", "w1", "offset"], ["y"], "deformed", pads=[1] * 4),
    ]
    held = [
        numpy_helper.from_array(np.ones((n, 2, 3, 3), np.float32), f"w{at}")
        for at, n in enumerate((18, 8))
    ]
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", channels, 4, 4])]
        for name, channels in (("x", 2), ("y", 8))
    ]
    graph = helper.make_graph(nodes, "deformed", *ends, held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


SCRIPT = """
import gzip, json, pathlib, sys
from granplugin.__main__ import main

given = pathlib.Path("net.onnx").read_bytes()
pathlib.Path("net.gz").write_bytes(gzip.compress(given))
for verb in (["hello"], ["check", "r.yaml"], ["plan", "r.yaml", "--json"]):
    if code := main(verb):
        sys.exit(f"{verb}: {code}")
from granplugin.report.render import RENDERERS
from granplugin.report.view.elements import Section

print(RENDERERS["titles"](Section("a title", ())))
assert "torch" not in sys.modules
"""


def test_the_verbs_take_what_was_added(package):
    onnx.save(deformed(), package / "net.onnx")
    np.savez(package / "x.npz", x=np.ones((2, 2, 4, 4), np.float32))
    recipe = {
        "version": 1,
        "model": {"gzipped": "net.gz"},
        "data": {"calibration": {"npz": "x.npz", "inputs": {"x": "x"}}},
        "engines": ["onnxruntime", "mirror"],
        "metrics": ["mean_error"],
        "defaults": "own@1",
        "rules": [
            {
                "match": {"name": "deformed"},
                "weight": {"format": "int6", "granularity": "per_pair"},
                "input": {"calibrator": "half"},
            }
        ],
    }
    (package / "r.yaml").write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, cwd=package, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "mirror" in done.stdout.splitlines()[0] and done.stdout.endswith("a title\n")
    told = done.stdout[done.stdout.index("{") : done.stdout.rindex("}") + 1]
    rows = {(r["layer"], r["role"]): r for r in yaml.safe_load(told)["rows"]}
    weight, given = rows["deformed", "weight"], rows["deformed", "input"]
    assert (weight["format"], weight["granularity"], weight["scales"]) == ("int6", "per_pair", 4)
    assert given["calibrator"] == "half" and rows["offset", "weight"]["rule"] == "own@1"
