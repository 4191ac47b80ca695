"""What a run prints and writes: report.json says it all, and a terminal of 80 columns holds it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from granplugin.backends.nvidia import trtexec
from granplugin.report.schema.run import Report
from granplugin.report.show import as_markdown, as_text


def test_the_table_is_80_columns_wide(quickstart):
    lines = quickstart.stdout.splitlines()
    assert all(len(line) <= 80 for line in lines if not line.startswith(("report: ", "next: ")))


def test_long_names_do_not_widen_it(quickstart):
    variants = [
        variant.model_copy(update={"name": "a-variant-with-a-rather-long-name" * 2})
        if variant.kind != "baseline"
        else variant
        for variant in quickstart.report.variants
    ]
    overrides = [
        each.model_copy(update={"layer": "encoder.layers.11.attention.self." * 3})
        for each in quickstart.report.overrides
    ]
    report = quickstart.report.model_copy(update={"variants": variants, "overrides": overrides})
    assert all(len(line) <= 80 for line in as_text(report).splitlines())


def test_report_json_alone_gives_the_same_text_and_markdown(quickstart):
    assert quickstart.stdout.startswith(as_text(quickstart.report))
    assert as_markdown(quickstart.report) == (quickstart.folder / "report.md").read_text()


def test_report_json_survives_a_round_trip_with_infinities(quickstart):
    text = (quickstart.folder / "report.json").read_text()
    json.loads(text, parse_constant=pytest.fail)  # NaN and Infinity are not JSON
    again = Report.model_validate_json(text).model_dump_json(indent=1)
    assert again == text


def test_every_variant_and_every_figure_is_in_the_table(quickstart):
    for variant in quickstart.report.variants:
        engine = variant.engines[0]
        table = quickstart.stdout.splitlines()[2:]
        line = next(line for line in table if line.startswith(variant.name))
        assert f"{engine.metrics['top1'].value:.2f}" in line
        assert f"{engine.latency[0].median_ms:.2f}" in line


def test_the_rounds_behind_a_latency_are_left_in_the_form_of_exportTimes(quickstart):
    timed = 0
    for variant in quickstart.report.variants:
        for engine in variant.engines:
            folder = quickstart.folder / "variants" / variant.name / engine.engine
            for latency in engine.latency:
                text = (folder / f"times-b{latency.batch}.json").read_text()
                assert trtexec.kind_of(text) == "times"
                times = trtexec.read_times(text)
                assert len(times) == latency.rounds
                assert np.median(times) == latency.median_ms
                assert [call["latencyMs"] for call in json.loads(text)] == times.tolist()
                timed += 1
    assert timed


def test_no_interval_is_of_no_width_and_each_has_its_engine(quickstart):
    for variant in quickstart.report.variants:
        for engine in variant.engines:
            for metric in engine.metrics.values():
                for interval in metric.vs.values():
                    assert interval.low is None or interval.low < interval.high
    assert "openvino" in quickstart.stdout.splitlines()[0]


def test_overrides_name_rule_and_line_and_what_the_engine_ran(quickstart):
    overrides = quickstart.report.overrides
    assert overrides
    assert all(".yaml:" in each.where for each in overrides)
    assert {each.ran for each in overrides if each.role == "weight"} <= {"int8", "float"}
    rescue = [each for each in overrides if each.layer == "features.1.depthwise.conv"]
    assert {each.variant for each in rescue} >= {"without-rescue"}


def test_markdown_tables_have_as_many_cells_in_each_row(quickstart):
    width = None
    for line in (quickstart.folder / "report.md").read_text().splitlines():
        if not line.startswith("|"):
            width = None
            continue
        assert width in (None, line.count("|")), line
        width = line.count("|")


def test_report_json_says_of_a_float_layer_what_it_reads(quickstart):
    """As its verdicts do: fused-dequant, weight-only or float."""
    told = {
        layer.detail
        for variant in quickstart.report.variants
        for engine in variant.engines
        if engine.engine == "tensorrt_rtx"
        for layer in engine.layers
        if layer.precision == "float"
    }
    assert told and told <= {"fused-dequant", "weight-only", "float"}
