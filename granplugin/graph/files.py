"""ONNX files: read, and written whole or not at all; equal models give equal bytes."""

from __future__ import annotations

import os
from pathlib import Path

import onnx_ir as ir

from granplugin.errors import ModelError

SITE = "Site"
"""The op type of a marker: an identity in domain DOMAIN whose attribute `site` names the site."""
DOMAIN = "granplugin"

_LIMIT = 2**31 - 1


def load_float(path: Path) -> ir.Model:
    """The exported float model with its markers; weights are read when they are used."""
    return ir.load(path)


def save(model: ir.Model, path: Path) -> None:
    """Write one self-contained file. Raises ModelError beyond protobuf's limit of 2 GB."""
    path = Path(path)
    held = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value)
    if held > _LIMIT:
        raise ModelError(f"{path.name} would hold {held / 1e9:.1f} GB, an ONNX file at most 2.1 GB")
    data = ir.to_proto(model).SerializeToString(deterministic=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def unique(name: str, taken: set[str]) -> str:
    """The name, or name_1, name_2 ... where it is taken; it is taken from then on."""
    candidate, count = name, 0
    while candidate in taken:
        count += 1
        candidate = f"{name}_{count}"
    taken.add(candidate)
    return candidate
