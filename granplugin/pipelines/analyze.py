"""analyze: which layer loses what, at which granularity, why, and the overrides it takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from granplugin.analysis import result
from granplugin.recipe.loaded import Loaded
from granplugin.report.result import Result
from granplugin.report.schema.analysis import Analysis
from granplugin.report.show import as_markdown
from granplugin.runs.session import Session
from granplugin.sources import check_runs
from granplugin.store.run_folder import default_folder, open_run


@dataclass(frozen=True, slots=True)
class Analyzed(Result):
    """An analysis, and the run folder that has it."""

    analysis: Analysis
    folder: Path
    session: Session

    def output(self) -> Analysis:
        """The analysis."""
        return self.analysis

    def write_recipe(self, target: Path) -> None:
        """Write the suggested recipe, which extends the analyzed one. Raises UserError where no
        file can be written there, and where the analyzed recipe is in no file."""
        loaded = self.session.loaded
        result.check_target(target, loaded)
        result.write_recipe(self.analysis, self.session, target, loaded.settings)


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
    check_runs(loaded, "analyze")
    # log.txt is the last apply's.
    with open_run(out or default_folder(loaded.recipe.name), "analyze_log.txt") as run:
        if target:
            result.check_target(target, loaded)
        session = Session(loaded, run)
        found = result.analyze(session, costs, statistics)
        run.publish("analysis.md", as_markdown(found))
        run.publish("analysis.json", found.model_dump_json(indent=1))
        return Analyzed(found, run.path, session)
