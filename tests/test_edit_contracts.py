"""Graph edits: one that is called for what it cannot do, or does not do what it says, is told."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper
from onnx_ir.passes import PostconditionError, PreconditionError
from test_qdq import marker, model_of, row_of

from granplugin.graph import edit
from granplugin.graph.edit import qdq
from granplugin.graph.edit.additions import Additions
from granplugin.graph.edit.contract import contract, seam, seen
from granplugin.graph.edit.fold import fold_batch_norms
from granplugin.graph.edit.forms import FORMS
from granplugin.graph.edit.lowering import lower
from granplugin.graph.edit.lowering.row_scale import scale_rows
from granplugin.graph.edit.lowering.simulated import multiply_back, simulate
from granplugin.graph.edit.nodes import bypass, markers
from granplugin.graph.edit.pads import merge_pads
from granplugin.graph.edit.precision import convert
from granplugin.graph.edit.qdq import insert, write_pairs
from granplugin.quant.granularity import PerTensor

ROW = row_of("layer.input", (1, 4))
AMAX = {"layer.input": np.ones((1, 1), np.float32)}


def marked(*more):
    """x - marker - Neg - y, and other nodes in between."""
    nodes = [marker("x", "layer.input"), helper.make_node("Neg", ["layer.input"], ["y"]), *more]
    for node in nodes:
        node.name = node.name or f"layer/{node.op_type}"
    return model_of(nodes, {"x": ["n", 4]}, {"y": ["n", 4]}, {})


def nothing(*args):
    return None


def test_a_requirement_that_is_not_met_keeps_the_edit_from_running():
    ran = []

    @seam(lambda x: None if x else "there is none", nothing)
    def edit(x):
        ran.append(x)

    edit(1)
    with pytest.raises(PreconditionError, match="^edit cannot be called: there is none$"):
        edit(0)
    assert ran == [1]


def test_what_is_ensured_is_looked_for_in_the_result():
    @seam(nothing, lambda result, x: None if result > x else f"{result} is not above {x}")
    def edit(x):
        return x * x

    assert edit(3) == 9
    with pytest.raises(PostconditionError, match="edit did not do what it says: 1 is not above 1"):
        edit(1)


def renames_an_output(graph):
    graph.outputs[0].name = "z"


def adds_an_input(graph):
    graph.inputs.append(ir.Value(name="new"))


def reads_what_comes_later(graph):
    first, second = graph
    first.replace_input_with(0, second.outputs[0])


def takes_a_name(graph):
    graph[0].outputs[0].name = "x"


def adds_a_marker(graph):
    graph.append(ir.node("Site", [graph.inputs[0]], {"site": "new"}, domain="granplugin"))


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (renames_an_output, "its outputs were"),
        (adds_an_input, "its inputs were"),
        (reads_what_comes_later, "reads y, which is not computed before it"),
        (takes_a_name, "gives x, which is given already"),
        (adds_a_marker, "new has a new marker"),
    ],
)
def test_no_edit_changes_a_graphs_ends_or_order(edit, said):
    graph = marked().graph
    assert seen(graph).unsound is None
    with pytest.raises(PostconditionError, match=said):
        contract(nothing, nothing)(edit)(graph)


def test_an_edit_of_what_is_no_graph_is_refused():
    graph = marked().graph
    reads_what_comes_later(graph)
    with pytest.raises(PreconditionError, match="fold_batch_norms cannot be called: .* reads y"):
        fold_batch_norms(graph, [ROW])


def test_each_edit_says_what_it_requires():
    def refused(said):
        return pytest.raises(PreconditionError, match=said)

    model = marked()
    graph, additions = model.graph, Additions(model.graph)
    (site,) = markers(graph)
    scale = additions.constant("scale", np.float32(1))
    fold = dataclasses.replace(ROW, bn="fold")
    dynamic = dataclasses.replace(ROW, granularity=PerTensor(dynamic=True))
    with refused("layer.input has a batch norm to fold, without a name"):
        fold_batch_norms(graph, [fold])
    with refused("other is not where layer.input is observed"):
        merge_pads(graph, {"other": ROW})
    with refused("layer.input has no amax"):
        lower(additions, [ROW], {}, {})
    with refused(r"layer.input has an amax of shape \(2,\), not \(1, 1\)"):
        write_pairs(additions, [ROW], {"layer.input": np.ones(2, np.float32)})
    with refused("layer.input has an amax that is not positive"):
        insert(model, [ROW], {"layer.input": np.zeros((1, 1), np.float32)})
    with refused("layer.input is dynamic"):
        write_pairs(additions, [dynamic], AMAX)
    with refused("layer.input is dynamic"):
        simulate(additions, [site], dynamic, AMAX["layer.input"])
    for behind in (scale_rows, multiply_back):
        with refused("what layer.input marks is not divided by its scales"):
            behind(additions, site, ROW, scale)
    with refused("fp8 is none of fp16, bf16"):
        convert("model.onnx", "fp8", (), ())
    bypass(site)
    with refused("layer/Site has no one output with an input for it"):
        bypass(site)


def test_a_batch_norm_that_is_not_folded_yet_is_told():
    constants = {name: np.ones(4, np.float32) for name in ("scale", "bias", "mean", "var")}
    norm = helper.make_node(
        "BatchNormalization", ["x", *constants], ["y"], "norm/BatchNormalization"
    )
    graph = model_of([norm], {"x": ["n", 4]}, {"y": ["n", 4]}, constants).graph
    row = dataclasses.replace(row_of("layer.weight", (4, 4)), bn="fold", bn_name="norm")
    with pytest.raises(PreconditionError, match="norm/BatchNormalization is not folded yet"):
        lower(Additions(graph), [row], {"layer.weight": np.ones((1, 1), np.float32)}, {})


def test_a_marker_that_is_left_is_told(monkeypatch):
    monkeypatch.setattr(qdq, "bypass", lambda node: None)
    with pytest.raises(PostconditionError, match="write_pairs .*: layer.input has a marker still"):
        insert(marked(), [], {})


def test_a_quantize_with_other_readers_is_told(monkeypatch):
    quantize = qdq._Writer.quantize

    def leaking(writer, site, row, amax):
        quantize(writer, site, row, amax)
        written = next(node for node in writer.additions.graph if node.op_type == "QuantizeLinear")
        writer.additions.graph.append(ir.node("Cast", [written.outputs[0]], {"to": 1}))

    monkeypatch.setattr(qdq._Writer, "quantize", leaking)
    with pytest.raises(PostconditionError, match="is not followed by one DequantizeLinear"):
        insert(marked(), [ROW], AMAX)


def test_an_edit_says_what_it_ensures_where_it_is_checked_and_forms_are_such_edits():
    found = {}
    for path in Path(edit.__path__[0]).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                names = {getattr(getattr(d, "func", d), "id", "") for d in node.decorator_list}
                checked = bool(names & {"seam", "contract", "equal_form"})
                found[node.name] = checked, "Ensures" in (ast.get_docstring(node) or "")
    # contract.py imports the module of bypass, which looks by itself.
    assert [name for name, (checked, said) in found.items() if checked != said] == ["bypass"]
    assert all(found[form.write.__name__] == (True, True) for form in FORMS.values())
    assert sum(checked for checked, _ in found.values()) > len(FORMS)
