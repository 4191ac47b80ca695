"""ONNX files: written whole or not at all, and equal models in equal bytes."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from granplugin.errors import ModelError
from granplugin.store.whole_file import write_whole

_LIMIT = 2**31 - 1


def load_float(path: Path) -> ir.Model:
    """The exported float model with its markers."""
    return ir.load(path)


def save(model: ir.Model, path: Path) -> None:
    """Write one self-contained file. Raises ModelError beyond protobuf's limit of 2 GB."""
    path = Path(path)
    held = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    if held > _LIMIT:
        raise ModelError(f"{path.name} would hold {held / 1e9:.1f} GB; an ONNX file holds 2.1 GB")
    write_whole(path, ir.to_proto(model).SerializeToString(deterministic=True))
