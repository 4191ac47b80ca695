"""analyze: which layer loses what, at which granularity, why, and the overrides it takes.

recipe -> what is asked -> ranges -> everything rounded -> local errors -> promises -> effects on
the network's output -> why -> advice -> costs -> analysis.json. Passes keep what they measure in
the run folder, by content, and go on where they were killed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from granplugin.analysis.advice import Advice
from granplugin.analysis.answer import answer
from granplugin.analysis.evidence import Evidence
from granplugin.analysis.facts import facts_of, why_of
from granplugin.analysis.losses import all_losses
from granplugin.analysis.measuring import draw, local_errors
from granplugin.analysis.outputs import contradiction, measure_outputs, rank
from granplugin.analysis.promised import find_costs, find_promises
from granplugin.analysis.questions import ask_all
from granplugin.analysis.ranges import Ranges, find_ranges, gather, read_statistics
from granplugin.analysis.subject import Clock, Subject, open_subject
from granplugin.analysis.suggested_file import check_target, write_recipe
from granplugin.analysis.tried import round_all
from granplugin.analysis.verdict import find_advice, say
from granplugin.calibration.statistics import Statistics
from granplugin.data.doubts import Doubt
from granplugin.planning.plan import make_plan
from granplugin.planning.rows import Plan
from granplugin.progress import stage
from granplugin.recipe.loaded import Loaded
from granplugin.report.result import Result
from granplugin.report.schema.analysis import Analysis
from granplugin.report.schema.page import KeptForPage
from granplugin.report.show import as_markdown
from granplugin.runs.doubtful import doubts
from granplugin.runs.layer_ranges import layer_ranges
from granplugin.runs.pages import OF_ANALYSIS, PAGE, command, files_read, page_of, recipe_texts
from granplugin.runs.session import Session
from granplugin.store.run_folder import default_folder, open_run

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, repr=False)
class Analyzed(Result):
    """An analysis, and the run folder that has it."""

    analysis: Analysis
    folder: Path
    session: Session

    def output(self) -> Analysis:
        """The analysis."""
        return self.analysis

    @property
    def exit_code(self) -> int:
        """0 told; 4 the samples cannot tell whether the recipe loses more than is tolerated."""
        return 4 if self.analysis.advice.verdict == "cannot tell" else 0

    def write_recipe(self, target: str | Path) -> None:
        """Write the suggested recipe, which extends the analyzed one. Raises UserError where no
        file can be written there, and where the analyzed recipe is in no file."""
        loaded, target = self.session.loaded, Path(target)
        check_target(target, loaded)
        write_recipe(self.analysis, self.session, target, loaded.settings)


def analyze(
    loaded: Loaded,
    costs: bool = True,
    statistics: Path | None = None,
    out: Path | None = None,
    target: Path | None = None,
) -> Analyzed:
    """Analyze a recipe; leave the analysis in `out`, by default runs/<name>.

    Without `costs` no engine is built; `statistics` is a file that an analysis of the same model
    and data left; `target` is where a suggested recipe will be written, so that it is refused at
    once where it cannot be. Raises UserError for what the user must change.
    """
    # log.txt is the last apply's.
    with open_run(out or default_folder(loaded.recipe.name), "analyze_log.txt") as run:
        if target:
            check_target(target, loaded)
        session = Session(loaded, run)
        found, shown = analyze_in(session, costs, statistics)
        with run.publishing():
            run.publish(OF_ANALYSIS, shown.model_dump_json())
            run.publish(PAGE, page_of(run.results, analysis=found))
            run.publish("analysis.md", as_markdown(found))
            run.publish("analysis.json", found.model_dump_json(indent=1))
        return Analyzed(found, run.path, session)


def analyze_in(
    session: Session, costs: bool = True, statistics: Path | None = None
) -> tuple[Analysis, KeptForPage]:
    """The stages of an analysis, in order; and what its page shows of channels and inputs."""
    wanted, clock = session.recipe.analyze, Clock()
    given = read_statistics(session, statistics) if statistics else None
    plan = make_plan(session.loaded, session.layers)
    doubtful = doubts(session, plan.rows, "analysis", "evaluation")
    for doubt in doubtful:
        log.warning("%s", doubt.said)
    questions = ask_all(session.layers, plan, wanted, session.calibration.samples)
    subject = open_subject(session, questions)
    seen = gather(session, questions, subject, given, clock)
    with clock.timed("calibrators"), stage("finding ranges"):
        imported = session.recipe.statistics.import_
        kept = session.network.ranges(session.layers)
        ranges = find_ranges(questions, subject.analyst, seen, imported, kept)
    network = round_all(questions, subject.analyst.held, ranges.amax)
    drawn = draw(subject.data.samples, wanted.exact, session.recipe.data.seed)
    errors = local_errors(subject, network, drawn, clock)
    losses = all_losses(
        network.tried.values(), network.sites.values(), errors, subject.data.samples
    )
    with stage("asking what engines promise"):
        promised = find_promises(session, questions, network)
    outputs = measure_outputs(subject, network, losses, promised, wanted, clock)
    if distrust := contradiction(outputs, subject.metric, subject.data.labels()):
        # The figures are kept: only what they are read for changes.
        subject = replace(subject, distrust=distrust)
        outputs = measure_outputs(subject, network, losses, promised, wanted, clock)
    layers = rank(losses.layers, outputs, wanted.tolerance)
    evidence = Evidence(questions, seen, ranges, promised, outputs, layers, losses.sites)
    facts = {each.name: facts_of(each, evidence) for each in layers}
    why = {each.name: why_of(each, facts[each.name], evidence, wanted.tolerance) for each in layers}
    broken = "; ".join(doubt.said for doubt in doubtful if doubt.breaks)
    advice = (
        Advice("cannot tell", {}, broken=broken)
        if broken and outputs.quantizes
        else find_advice(subject, evidence, wanted.tolerance, clock)
    )
    told = say(advice, evidence, facts, subject, session.layers)
    with clock.timed("costs"):
        priced = find_costs(session, questions, network, seen, measured=costs)
    found = answer(
        session,
        evidence,
        facts,
        why,
        priced,
        told,
        len(drawn),
        subject.metric,
        clock.seconds,
        _notes(session, plan, doubtful, subject),
    )
    return found, _for_page(session, seen, ranges)


def _notes(session: Session, plan: Plan, doubtful: Sequence[Doubt], subject: Subject) -> list[str]:
    """What a reader must know of the network, the recipe, the labels, the data and the batches."""
    return [
        *session.notes,
        *plan.notes,
        *([subject.distrust] if subject.distrust else []),
        *(doubt.said for doubt in doubtful),
        *([small] if (small := subject.small_batches()) else []),
    ]


def _for_page(session: Session, seen: Statistics, ranges: Ranges) -> KeptForPage:
    clips: dict[str, dict[str, float]] = {}
    for row, amax in ranges.amax.items():
        if amax is not None and row.operand == "input":
            clips.setdefault(row.site, {})[f"{row.granularity}, {row.calibrator}"] = float(
                amax.max()
            )
    facts = session.network.facts(session.layers).layers
    weights = {name: each.weight for name, each in facts.items() if each.weight is not None}
    return KeptForPage(
        layers=layer_ranges(weights, seen, clips),
        recipes=recipe_texts([session.loaded]),
        files=files_read([session.loaded]),
        command=command("analyze", [session.loaded], session.run.path),
        seeds={"data.seed": session.recipe.data.seed},
    )
