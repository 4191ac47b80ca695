"""Whether a variant's file computes what it is to: the numbers of every site, and outputs."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from granplugin import backends
from granplugin.backends import calls
from granplugin.engines import REFERENCE
from granplugin.errors import EngineError, LackError
from granplugin.graph.read.agreement import agreement
from granplugin.measures import metrics
from granplugin.measures.samples import sampled
from granplugin.recipe.loaded import located
from granplugin.results.agreed import Agreement
from granplugin.results.values import Built
from granplugin.runs.session import Session
from granplugin.runs.variants import edited, first_samples, site_samples, writer
from granplugin.store.keys import content_key, file_key
from granplugin.store.maker import made_by

log = logging.getLogger(__name__)


def agreed(session: Session, built: Built) -> Built:
    """The variant with its agreement: site by site on ONNX Runtime's tensors, and of the whole
    network against the source's own (Network.quantized); none where nothing is quantized in its
    file."""
    onnx, amax, plan = built.float32.path, built.amax, built.job.plan
    rows = edited(plan.rows, amax)
    if not any(row.quantized for row in rows):
        return built

    def check() -> dict[str, Any]:
        batch = next(iter(session.evaluation))
        few = first_samples(session.evaluation, site_samples(session.recipe))
        sites = agreement(onnx, rows, amax, few, session.network.fake_quantize())
        with located(session.loaded, "model"):
            quantized = session.network.quantized(plan, amax, session.layers, session.example)
            theirs = sampled(quantized(batch), session.axes)
        reference = backends.backend_of(REFERENCE)
        with calls.opened(reference, calls.build(reference, onnx, onnx.parent)) as runner:
            ours = sampled(calls.run(runner, batch), session.axes)
        return {
            **{field: getattr(sites, field) for field in sites.__dataclass_fields__},
            "network_samples": len(next(iter(batch.values()))),
            "network_agreement": _same_decisions(ours, theirs, session.recipe.classes),
            "network_sqnr_db": _sqnr_db(ours, theirs),
        }

    key = content_key(
        file_key(onnx), session.evaluation.key(), session.recipe.data.batch_size, session.key,
        session.recipe.classes and session.recipe.classes.model_dump(),
        writer(), session.made_by(), made_by(__name__, type(backends.backend_of(REFERENCE)).__module__),
    )  # fmt: skip
    try:
        figures = session.run.kept.made_json("agreement", key, check)
    except LackError:
        raise
    except EngineError as err:  # of an operator of the user's own
        log.warning("variant %s: nothing is compared with the reference: %s", built.job.name, err)
        return built
    return replace(built, agreement=Agreement(**figures))


def _same_decisions(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], classes: metrics.Classes | None
) -> float | None:
    """Percent, None where no output is known to have classes to decide between."""
    if metrics.unserved("agreement", theirs, classes):
        return None
    return metrics.METRICS["agreement"].measure(ours, theirs, None, classes).value


def _sqnr_db(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> float | str | None:
    """As JSON has it, where infinity is a word; None where no output is of floats."""
    if not any(np.issubdtype(array.dtype, np.floating) for array in theirs.values()):
        return None
    value = metrics.METRICS["sqnr_db"].measure(ours, theirs, None).value
    return value if math.isfinite(value) else str(value)
