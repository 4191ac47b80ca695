"""Metrics on numpy outputs, against their definitions."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from granplugin.errors import DataError, ModelError, UserError
from granplugin.measures.metrics import (
    METRICS,
    agreement,
    check_labels,
    class_scores,
    sqnr_db,
    top1,
    top5,
    unserved,
)
from granplugin.recipe.schema import ClassesSpec


def at(output, axis=None):
    return ClassesSpec(output=output, axis=axis)


@st.composite
def scored(draw, least_classes=5):
    """Scores with many ties, and labels."""
    samples, classes = draw(st.integers(1, 8)), draw(st.integers(least_classes, 9))
    scores = draw(hnp.arrays(np.float32, (samples, classes), elements=st.integers(-2, 2)))
    labels = draw(hnp.arrays(np.int64, samples, elements=st.integers(0, classes - 1)))
    return scores, labels


@given(scored(least_classes=2))
def test_top1_is_argmax(case):
    scores, labels = case
    measured = top1({"logits": scores}, None, labels)
    assert (measured.per_sample == (scores.argmax(1) == labels)).all()
    assert measured.value == pytest.approx(100 * measured.per_sample.mean())


@given(scored())
def test_top5_is_a_stable_sort(case):
    scores, labels = case
    best = np.argsort(-scores, axis=1, kind="stable")[:, :5]
    expected = [label in row for label, row in zip(labels, best, strict=True)]
    assert top5({"logits": scores}, None, labels).per_sample.tolist() == expected


@given(scored())
def test_top5_never_misses_what_top1_hits(case):
    scores, labels = case
    hits1, hits5 = (m({"y": scores}, None, labels).per_sample for m in (top1, top5))
    assert (hits5 >= hits1).all()


@given(scored())
def test_agreement_with_the_reference_is_top1_with_its_argmax_as_labels(case):
    scores, _ = case
    reference = np.flip(scores, axis=1)
    own = agreement({"y": scores}, {"y": reference}, None)
    as_labels = top1({"y": scores}, None, reference.argmax(1))
    assert own.value == as_labels.value
    assert (own.per_sample == as_labels.per_sample).all()


LAYOUTS = {
    "classes": ((6, 4), None),
    "tokens": ((6, 3, 4), -1),
    "segmentation": ((6, 4, 2, 3), 1),
    "channels last": ((6, 2, 3, 4), 3),
}


@pytest.mark.parametrize(("shape", "axis"), LAYOUTS.values(), ids=LAYOUTS)
def test_outputs_agree_with_themselves_in_every_layout(shape, axis):
    values = np.random.default_rng(0).normal(size=shape)
    measured = agreement({"y": values}, {"y": values.copy()}, None, at("y", axis))
    assert measured.value == 100
    assert measured.per_sample.shape == (6,)


def test_agreement_of_a_sequence_is_the_percentage_of_its_positions():
    reference = np.zeros((2, 4, 3))
    reference[..., 1] = 1
    outputs = reference.copy()
    outputs[0, 0] = [5, 0, 0]
    measured = agreement({"y": outputs}, {"y": reference}, None, at("y", -1))
    assert measured.per_sample.tolist() == [75, 100]
    assert measured.value == 87.5


def test_agreement_of_an_image_reads_classes_on_axis_1():
    reference = np.zeros((1, 2, 4, 5))
    reference[:, 1] = 1
    outputs = reference.copy()
    outputs[0, :, 0, 0] = [1, 0]
    assert agreement({"y": outputs}, {"y": reference}, None, at("y", 1)).value == 95


UNKNOWN = {
    "segmentation": {"y": (3, 5, 4, 4)},
    "a detector's anchors": {"y": (3, 9, 8)},
    "tokens": {"y": (3, 7, 4)},
    "boxes and scores": {"boxes": (3, 4), "scores": (3, 6)},
    "boxes and scores of anchors": {"boxes": (3, 9, 4), "scores": (3, 9, 6)},
    "regression": {"y": (3, 1)},
    "one value a sample": {"y": (3,)},
}


@pytest.mark.parametrize("shapes", UNKNOWN.values(), ids=UNKNOWN)
@pytest.mark.parametrize("metric", ["top1", "agreement"])
def test_decisions_that_are_not_known_are_refused_with_the_way_out(shapes, metric):
    outputs = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    with pytest.raises(ModelError, match="cannot know .*write classes: {output: NAME, axis: N}"):
        METRICS[metric].measure(outputs, outputs, np.zeros(3, int))
    assert unserved(metric, outputs) and not unserved("sqnr_db", outputs)
    assert class_scores(outputs) is None


@pytest.mark.parametrize(
    ("classes", "says"),
    [
        (at("scores", 2), "axis 2 of 'scores'"),
        (at("scores", 0), "axis 0 of 'scores'"),
        (at("nothing"), "needs the scores of output 'nothing', and 'boxes' is"),
        (at("ids"), "'ids' is int64"),
    ],
)
def test_classes_that_are_not_there_are_refused(classes, says):
    outputs = {"boxes": np.ones((3, 4)), "scores": np.ones((3, 6)), "ids": np.ones(3, int)}
    with pytest.raises(ModelError, match=says):
        top1(outputs, outputs, np.zeros(3, int), classes)
    assert top1(outputs, None, np.zeros(3, int), at("scores")).value == 100


def test_sqnr_of_several_outputs_has_each_of_them():
    reference = {"loud": np.full((2, 3), 100.0), "quiet": np.ones((2, 4, 2))}
    outputs = {"loud": reference["loud"] * 1.001, "quiet": reference["quiet"] * 1.5}
    found = sqnr_db(outputs, reference, None)
    assert found.of_outputs == pytest.approx({"loud": 60, "quiet": 10 * math.log10(4)})
    assert found.value > 40
    alone = sqnr_db({"y": outputs["quiet"]}, {"y": reference["quiet"]}, None)
    assert alone.of_outputs == {} and alone.value == pytest.approx(10 * math.log10(4))


@given(st.integers(-40, 40), st.sampled_from([np.float16, np.float32, np.float64]))
def test_sqnr_is_ten_log_of_the_energy_ratio(power, dtype):
    reference = np.full((3, 2), 2.0**-3, dtype)
    noise = dtype(2.0**-3 * 10.0 ** (-power / 20))
    out = (reference + noise).astype(dtype)
    error = out.astype(float) - reference.astype(float)
    if not error.any():
        assert sqnr_db({"y": out}, {"y": reference}, None).value == math.inf
        return
    expected = 10 * np.log10((reference.astype(float) ** 2).sum() / (error**2).sum())
    measured = sqnr_db({"y": out}, {"y": reference}, None)
    assert measured.value == pytest.approx(expected)
    assert measured.per_sample == pytest.approx(np.full(3, expected))


@given(st.floats(0.01, 100))
def test_sqnr_does_not_depend_on_scale(factor):
    rng = np.random.default_rng(1)
    reference = {"a": rng.normal(size=(4, 3)), "b": rng.normal(size=(4, 2, 2))}
    outputs = {
        name: values + 0.1 * rng.normal(size=values.shape) for name, values in reference.items()
    }
    scaled = [{name: factor * values for name, values in d.items()} for d in (outputs, reference)]
    assert sqnr_db(*scaled, None).value == pytest.approx(sqnr_db(outputs, reference, None).value)


def test_equal_outputs_have_infinite_sqnr_sample_by_sample():
    reference = np.array([[0.0, 0.0], [1.0, 2.0], [0.0, 0.0]])
    outputs = reference.copy()
    outputs[2] = 1
    assert sqnr_db({"y": reference}, {"y": reference}, None).value == math.inf
    measured = sqnr_db({"y": outputs}, {"y": reference}, None)
    assert measured.per_sample.tolist() == [math.inf, math.inf, -math.inf]


def test_integer_outputs_are_left_out_of_sqnr():
    reference = {"ids": np.array([[1], [2]]), "y": np.array([[1.0], [1.0]])}
    outputs = {"ids": np.array([[7], [7]]), "y": np.array([[1.1], [0.9]])}
    assert sqnr_db(outputs, reference, None).value == pytest.approx(20)


@pytest.mark.parametrize("bad, word", [(np.nan, "NaN"), (np.inf, "Inf"), (-np.inf, "Inf")])
@pytest.mark.parametrize("metric", METRICS)
def test_nan_and_inf_are_refused_with_output_and_sample(metric, bad, word):
    outputs = {"logits": np.zeros((4, 6), np.float32)}
    reference = {"logits": np.zeros((4, 6), np.float32)}
    outputs["logits"][2, 1] = bad
    with pytest.raises(ModelError, match=f"'logits' has {word}, first in sample 2"):
        METRICS[metric].measure(outputs, reference, np.zeros(4, int))


@pytest.mark.parametrize("metric", [agreement, sqnr_db])
def test_nan_of_fp32_itself_is_said_to_be_fp32s(metric):
    reference = {"y": np.array([[1.0, np.nan]])}
    with pytest.raises(ModelError, match="^FP32 output 'y' has NaN"):
        metric({"y": np.ones((1, 2))}, reference, None)


@pytest.mark.parametrize("metric", METRICS)
def test_a_metric_says_what_it_needs(metric):
    outputs, labels = {"y": np.ones((3, 6))}, np.zeros(3, int)
    entry = METRICS[metric]
    entry.measure(outputs, outputs if entry.needs_reference else None, labels)
    entry.measure(outputs, outputs, labels if entry.needs_labels else None)
    if entry.needs_labels:
        with pytest.raises(DataError, match="needs labels"):
            entry.measure(outputs, outputs, None)
    if entry.needs_reference:
        with pytest.raises(UserError, match="fp32 baseline"):
            entry.measure(outputs, None, labels)


@pytest.mark.parametrize("bad", [-1, 10, 255])
def test_a_label_out_of_range_is_named_with_its_sample(bad):
    with pytest.raises(DataError, match=f"label {bad} of sample 1 is out of range.*0 to 9"):
        check_labels(np.array([0, bad, 11]), 10)


def test_labels_that_are_no_class_numbers_are_refused():
    with pytest.raises(DataError, match="float64"):
        check_labels(np.array([0.0, 1.0]), 10)
    with pytest.raises(DataError, match=r"shape \(2,\); 3 samples"):
        top1({"y": np.ones((3, 6))}, None, np.zeros(2, int))


def test_top5_of_four_classes_is_refused_and_of_five_is_100():
    labels = np.arange(4)
    with pytest.raises(ModelError, match="needs 5 classes; output 'y' has 4"):
        top5({"y": np.eye(4)}, None, labels)
    assert top5({"y": np.zeros((4, 5))}, None, labels).value == 100


def test_classes_are_read_from_the_only_output_that_can_have_them():
    scores, labels = np.eye(6), np.arange(6)
    outputs = {"ids": np.ones((6, 6), int), "map": np.ones((6, 6, 2)), "y": scores}
    assert top1(outputs, None, labels).value == 100
    with pytest.raises(ModelError, match=r"'map' is float64 \(6, 6, 2\)"):
        top1({"map": outputs["map"]}, None, labels)


@pytest.mark.parametrize("metric", [agreement, sqnr_db])
def test_outputs_of_another_shape_than_fp32_are_refused(metric):
    with pytest.raises(ModelError, match=r"shape \(3, 4\) where FP32 has \(3, 5\)"):
        metric({"y": np.ones((3, 4))}, {"y": np.ones((3, 5))}, None)


@pytest.mark.parametrize("metric", METRICS)
def test_no_samples_is_an_error_not_a_nan(metric):
    empty = {"y": np.ones((0, 6))}
    with pytest.raises(DataError, match="no evaluation samples"):
        METRICS[metric].measure(empty, empty, np.zeros(0, int))
