"""A maximum with -inf behind a node: the larger of a number and -inf is the number. What an engine
would fuse with the node, or move in front of it, stays behind it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from granplugin.graph.edit.additions import Additions


def put_maximum(additions: Additions, node: ir.Node, dtype: np.dtype, scope: str) -> None:
    """All that read the node's output read the maximum, of its type."""
    value = node.outputs[0]
    least = additions.constant(f"{scope}.least", np.asarray(-np.inf, dtype))
    behind = additions.node(scope, "Max", [value, least], after=node)
    for user, at in list(value.uses()):
        if user is not behind.producer():
            user.replace_input_with(at, behind)
