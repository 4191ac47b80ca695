"""What an engine computes wrongly of a file: found by leaving Q/DQ out, and left float for it.

To look at tensors in the middle of a network would change what an engine fuses. So whole networks
are compared: the variant's file with some of its Q/DQ, on the engine and on the reference.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic

import numpy as np

from granplugin import backends
from granplugin.backends import calls
from granplugin.backends.base import Backend
from granplugin.capabilities.legality import COMPUTED_WRONGLY, Written
from granplugin.engines import REFERENCE
from granplugin.errors import EngineError, LackError
from granplugin.measures.faithful import Faithful, faithful
from granplugin.planning.rows import as_float
from granplugin.progress import Stage, stage
from granplugin.quant.site import MULTIPLIED
from granplugin.results.values import Built, Measured, Results, Traced, WrongPart
from granplugin.runs.build_options import options_of
from granplugin.runs.calibrated import Calibrated
from granplugin.runs.culprit import culprit
from granplugin.runs.executor import run_tasks
from granplugin.runs.failed_build import rules_of
from granplugin.runs.held import first_outputs, float_outputs, held
from granplugin.runs.measure import measure_again
from granplugin.runs.session import Session
from granplugin.runs.variants import variant_task, write_quantized, writer
from granplugin.store.keys import content_key, file_key
from granplugin.store.maker import made_by

log = logging.getLogger(__name__)

SEARCH_SECONDS = 120
"""How long to look for what is wrong of one file, while somebody waits."""
BUILDS = 100
"""In how many builds."""


def left_float_where_wrong(
    session: Session,
    calibrated: Calibrated,
    built: Sequence[Built],
    results: Results,
    engines: Mapping[str, Backend],
) -> tuple[list[Built], dict[tuple[str, str], Measured]]:
    """The variants and their results: where an engine computes a variant's file wrongly, with
    what, and with those of a file of its own in which that is float, where it computes this
    rightly."""
    variants = {each.job.name: each for each in built}
    repaired = dict(results)
    for (name, engine), result in results.items():
        if result.held is not None and result.held.wrong:
            floats = float_outputs(session, list(variants.values()))
            traced = _traced(session, variants[name], engines[engine], result.held, floats)
            variants[name], repaired[name, engine] = _repaired(
                session, calibrated, variants[name], engines[engine], traced, floats, repaired
            )
    return list(variants.values()), repaired


def _repaired(
    session: Session,
    calibrated: Calibrated,
    wrong: Built,
    module: Backend,
    traced: Traced,
    floats: Mapping[str, np.ndarray],
    results: Results,
) -> tuple[Built, Measured]:
    """The variant and its result as they are, or with what is computed wrongly left float."""
    if traced.floats:
        built = _without(session, calibrated, wrong, module.name, traced)
        again = measure_again(session, built, module, results)
        again = replace(again, traced=traced, held=held(session, built, again, floats))
        if again.held is not None and not again.held.wrong:
            return built, again
        traced = replace(traced, note="with what was found left float it is wrong too")
    return wrong, replace(results[wrong.job.name, module.name], traced=traced)


def _without(
    session: Session, calibrated: Calibrated, built: Built, engine: str, traced: Traced
) -> Built:
    """The variant, with a file for this engine in which what it computes wrongly is float."""
    sites = {site for part in traced.floats for site in part.sites}
    old = built.job.written.get(engine, Written(built.job.plan.rows))
    written = replace(
        old,
        rows=tuple(as_float(row) if row.site in sites else row for row in old.rows),
        how={site: how for site, how in old.how.items() if site not in sites},
        made={**old.made, **dict.fromkeys(sites, COMPUTED_WRONGLY)},
    )
    job = replace(built.job, written={**built.job.written, engine: written})
    (again,) = run_tasks([variant_task(session, job, calibrated)], session.run.kept)
    return replace(again, agreement=built.agreement)


def _traced(
    session: Session,
    built: Built,
    module: Backend,
    wrong: Faithful,
    floats: Mapping[str, np.ndarray],
) -> Traced:
    """What an engine computes wrongly of a variant; kept, where the search came to its end."""
    kept, parts = session.run.kept, _parts(built, module.name)
    key = content_key(
        file_key(built.file(module.name).path), module.name, module.version(),
        session.evaluation.key(), writer(), made_by(__name__, type(module).__module__),
    )  # fmt: skip
    if not kept.path(f"wrong-{key}.json").exists():
        what = f"looking for what {module.name} computes wrongly of {built.job.name}"
        with (
            TemporaryDirectory(dir=session.run.cache, prefix=".making-") as folder,
            stage(what) as running,
        ):
            search = _Search(session, built, module, floats, Path(folder), running)
            sets = search.sets(list(parts))
        traced = Traced(wrong, _named(sets, parts), search.builds, search.note)
        log.info("%s of %s: %s", module.name, built.job.name, traced)
        if search.out_of_time:
            return traced
        said = {"sets": sets, "builds": search.builds, "note": search.note}
        kept.made_json("wrong", key, lambda: said)
    said = kept.made_json("wrong", key, dict)
    return Traced(wrong, _named(said["sets"], parts), said["builds"], said["note"])


def _named(
    sets: Sequence[Sequence[str]], parts: Mapping[str, WrongPart]
) -> tuple[tuple[WrongPart, ...], ...]:
    return tuple(tuple(parts[name] for name in names) for names in sets)


def _parts(built: Built, engine: str) -> dict[str, WrongPart]:
    """What can be left float alone, in the network's order: the weight and input of a layer
    together, without which it multiplies in float, and each other site."""
    rows = built.quantized_for(engine)
    wheres = rules_of([row for row in rows if row.operand in MULTIPLIED])
    found: dict[str, WrongPart] = {}
    for row in rows:
        if row.operand not in MULTIPLIED:
            write = f"{row.operand}: float"
            found[row.site] = WrongPart(row.site, (row.site,), row.where, write)
        elif row.layer not in found:
            sites = tuple(
                each.site for each in rows if each.layer == row.layer and each.operand in MULTIPLIED
            )
            found[row.layer] = WrongPart(row.layer, sites, wheres[row.layer], "format: float")
    return found


class _Search:
    """One search: files of a variant with some of its parts quantized, each built and compared."""

    def __init__(
        self,
        session: Session,
        built: Built,
        module: Backend,
        floats: Mapping[str, np.ndarray],
        folder: Path,
        running: Stage,
    ) -> None:
        self.session, self.built, self.module, self.floats = session, built, module, floats
        self.folder, self.running = folder, running
        self.parts = _parts(built, module.name)
        self.options = options_of(session.recipe, session.input_sizes, built, module)
        self.start, self.builds = monotonic(), 0
        self.out_of_time = False
        self.note = ""

    def sets(self, parts: Sequence[str]) -> list[list[str]]:
        """Smallest sets of parts that are computed wrongly together, until none is left; `note`
        says why there are others."""
        left, found = list(parts), list[list[str]]()
        try:
            while self._go_on() and (not found or self._wrong(left)):
                one = culprit(left, self._wrong, self._go_on)
                if not one.exact:
                    break
                if not one.parts:
                    self.note = "it is computed wrongly with nothing quantized, too"
                    return found
                found.append(list(one.parts))
                left.remove(one.parts[-1])
        except LackError:
            raise
        except EngineError as err:
            self.note = f"a file with less quantized failed: {err}"
            return found
        if self.out_of_time:
            limit = f"{SEARCH_SECONDS} s or {BUILDS} builds"
            self.note = f"{limit} were not enough to find all that is computed wrongly"
        return found

    def _go_on(self) -> bool:
        self.out_of_time = self.builds >= BUILDS or monotonic() - self.start > SEARCH_SECONDS
        return not self.out_of_time

    def _wrong(self, parts: Sequence[str]) -> bool:
        """Whether the file with these parts quantized is computed wrongly."""
        self.builds += 1
        self.running.done()
        self.running.now(f"with {len(parts)} of {len(self.parts)} parts quantized")
        sites = {site for part in parts for site in self.parts[part].sites}
        onnx, reference = self.folder / "model.onnx", backends.backend_of(REFERENCE)
        plain = write_quantized(self.built, self.module.name, sites, onnx)
        engine = calls.build(self.module, onnx, self.folder / "engine", self.options)
        ours = first_outputs(self.module, engine, self.session)
        theirs = first_outputs(reference, calls.build(reference, plain, self.folder), self.session)
        return faithful(ours, theirs, self.floats).wrong
