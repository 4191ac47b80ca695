"""Engines held to the reference: rounding flips are not wrong, other numbers are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from granplugin.errors import ModelError
from granplugin.measures.faithful import NEAR_DB, faithful


def outputs(seed, samples=64, db=20.0, flips=1.0):
    """The float network's output, the reference's with noise at `db`, and an engine's with as much:
    a share `flips` of it noise of its own."""
    rng = np.random.default_rng(seed)
    floats = rng.standard_normal((samples, 10))
    noise, own = rng.standard_normal((2, samples, 10)) * 10 ** (-db / 20)
    engine = np.sqrt(1 - flips) * noise + np.sqrt(flips) * own
    return {"y": floats}, {"y": floats + noise}, {"y": floats + engine}


@given(st.integers(0, 2**16), st.floats(2, 60), st.floats(0, 1), st.sampled_from([8, 64, 512]))
@settings(max_examples=200, deadline=None)
def test_an_engine_whose_roundings_flip_is_right(seed, db, flips, samples):
    floats, reference, engine = outputs(seed, samples, db, flips)
    assert not faithful(engine, reference, floats).wrong


@given(st.integers(0, 2**16), st.floats(10, 35), st.sampled_from([64, 512]))
@settings(max_examples=200, deadline=None)
def test_an_engine_with_three_db_more_noise_is_wrong(seed, db, samples):
    floats, reference, engine = outputs(seed, samples, db)
    engine["y"] = floats["y"] + 1.6 * (engine["y"] - floats["y"])
    found = faithful(engine, reference, floats)
    assert found.wrong and found.engine_db < found.reference_db - 1


@pytest.mark.parametrize("samples", [1, 2, 3, 64])
def test_outputs_of_another_network_are_wrong_on_any_number_of_samples(samples):
    floats, reference, _ = outputs(0, samples)
    engine = {"y": np.roll(floats["y"], 1, axis=1)}
    assert faithful(engine, reference, floats).wrong


@pytest.mark.parametrize(("share", "wrong"), [(1e-3, False), (0.1, True)])
def test_of_a_float_network_only_what_no_arithmetic_explains_is_wrong(share, wrong):
    floats, _, noisy = outputs(0, db=0)
    engine = {"y": floats["y"] + share * (noisy["y"] - floats["y"])}
    found = faithful(engine, floats, floats)
    assert found.wrong == wrong and (found.apart_db < NEAR_DB) == wrong


def test_less_noise_than_the_references_is_not_wrong():
    floats, reference, _ = outputs(0)
    assert not faithful(floats, reference, floats).wrong


def test_the_output_that_is_wrong_is_the_one_told():
    floats, reference, engine = outputs(0)
    floats["z"] = reference["z"] = np.ones((64, 3))
    engine["z"] = np.zeros((64, 3))
    assert faithful(engine, reference, floats).output == "z"


def test_outputs_that_are_no_floats_cannot_be_held():
    integers = {"y": np.arange(3)}
    with pytest.raises(ModelError, match="no output is floating"):
        faithful(integers, integers, integers)
