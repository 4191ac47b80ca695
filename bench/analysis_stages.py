"""The stages of an analysis, each run and timed alone."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from measure import HERE, Figure, of_values

from granplugin.analysis import measuring
from granplugin.analysis import subject as of_analysis
from granplugin.analysis.by_torch import TorchAnalyst
from granplugin.analysis.questions import ask_all
from granplugin.analysis.ranges import find_ranges, gather
from granplugin.analysis.rounded import run as forward
from granplugin.analysis.tried import round_all
from granplugin.calibration.statistics import Statistics
from granplugin.planning.plan import make_plan
from granplugin.recipe.load import load_recipe
from granplugin.runs.session import Session
from granplugin.store.run_folder import RunFolder, open_run

FOUR = [
    "analyze.weights=[per_tensor, per_channel]",
    "analyze.inputs=[per_tensor]",
    "analyze.calibrators=[max]",
]
"""C = 4: two granularities, the batch norm folded and kept."""


class Clock:
    """Seconds of the wall and of the process by name, one value per round."""

    def __init__(self) -> None:
        self.wall: dict[str, list[float]] = defaultdict(list)
        self.process: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def lap(self, name: str) -> Iterator[None]:
        wall, process = time.perf_counter(), time.process_time()
        yield
        self.wall[name].append(time.perf_counter() - wall)
        self.process[name].append(time.process_time() - process)

    def times_f(self, title: str, *names: str, per: float = 1, goal: float | None = None) -> Figure:
        """The seconds of these names together over those of F, round by round, divided by `per`."""

        def ratios(seconds: Mapping[str, Sequence[float]]) -> list[float]:
            # F is taken twice a round.
            bare = np.reshape(seconds["F"], (-1, 2)).mean(1)
            together = np.sum([seconds[name] for name in names], axis=0)
            return (together / bare / per).tolist()

        note = f"processor {np.median(ratios(self.process)):.2f} F"
        return of_values(title, ratios(self.wall), "F", goal=goal, note=note)


@contextmanager
def session_of(network: str, samples: int, settings: Sequence[str] = ()) -> Iterator[Session]:
    with tempfile.TemporaryDirectory() as folder, open_run(Path(folder) / "run") as run_folder:
        yield open_session(network, samples, settings, run_folder)


def open_session(
    network: str, samples: int, settings: Sequence[str], run_folder: RunFolder
) -> Session:
    settings = [f"data.calibration.args.samples={samples}", "data.batch_size=16", *settings]
    return Session(load_recipe(HERE / f"{network}.yaml", settings), run_folder)


class Stages:
    """The stages of an analysis up to the local errors, one after the other, each timed alone."""

    def __init__(self, session: Session) -> None:
        self.session, self.clock = session, of_analysis.Clock()
        plan = make_plan(session.loaded, session.layers)
        samples = session.calibration.samples
        self.questions = ask_all(session.layers, plan, session.recipe.analyze, samples)
        self.subject = of_analysis.open_subject(session, self.questions)
        self.seen: Statistics | None = None

    @property
    def analyst(self) -> TorchAnalyst:
        assert isinstance(self.subject.analyst, TorchAnalyst)
        return self.subject.analyst

    def statistics(self) -> None:
        self.seen = gather(self.session, self.questions, self.subject, self.seen, self.clock)

    def ranges(self) -> None:
        self.found = find_ranges(self.questions, self.subject.analyst, self.seen, None)

    def tried(self) -> None:
        self.network = round_all(self.questions, self.subject.analyst.held, self.found.amax)

    def local(self) -> None:
        exact, seed = self.session.recipe.analyze.exact, self.session.recipe.data.seed
        drawn = measuring.draw(self.subject.data.samples, exact, seed)
        measuring.local_errors(self.subject, self.network, drawn, self.clock)

    def effects(self, **wanted: Sequence) -> None:
        task = measuring.effects_task(self.subject, self.network, **wanted)
        measuring.measure_effects(task, self.clock)

    def rounded(self) -> Stages:
        """Itself, behind the stages that the passes need."""
        self.statistics()
        self.ranges()
        self.tried()
        return self


def fresh(session: Session) -> Stages:
    """An analysis that finds nothing kept but the traced layers."""
    shutil.rmtree(session.run.path / "analysis", ignore_errors=True)
    for path in session.run.cache.glob("statistics-*"):
        path.unlink()
    return Stages(session)


def bare(stages: Stages) -> None:
    """The model alone, on all samples."""
    subject = stages.subject
    for batch in subject.batches(np.arange(subject.data.samples)):
        forward(stages.analyst.model, stages.analyst.tensors(batch))


def stage_by_stage(clock: Clock, stages: Stages) -> None:
    for stage in ("statistics", "ranges", "tried", "local"):
        with clock.lap(stage):
            getattr(stages, stage)()


def settings_of(stages: Stages) -> int:
    """C, of the layers for which most is tried."""
    return max(len(each.weights) + len(each.inputs) for each in stages.questions.layers) - 1
