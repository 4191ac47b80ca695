"""export: one folder with all that another machine needs to build, run and measure with trtexec.

The run folder keeps what `import` needs when results come back: what was exported, and the rows
and promises that the audit holds them against.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from shlex import quote

import numpy as np
import onnx

import granplugin
from granplugin import backends
from granplugin.backends.nvidia import trtexec
from granplugin.backends.nvidia.build import Options, profile_shapes
from granplugin.capabilities.legality import Written
from granplugin.data.batches import Batch, Batches
from granplugin.deploy.manifest import FORMAT, Exported, ExportedVariant, Manifest, ManifestVariant
from granplugin.engines import EXPORTED
from granplugin.errors import ModelError, RunError
from granplugin.planning.plan_file import plan_file
from granplugin.planning.row_json import row_to_json
from granplugin.progress import track
from granplugin.recipe.loaded import Loaded
from granplugin.results.values import Built
from granplugin.runs.build_options import check_build, options_of
from granplugin.runs.calibrated import calibrate
from granplugin.runs.checked import agreed
from granplugin.runs.executor import run_tasks
from granplugin.runs.jobs import plan_jobs
from granplugin.runs.session import Session
from granplugin.runs.variants import variant_task
from granplugin.store.companions import put_beside
from granplugin.store.keys import content_key, file_sha256, text_sha256
from granplugin.store.run_folder import RunFolder
from granplugin.store.whole_folder import put_in_place

_README = """\
Run {scripts} here, on the machine with the GPU:
it needs {command}, no Python, and builds, profiles, evaluates and times each variant.
It leaves results/, which goes back to the machine with the recipe, where
`granplugin import {run} results` audits it and enters it into the report.
Nothing outside this folder is written; manifest.json says what is in it, by content.
"""


def export(
    loaded: Loaded, run: RunFolder, engine: str, out: Path, samples: int | None = None
) -> Manifest:
    """Write the folder `out` for an engine of EXPORTED, with the first `samples` evaluation
    samples (None: all of them). Calibrates as apply does, and reuses what apply made.

    Raises RunError for a folder that export did not write, or that has results in it; RecipeError
    for a row that the engine cannot have.
    """
    _check_free(out)
    session = Session(loaded, run)
    jobs = plan_jobs([loaded], session.layers, [engine])
    check_build(session)
    calibrated = calibrate(session, jobs)
    names = [job.name for job in jobs]
    writing = run_tasks(
        [variant_task(session, job, calibrated, [engine]) for job in jobs], run.kept
    )
    built = [agreed(session, each) for each in track(writing, "writing Q/DQ", names=names)]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=out.parent, prefix=".export-"))
    except OSError as err:
        raise RunError(f"{out}: cannot be written: {err.strerror or err}; give --out") from err
    try:
        manifest = _write(scratch / "new", session, built, engine, samples)
        put_in_place(scratch / "new", out)
    except OSError as err:
        raise RunError(f"{out}: cannot be written: {err.strerror or err}; give --out") from err
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    known = _known(session, built, manifest)
    with run.publishing():
        for each in built:
            if engine in each.own:
                run.publish(f"variants/{each.job.name}/{engine}.onnx", each.file(engine).path)
        run.publish(f"export-{engine}.json", known.model_dump_json())
    return manifest


def _write(
    folder: Path, session: Session, built: Sequence[Built], engine: str, samples: int | None
) -> Manifest:
    name, batch = session.recipe.name, session.recipe.data.batch_size
    graph = onnx.load(built[0].onnx.path, load_external_data=False).graph
    inputs = {each.name: _shape(each) for each in graph.input}
    if reasons := [said for name in inputs if (said := trtexec.why_unspoken(name))]:
        raise ModelError(reasons[0])
    options = replace(
        options_of(
            session.recipe,
            session.input_sizes,
            built[0],
            backends.backend_of(engine),
            elsewhere=True,
        ),
        min_batch=1,
    )
    assert isinstance(options, Options), "only NVIDIA's engines have programs"
    shapes = profile_shapes(inputs, options.shapes, options.batch, options.min_batch)
    low = next((each[0][0] for each in shapes.values()), batch)  # none: a static batch
    counts = _write_inputs(folder / "inputs", session.evaluation, samples, low)
    sizes = sorted({low, batch})
    first = next(iter(session.evaluation))
    for size in sizes:
        _write_batch(folder / "inputs" / f"time-b{size}", _repeated(first, size))
    manifest = Manifest(
        format=FORMAT,
        granplugin=granplugin.__version__,
        name=name,
        engine=engine,
        counts=counts,
        sizes=sizes,
        outputs={each.name: _dtype(each) for each in graph.output},
        axes=session.axes,
        inputs_sha256=_folder_sha256(folder / "inputs"),
        variants={each.job.name: _write_variant(folder, each, session, engine) for each in built},
    )
    (folder / "manifest.json").write_text(manifest.model_dump_json(indent=1))
    programs = EXPORTED[engine]
    for program in programs:
        variants = list(manifest.variants)
        text = trtexec.script(program, name, variants, list(inputs), shapes, sizes, options)
        path = folder / program.script
        path.write_text(text)
        path.chmod(0o755)
    scripts = " or ".join(f"`sh {each.script}` ({each.what})" for each in programs)
    said = _README.format(
        scripts=scripts, command=programs[0].command, run=quote(str(session.run.path))
    )
    (folder / "README.txt").write_text(said)
    return manifest


def _check_free(out: Path) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        Manifest.model_validate_json((out / "manifest.json").read_text())
    except (OSError, ValueError):
        raise RunError(f"{out} exists, and export did not write it; give another --out") from None
    if (out / "results").exists():
        raise RunError(f"{out} has results in it; import and remove them, or give another --out")


def _write_variant(folder: Path, each: Built, session: Session, engine: str) -> ManifestVariant:
    own = folder / "variants" / each.job.name
    own.mkdir(parents=True)
    onnx_file = each.file(engine).path
    put_beside(onnx_file, own / "model.onnx")
    shutil.copyfile(onnx_file, own / "model.onnx")
    plan = plan_file(session.key, session.text_key, session.layers, {each.job.name: each.job.plan})
    (own / "plan.json").write_text(plan)
    # Where the recipe lies, and which line says it, is no part of what was decided.
    rows = [{**row_to_json(row), "where": None} for row in each.job.plan.rows]
    return ManifestVariant(onnx_sha256=file_sha256(own / "model.onnx"), plan_key=content_key(rows))


def _write_inputs(folder: Path, data: Batches, samples: int | None, low: int) -> list[int]:
    """batch-000, batch-001 ...; how many samples of each count. A batch smaller than the engine
    takes is filled up with its own samples."""
    counts: list[int] = []
    for number, batch in enumerate(_first(data, samples)):
        counts.append(len(next(iter(batch.values()))))
        filled = _repeated(batch, max(counts[-1], low))
        _write_batch(folder / f"batch-{number:03d}", filled)
    return counts


def _first(data: Batches, samples: int | None) -> Iterator[Batch]:
    left = samples
    for batch in data:
        if left is not None:
            batch = {name: array[:left] for name, array in batch.items()}
            left -= len(next(iter(batch.values())))
        yield batch
        if left == 0:
            return


def _repeated(batch: Mapping[str, np.ndarray], size: int) -> Batch:
    return {name: np.take(a, np.arange(size) % len(a), axis=0) for name, a in batch.items()}


def _write_batch(folder: Path, batch: Batch) -> None:
    """Each input as trtexec loads it: its values alone, in C order, little-endian."""
    folder.mkdir(parents=True)
    for name, array in batch.items():
        little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        (folder / f"{name}.bin").write_bytes(little.tobytes())
    shapes = trtexec.spelt({name: array.shape for name, array in batch.items()})
    (folder / "shapes.txt").write_text(f"{shapes}\n")


def _known(session: Session, built: Sequence[Built], manifest: Manifest) -> Exported:
    variants, engine = {}, manifest.engine
    for each in built:
        job = each.job
        written = job.written.get(engine, Written(()))
        variants[job.name] = ExportedVariant(
            model_sha256=file_sha256(each.onnx.path),
            rows=[row_to_json(row) for row in each.quantized],
            promises={site: asdict(promise) for site, promise in written.promises.items()},
            made=dict(written.made),
        )
    labels = session.evaluation.labels()
    return Exported(
        manifest=manifest,
        metrics=session.recipe.metrics,
        classes=session.recipe.classes,
        labels=None if labels is None else labels[: sum(manifest.counts)].tolist(),
        variants=variants,
    )


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    """-1 where the graph leaves it open."""
    sizes = value.type.tensor_type.shape.dim
    return tuple(d.dim_value if d.HasField("dim_value") else -1 for d in sizes)


def _dtype(value: onnx.ValueInfoProto) -> str:
    return onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name


def _folder_sha256(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    found = [[path.relative_to(folder).as_posix(), file_sha256(path)] for path in files]
    return text_sha256(json.dumps(found))
