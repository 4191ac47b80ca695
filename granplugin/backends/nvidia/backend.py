"""TensorRT and TensorRT-RTX as backends.

The engine is a folder: model.engine, its plan as the library wrote it, the build's log, and the
card. TensorRT-RTX builds without a GPU, and then the plan is all there is to learn from; running
takes one, and a torch with CUDA.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from granplugin.backends import base
from granplugin.backends.base import Backend, Engine, LayerPrecision
from granplugin.backends.card import card_of, kept
from granplugin.backends.engine_plan import EnginePlan
from granplugin.backends.nvidia import build as building
from granplugin.backends.nvidia.build import Options
from granplugin.backends.nvidia.kernels import layer_precisions
from granplugin.backends.nvidia.plan_reader import read_plan
from granplugin.backends.nvidia.run import Runner, open_runner
from granplugin.errors import EngineError, ModelError
from granplugin.graph.read.graph import layer_of, read
from granplugin.translate import one_line, translated

_NOT_IN_ENGINE = ("seconds", "memory_mb", "plan")


class Nvidia(Backend):
    """TensorRT or TensorRT-RTX, as its facts say."""

    options = Options

    def can_run(self) -> str | None:
        """Why an engine of this library cannot run on this machine, or None."""
        try:
            ctypes.CDLL("nvcuda.dll" if hasattr(ctypes, "WinDLL") else "libcuda.so.1")
        except OSError:
            return "there is no NVIDIA driver on this machine"
        import torch

        if not torch.backends.cuda.is_built():
            return f"torch {torch.__version__} is built without CUDA; install one that has it"
        if not torch.cuda.is_available():
            try:
                torch.cuda.init()  # says why, as of a driver too old for this torch
            except (RuntimeError, AssertionError) as err:
                return f"torch finds no GPU that it can use: {one_line(err)}"
            return "torch finds no GPU that it can use; nvidia-smi may say why"
        if self.facts.builds_for == "targets":
            target = "SM{}{}".format(*torch.cuda.get_device_capability())
            try:
                trt = self.library()
            except EngineError as err:
                return str(err)
            if target not in trt.ComputeCapability.__members__:
                name = torch.cuda.get_device_name()
                return f"{name} is {target.lower()}, which it has no target for"
        return None

    def build(self, onnx: Path, out: Path, options: base.Options | None = None) -> Engine:
        """Build in a process of its own, or return what is in `out` if it was built of the same
        ONNX by the same version for the same options (on the same GPU, where that matters) and is
        intact. Raises EngineError as `run_build`, and for an option or a file the library does not
        take; what is in `out` then stays.
        """
        own = self._complete(options or base.Options())
        said = {key: value for key, value in asdict(own).items() if key not in _NOT_IN_ENGINE}
        made_of = {
            "library": self.name,
            "version": self.version(),
            "gpu": _gpu() if self.facts.builds_for == "this gpu" else None,
            "plan": own.plan,
            "options": json.loads(json.dumps(said)),  # tuples become lists, as in the file
        }

        def make(folder: Path) -> tuple[dict[str, Any], list[str]]:
            self._check(own)
            nodes = product_nodes(self.name, onnx)
            answer = building.run_build(self.name, onnx, folder, own)
            return answer | {"layers": nodes}, [building.ENGINE, _plan_file(folder)]

        card = kept(out, onnx, made_of, make)
        size = (out / building.ENGINE).stat().st_size
        return Engine(self.name, out, size, card["build_seconds"], card["version"])

    @contextmanager
    def open(
        self, engine: Engine, threads: int | None = None, batch: int | None = None
    ) -> Iterator[Runner]:
        """A runner on the first GPU; `threads` and `batch` make no difference. Raises EngineError
        where there is none, and where the engine is not as it was built, or of another version or
        GPU.
        """
        card = card_of(engine)
        if reason := self.can_run():
            raise EngineError(f"{self.name} cannot run here: {reason}")
        here = (self.version(), card["gpu"] and _gpu())
        if (card["version"], card["gpu"]) != here:
            made, found = (
                " on ".join(filter(None, each)) for each in ((card["version"], card["gpu"]), here)
            )
            raise EngineError(
                f"{engine.path}: built with {self.name} {made}, and this is {found}; delete the "
                "folder and build it again"
            )
        yield open_runner(engine, self.library())

    def engine_plan(self, engine: Engine) -> EnginePlan:
        """What the engine does. Raises EngineError where its files are not as they were built."""
        card_of(engine)
        return _read_plan(engine)

    def layers(self, engine: Engine) -> tuple[LayerPrecision, ...]:
        """A layer is int8 (or fp8) where every kernel that multiplies for it reads its input and
        its weight in that type; unknown where the plan has no such kernel, or does not tell.
        """
        listed = card_of(engine)["layers"]
        return layer_precisions(self.name, listed, _read_plan(engine))

    def _complete(self, options: base.Options) -> Options:
        """For all batches where it can run, and for one alone where it cannot: only where all sizes
        are fixed does the plan say how large every tensor is."""
        own = options if isinstance(options, Options) else Options(**vars(options))
        if own.min_batch is not None:
            return own
        return replace(own, min_batch=own.batch if self.can_run() else 1)

    def _check(self, options: Options) -> None:
        """Refuse options that this library does not have."""
        given = {each.name for each in fields(Options) if getattr(options, each.name)}
        for key, why in self.facts.without.items():
            if key in given:
                raise EngineError(f"{self.name} {why}; leave {key} out")
        if not options.targets:
            return
        trt = self.library()
        known = [name.lower() for name in trt.ComputeCapability.__members__]
        for target in options.targets:
            if target not in known or not target.startswith("sm"):
                targets = ", ".join(sorted(name for name in known if name.startswith("sm")))
                raise EngineError(f"{self.name} has no target {target!r}; it has {targets}")


def product_nodes(library: str, onnx: Path) -> list[tuple[str, str, int | None]]:
    """(layer, node name, values of the weight) of each product; None for one of two activations."""
    with translated(f"{library} refused {onnx.name}", (ModelError,)):
        products = read(onnx).products
    return [
        (
            layer_of(product.node),
            product.node.name,
            None if product.weight is None else product.values or 0,
        )
        for product in products
    ]


def _read_plan(engine: Engine) -> EnginePlan:
    return read_plan((engine.path / _plan_file(engine.path)).read_text(encoding="utf-8"))


def _plan_file(folder: Path) -> str:
    """Raises EngineError where the library wrote no plan."""
    for file in building.LAYERS:
        if (folder / file).is_file():
            return file
    raise EngineError(f"{folder}: the build left no plan of the engine")


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None
