"""An analysis from recipe to advice: effects against brute force, faults that were planted, halves
of the data, the suggested recipe as `apply` takes it, and what a user can get wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from analysis_nets import analyzed, images, layer_of, session_of, write

# -- effects on the network's output, against running the quantized network -----------------------


def naive(session, plan, ranges) -> tuple[np.ndarray, np.ndarray]:
    """The outputs of FP32 and of the plan as modelopt computes it, over all analysis samples."""
    import torch

    found = []
    amax = {row.site: ranges[row] for row in plan.quantized if ranges.get(row) is not None}
    for model in (session.model, session.quantized(plan, amax)):
        with torch.no_grad():
            parts = [model(**session.tensors(batch)) for batch in session.analysis]
        found.append(torch.cat(parts).double().numpy())
    return found[0], found[1]


def figures(reference: np.ndarray, outputs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    def log_p(x):
        x = x - x.max(1, keepdims=True)
        return x - np.log(np.exp(x).sum(1, keepdims=True))

    p, q = log_p(reference), log_p(outputs)
    same = reference.argmax(1) == outputs.argmax(1)
    noise = np.square(reference - outputs).sum()
    return {
        "db": 10 * np.log10(np.square(reference).sum() / noise),
        "kl": (np.exp(p) * (p - q)).sum(1).mean(),
        "agreement": 100 * same.mean(),
        "metric": 100 * (outputs.argmax(1) == labels).mean(),
        "fp32": 100 * (reference.argmax(1) == labels).mean(),
    }


RULES = {
    "the default": [],
    "coarse, folded": [{"match": "*", "weight": "per_tensor"}],
    "kept, with calibrators and rows of other roles": [
        {"match": {"type": "Conv2d"}, "weight": "per_tensor", "bn": "keep"},
        {"match": "block", "bn": "fold", "skip": "per_tensor", "output": "per_tensor"},
        {"match": "twice", "weight": "per_element", "input": {"calibrator": {"percentile": 99.0}}},
        {"match": "head", "weight": "float", "input": "float"},
        {"match": "depthwise", "input": "per_channel"},
    ],
}


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_effects_equal_running_the_network_as_modelopt_quantizes_it(project, rules):
    from granplugin.analysis.effects import alone_name, choice_name, restored_name
    from granplugin.analysis.run import Analyzer

    project.arrays = {
        "images": images(96),
        "labels": np.random.default_rng(1).integers(0, 10, 96),
    }
    recipe = write(project, "Residual", rules=rules)
    with session_of(recipe, project.out) as session:
        analyzer = Analyzer(session)
        network, plan = analyzer.network, analyzer.plan
        start = network.start()
        alone = list(start.items())
        found = analyzer.effects([start], alone, list(start))

        def of(keep) -> dict[str, float]:
            part = replace(plan, rows=tuple(row for row in plan.rows if keep(row)))
            return figures(*naive(session, part, analyzer.ranges), project.arrays["labels"])

        expected = {choice_name(network, start): of(lambda row: True)}
        for name, pair in alone:
            expected[alone_name(network, name, pair)] = of(lambda row: row.layer == name)
            expected[restored_name(network, name)] = of(lambda row: row.layer != name)
    assert found.keys() == expected.keys()
    for name, effect in found.items():
        said = expected[name]
        assert effect.sqnr.db == pytest.approx(said["db"], abs=0.2), name
        assert effect.kl.value == pytest.approx(said["kl"], rel=0.05, abs=1e-9), name
        # A sample whose two best classes nearly tie may fall on either side.
        for key in ("agreement", "metric"):
            assert getattr(effect, key).value == pytest.approx(said[key], abs=1.1), (name, key)
        assert effect.fp32_metric.value == pytest.approx(said["fp32"])
        assert effect.loss.value == pytest.approx(
            effect.fp32_metric.value - effect.metric.value, abs=1e-9
        )
