"""Torch to ONNX, once: the float model with a marker at each site, nodes named after modules."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes import common as passes
from onnxscript.optimizer import fold_constants

from granplugin.errors import ModelError
from granplugin.graph.edit.nodes import (
    add_constant,
    bypass,
    constant,
    marker_body,
    markers,
    replace,
    site_of,
)
from granplugin.graph.files import save
from granplugin.network.call_quantizers import left_behind
from granplugin.network.custom_ops import translations
from granplugin.network.forward import evaluating, flatten_outputs, named_inputs
from granplugin.network.node_names import name_nodes, name_values
from granplugin.network.unexportable import why_not
from granplugin.recipe.model import FileForm

log = logging.getLogger(__name__)

OPSET = 21
"""The first with blocked Q/DQ and INT4."""


def export_float(
    model: torch.nn.Module,
    example: Any,
    path: Path,
    form: FileForm = FileForm(),
) -> None:
    """Write the model as float ONNX, with the axes that `form` leaves open: axis 0 of every input,
    if nothing is said. Markers have a body, so that any runtime takes the file.

    `example` is a tensor, a tuple of arguments, or a dict of keyword arguments. Inputs are named
    after the parameters of `forward`, outputs as
    `flatten_outputs` calls them, nodes `module.path/OpType`. Raises ModelError.
    """
    args, kwargs = _arguments(example, form)
    exported, names = _export(model, args, kwargs, form)
    _compute_weights(exported)
    inputs, outputs = exported.graph.inputs, exported.graph.outputs
    named = [*named_inputs(model, example), *names]
    for value, name in zip([*inputs, *outputs], named, strict=True):
        value.name = name
    passes.NameFixPass()(exported)  # other values that had one of these names
    name_nodes(exported.graph)
    _drop_neutral_norms(exported.graph)
    name_values(exported.graph)
    # The metadata holds absolute paths of the machine; the pass leaves the initializers'.
    passes.ClearMetadataAndDocStringPass()(exported)
    for value in exported.graph.initializers.values():
        value.metadata_props.clear()
    body = marker_body()
    exported.functions[body.identifier()] = body
    save(exported, path)
    log.info("exported %s: %d nodes", type(model).__name__, exported.graph.num_nodes())


def _export(
    model: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    form: FileForm,
) -> tuple[ir.Model, list[str]]:
    """What torch makes of the model, and the names of its outputs. Raises ModelError."""
    names: list[str] = []

    def flat(module: torch.nn.Module, args: Any, outputs: Any) -> tuple[torch.Tensor, ...]:
        named = flatten_outputs(outputs)
        names[:] = named
        return tuple(named.values())

    own = translations(form.custom_ops)
    shapes = _open_axes(model, args, kwargs, form)
    hook = model.register_forward_hook(flat)
    program = failed = None
    try:
        with evaluating(model), _chatter_to_log():
            try:
                with _without_traces(), left_behind():
                    program = torch.onnx.export(
                        model,
                        args,
                        kwargs=kwargs,
                        dynamo=True,
                        optimize=True,
                        verbose=False,
                        opset_version=OPSET,
                        dynamic_shapes=shapes,
                        custom_translation_table=own or None,
                    )
            except Exception as error:  # tracing runs the user's code: anything can come out of it
                failed = error
            if not names or program is None:
                raise ModelError(
                    f"{type(model).__name__} cannot be exported to ONNX with {form}: "
                    f"{why_not(model, args, kwargs, shapes, failed)}"
                ) from failed
    finally:
        hook.remove()
    return program.model, names


def _compute_weights(model: ir.Model) -> None:
    """Put in what no data changes in front of the marker of a weight, such as weight
    standardisation; the exporter leaves it to be computed where the tensors are large."""
    nodes: set[ir.Node] = set()
    waiting = [
        marker.inputs[0] for marker in markers(model.graph) if site_of(marker).endswith(".weight")
    ]
    while waiting:
        value = waiting.pop()
        node = None if value is None else value.producer()
        if node is not None and node not in nodes:
            nodes.add(node)
            waiting += node.inputs
    if all(node.op_type == "Constant" for node in nodes):
        return
    # It leaves what puts out several tensors, such as the split of an attention's one weight.
    left: list[ir.Node] = [next(iter(nodes))]
    while left:
        fold_constants(
            model,
            should_fold=lambda node: node in nodes,
            input_size_limit=sys.maxsize,
            output_size_limit=sys.maxsize,
        )
        left = [node for node in nodes if len(node.outputs) > 1 and _is_constant(node)]
        for node in left:
            _put_in(node)
    passes.RemoveUnusedNodesPass()(model)


def _is_constant(node: ir.Node) -> bool:
    """Whether it is in a graph and reads constants alone."""
    given = (value for value in node.inputs if value is not None)
    return node.graph is not None and all(constant(value) is not None for value in given)


def _put_in(node: ir.Node) -> None:
    """What this node puts out, in its place. Requires that it reads constants alone."""
    graph = node.graph
    assert graph is not None, "it is in a graph"
    feeds = {value.name: constant(value) for value in node.inputs if value is not None}
    made = ReferenceEvaluator(ir.to_proto(node)).run(None, feeds)
    for value, array in zip(list(node.outputs), made, strict=True):
        name, value.name = value.name or f"{node.name}_out", None
        replace(value, add_constant(graph, name, array))
    graph.remove(node, safe=True)


def _drop_neutral_norms(graph: ir.Graph) -> None:
    """Take out batch norms that only let values through, as folding leaves some."""
    for node in list(graph.all_nodes()):
        if node.op_type == "BatchNormalization" and node.attributes["epsilon"].as_float() == 0:
            scale, bias, mean, var = map(constant, node.inputs[1:5])
            ones = all(x is not None and (x == 1).all() for x in (scale, var))
            zeros = all(x is not None and not x.any() for x in (bias, mean))
            if ones and zeros:
                bypass(node)


def _arguments(example: Any, form: FileForm) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments; a batch of 1 that is open is doubled, since torch.export
    takes a length of 1 for a constant."""

    def doubled(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            alone = value.dim() and len(value) == 1 and not form.static_batch
            return torch.cat([value, value]) if alone else value
        if isinstance(value, Mapping):
            return {name: doubled(item) for name, item in value.items()}
        return type(value)(map(doubled, value)) if isinstance(value, (tuple, list)) else value

    if isinstance(example, Mapping):
        return (), doubled(dict(example))
    return doubled(example if isinstance(example, tuple) else (example,)), {}


def _open_axes(
    model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], form: FileForm
) -> dict[str, Any]:
    """Argument of forward -> axis -> name, in the form of the argument."""

    def axes(value: Any, path: str) -> Any:
        if isinstance(value, torch.Tensor):
            return {at: name for at, name in form.of(path).items() if at < value.dim()} or None
        if isinstance(value, Mapping):
            return {name: axes(item, f"{path}.{name}") for name, item in value.items()}
        if isinstance(value, (tuple, list)):
            return type(value)(axes(item, f"{path}.{at}") for at, item in enumerate(value))
        return None

    given = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    return {name: axes(value, name) for name, value in given.items()}


@contextlib.contextmanager
def _without_traces() -> Iterator[None]:
    """torch keeps the stack of each call that becomes a node, which nobody reads here: `why_not`
    has a program of its own. A version that cannot be told so keeps them."""
    config = torch.fx.config
    before = getattr(config, "do_not_emit_stack_traces", None)
    if before is None:
        yield
        return
    config.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        config.do_not_emit_stack_traces = before


@contextlib.contextmanager
def _chatter_to_log() -> Iterator[None]:
    """What the exporter prints, warns and logs goes to the log at level DEBUG."""
    # torch gives several of its loggers a handler on stderr
    loggers = [
        logger
        for name, logger in logging.root.manager.loggerDict.items()
        if isinstance(logger, logging.Logger) and name.split(".")[0] == "torch" and logger.handlers
    ]
    kept = [(logger, logger.handlers[:]) for logger in loggers]
    printed = io.StringIO()
    with (
        warnings.catch_warnings(record=True) as warned,
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
    ):
        for logger in loggers:
            logger.handlers[:] = [_ToDebug()]
        try:
            yield
        finally:
            for logger, handlers in kept:
                logger.handlers[:] = handlers
            for text in [*(str(warning.message) for warning in warned), printed.getvalue()]:
                log.debug("exporter: %s", text)


class _ToDebug(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        log.debug("exporter: %s", record.getMessage())
