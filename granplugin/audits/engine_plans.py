"""An engine's plan and times: from files of another machine, or of an engine built here."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import onnx

from granplugin import backends
from granplugin.audits.shapes import Range
from granplugin.backends.engine_plan import EnginePlan
from granplugin.backends.nvidia.build import Options
from granplugin.backends.nvidia.plan_reader import read_plan, read_profile_json
from granplugin.engines import AUDITED
from granplugin.errors import EngineError, ModelError, UserError
from granplugin.progress import stage
from granplugin.reading import MAX_JSON_BYTES, read_text

_EMBEDDED = 2**31 - 2**20
"""What one ONNX file holds; protobuf's limit, less what stands around the weights."""


class PlanUnread(EngineError):
    """An engine that was built, of which the plan is in a form that is not known."""


def read_plan_file(path: Path) -> EnginePlan:
    """An engine's plan from a file: a build log's text or the inspector's JSON. Raises EngineError,
    which names the file."""
    try:
        return read_plan(text_of(path))
    except EngineError as err:
        raise EngineError(f"{path}: {err}") from err


def profile_of(path: Path) -> dict[str, float]:
    """Layer -> ms, of trtexec's --exportProfile. Raises EngineError, which names the file."""
    try:
        return read_profile_json(text_of(path))
    except EngineError as err:
        raise EngineError(f"{path}: {err}") from err


def build_plan(
    model: onnx.ModelProto,
    path: Path,
    backend: str,
    batch: int = 1,
    shapes: Mapping[str, Range] = MappingProxyType({}),
) -> tuple[EnginePlan, str]:
    """The plan of an engine that is built here for these shapes and thrown away, and the library's
    version.

    Raises BuildFailed where the library refuses the model, PlanUnread, and EngineError where it is
    not installed.
    """
    if backend not in AUDITED:
        raise EngineError(f"engine {backend!r} tells no plan; {' and '.join(AUDITED)} do")
    module = backends.backend_of(backend)
    if reason := module.unavailable():
        raise EngineError(f"{reason}; or give the layers of an engine that was built elsewhere")
    options = Options(batch=batch, shapes=dict(shapes))
    with (
        tempfile.TemporaryDirectory(prefix="granplugin-") as folder,
        _written(model, path, Path(folder)) as onnx_path,
        stage(f"building {path.name} on {backend}"),
    ):
        engine = module.build(onnx_path, Path(folder) / "engine", options)
        try:
            plan = module.engine_plan(engine)
        except EngineError as err:
            raise PlanUnread(str(err)) from err
        assert plan is not None, "audited engines tell their plan"
        return plan, engine.version


def installed(backend: str) -> str | None:
    """The version of a library that is installed."""
    module = backends.backend_of(backend)
    return None if module.unavailable() else module.version()


@contextmanager
def _written(model: onnx.ModelProto, path: Path, folder: Path) -> Iterator[Path]:
    """The model under its file's name in `folder`, with its weights: TensorRT refuses nodes that
    share a name, and calls those without one as it likes."""
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as err:
        raise ModelError(f"{path}: its weights cannot be read: {err}") from err
    copy = folder / path.name
    held = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    onnx.save(model, copy, save_as_external_data=held > _EMBEDDED)
    yield copy


def text_of(path: Path) -> str:
    """A file's text. Raises UserError, which names the file."""
    return read_text(path, UserError, MAX_JSON_BYTES)


def batch_of(plan: EnginePlan) -> str:
    """The samples that an engine is built for, in words."""
    sizes = [tensor.shape[0] for tensor in plan.io[:1] if tensor.shape]
    if -1 in sizes:
        return "a range of shapes"
    return f"batch {sizes[0]}" if sizes else "its fixed shapes"
