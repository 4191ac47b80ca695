"""apply: from recipes to a report, the stages in order.

recipe -> model, layers -> plans -> statistics and float ONNX -> Q/DQ ONNX -> engines -> outputs and
latencies -> report. What a stage makes is kept by the content it depends on (run_folder), so a run
with one rule changed does only what that rule changes.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from granplugin.backends.nvidia.plan_reader import inspector_json
from granplugin.calibration.statistics import export_amax
from granplugin.deploy.imported import enter
from granplugin.planning.plan_file import plan_file
from granplugin.planning.quantize_config import config
from granplugin.progress import track
from granplugin.recipe.loaded import Loaded
from granplugin.report.build.run import RunInputs, make_report
from granplugin.report.result import Result
from granplugin.report.schema.page import KeptForPage
from granplugin.report.schema.run import Report
from granplugin.report.show import as_markdown
from granplugin.results.values import Built, Ran, Results
from granplugin.runs.build_options import check_build
from granplugin.runs.calibrated import Calibrated, calibrate
from granplugin.runs.checked import agreed
from granplugin.runs.doubtful import doubts
from granplugin.runs.executor import run_tasks
from granplugin.runs.held import held_to_reference
from granplugin.runs.jobs import plan_jobs
from granplugin.runs.latency import measure_latency, profile
from granplugin.runs.layer_ranges import facts_of_file, layer_ranges
from granplugin.runs.measure import check_data, measure, open_backends
from granplugin.runs.pages import OF_RUN, PAGE, command, files_read, page_of, recipe_texts
from granplugin.runs.reached import doubts_of_ranges
from granplugin.runs.session import Session
from granplugin.runs.variants import variant_task
from granplugin.runs.wrong import left_float_where_wrong
from granplugin.store.run_folder import RunFolder, default_folder, open_run

log = logging.getLogger(__name__)

ENGINE_FILES = ("layers.txt", "layers.json", "profile.json")
"""What an engine tells of its layers, in the forms of TensorRT-RTX's log and of trtexec."""


@dataclass(frozen=True, slots=True, repr=False)
class Applied(Result):
    """What a run came to: its report, and the folder that has it and all results."""

    report: Report
    folder: Path

    def output(self) -> Report:
        """The report."""
        return self.report

    @property
    def exit_code(self) -> int:
        """0 done; 1 a limit is missed; 3 a targeted engine does not honour a row of a recipe or
        variant, or computes something else than its file says, or refuses it, as does one that the
        recipe requires; 4 it cannot be told whether a limit is met."""
        if any(
            engine.fails
            for variant in self.report.variants
            if variant.kind != "baseline"
            for engine in variant.engines
        ):
            return 3
        verdicts = {limit.verdict for limit in self.report.limits}
        return 1 if "missed" in verdicts else 4 if "cannot tell" in verdicts else 0


def apply(recipes: Sequence[Loaded], out: Path | None = None) -> Applied:
    """Build and measure the baselines, the recipes and their variants; leave a report in `out`, by
    default runs/<name of the first recipe>.

    Raises UserError where something must change, Unhonoured where a written graph, read back, is
    not what its plan says.
    """
    with open_run(out or default_folder(recipes[0].recipe.name)) as run:
        return Applied(apply_in(run, recipes), run.path)


def apply_in(run: RunFolder, recipes: Sequence[Loaded]) -> Report:
    """The stages, in a run folder that is held."""
    start = monotonic()
    check_common(recipes)
    engines = open_backends(recipes[0])
    session = Session(recipes[0], run)
    check_build(session)
    jobs = plan_jobs(recipes, session.layers)
    check_data(session)
    doubtful = doubts(session, (row for job in jobs for row in job.plan.rows), "evaluation")
    calibrated = calibrate(session, jobs)
    if not any(doubt.breaks for doubt in doubtful):
        doubtful += doubts_of_ranges(session, jobs, calibrated)
    for doubt in doubtful:
        log.warning("%s", doubt.said)
    names = [job.name for job in jobs]
    writing = run_tasks([variant_task(session, job, calibrated) for job in jobs], run.kept)
    built = [agreed(session, each) for each in track(writing, "writing Q/DQ", names=names)]
    results = held_to_reference(session, built, measure(session, built, engines))
    built, results = left_float_where_wrong(session, calibrated, built, results, engines)
    latencies, untimed = measure_latency(session, built, results, engines)
    results = {key: replace(each, untimed=untimed.get(key)) for key, each in results.items()}
    profiles = profile(session, results, engines)
    ran = Ran(built, results, latencies, profiles)
    inputs = RunInputs(
        recipes, session.key, session.layers, session.products,
        calibration_samples=session.calibration.samples,
        evaluation_samples=session.evaluation.samples,
        evaluation_key=session.evaluation.key(),
        labels=session.evaluation.labels(),
        doubts=doubtful,
        told=session.notes,
    )  # fmt: skip
    report = make_report(inputs, ran, monotonic() - start)
    with run.publishing():
        report = publish(recipes, session, calibrated, ran, report)
        run.forget_unused()
    return report


def check_common(recipes: Sequence[Loaded]) -> None:
    """RecipeError where recipes of one run differ in more than rules, defaults and limits."""
    first = recipes[0].recipe
    common = (
        "model",
        "device",
        "data",
        "metrics",
        "evaluate",
        "engines",
        "optional_engines",
        "baselines",
        "build",
        "latency",
    )
    for other in recipes[1:]:
        for key in common:
            if getattr(other.recipe, key) != getattr(first, key):
                raise other.error(
                    (key,), f"{key} differs from {recipes[0].path}; recipes of one run share it"
                )


def publish(
    recipes: Sequence[Loaded], session: Session, calibrated: Calibrated, ran: Ran, report: Report
) -> Report:
    """Put every result in place, now that all exist; the report last, with what was imported of
    these very files."""
    run, built = session.run, ran.built
    publish_variants(run, ran)
    run.publish("float.onnx", calibrated.floats)
    plans = {each.job.name: each.job.plan for each in built}
    run.publish("plan.json", plan_file(session.key, session.text_key, session.layers, plans))
    configs = {
        name: config(plan.quantized, plan.folds(session.layers)) for name, plan in plans.items()
    }
    run.publish("modelopt.json", json.dumps(configs, indent=1))
    run.publish("measurements.json", json.dumps(_measurements(ran.results), indent=1))
    for loaded in recipes:
        target = loaded.recipe.statistics.export
        own = next(b for b in built if b.job.loaded is loaded and b.job.kind == "recipe")
        if target:
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                export_amax(target, own.job.plan.quantized, own.amax)
            except OSError as err:
                raise loaded.error(
                    ("statistics", "export"), f"{target} cannot be written: {err.strerror}"
                ) from err
    report = enter(run, report)
    facts = facts_of_file(calibrated.floats, session.layers, built[-1].job.plan.rows)
    clips = _clips(built)
    run.publish(
        OF_RUN,
        KeptForPage(
            layers=layer_ranges(facts, calibrated.statistics, clips),
            recipes=recipe_texts(recipes),
            files=files_read(recipes),
            command=command("apply", recipes, run.path),
            seeds={"data.seed": session.recipe.data.seed},
        ).model_dump_json(),
    )
    run.publish(PAGE, page_of(run.results, report))
    run.publish("report.md", as_markdown(report))
    run.publish("report.json", report.model_dump_json(indent=1))
    return report


def publish_variants(run: RunFolder, ran: Ran) -> None:
    """Each variant's files, and what each engine told of it."""
    for each in ran.built:
        run.publish(f"variants/{each.job.name}/model.onnx", each.onnx.path)
        for engine, other in each.own.items():
            run.publish(f"variants/{each.job.name}/{engine}.onnx", other.path)
    for (variant, engine), result in ran.results.items():
        folder = f"variants/{variant}/{engine}"
        if result.audited.plan:
            run.publish(f"{folder}/layers.json", inspector_json(result.audited.plan))
        profile = ran.profiles.get((variant, engine), result.engine.path)
        for name in ENGINE_FILES:
            if (profile / name).is_file():
                run.publish(f"{folder}/{name}", profile / name)
    for (variant, engine, batch), found in ran.latencies.items():
        # As --exportTimes has it; the data are where the engine reads them.
        calls = [{"latencyMs": ms, "computeMs": ms} for ms in found.latency.samples_ms]
        run.publish(f"variants/{variant}/{engine}/times-b{batch}.json", json.dumps(calls))


def _clips(built: Sequence[Built]) -> dict[str, dict[str, float]]:
    """Site -> how it was calibrated -> the largest amax, over all variants."""
    clips: dict[str, dict[str, float]] = {}
    for each in built:
        for row, amax in each.ranges.items():
            if amax is not None:
                clips.setdefault(row.site, {})[f"{row.granularity}, {row.calibrator}"] = float(
                    amax.max()
                )
    return clips


def _measurements(results: Results) -> dict[str, Any]:
    return {
        f"{variant}/{engine}": {
            name: {
                "value": value.value if math.isfinite(value.value) else str(value.value),
                "per_sample": None
                if value.per_sample is None
                else value.per_sample.astype(float).tolist(),
            }
            for name, value in result.values.items()
            if value.per_sample is None or np.isfinite(value.per_sample).all()
        }
        for (variant, engine), result in results.items()
    }
