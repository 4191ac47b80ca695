"""FP32 is a baseline only where it does better than to guess."""

from types import SimpleNamespace

import numpy as np
import pytest

from granplugin.measures.intervals import paired_difference
from granplugin.measures.metrics import METRICS
from granplugin.recipe.model import CallableModel
from granplugin.report.build.baseline import broken_baseline
from granplugin.report.build.limits import limits

CLASSES = 10


def recipe(weights=None):
    return SimpleNamespace(model=CallableModel.model_construct(weights=weights), classes=None)


def fp32(choices, labels=None):
    """A result of an engine that chose these classes."""
    outputs = {"scores": np.eye(CLASSES, dtype=np.float32)[choices]}
    values = {"agreement": None}
    if labels is not None:
        values["top1"] = METRICS["top1"].measure(outputs, None, labels)
    return SimpleNamespace(outputs=outputs, values=values)


def broken(of, results, labels=None):
    return broken_baseline(of, results, labels)


LABELS = np.arange(200) % CLASSES


def test_a_network_that_guesses_is_no_baseline():
    guesses = np.random.default_rng(0).integers(0, CLASSES, 200)
    told = broken(recipe(), [fp32(guesses, LABELS)])
    assert "cannot be told from chance (10.00 % of 10 classes)" in told
    assert "the weights (the recipe has no model.weights)" in told
    assert "the weights" not in broken(recipe("net.pt"), [fp32(guesses, LABELS)])


def test_one_that_has_learned_is_a_baseline_weights_file_or_not():
    assert broken(recipe(), [fp32(LABELS, LABELS)]) is None


def test_one_class_for_all_samples_is_none_though_nobody_has_labels():
    assert "puts all 200 samples in class 3" in broken(recipe(), [fp32(LABELS * 0 + 3)])
    assert broken(recipe(), [fp32(np.array([3, 3]))]) is None, "too few to tell"


def test_outputs_that_no_metric_takes_for_classes_are_no_classes():
    boxes = fp32(LABELS * 0 + 3)
    boxes.values = {"sqnr_db": None}
    assert broken(recipe(), [boxes]) is None


def test_few_samples_cannot_tell_a_network_from_chance():
    right = np.array([0, 1])
    assert "chance" not in (broken(recipe(), [fp32(right, right)]) or "")
    assert "chance" in broken(recipe(), [fp32(right, right[::-1])])


def test_a_network_without_classes_is_not_judged():
    dense = SimpleNamespace(outputs={"map": np.zeros((20, 3, 4, 4), np.float32)}, values={})
    assert broken(recipe(), [dense]) is None


@pytest.mark.parametrize("broken, verdict", [(None, "met"), ("it guesses", "cannot tell")])
def test_a_drop_from_a_broken_baseline_cannot_be_told(broken, verdict):
    interval = SimpleNamespace(low=-0.4, high=0.4, method="Tango score")
    main = SimpleNamespace(
        metrics={"top1": SimpleNamespace(vs={"fp32": interval})}, held=None, engine="openvino"
    )
    asked = SimpleNamespace(top1_drop=1.0, latency_vs={}, unhonoured=None)
    result = SimpleNamespace(main_engine=main, name="mine")
    (limit,) = limits(asked, result, [result], broken)
    assert limit.verdict == verdict
    assert broken is None or limit.why == broken


@pytest.mark.parametrize("step", [-1, 1])
def test_labels_that_count_from_another_number_are_told(step):
    labels = 1 + np.arange(200) % (CLASSES - 2)
    told = broken(recipe("net.pt"), [fp32(labels, labels + step)], labels + step)
    assert f"with labels one {'higher' if step < 0 else 'lower'} top1 is 100.0 %" in told
    assert "cannot be told from chance" in told and "no loss can be judged against it" in told


def test_classes_in_another_order_are_told_even_where_only_some_are():
    rng = np.random.default_rng(0)
    order = rng.permutation(CLASSES)
    seen = np.where(rng.random(200) < 0.9, LABELS, rng.integers(0, CLASSES, 200))
    told = broken(recipe(), [fp32(seen, order[LABELS])], order[LABELS])
    assert "with classes numbered otherwise" in told
    swapped = np.where(LABELS < 2, 1 - LABELS, LABELS)
    told = broken(recipe(), [fp32(seen, swapped)], swapped)
    assert "(label 0 is 1, 1 is 0)" in told


@pytest.mark.parametrize("seed", range(8))
def test_a_weak_network_or_one_that_guesses_is_not_said_to_be_numbered_otherwise(seed):
    rng = np.random.default_rng(seed)
    for right in (0.0, 0.2, 0.5, 0.9):
        seen = np.where(rng.random(200) < right, LABELS, rng.integers(0, CLASSES, 200))
        told = broken(recipe(), [fp32(seen, LABELS)], LABELS)
        assert "otherwise" not in (told or "") and "one lower" not in (told or "")


def test_labels_of_which_most_are_one_class_make_no_guess_a_baseline():
    rng = np.random.default_rng(0)
    labels = np.where(rng.random(200) < 0.9, 3, LABELS)
    told = broken(recipe("net.pt"), [fp32(rng.permutation(labels), labels)], labels)
    assert "cannot be told from chance (75" in told and "as frequent as these" in told
    assert broken(recipe("net.pt"), [fp32(labels, labels)], labels) is None
    # A network that often says 4 is not one whose classes count from another number.
    often = np.where(rng.random(200) < 0.3, 4, rng.integers(0, CLASSES, 200))
    told = broken(recipe("net.pt"), [fp32(often, labels)], labels)
    assert "cannot be told from chance" in told
    assert "another number" not in told and "otherwise" not in told


def test_labels_of_one_class_show_no_loss_of_the_others():
    one = np.full(200, 3)
    told = broken(recipe("net.pt"), [fp32(one, one)], one)
    assert "all 200 labels are class 3" in told
    assert broken(recipe("net.pt"), [fp32(one[:5], one[:5])], one[:5]) is None


@pytest.mark.parametrize(
    ("samples", "lost", "verdict", "enough"),
    [(200, 0, "cannot tell", 390), (400, 0, "met", None), (200, 20, "missed", None)],
)
def test_a_limit_that_cannot_be_told_says_how_many_samples_could(samples, lost, verdict, enough):
    right = np.ones(samples, bool)
    interval = paired_difference(np.arange(samples) >= lost, right)
    main = SimpleNamespace(
        metrics={"top1": SimpleNamespace(vs={"fp32": interval})}, held=None, engine="openvino"
    )
    asked = SimpleNamespace(top1_drop=1.0, latency_vs={}, unhonoured=None)
    (limit,) = limits(asked, SimpleNamespace(main_engine=main, name="mine"), [], None)
    assert limit.verdict == verdict
    assert ("could tell" in limit.why) == (enough is not None)
    if enough:
        assert f"some {enough} samples like these could tell" in limit.why
        same = np.ones(enough, bool)
        assert -paired_difference(same, same).low <= 1.0
