"""What was exported: the manifest that goes along, and what the run folder keeps of it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

import granplugin
from granplugin.recipe.schema import ClassesSpec
from granplugin.store.keys import file_sha256
from granplugin.store.run_folder import RunFolder

log = logging.getLogger(__name__)

FORMAT: Final = "granplugin export 1"


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ManifestVariant(_Strict):
    """One variant of an export, by content: its ONNX file, and what its plan decides."""

    onnx_sha256: str
    plan_key: str


class Manifest(_Strict):
    """manifest.json of an export: `counts` are the evaluation samples of each batch, `sizes` the
    batch sizes that are timed, `outputs` each output's type, `axes` where its samples are (0 where
    they do not say)."""

    format: Literal["granplugin export 1"]
    granplugin: str
    name: str
    engine: str
    counts: list[int]
    sizes: list[int]
    outputs: dict[str, str]
    axes: dict[str, int | None] = {}
    inputs_sha256: str
    variants: dict[str, ManifestVariant]


class ExportedVariant(_Strict):
    """What the audit holds an engine against; `model_sha256` is of the run folder's model.onnx."""

    model_sha256: str
    rows: list[dict[str, Any]]
    promises: dict[str, dict[str, Any]]
    made: dict[str, str]


class Exported(_Strict):
    """export-<engine>.json in the run folder."""

    manifest: Manifest
    metrics: list[str]
    classes: ClassesSpec | None = None
    labels: list[int] | None
    variants: dict[str, ExportedVariant]


def exports_of(run: RunFolder) -> dict[str, Exported]:
    """Engine -> what was exported for it, by this version of granplugin."""
    found = {}
    for path in sorted(run.results.glob("export-*.json")):
        try:
            exported = Exported.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as err:
            log.warning("%s is left out: %s", path, str(err).splitlines()[0])
            continue
        if exported.manifest.granplugin == granplugin.__version__:
            found[exported.manifest.engine] = exported
    return found


def built_file(run: RunFolder, exported: Exported, variant: str) -> Path | None:
    """The run's file that this variant's engine was built of, if it is still the exported one."""
    folder = run.results / "variants" / variant
    lowered, model = folder / f"{exported.manifest.engine}.onnx", folder / "model.onnx"
    if not _has(model, exported.variants[variant].model_sha256):
        return None
    wanted = exported.manifest.variants[variant].onnx_sha256
    return next((path for path in (lowered, model) if _has(path, wanted)), None)


def _has(path: Path, sha256: str) -> bool:
    return path.is_file() and file_sha256(path) == sha256
