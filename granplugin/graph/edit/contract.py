"""What a graph edit requires and what it ensures, checked at its seam.

An edit's docstring says what must hold before and what holds after; two functions beside it look,
each with one sentence on what does not hold, or None. A sentence is our own fault, never the
user's, and is raised as onnx_ir raises it for its passes. `contract` is for an edit of a graph,
`seam` for one at a place in it, which looks at no more than that.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Concatenate, ParamSpec, Protocol, TypeVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import PostconditionError, PreconditionError

from granplugin.graph.edit.nodes import markers, site_of
from granplugin.planning.rows import QuantizedRow

P = ParamSpec("P")
R = TypeVar("R")


class HasGraph(Protocol):
    @property
    def graph(self) -> ir.Graph: ...


Ends = tuple[tuple[str | None, ir.DataType | None], ...]


@dataclass(frozen=True)
class Before:
    """A graph before an edit: its inputs and outputs with their types, and how many markers each
    site has."""

    inputs: Ends
    outputs: Ends
    sites: Mapping[str, int]


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
    requires: Callable[P, str | None], ensures: Callable[Concatenate[Before, R, P], str | None]
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Checks an edit as `seam`, whose first argument is a graph or something that adds to one.

    `ensures` also gets the graph as it was. Whatever the two say, a graph stays sound, its inputs
    and outputs stay as they are, and no marker is new.
    """

    def decorate(edit: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(edit)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            target: ir.Graph | HasGraph = args[0]  # type: ignore[assignment]
            graph = target if isinstance(target, ir.Graph) else target.graph
            before = _seen(graph)

            def stays(result: R, /, *args: P.args, **kwargs: P.kwargs) -> str | None:
                why = unsound(graph) or _changed(before, _seen(graph))
                return why or ensures(before, result, *args, **kwargs)

            def holds(*args: P.args, **kwargs: P.kwargs) -> str | None:
                return unsound(graph) or requires(*args, **kwargs)

            return seam(holds, stays)(edit)(*args, **kwargs)

        return checked

    return decorate


def unsound(graph: ir.Graph) -> str | None:
    """What is no graph: two values of one name, or one that is read before it is computed."""
    given: set[ir.Value] = {*graph.inputs, *graph.initializers.values()}
    names = {value.name for value in given}
    for node in graph:
        for value in node.inputs:
            if value is not None and value not in given:
                return f"{node.name} reads {value.name}, which is not computed before it"
        for value in node.outputs:
            if value.name and value.name in names:
                return f"{node.name} gives {value.name}, which is given already"
            names.add(value.name)
            given.add(value)
    missing = next((value for value in graph.outputs if value not in given), None)
    return None if missing is None else f"its output {missing.name} is not computed"


def _seen(graph: ir.Graph) -> Before:
    inputs, outputs = (
        tuple((value.name, value.dtype) for value in values)
        for values in (graph.inputs, graph.outputs)
    )
    return Before(inputs, outputs, Counter(map(site_of, markers(graph))))


def _changed(before: Before, after: Before) -> str | None:
    if before.inputs != after.inputs:
        return f"its inputs were {before.inputs} and are {after.inputs}"
    if before.outputs != after.outputs:
        return f"its outputs were {before.outputs} and are {after.outputs}"
    new = next((site for site, n in after.sites.items() if n > before.sites.get(site, 0)), None)
    return new and f"{new} has a new marker"


def gone(before: Before, graph: ir.Graph) -> list[str]:
    """The sites that have lost a marker."""
    left = Counter(map(site_of, markers(graph)))
    return [site for site, count in before.sites.items() if left[site] < count]


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
