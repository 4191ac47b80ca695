"""The search for what makes a whole fail, against failures that were planted."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from granplugin.runs.culprit import Culprit, culprit


@st.composite
def planted(draw):
    """Parts, and the subsets that fail: every whole that has all of one of them does."""
    count = draw(st.integers(1, 60))
    one = st.frozensets(st.integers(0, count - 1), min_size=1, max_size=3)
    groups = draw(st.lists(one, min_size=1, max_size=4))
    return list(range(count)), groups


def fake(groups, tries):
    def fails(kept):
        tries.append(kept)
        return any(group <= set(kept) for group in groups)

    return fails


@given(planted())
def test_it_finds_a_subset_that_fails_and_builds_without_any_of_its_parts(case):
    parts, groups = case
    tries = []
    fails = fake(groups, tries)
    found = culprit(parts, fails)
    assert found.exact
    assert list(found.parts) == sorted(found.parts)
    assert len(tries) <= 1 + len(found.parts) * (1 + math.ceil(math.log2(len(parts))))
    assert fails(found.parts)
    for part in found.parts:
        assert not fails(tuple(set(found.parts) - {part}))


@given(st.integers(1, 10_000), st.data())
def test_one_culprit_among_many_takes_few_tries(count, data):
    planted = data.draw(st.integers(0, count - 1))
    tries = []
    found = culprit(range(count), fake([{planted}], tries))
    assert found == Culprit((planted,), exact=True)
    assert len(tries) <= 2 + math.ceil(math.log2(count))


def test_two_that_only_fail_together_are_both_named():
    assert culprit("abcdefgh", fake([{"b", "g"}], [])).parts == ("b", "g")


def test_what_fails_with_nothing_has_no_culprit():
    assert culprit("abc", lambda kept: True) == Culprit((), exact=True)


@given(planted(), st.integers(0, 20))
def test_out_of_time_it_tells_what_still_fails(case, limit):
    parts, groups = case
    tries = []
    fails = fake(groups, tries)
    found = culprit(parts, fails, lambda: len(tries) < limit)
    assert len(tries) <= limit
    assert fails(found.parts)


@given(st.integers(1, 40), st.randoms())
def test_a_failure_that_comes_and_goes_ends_the_search_too(count, random):
    found = culprit(range(count), lambda kept: random.random() < 0.5)
    assert set(found.parts) <= set(range(count))
