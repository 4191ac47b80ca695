"""What the table of a run says of metrics, and of the network that all is compared with."""

import pytest
from report_values import report

from granplugin.report.schema.run import Interval, MetricValue
from granplugin.report.show import as_markdown, as_text
from granplugin.report.view.elements import Table
from granplugin.report.view.page.overview import overview, spots
from granplugin.results.agreed import Agreement

EQUAL, WORSE = "no measurable difference", "worse"


def against(value, verdict, half=1.0, unit="points"):
    interval = Interval(
        value=value, low=value - half, high=value + half, unit=unit, n=9, method="paired",
        verdict=verdict,
    )  # fmt: skip
    return {"fp32": interval}


def run_of(**metrics):
    """A run of which the recipe has these metrics on the engine that runs; fp32 their values."""
    made = report("mine")
    variants = []
    for variant in made.variants:
        main, *others = variant.engines
        own = metrics
        if variant.name == "fp32":
            own = {k: m.model_copy(update={"vs": {}}) for k, m in metrics.items()}
        main = main.model_copy(update={"metrics": own})
        variants.append(variant.model_copy(update={"engines": [main, *others]}))
    return made.model_copy(update={"variants": variants, "notes": [], "limits": []})


def test_several_comparisons_say_how_many_false_differences_to_expect():
    equal = metric(98.5, against(0.0, EQUAL))
    three = run_of(top1=equal, top5=equal)
    told = "Each of the 3 comparisons with fp32 has its own 95 %"
    assert told in " ".join(as_text(three).split()), "two metrics and a latency"
    assert told in as_markdown(three)


def test_a_variant_that_changes_nothing_is_said_to():
    made = run_of(top1=metric(98.5, {}))
    fp32, mine = made.variants
    same = made.model_copy(
        update={"variants": [fp32, mine.model_copy(update={"same_as": "tensorrt@11"})]}
    )
    for told in (as_text(same), as_markdown(same)):
        assert "mine changes nothing: its file is tensorrt@11's" in told


def test_how_far_modelopts_network_is_comes_with_why_two_right_ones_differ():
    agreement = Agreement(
        sites=2, values=80, oracle_differs=0, modelopt_differs=1, modelopt_worst_steps=1,
        network_samples=4, network_agreement=75.0, network_sqnr_db=21.9,
    )  # fmt: skip
    found = report()
    variants = [v.model_copy(update={"agreement": agreement}) for v in found.variants]
    told = as_markdown(found.model_copy(update={"variants": variants}))
    assert (
        "SQNR at least 22 dB, same class for at least 75 %; two right computations differ" in told
    )
    assert "granplugin explain sqnr" in told


def test_a_baseline_that_is_none_is_said_below_the_table_and_in_the_report():
    broken = run_of(top1=metric(10.0, {})).model_copy(update={"broken_baseline": "it guesses"})
    assert "WARNING: it guesses" in as_text(broken)
    assert "WARNING: it guesses" in as_markdown(broken)


def test_nothing_is_called_equal_to_a_baseline_that_is_none():
    equal = run_of(top1=metric(10.0, against(0.0, EQUAL)))
    told = as_text(equal.model_copy(update={"broken_baseline": "it guesses"}))
    assert "no measurable difference from fp32" not in told
    assert "] =" not in told.partition("latency as a multiple")[0]


def metric(value, vs, unit="%"):
    return MetricValue(value=value, unit=unit, vs=vs)


def test_every_metric_is_in_the_terminal_and_the_users_own_too():
    told = as_text(
        run_of(
            top1=metric(98.5, against(0.0, EQUAL)),
            top5=metric(95.1, against(-3.74, WORSE)),
            mean_box=metric(0.262, against(-0.001, "better", 0.0004, ""), ""),
        )
    )
    assert "-3.74 [-4.74, -2.74] worse" in told
    assert "mean_box" in told
    assert "-0.00100 [-0.00140, -0.00060] better" in told, "a difference is never shown as -0.00"


def test_a_variant_is_equal_only_where_all_metrics_agree():
    equal = {"top1": metric(98.5, against(0.0, EQUAL))}
    assert "= no measurable difference from fp32: mine" in as_text(run_of(**equal))
    text = as_text(run_of(**equal, top5=metric(95.1, against(-3.74, WORSE))))
    told = text.partition("latency as a multiple")[0]
    assert "no measurable difference" not in told
    assert "] =" not in told


def test_the_report_has_as_many_decimals():
    told = as_markdown(run_of(mean_box=metric(0.262, against(-0.001, "better", 0.0004, ""), "")))
    assert "-0.00100 [-0.00140, -0.00060] better" in told


@pytest.mark.parametrize("value", [float("inf"), 3e-9, 4e12])
def test_a_figure_of_any_size_is_told(value):
    assert as_text(run_of(mine=metric(value, {}, "")))


def test_the_page_marks_what_intervals_do_not_tell_from_the_best_and_knows_which_way_is_better():
    error = metric(3.0, against(1.0, WORSE), unit="%").model_copy(update={"lower_is_better": True})
    made = run_of(error=error)
    fp32 = made.variants[0]
    better = error.model_copy(update={"value": 2.0, "low": 1.9, "high": 2.1, "vs": {}})
    first, *rest = fp32.engines
    fp32 = fp32.model_copy(
        update={"engines": [first.model_copy(update={"metrics": {"error": better}}), *rest]}
    )
    made = made.model_copy(update={"variants": [fp32, *made.variants[1:]]})
    table = next(block for block in overview(made) if isinstance(block, Table))
    assert [row.cells[1].text.partition(" [")[0] for row in table.rows] == ["2.00 ★", "3.00"]
    notes = [note for row in table.rows for note in row.notes]
    assert any("accuracy only on tensorrt_rtx" in note for note in notes)
    x, y, points = spots(made)
    assert [each.better for each in y] == ["less"]
    ratio = points[1].figures["part of fp32's time, batch 1, openvino"]
    assert (ratio.low, ratio.high) == (0.8, 1.1)
    assert "not measured" in next(each.title for each in x if each.title.startswith("MB moved"))
    assert points[1].says == [
        "<script>alert('x')</script>|`*\"&lt;: weight per_channel -> per_tensor, 5 layers"
    ]
