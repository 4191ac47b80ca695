"""ONNX files: written whole or not at all, and equal models in equal bytes.

A model that protobuf cannot hold has its weights in a file beside it, whose name is their content:
so the model's own bytes say all that it is, wherever the two are put together.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx_ir as ir

from granplugin.graph.mapped import let_go
from granplugin.store.companions import SUFFIX
from granplugin.store.whole_file import write_whole

EMBEDDED = 2**31 - 2**24
"""Bytes of weights that a file holds itself: protobuf's 2 GB, but for room for the nodes."""
_OUTSIDE = 1024
"""The least bytes of a tensor that is put outside."""
_PAGE = 4096
"""Where tensors begin in a file of weights, so that they can be mapped into memory."""


def load_float(path: Path) -> ir.Model:
    """The exported float model with its markers; weights outside are mapped, not read."""
    return ir.load(path)


def save(model: ir.Model, path: Path) -> None:
    """Write a model, with weights that protobuf cannot hold in a file beside it, and so those of a
    model whose were. These are made and written one by one."""
    path = Path(path)
    held = [value for value in model.graph.initializers.values() if value.const_value is not None]
    mapped = [value for value in held if isinstance(value.const_value, ir.ExternalTensor)]
    if mapped or sum(value.const_value.nbytes for value in held) > EMBEDDED:
        large = [v for v in held if v.const_value.nbytes >= _OUTSIDE or v in mapped]
        with _outside(large, path):
            write_whole(path, ir.to_proto(model).SerializeToString(deterministic=True))
    else:
        write_whole(path, ir.to_proto(model).SerializeToString(deterministic=True))


@contextmanager
def _outside(values: list[ir.Value], path: Path) -> Iterator[None]:
    """Meanwhile these values' tensors are in a file beside `path`."""
    kept = [value.const_value for value in values]
    scratch = path.with_name(f".{path.name}.{os.getpid()}{SUFFIX}")
    digest, places, end = hashlib.sha256(), [], 0
    try:
        with scratch.open("wb") as file:
            for value in values:
                room = bytes(-end % _PAGE)
                data = _bytes(value.const_value)
                for part in (room, data):
                    file.write(part)
                    digest.update(part)
                places.append((end + len(room), len(data)))
                end += len(room) + len(data)
                let_go(data)
                del data
        name = f"{digest.hexdigest()[:32]}{SUFFIX}"
        os.replace(scratch, path.with_name(name))
    finally:
        scratch.unlink(missing_ok=True)
    for value, tensor, (offset, length) in zip(values, kept, places, strict=True):
        value.const_value = ir.ExternalTensor(
            name,
            offset,
            length,
            tensor.dtype,
            shape=tensor.shape,
            name=value.name,
            base_dir=path.parent,
        )
    try:
        yield
    finally:
        for value, tensor in zip(values, kept, strict=True):
            value.const_value = tensor


def _bytes(tensor: ir.TensorProtocol) -> memoryview:
    """As ONNX stores it: no copy is made where the numbers lie so already."""
    if tensor.dtype.bitwidth < 8:
        return memoryview(tensor.tobytes())
    array = tensor.numpy()
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return little.reshape(-1).view(np.uint8).data
