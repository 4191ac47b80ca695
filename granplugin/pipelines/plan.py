"""plan: what each site gets, and what each engine promises for it; nothing is calibrated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from granplugin.capabilities.legality import Written
from granplugin.data.doubts import Doubt
from granplugin.errors import DataError, RecipeError, UserError
from granplugin.planning.coverage import coverage
from granplugin.planning.plan import plan_before_rules
from granplugin.planning.plan_file import plan_file
from granplugin.planning.quantize_config import config
from granplugin.planning.row_json import decided, plan_key
from granplugin.planning.rows import Plan
from granplugin.planning.settle import GIVEN
from granplugin.planning.story import why as story
from granplugin.quant.layers import Layer
from granplugin.quant.multiplications import Multiplication
from granplugin.recipe.decisions import of_base
from granplugin.recipe.load import RECIPE, load_variants
from granplugin.recipe.loaded import Loaded
from granplugin.report.build.verbs import plan_output
from granplugin.report.last import last_report
from granplugin.report.result import Result
from granplugin.report.schema.run import EngineResult, Report
from granplugin.report.schema.verbs import PlanOutput
from granplugin.runs.doubtful import doubts
from granplugin.runs.jobs import plan_jobs
from granplugin.runs.session import Session
from granplugin.sources import check_torch
from granplugin.store.run_folder import default_folder, open_run
from granplugin.suggest import did_you_mean


@dataclass(frozen=True, slots=True, repr=False)
class Planned(Result):
    """The plan of a recipe or, by its name, of a variant; `loaded` is what that variant says.

    `written` has for each engine the plan as it is written for it, with what the engine promises;
    `last` what it did of the same plan when that was last applied. `doubts` are of the data that its
    ranges will be found on.
    """

    loaded: Loaded
    variant: str
    layers: tuple[Layer, ...]
    products: tuple[Multiplication, ...]
    plan: Plan
    written: Mapping[str, Written]
    doubts: tuple[Doubt, ...] = ()
    last: Mapping[str, EngineResult] = field(default_factory=dict)
    refused: str | None = None

    def output(self) -> PlanOutput:
        """Every site, rule and promise."""
        covered = coverage(self.products, self.layers, self.plan)
        told = [doubt.said for doubt in self.doubts]
        plan = replace(self.plan, notes=(*self.plan.notes, *told))
        if self._changes_nothing():
            taken = any(layer.given is not None for layer in self.layers)
            before = f"the {GIVEN}" if taken else self.loaded.before_rules
            nothing = f"the rules change nothing: the plan is that of {before} alone"
            plan = replace(plan, notes=(*plan.notes, nothing))
        path = str(self.loaded.path)
        return plan_output(path, self.variant, plan, self.written, covered, self.last)

    def _changes_nothing(self) -> bool:
        if self.plan.moved or all(of_base(rule.id) for rule in self.loaded.recipe.rules):
            return False
        try:
            alone = plan_before_rules(self.loaded, self.layers)
        except RecipeError:  # without the rules these defaults could not be
            return False
        return list(map(decided, alone.rows)) == list(map(decided, self.plan.rows))

    def why(self, layer: str) -> tuple[str, ...]:
        """One layer's story: what each rule said of it. UserError where there is no such layer."""
        return story(self.loaded, self.layers, self.plan, layer)

    def config(self) -> dict[str, Any]:
        """The plan as modelopt takes it: the config for mtq.quantize. Raises RecipeError where the
        model is not torch's."""
        check_torch(self.loaded, "modelopt")
        return config(self.plan.quantized, self.plan.folds(self.layers))


def plan(loaded: Loaded, variant: str | None = None, out: Path | None = None) -> Planned:
    """Plan a recipe and all its variants, of which one is returned: by default the recipe itself.
    The plans are left in `out`, by default runs/<name>, as plan.json.

    Raises RecipeError for a rule that the model or an engine cannot honour, ModelError and
    DataError where the model cannot run, UserError where no variant has that name.
    """
    variants = load_variants(loaded)
    name = variant or RECIPE
    if name not in variants:
        hint = did_you_mean(name, variants)
        raise UserError(f"{loaded.path}: no variant is called {name!r}{hint}")
    # log.txt is the last apply's.
    with open_run(out or default_folder(loaded.recipe.name), "plan_log.txt") as run:
        report = last_report(run.path)
        session = Session(loaded, run)
        jobs = plan_jobs([loaded], session.layers)
        own = [job for job in jobs if job.kind != "baseline"]
        job = dict(zip(variants, own, strict=True))[name]
        # Of a file that tells its layers no data need be there.
        notes: Sequence[str] = session.network.notes
        refused = None
        with suppress(DataError):
            notes = session.notes
            if refused := session.unmeasurable:
                notes = (*session.network.notes, f"apply will refuse it: {refused}")
        # Evaluation data that cannot be read are for apply to refuse.
        doubtful: tuple[Doubt, ...] = ()
        with suppress(DataError):
            doubtful = doubts(session, job.plan.rows, "evaluation")
        plans = {job.name: job.plan for job in jobs}
        run.publish("plan.json", plan_file(session.key, session.text_key, session.layers, plans))
    return Planned(
        loaded=variants[name],
        variant=name,
        layers=session.layers,
        products=session.products,
        plan=replace(job.plan, notes=(*notes, *job.plan.notes)),
        written=job.written,
        doubts=doubtful,
        last=_did(report, plan_key(session.key, job.plan)) if report else {},
        refused=refused,
    )


def _did(report: Report, key: str) -> dict[str, EngineResult]:
    """Engine -> what it did of the plan with this key, where it tells of its layers."""
    of = (variant.engines for variant in report.variants if variant.plan_key == key)
    return {engine.engine: engine for engine in next(of, []) if engine.layers}
