"""The probe: a table's small networks built with the installed engine, and what differs.

TensorRT's and TensorRT-RTX's builds run one after another in a process of their own
(nvidia.builder), so that a crash or a hang costs one cell.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import get_args

import numpy as np
import onnx
import onnx_ir as ir

from granplugin import backends
from granplugin.backends import calls
from granplugin.backends.engine_plan import EnginePlan
from granplugin.backends.nvidia.builder import Builder
from granplugin.backends.nvidia.kernels import Kernels
from granplugin.capabilities.cells import ADDS, WEIGHTS, cells
from granplugin.capabilities.networks import OP, READER, network
from granplugin.capabilities.structures import INPUT, example, structure
from granplugin.capabilities.table import ACTIVATIONS, LOOKUP, OPS, Cell, Structure, load_table
from granplugin.engines import ENGINES, REFERENCE
from granplugin.errors import EngineError
from granplugin.graph.edit.forms import asked_forms, in_forms
from granplugin.measures.faithful import NEAR_DB
from granplugin.progress import track
from granplugin.suggest import did_you_mean

log = logging.getLogger(__name__)

_LOW = frozenset({"int8", "fp8", "int4"})
# Kinds of TensorRT's and TensorRT-RTX's layers that do an op's arithmetic.
_COMPUTES = (
    "correlation", "conv", "gemm", "deconv", "matrixmultiply", "fusion", "maxpool", "avgpool",
    "pool",
)  # fmt: skip


@dataclass(frozen=True)
class Probed:
    """One cell: what the table says the engine does with it, and what it did; `detail` is the
    types of the kernel's operands, or the engine's own words where it refused."""

    cell: Cell
    table: str
    observed: str
    detail: str

    @property
    def differs(self) -> bool:
        return self.table != self.observed


def probe(
    backend: str, ops: Sequence[str] = OPS, graphs: Sequence[str] = ("fp16",)
) -> tuple[Probed, ...]:
    """Build every cell of `ops` in graphs of these precisions. OpenVINO and ONNX Runtime tell what
    became of a layer with weights only, so outputs and pools are left out for them; of a lookup no
    engine tells.

    Raises EngineError for a backend that is not installed, or that cannot be probed.
    """
    if backend not in ENGINES:
        raise EngineError(f"engine {backend!r} cannot be probed{did_you_mean(backend, ENGINES)}")
    tells_plan = ENGINES[backend].tells_plan
    module = backends.backend_of(backend)
    if reason := module.unavailable():
        raise EngineError(reason)
    table = load_table(backend, module.version())
    wanted = [
        cell
        for cell in cells([op for op in ops if op != LOOKUP], graphs)
        if tells_plan or (cell.op in (*WEIGHTS, ACTIVATIONS) and cell.output == "float")
    ]
    start = monotonic()
    found = []
    observe = _by_plan if tells_plan else _by_numbers
    names = [f"{cell.op}, {cell.format}" for cell in wanted]
    observing = track(observe(backend, wanted), f"building on {backend}", names=names)
    for cell, (observed, detail) in zip(wanted, observing, strict=True):
        found.append(Probed(cell, table.rule(cell).engine, observed, detail))
    log.info("probed %d cells of %s in %.0f s", len(found), backend, monotonic() - start)
    return tuple(found)


@dataclass(frozen=True)
class ProbedStructure:
    """One structure: what the table says the engine does with it (right, miscompile or error), and
    what it did; `form` is the equal one that it is given by the table, and `repaired` whether that
    is computed rightly."""

    structure: Structure
    table: str
    observed: str
    detail: str
    form: str | None = None
    repaired: bool = True

    @property
    def differs(self) -> bool:
        return self.table != self.observed or not self.repaired


def probe_structures(
    backend: str, structures: Sequence[Structure] = get_args(Structure)
) -> tuple[ProbedStructure, ...]:
    """Run each structure, and in the equal forms that the table has for it, and compare it with the
    reference. Empty for an engine that cannot run here, and for the reference itself.

    Raises EngineError for a backend that is not installed.
    """
    module, reference = backends.backend_of(backend), backends.backend_of(REFERENCE)
    if reason := module.unavailable():
        raise EngineError(reason)
    if module is reference or module.can_run() is not None:
        return ()
    table = load_table(backend, module.version())
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name in structures:
            plain, case = structure(name), table.case(name)
            observed, detail = _compared(module, reference, plain, Path(folder) / "plain")
            forms, repaired = asked_forms(ir.from_proto(plain), table.forms), True
            if forms:
                equal = ir.to_proto(in_forms(ir.from_proto(plain), forms))
                became, told = _compared(module, reference, equal, Path(folder) / "equal")
                repaired = became == "right"
                detail = f"{detail}; as {', '.join(forms)} {became}, {told}"
            form = ", ".join(forms) or None
            said = case.engine if case else "right"
            found.append(ProbedStructure(name, said, observed, detail, form, repaired))
    return tuple(found)


def _compared(
    module: backends.Backend, reference: backends.Backend, network: onnx.ModelProto, folder: Path
) -> tuple[str, str]:
    """Whether an engine computes a network as the reference does, and how far from it in dB."""
    folder.mkdir(exist_ok=True)
    onnx.save(network, folder / "structure.onnx")
    outputs = []
    for each in (reference, module):
        try:
            engine = calls.build(each, folder / "structure.onnx", folder / each.name)
            with calls.opened(each, engine) as runner:
                y = calls.run(runner, {INPUT: example()})["y"]
                outputs.append(y.astype(np.float64))
        except EngineError as err:
            return "error", str(err)
    expected, y = outputs
    noise = float(np.square(y - expected).sum())
    apart = 10 * np.log10(np.square(expected).sum() / noise) if noise else np.inf
    return "miscompile" if apart < NEAR_DB else "right", f"{apart:.0f} dB from the reference"


Observed = Iterator[tuple[str, str]]


def _by_plan(backend: str, wanted: Sequence[Cell]) -> Observed:
    with (
        tempfile.TemporaryDirectory() as folder,
        Builder(backend, Path(folder)) as builder,
    ):
        for cell in wanted:
            try:
                plan = builder.build(network(cell))
            except EngineError as err:
                yield "error", str(err)
            else:
                yield classify(cell, plan)


def classify(cell: Cell, plan: EnginePlan) -> tuple[str, str]:
    """What a plan makes of its cell, and the types of the operands of the kernel that does it.

    quantized: the kernel reads all that is quantized in 8 bits and multiplies so; fused-dequant:
    it reads 8 or 4 bits and multiplies in float; miscompile: a kernel behind it has a constant
    that does not fit the shape of what it writes.
    """
    node = READER if cell.output != "float" else OP
    kernels = [
        layer
        for layer in plan.kernels
        if node in layer.onnx_nodes
        and (cell.op in ADDS or any(word in layer.kind.lower() for word in _COMPUTES))
    ]
    if not kernels:
        # An op without a kernel of its own was fused into a pointwise one, which is float.
        return "float", "no kernel of its own"
    kernel = kernels[0]
    operands = [tensor.dtype for tensor in (*kernel.inputs, *kernel.constants)]
    detail = f"{kernel.kind} {' x '.join(operands[:2])} -> {kernel.outputs[0].dtype}"
    low = [dtype for dtype in operands if dtype in _LOW]
    if cell.op in ADDS:
        # A convolution that adds reads its own input in 8 bits too.
        own = any(word in kernel.kind.lower() for word in _COMPUTES)
        read = [tensor.dtype for tensor in kernel.inputs if tensor.dtype in _LOW]
        return ("quantized" if len(read) > own else "float"), detail
    needed = 2 if both_quantized(cell) else 1
    if not low:
        return "float", detail
    if "fusion" in kernel.kind.lower() or len(low) < needed or kernel.inputs[0].dtype not in _LOW:
        return "fused-dequant", detail
    if Kernels("", plan, {}).misfit(kernel):
        return "miscompile", detail
    return "quantized", detail


def _by_numbers(backend: str, wanted: Sequence[Cell]) -> Observed:
    """Of a backend that runs here: its own word for the op's kernel, and its numbers against the
    reference."""
    module, reference = backends.backend_of(backend), backends.backend_of(REFERENCE)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cell.onnx"
        for number, cell in enumerate(wanted):
            onnx.save(network(cell), path)
            yield _run(module, reference, cell, path, Path(folder) / str(number))


def _run(
    module: backends.Backend,
    reference: backends.Backend,
    cell: Cell,
    path: Path,
    out: Path,
) -> tuple[str, str]:
    random, feeds = np.random.default_rng(1), {}
    for given in onnx.load(path).graph.input:
        kind = given.type.tensor_type
        values = random.standard_normal([dim.dim_value for dim in kind.shape.dim])
        feeds[given.name] = values.astype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    try:
        engine = calls.build(module, path, out)
        with calls.opened(module, engine) as runner:
            y = calls.run(runner, feeds)["relu"].astype(np.float64)
    except EngineError as err:
        return "error", str(err)
    layers = {layer.layer: layer for layer in module.layers(engine)}
    try:
        with calls.opened(reference, calls.build(reference, path, out)) as runner:
            expected = calls.run(runner, feeds)["relu"].astype(np.float64)
    except EngineError as err:
        return "error", f"no reference: {err}"
    error = float(np.linalg.norm(y - expected) / np.linalg.norm(expected))
    layer = layers.get(OP)
    ran = layer.precision if layer else "in no kernel of its own"
    detail = f"{ran}, relative error {error:.1e}"
    if error > _WRONG:
        return "miscompile", detail
    if module is reference:
        return "quantized", detail
    if layer is None or ran != "int8":
        read = layer is not None and layer.detail == "weight-only"
        return "fused-dequant" if read else "float", detail
    # An 8-bit kernel that was given one side in float, or other numbers, rounds by its own scales.
    return ("quantized" if both_quantized(cell) and error < _SAME else "fused-dequant"), detail


def both_quantized(cell: Cell) -> bool:
    """Whether a cell's product is of two quantized factors."""
    factors = (cell.input, cell.other if cell.op == ACTIVATIONS else cell.weight)
    return "float" not in factors


_SAME, _WRONG = 1e-3, 0.02
"""Relative errors: the same Q/DQ gave 2e-5 at most, a rounding at another place 2e-4 to 0.006, and
scales along the wrong axis 0.12."""
