"""import: what trtexec wrote on another machine, audited and entered into a run's report.

The files stay in the run folder, under variants/<variant>/imported-<engine>/, so that a later
apply of the same recipe enters them again; what was built of another ONNX file is left out.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

import granplugin
from granplugin.audits.audit import audit
from granplugin.audits.audit_file import examine
from granplugin.backends.base import Engine
from granplugin.backends.nvidia import trtexec
from granplugin.backends.nvidia.backend import weighted_nodes
from granplugin.backends.nvidia.kernels import layer_precisions
from granplugin.backends.nvidia.plan_reader import read_inspector_json, read_profile_json
from granplugin.capabilities import Promise
from granplugin.errors import EngineError, RunError, UserError
from granplugin.measures import metrics, timing
from granplugin.measures.samples import sampled
from granplugin.planning.row_json import row_from_json
from granplugin.report.build.run import engine_result
from granplugin.report.schema.run import Report
from granplugin.report.show import as_markdown
from granplugin.results.values import Audited, Measured, Timing
from granplugin.runs.pages import PAGE, page_of
from granplugin.store.keys import file_sha256
from granplugin.store.run_folder import RunFolder
from granplugin.suggest import did_you_mean
from granplugin.words import first

log = logging.getLogger(__name__)

FORMAT = "granplugin export 1"
_FP32 = "fp32"
_EXTRAS = ("build.log", "engine_bytes.txt")

Files = Mapping[str, str]
"""Stored name -> text: layers.json, profile.json, times-b<size>-<round>.json, output-<batch>.json,
and what the script notes of the build."""


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
    labels: list[int] | None
    variants: dict[str, ExportedVariant]


def import_results(run: RunFolder, paths: Sequence[Path], variant: str | None = None) -> Report:
    """Read results folders and single files, audit and measure, and enter them into the report.

    A results folder replaces all that came of its variants before, a single file only files of its
    kind. Raises UserError, and leaves everything as it was, for files that are truncated, foreign,
    or of another export.
    """
    report = _read_report(run)
    exports = _exports(run)
    if not exports:
        raise RunError(
            f"{run.path}: nothing was exported of it by granplugin {granplugin.__version__}; "
            "granplugin export RECIPE does it"
        )
    fresh: dict[tuple[str, str], dict[str, str]] = {}
    single: dict[tuple[str, str], dict[str, str]] = {}
    for path in paths:
        for engine, name, found in _gather(path, variant, exports):
            if path.is_dir():
                fresh[engine, name] = found
            else:
                single.setdefault((engine, name), {}).update(found)
    for (engine, name), found in single.items():
        held = fresh.get((engine, name)) or _stored(run, engine, name)
        kinds = {_kind(file) for file in found}
        kept = {file: text for file, text in held.items() if _kind(file) not in kinds}
        fresh[engine, name] = kept | found
    for engine, name in fresh:
        if not _onnx(run, exports[engine], name):
            raise UserError(
                f"{run.path}: {name}'s ONNX file is not the one that was exported; export it again"
            )
    with run.publishing():
        report = enter(run, report, fresh)
        for (engine, name), files in fresh.items():
            folder = _folder(run, engine, name)
            for stored, text in files.items():
                run.publish(f"{folder.relative_to(run.results)}/{stored}", text)
            for stale in folder.iterdir():
                if stale.name not in files:
                    stale.unlink()
        run.publish(PAGE, page_of(run.results, report))
        run.publish("report.md", as_markdown(report))
        run.publish("report.json", report.model_dump_json(indent=1))
    return report


def enter(
    run: RunFolder, report: Report, fresh: Mapping[tuple[str, str], Files] | None = None
) -> Report:
    """The report with what was imported: the files in the run folder, or where there are any the
    `fresh` ones, by (engine, variant)."""
    fresh = fresh or {}
    report = report.model_copy(
        update={
            "variants": [
                v.model_copy(update={"engines": [e for e in v.engines if not e.imported]})
                for v in report.variants
            ],
            "notes": [note for note in report.notes if " (imported): " not in note],
        }
    )
    for engine, exported in _exports(run).items():
        onnx = {name: _onnx(run, exported, name) for name in exported.variants}
        files = {
            name: fresh.get((engine, name)) or _stored(run, engine, name)
            for name, path in onnx.items()
            if path
        }
        if any(files.values()):
            report = _entered(report, exported, onnx, files)
    return report


def _entered(
    report: Report,
    exported: Exported,
    onnx: Mapping[str, Path | None],
    files: Mapping[str, Files],
) -> Report:
    """The report with one more engine, in every variant: with nothing in it where nothing came."""
    engine, notes = exported.manifest.engine, list[str]()
    outputs = {name: _outputs(name, exported, found, notes) for name, found in files.items()}
    if not outputs.get(_FP32) and any(outputs.values()):
        notes.append("agreement and sqnr_db need fp32's outputs of the same machine")
    results = {
        (name, engine): _result(name, exported, onnx[name], found, outputs)
        for name, found in files.items()
    }
    latencies = {
        (name, engine, size): Timing(latency)
        for size in _sizes(files)
        for name, latency in _latencies(files, size).items()
    }
    if any(each.latency.rounds == 1 for each in latencies.values()):
        notes.append("timed in one round, so its ratios have no interval; the script times several")
    for found in files.values():
        if device := trtexec.read_log(found.get("build.log", "")).get("device"):
            notes.append(f"ran on {device}")
    samples = sum(exported.manifest.counts)
    if samples < report.evaluation_samples:
        notes.append(f"measured on the first {samples} samples")
    baselines = [v.name for v in report.variants if v.kind == "baseline"]
    variants = []
    for each in report.variants:
        result = results.get((each.name, engine)) or _nothing(engine)
        against = [name for name in baselines if name != each.name and (name, engine) in results]
        made = exported.variants[each.name].made if result.audited.layers else {}
        entry = engine_result(each.name, engine, result, against, results, latencies, made)
        entry = entry.model_copy(update={"imported": True})
        variants.append(each.model_copy(update={"engines": [*each.engines, entry]}))
    told = [f"{engine} (imported): {note}" for note in dict.fromkeys(notes)]
    return report.model_copy(update={"variants": variants, "notes": [*report.notes, *told]})


def _nothing(engine: str) -> Measured:
    nothing = Engine(engine, Path(), None, None, "(imported)")
    return Measured(nothing, Audited(), "nothing of it was imported")


def _result(
    name: str,
    exported: Exported,
    onnx: Path,
    files: Files,
    outputs: Mapping[str, Mapping[str, np.ndarray]],
) -> Measured:
    engine = exported.manifest.engine
    if not files:
        return _nothing(engine)
    plan, layers, verdicts, findings = None, (), (), ()
    known = exported.variants[name]
    if "layers.json" in files:
        plan = _read(name, "layers.json", read_inspector_json, files)
        if "profile.json" in files:
            plan = plan.timed(_read(name, "profile.json", read_profile_json, files))
        layers = layer_precisions(engine, weighted_nodes(engine, onnx), plan)
        promises = {site: Promise(**promise) for site, promise in known.promises.items()}
        rows = [row_from_json(row) for row in known.rows]
        sites, findings = examine(engine, onnx, plan, rows)
        verdicts = audit(rows, (*layers, *sites), promises, known.made)
    log = trtexec.read_log(files.get("build.log", ""))
    version = log.get("version") or (plan.source.split()[1] if plan else "")
    held = files.get("engine_bytes.txt", "").strip()
    built = Engine(
        engine,
        Path(),
        int(held) if held.isdigit() else None,
        log.get("build_seconds"),
        f"{version} (imported)".strip(),
    )
    values = {}
    labels = None if exported.labels is None else np.array(exported.labels)
    for metric in exported.metrics if outputs[name] else ():
        known_metric = metrics.METRICS[metric]
        reference = None if name == _FP32 else outputs.get(_FP32)
        if known_metric.needs_reference and not reference:
            continue
        if not (known_metric.needs_labels and labels is None):
            values[metric] = known_metric.measure(outputs[name], reference, labels)
    return Measured(built, Audited(layers, plan, verdicts, findings), values=values)


def _outputs(
    name: str, exported: Exported, files: Files, notes: list[str]
) -> dict[str, np.ndarray]:
    """Of all exported samples; none where a batch is missing, since samples are compared in
    pairs."""
    manifest = exported.manifest
    stored = [f"output-{number:03d}.json" for number in range(len(manifest.counts))]
    there = [file for file in stored if file in files]
    if not there:
        return {}
    if len(there) < len(stored):
        notes.append(
            f"{name} has the outputs of {len(there)} of {len(stored)} batches, so its accuracy was "
            "not measured"
        )
        return {}
    batches = []
    for file, count in zip(stored, manifest.counts, strict=True):
        found = _read(name, file, lambda text: trtexec.read_outputs(text, manifest.outputs), files)
        batch = sampled(found, manifest.axes)
        if any(len(values) < count for values in batch.values()):
            raise EngineError(f"{name}/{file}: it has fewer samples than the {count} it was given")
        batches.append({output: values[:count] for output, values in batch.items()})
    outputs = {output: np.concatenate([b[output] for b in batches]) for output in batches[0]}
    metrics.check_finite(outputs, f"{name}: output")
    return outputs


def _sizes(files: Mapping[str, Files]) -> list[int]:
    names = [name for found in files.values() for name in found]
    return sorted({int(m[1]) for name in names if (m := re.match(r"times-b(\d+)-", name))})


def _latencies(files: Mapping[str, Files], size: int) -> dict[str, timing.Latency]:
    """Variant -> latency at this batch size. A round's sample is the median of its calls, over the
    rounds that all variants have; with one round only, the samples are not kept, since nothing
    pairs them."""
    rounds: dict[str, dict[int, np.ndarray]] = {}
    for name, found in files.items():
        for file in found:
            if match := re.fullmatch(rf"times-b{size}-(\d+)\.json", file):
                times = _read(name, file, trtexec.read_times, found)
                rounds.setdefault(name, {})[int(match[1])] = times
    several = {n: of for n, of in rounds.items() if len(of) >= timing.MIN_ROUNDS}
    common = sorted(set.intersection(*map(set, several.values()))) if several else []
    latencies = {}
    for name, of in rounds.items():
        if name in several and len(common) >= timing.MIN_ROUNDS:
            latencies[name] = timing.latency([float(np.median(of[r])) for r in common])
        else:
            latencies[name] = timing.one_round(np.concatenate(list(of.values())).tolist())
    return latencies


def _read(name: str, file: str, read: Any, files: Files) -> Any:
    try:
        return read(files[file])
    except EngineError as err:
        raise EngineError(f"{name}/{file}: {err}") from err


def _gather(
    path: Path, variant: str | None, exports: Mapping[str, Exported]
) -> list[tuple[str, str, dict[str, str]]]:
    """(engine, variant, files) of a results folder, a variant's folder or a single file."""
    if not path.exists():
        raise UserError(f"{path}: there is no such file or folder")
    if (path / "inputs").is_dir() and (path / "variants").is_dir():
        if not (path / "results").is_dir():
            raise UserError(f"{path}: it was exported and has no results yet; run its script there")
        path = path / "results"
    if path.is_dir() and (path / "manifest.json").exists() and not variant:
        exported = _checked(path / "manifest.json", exports)
        folders = sorted(each for each in path.iterdir() if each.is_dir())
        found = [
            (_named(each, each.name, exported), _folder_files(each, exported)) for each in folders
        ]
        found = [(name, files) for name, files in found if files]
        if not found:
            raise UserError(f"{path}: there are no results in it")
        return [(exported.manifest.engine, name, files) for name, files in found]
    folder = path if path.is_dir() else path.parent
    beside = [up / "manifest.json" for up in (folder, folder.parent)]
    manifest = next((each for each in beside if each.exists()), None)
    if manifest:
        exported = _checked(manifest, exports)
    elif variant and len(exports) == 1:
        (exported,) = exports.values()
    else:
        raise UserError(
            f"{path}: there is no manifest.json beside it that says what it belongs to; give the "
            "results folder" + (", or --variant NAME" if len(exports) == 1 else "")
        )
    name = _named(path, variant or folder.name, exported)
    files = _folder_files(path, exported) if path.is_dir() else _file(path, exported)
    if not files:
        raise UserError(f"{path}: there are no results in it")
    return [(exported.manifest.engine, name, files)]


def _named(path: Path, name: str, exported: Exported) -> str:
    if name not in exported.variants:
        hint = did_you_mean(name, exported.variants)
        raise UserError(f"{path}: no variant {name!r} was exported{hint}; say --variant NAME")
    return name


def _checked(path: Path, exports: Mapping[str, Exported]) -> Exported:
    """The run's export that this manifest is of. Raises UserError with what differs."""
    try:
        theirs = Manifest.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as err:
        raise UserError(f"{path}: not a manifest that granplugin export wrote") from err
    if theirs.engine not in exports:
        raise UserError(f"{path}: it is of {theirs.engine}, which this run was not exported for")
    ours = exports[theirs.engine].manifest
    differs = [
        f"{name}'s {what}"
        for name in sorted(ours.variants.keys() & theirs.variants.keys())
        for what, key in (("ONNX file", "onnx_sha256"), ("plan", "plan_key"))
        if getattr(ours.variants[name], key) != getattr(theirs.variants[name], key)
    ]
    differs += sorted(ours.variants.keys() ^ theirs.variants.keys())
    if ours.inputs_sha256 != theirs.inputs_sha256:
        differs.append("the evaluation inputs")
    if differs:
        raise UserError(
            f"{path}: these are results of another export; what differs: {first(differs)}"
        )
    return exports[theirs.engine]


def _folder_files(folder: Path, exported: Exported) -> dict[str, str]:
    found: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".json" and path.name != "manifest.json":
            found |= _file(path, exported)
        elif path.name in _EXTRAS:
            found[path.name] = _text(path)
    return found if any(name not in _EXTRAS for name in found) else {}


def _file(path: Path, exported: Exported) -> dict[str, str]:
    """One file under the name it is kept by."""
    text = _text(path)
    try:
        kind = trtexec.kind_of(text)
    except EngineError as err:
        raise EngineError(f"{path}: {err}; export it again") from err
    if kind is None:
        raise UserError(
            f"{path}: it is none of trtexec's files (--exportLayerInfo, --exportProfile, "
            "--exportTimes, --exportOutput)"
        )
    if kind == "times":
        said = re.search(r"-b(\d+)-(\d+)$", path.stem)
        size, number = said.groups() if said else (max(exported.manifest.sizes), 1)
        return {f"times-b{size}-{number}.json": text}
    if kind == "output":
        said = re.search(r"-(\d+)$", path.stem)
        return {f"output-{int(said[1]) if said else 0:03d}.json": text}
    return {f"{kind}.json": text}


def _kind(stored: str) -> str:
    """Of a file by the name it is kept by."""
    return re.split(r"[-.]", stored)[0]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as err:
        raise UserError(f"{path}: cannot be read: {getattr(err, 'strerror', '') or err}") from err


def _folder(run: RunFolder, engine: str, variant: str) -> Path:
    return run.results / "variants" / variant / f"imported-{engine}"


def _stored(run: RunFolder, engine: str, variant: str) -> dict[str, str]:
    folder = _folder(run, engine, variant)
    return {path.name: _text(path) for path in folder.iterdir()} if folder.is_dir() else {}


def _read_report(run: RunFolder) -> Report:
    path = run.path / "report.json"
    try:
        return Report.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise RunError(f"{run.path} has no report; granplugin apply RECIPE makes it") from None
    except (OSError, ValidationError) as err:
        raise RunError(f"{path}: not a report of this version; apply the recipe again") from err


def _exports(run: RunFolder) -> dict[str, Exported]:
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


def _onnx(run: RunFolder, exported: Exported, variant: str) -> Path | None:
    """The run's file that this variant's engine was built of, if it is still the exported one."""
    folder = run.results / "variants" / variant
    lowered, model = folder / f"{exported.manifest.engine}.onnx", folder / "model.onnx"
    if not _has(model, exported.variants[variant].model_sha256):
        return None
    wanted = exported.manifest.variants[variant].onnx_sha256
    return next((path for path in (lowered, model) if _has(path, wanted)), None)


def _has(path: Path, sha256: str) -> bool:
    return path.is_file() and file_sha256(path) == sha256
