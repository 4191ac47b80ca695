"""What the files of one engine say: its audit, metrics and latencies, in every variant of a report."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from granplugin.audits.audit import audit
from granplugin.audits.audit_file import examine
from granplugin.backends.base import Engine, LayerPrecision
from granplugin.backends.engine_plan import EnginePlan
from granplugin.backends.nvidia import trtexec
from granplugin.backends.nvidia.backend import product_nodes
from granplugin.backends.nvidia.kernels import layer_precisions
from granplugin.backends.nvidia.plan_reader import read_inspector_json, read_profile_json
from granplugin.capabilities import Promise
from granplugin.deploy.manifest import Exported
from granplugin.deploy.returned import Files
from granplugin.errors import EngineError
from granplugin.measures import metrics, timing
from granplugin.measures.samples import joined, sampled
from granplugin.planning.row_json import row_from_json
from granplugin.report.build.run import engine_result
from granplugin.report.schema.run import Report
from granplugin.results.audited import Finding, Verdict
from granplugin.results.values import Audited, Measured, Timing

_FP32 = "fp32"


def with_engine(
    report: Report,
    exported: Exported,
    onnx: Mapping[str, Path],
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
        of = each.name, engine
        against = [name for name in baselines if name != each.name and (name, engine) in results]
        all_results = {of: _nothing(engine), **results}
        made = exported.variants[each.name].made if all_results[of].audited.layers else {}
        entry = engine_result(of, against, all_results, latencies, made)
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
    plan: EnginePlan | None = None
    layers: tuple[LayerPrecision, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    findings: tuple[Finding, ...] = ()
    known = exported.variants[name]
    if "layers.json" in files:
        plan = _read(name, "layers.json", read_inspector_json, files)
        if "profile.json" in files:
            plan = plan.timed(_read(name, "profile.json", read_profile_json, files))
        layers = layer_precisions(engine, product_nodes(engine, onnx), plan)
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
        unserved = metrics.unserved(metric, outputs[name], exported.classes)
        if not (unserved or (known_metric.needs_labels and labels is None)):
            measured = (outputs[name], reference, labels, exported.classes)
            values[metric] = known_metric.measure(*measured)
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
    outputs = joined(batches, {})
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
