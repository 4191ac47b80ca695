"""What a graph edit requires and what it ensures, checked at its seam.

An edit's docstring says what must hold before and what holds after; two functions beside it look,
each with one sentence on what does not hold, or None. A sentence is our own fault, never the
user's, and is raised as onnx_ir raises it for its passes. `contract` is for an edit of a graph
(`equal_form` for one that changes no number), `seam` for one at a place in it, which looks at no more
than that.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Concatenate, ParamSpec, Protocol, TypeVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import PostconditionError, PreconditionError

from granplugin.graph.edit.nodes import SITE, inner_nodes, is_marker, site_of
from granplugin.planning.rows import QuantizedRow

P = ParamSpec("P")
R = TypeVar("R")


class HasGraph(Protocol):
    @property
    def graph(self) -> ir.Graph: ...


Ends = tuple[tuple[str | None, ir.DataType | None], ...]


@dataclass(frozen=True)
class Seen:
    """A graph at a seam, from one walk over it.

    Its inputs and outputs with their types, its nodes by their type of operator (those of inner
    graphs too), how many markers each site has, and what is unsound in it.
    """

    inputs: Ends
    outputs: Ends
    nodes: Mapping[str, Sequence[ir.Node]]
    sites: Mapping[str, int]
    unsound: str | None


def seam(
    requires: Callable[P, str | None], ensures: Callable[Concatenate[R, P], str | None]
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Checks an edit: `requires` is called with its arguments before it, and `ensures` with its
    result and its arguments behind it. Raises PreconditionError and PostconditionError."""

    def decorate(edit: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(edit)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            if why := requires(*args, **kwargs):
                raise PreconditionError(f"{edit.__name__} cannot be called: {why}")
            result = edit(*args, **kwargs)
            if why := ensures(result, *args, **kwargs):
                raise PostconditionError(f"{edit.__name__} did not do what it says: {why}")
            return result

        return checked

    return decorate


def contract(
    requires: Callable[Concatenate[Seen, P], str | None],
    ensures: Callable[Concatenate[Seen, Seen, R, P], str | None],
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Checks an edit as `seam`, whose first argument is a graph or something that adds to one.

    `requires` also gets the graph as it is, `ensures` the graph as it was and as it is. Whatever
    the two say, a graph stays sound, its inputs and outputs stay as they are, and no marker is new.
    """

    def decorate(edit: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(edit)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            target: ir.Graph | HasGraph = args[0]  # type: ignore[assignment]
            graph = target if isinstance(target, ir.Graph) else target.graph
            before = seen(graph)

            def holds(*args: P.args, **kwargs: P.kwargs) -> str | None:
                return before.unsound or requires(before, *args, **kwargs)

            def stays(result: R, /, *args: P.args, **kwargs: P.kwargs) -> str | None:
                after = seen(graph)
                why = after.unsound or _changed(before, after)
                return why or ensures(before, after, result, *args, **kwargs)

            return seam(holds, stays)(edit)(*args, **kwargs)

        return checked

    return decorate


def equal_form(
    left: Callable[[ir.Model], str | None],
    requires: Callable[[ir.Model], str | None] = lambda model: None,
) -> Callable[[Callable[[ir.Model], None]], Callable[[ir.Model], None]]:
    """Checks, as `contract`, an edit in place that gives the same numbers another form: `requires`
    says what it cannot take, `left` what still has the old form."""
    return contract(
        lambda before, model: requires(model),
        lambda before, after, result, model: left(model),
    )


def seen(graph: ir.Graph) -> Seen:
    """The graph as it is now.

    Unsound is what is no graph: two values of one name, or one that is read before it is computed.
    """
    given: set[ir.Value | None] = {None, *graph.inputs, *graph.initializers.values()}
    names = {value.name for value in given if value is not None}
    nodes: dict[str, list[ir.Node]] = {}
    unsound = None
    for node in graph:
        nodes.setdefault(node.op_type, []).append(node)
        for inner in inner_nodes(node):
            nodes.setdefault(inner.op_type, []).append(inner)
        if not given.issuperset(node.inputs):
            value = next(value for value in node.inputs if value not in given)
            unsound = unsound or f"{node.name} reads {value.name}, which is not computed before it"
        for value in node.outputs:
            if value.name and value.name in names:
                unsound = unsound or f"{node.name} gives {value.name}, which is given already"
            names.add(value.name)
        given.update(node.outputs)
    missing = next((value for value in graph.outputs if value not in given), None)
    if missing is not None:
        unsound = unsound or f"its output {missing.name} is not computed"
    sites = Counter(site_of(node) for node in nodes.get(SITE, ()) if is_marker(node))
    inputs, outputs = (
        tuple((value.name, value.dtype) for value in values)
        for values in (graph.inputs, graph.outputs)
    )
    return Seen(inputs, outputs, nodes, sites, unsound)


def _changed(before: Seen, after: Seen) -> str | None:
    if before.inputs != after.inputs:
        return f"its inputs were {before.inputs} and are {after.inputs}"
    if before.outputs != after.outputs:
        return f"its outputs were {before.outputs} and are {after.outputs}"
    new = next((site for site, n in after.sites.items() if n > before.sites.get(site, 0)), None)
    return new and f"{new} has a new marker"


def gone(before: Seen, after: Seen) -> list[str]:
    """The sites that have lost a marker."""
    return [site for site, count in before.sites.items() if after.sites.get(site, 0) < count]


def misfit(rows: Iterable[QuantizedRow], amax: Mapping[str, np.ndarray]) -> str | None:
    """Which row that is not dynamic lacks an amax, by row.site: positive, one for each block."""
    for row in rows:
        held = amax.get(row.site)
        if row.dynamic:
            continue
        if held is None:
            return f"{row.site} has no amax"
        if held.shape != row.grid:
            return f"{row.site} has an amax of shape {held.shape}, not {row.grid}"
        if not (held > 0).all():
            return f"{row.site} has an amax that is not positive"
    return None
