"""What analyze says of networks with a planted fault holds on data that it has not seen.

A slice of bench/planted.py, which has the whole campaign; its draws are fixed by their seeds.
"""

from __future__ import annotations

import sys

import pytest
from conftest import ROOT

KINDS = (
    "input outlier channel", "huge depthwise filter", "dead channel", "cancelling pair",
    "sensitive last layer", "growing residual", "saturated sigmoid", "one bad sample",
)  # fmt: skip


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory, one_thread):
    """One analysis of each kind, strong, on 8, 64 or 512 samples, with labels or without, on data of its
    own or not, as the numbers fall."""
    sys.path.insert(0, str(ROOT / "bench"))
    try:
        import planted
    finally:
        sys.path.remove(str(ROOT / "bench"))
    found = {}
    for at, kind in enumerate(KINDS):
        count = planted.SAMPLES[(at + 1) % 3]
        case = planted.Case(kind, count, at % 2 == 0, at % 4 < 2, at, strength=0.8)
        found[kind] = planted.outcome(case, tmp_path_factory.mktemp("planted"), fresh=2048)
    assert found.keys() == planted.FAULTS.keys()
    return found


def test_intervals_that_are_promised_hold_what_fresh_data_show(outcomes):
    kept = [kept for each in outcomes.values() for kept in each.kept]
    assert len(kept) > 10 and sum(kept) >= 0.9 * len(kept)


def test_nothing_is_said_to_be_within_that_fresh_data_show_above(outcomes):
    assert not any(each.false_nothing or each.false_reached for each in outcomes.values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_that_does_harm_is_named_with_its_reason(outcomes, kind):
    from planted import HARM

    found = outcomes[kind]
    assert found.named or found.start.value <= HARM, [each.why for each in found.said.layers[:2]]
