"""What an analysis looks at: the float network, and the data that passes over it run on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from granplugin.analysis.analyst import Analyst, AnalyzedNetwork, analyst_of, analyzed_network
from granplugin.analysis.passes import Kept
from granplugin.analysis.questions import Questions
from granplugin.analysis.tried import key
from granplugin.data.batches import SAME_BITS, Batch, Batches, even_sizes, length_of, rebatched
from granplugin.errors import RunError
from granplugin.measures.metrics import METRICS
from granplugin.recipe.loaded import Loaded, located
from granplugin.runs.session import Session
from granplugin.store.cache import Cache
from granplugin.store.keys import content_key, file_key
from granplugin.store.maker import made_by

LABELS = ""
"""Where a batch has its labels; no argument of forward is called so."""
_MAKERS = ("granplugin.analysis.measuring", "granplugin.analysis.ranges")
"""The code that makes the figures that are kept."""


@dataclass(frozen=True)
class Subject:
    """A value that can be pickled. Passes run on `data` in batches of at most `batch` samples;
    `folder` keeps figures here, and `key` is of the model, data and recipe that they are of.
    `distrust` says why the labels, where there are some, decide nothing."""

    network: AnalyzedNetwork
    data: Batches
    batch: int
    folder: Path
    key: str
    distrust: str | None = None

    @property
    def analyst(self) -> Analyst:
        """Who runs the network."""
        return self.network.analyst

    @property
    def loaded(self) -> Loaded:
        """The recipe that is analyzed."""
        return self.network.loaded

    @property
    def metric(self) -> str | None:
        """The metric that labels serve, where the data have labels."""
        if self.data.labels() is None:
            return None
        wanted = [name for name in self.loaded.recipe.metrics if METRICS[name].needs_labels]
        return wanted[0] if wanted else None

    def batches(self, numbers: np.ndarray) -> Iterator[Batch]:
        """These samples of the analysis data, with their labels, in even batches."""
        return rebatched(self._parts(numbers), even_sizes(len(numbers), self.batch))

    def _parts(self, numbers: np.ndarray) -> Iterator[Batch]:
        labels = self.data.labels()
        first, at = 0, 0
        for batch in self.data:
            length = length_of(batch)
            last = np.searchsorted(numbers, first + length)
            rows = numbers[at:last] - first
            at, first = int(last), first + length
            if not len(rows):
                continue
            part = {name: array[rows] for name, array in batch.items()}
            if labels is not None:
                part[LABELS] = labels[rows + first - length]
            yield part

    def small_batches(self) -> str | None:
        """What to know of batches in which samples' last bits are not their own."""
        samples, most = self.data.samples, self.batch
        least = min(even_sizes(samples, most))
        differ = self.loaded.recipe.model.small_batches_differ
        if not differ or least >= min(SAME_BITS, samples):
            return None
        return (
            f"measured in batches of {least}, since data.batch_size is {most}: below {SAME_BITS} the "
            "last bits of figures depend on the batch size and the number of threads"
        )

    def halves(self) -> tuple[np.ndarray, np.ndarray]:
        """The samples to choose settings by, and those to promise on, by number, in order; drawn,
        since data may be in an order. One sample is both."""
        count, seed = self.data.samples, self.loaded.recipe.data.seed
        drawn, half = np.random.default_rng([seed, 2]).permutation(count), -(-count // 2)
        return np.sort(drawn[:half]), np.sort(drawn[half:] if count > 1 else drawn)

    def count(self, numbers: np.ndarray) -> int:
        """How many batches these samples make."""
        return len(even_sizes(len(numbers), self.batch))

    def located(self) -> AbstractContextManager[None]:
        """What goes wrong with the data is said at its line."""
        role = "analysis" if self.loaded.recipe.data.analysis else "calibration"
        return located(self.loaded, "data", role)

    def cache(self) -> Cache:
        """Where tasks that run here keep figures. Raises RunError where it cannot be written."""
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as err:
            raise RunError(f"{self.folder}: cannot be written: {err.strerror}; give --out") from err
        return Cache(self.folder)

    def kept(self, cache: Cache, what: str, of: str) -> Kept:
        """Figures of this model and these data; those of others that are in the way go."""
        try:
            for old in cache.folder.glob(f"{what}-*"):
                if not old.name.startswith(f"{what}-{self.key}-"):
                    old.unlink()
        except OSError as err:
            raise RunError(f"{old}: cannot be deleted: {err.strerror}; give --out") from err
        return Kept(cache.path(f"{what}-{self.key}-{of}.safetensors"))


def open_subject(session: Session, questions: Questions) -> Subject:
    """The subject of a session's analysis. Raises DataError where there are no such data."""
    imported = session.recipe.statistics.import_
    return Subject(
        network=analyzed_network(session, questions),
        data=session.analysis,
        batch=session.recipe.data.batch_size,
        folder=session.run.path / "analysis",
        key=content_key(
            session.key,
            session.calibration.key(),
            session.analysis.key(),
            [(row.site, key(row)) for row in questions.others],
            [(row.site, row.share) for row in questions.plan.quantized if row.share],
            file_key(imported) if imported else None,
            made_by(*_MAKERS, analyst_of(session.network), libraries=session.network.libraries),
        ),
    )


class Clock:
    """Seconds by stage, in the order in which stages end."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        since = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - since
            self.seconds[stage] = round(self.seconds.get(stage, 0.0) + spent, 3)
