"""The search for what analyze advises, on networks whose noise adds up."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from granplugin.analysis.advice import judged
from granplugin.analysis.effects import _PARTS
from granplugin.analysis.figures import sums
from granplugin.analysis.places import Change, Place
from granplugin.analysis.racing import Racing, parts_of
from granplugin.analysis.search import Search, Untold, choose
from granplugin.analysis.tried import FLOATING

OWN, BEST = (0, 0), (1, 0)
SAMPLES = 64
SPREAD = np.random.default_rng(0).uniform(0.5, 1.5, SAMPLES)
noise = st.floats(1e-6, 1e-1)


def search(own, best, tolerance, most=10_000, measured=None, top=100):
    """Of layers with these relative energies of noise at the output, by the recipe and at best."""

    def figures(choices, numbers):
        found = []
        for choice in choices:
            of = {name: (own, best)[pair == BEST][int(name)] for name, pair in choice.items()}
            energy = sum(0.0 if choice[name] == FLOATING else of[name] for name in choice)
            error = energy * SPREAD[numbers]
            found.append(
                np.concatenate([sums(np.ones(len(numbers)), error), np.zeros(len(_PARTS))])
            )
            if measured is not None:
                measured.append((choice, len(numbers)))
        return found

    names = [str(n) for n in range(len(own))]
    places = tuple(
        Place(
            True,
            (name,),
            (Change(name, OWN, BEST, (), own[n] - best[n]),) if best[n] < own[n] else (),
            ({name: FLOATING},),
        )
        for n, name in enumerate(names)
    )
    racing = Racing(figures, np.arange(SAMPLES), most, True, lambda count: None)
    return Search(tolerance, top, places, dict.fromkeys(names, OWN), (), racing)


@settings(max_examples=30)
@given(st.lists(st.tuples(noise, st.floats(0.01, 1)), min_size=1, max_size=8), st.floats(2, 30))
def test_every_change_that_is_found_is_needed(layers, tolerance):
    own = sorted((energy for energy, _ in layers), reverse=True)
    best = [energy * share for energy, (_, share) in zip(own, layers, strict=True)]
    of = search(own, best, tolerance)
    found = choose(of).found
    told = judged(found.effect.loss, tolerance)
    assert told != "above"
    for name in found.overrides:
        less = {n: pair for n, pair in found.overrides.items() if n != name}
        assert judged(of.measured(less).effect.loss, tolerance) != "within"
        if FLOATING in found.overrides.values():
            assert of.enough(less, Untold(tolerance)) is None


def test_float_is_for_what_no_setting_mends_and_the_loudest_alone():
    own = [1e-3] * 20
    own[7], own[12] = 0.2, 0.1
    best = [1e-5] * 20
    best[7], best[12] = 0.2, 0.1
    found = choose(search(own, best, tolerance=20.0)).found
    assert {n: p for n, p in found.overrides.items() if p == FLOATING} == {
        "7": FLOATING,
        "12": FLOATING,
    }


def test_no_more_layers_are_left_float_than_may_be():
    own = [0.01 * (n + 1) for n in range(10)]
    found = choose(search(own, own, tolerance=5.0, top=3)).found
    assert found.overrides == dict.fromkeys(["7", "8", "9"], FLOATING)


def test_of_many_layers_few_choices_are_measured_and_useless_ones_on_a_part():
    own = [0.01] * 100
    best = [0.008] * 95 + [1e-5] * 5
    measured = []
    of = search(own, best, tolerance=30.0, measured=measured)
    found = choose(of).found
    floats = sum(pair == FLOATING for pair in found.overrides.values())
    assert 0 < floats < 90 and of.racing.tried < 350
    assert {count for _, count in measured} == {16, 32}
    assert sum(count for _, count in measured) < 0.7 * of.racing.tried * SAMPLES


def test_the_bound_on_choices_is_held_and_what_is_found_then_is_enough():
    own = [0.01] * 50
    for most in (3, 10, 60, 70):
        of = search(own, own, tolerance=50.0, most=most)
        found = choose(of).found
        assert of.racing.tried <= most + len(own)
        assert judged(found.effect.loss, 50.0) != "above"


def test_of_a_part_on_which_fp32_puts_out_nothing_nothing_is_concluded():
    of = search([0.1, 0.2], [1e-5, 0.2], tolerance=5.0)
    expected, figures, first = choose(of).found.overrides, of.racing._figures, of.racing.parts[0]

    def silent(choices, numbers):
        found = figures(choices, numbers)
        if numbers is first:
            for sums_of_part in found:
                sums_of_part[1:] = 0
        return found

    of.racing._figures = silent
    assert choose(of).found.overrides == expected == {"1": FLOATING, "0": BEST}


def test_parts_have_every_sample_once():
    for count in (1, 63, 64, 101):
        parts = parts_of(np.arange(count))
        assert sorted(np.concatenate(parts).tolist()) == list(range(count))
