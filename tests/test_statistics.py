import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_values import quantized_row

from granplugin.calibration.statistics import (
    Need,
    Statistics,
    export_amax,
    find_amax,
    import_amax,
    needs_of,
)
from granplugin.errors import DataError, ModelError, UserError
from granplugin.planning.rows import as_float
from granplugin.quant.calibrators import Calibrator, histogram, percentile
from granplugin.quant.formats import FORMATS
from granplugin.quant.granularity import parse_granularity, reduce_blocks
from granplugin.quant.site import Site


def row(role="weight", shape=(8, 4), block=None, **changed):
    return quantized_row(f"body.fc.{role}", shape, block=block, type="Linear", **changed)


def seen(*needs, fill=3.0, samples=10):
    counts = np.zeros(16_384, np.int64)
    counts[9000:9100] = 7
    return Statistics(
        {need: np.full(need.grid, fill, np.float32) for need in needs},
        {need: np.broadcast_to(counts, need.grid + (16_384,)) for need in needs if need.histogram},
        samples,
    )


def test_importing_statistics_does_not_import_torch():
    check = "import sys, granplugin.calibration.statistics; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_only_unpinned_inputs_and_outputs_need_data():
    rows = [
        row(),
        row("input", (1, 4)),
        row("input", (1, 4), amax=2.0),
        as_float(row("output", (1, 8))),
        row("output", (1, 8), calibrator=Calibrator("mse")),
    ]
    assert needs_of(rows) == {
        Need("body.fc.input", (1, 4), False, (1, 4)),
        Need("body.fc.output", (1, 8), True, (1, 8)),
    }


def test_a_histogram_serves_max_too():
    both = [row("input", (1, 4)), row("input", (1, 4), calibrator=Calibrator("entropy"))]
    (need,) = needs_of(both)
    assert need.histogram
    assert seen(need).covers([replace(need, histogram=False)])
    assert find_amax(both[0], seen(need)) == np.float32(3)


def test_a_folded_layers_output_is_its_batch_norms():
    folded = row("output", (1, 8), bn="fold", bn_name="body.bn")
    assert {need.site for need in needs_of([folded])} == {"body.bn.output"}


@st.composite
def weights(draw):
    granularity = parse_granularity(
        draw(
            st.sampled_from(
                ["per_tensor", "per_channel", {"per_block": {"size": 2}}, "per_element"]
            )
        )
    )
    shape = (*draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)), 2)
    seed = draw(st.integers(0, 99))
    weight = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return weight, granularity.block(Site("fc", "weight", shape, 0))


@given(weights(), st.sampled_from(list(FORMATS)))
def test_max_of_a_weight_is_the_largest_value_of_each_block(case, name):
    weight, block = case
    found = find_amax(row(shape=weight.shape, block=block, format=name), weight=weight)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, FORMATS[name].fit(reduce_blocks(np.abs(weight), block)))


def test_a_weights_histograms_are_those_of_its_blocks():
    weight = np.random.default_rng(0).standard_normal((2, 3, 2, 100)).astype(np.float32)
    which = row(shape=weight.shape, block=(2, 1, 1, 100), calibrator=Calibrator("percentile", 99.0))
    found = find_amax(which, weight=weight)
    assert found.shape == (1, 3, 2, 1)
    for i, j in np.ndindex(3, 2):
        values = weight[:, i, j]
        assert found[0, i, j, 0] == percentile(histogram(values), np.abs(values).max(), 99.0)


@pytest.mark.parametrize("dead", [0.0, 1e-45, 1e-38, 2.0**-24])
def test_a_channel_too_small_for_a_scale_takes_the_largest_amax(dead):
    weight = np.float32([[1, -3], [dead, 0], [2, 2]])
    found = find_amax(row(shape=(3, 2), block=(1, 2)), weight=weight)
    assert found.ravel().tolist() == [3, 3, 2]
    assert find_amax(row(shape=(1, 2), block=(1, 2)), weight=np.float32([[dead, 0]])) is None


@pytest.mark.parametrize("kind", ["max", "mse"])
def test_a_site_of_zeros_stays_float(kind):
    zeros = np.zeros((3, 200), np.float32)
    which = row(shape=zeros.shape, block=(1, 200), calibrator=Calibrator(kind))
    assert find_amax(which, weight=zeros) is None


def test_a_pinned_range_is_every_scales_range_and_needs_no_data():
    found = find_amax(row("input", (1, 4), (1, 1), amax=2.5))
    assert found.tolist() == [[2.5] * 4]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_refused_by_name(bad):
    with pytest.raises(ModelError, match=r"^body\.fc\.weight: NaN or Inf"):
        find_amax(row(shape=(2, 1)), weight=np.float32([[1], [bad]]))


def test_a_weight_of_another_shape_is_refused():
    with pytest.raises(ModelError, match=r"body\.fc\.weight: its shape is \[3\]"):
        find_amax(row(), weight=np.ones(3, np.float32))


def test_too_few_values_for_a_distribution_are_refused_by_name():
    few = row(shape=(2, 64), block=(1, 64), calibrator=Calibrator("entropy"))
    with pytest.raises(DataError, match=r"body\.fc\.weight: entropy needs at least 16,384 .* 64"):
        find_amax(few, weight=np.ones((2, 64), np.float32))


def test_a_site_that_was_not_observed_is_named():
    with pytest.raises(DataError, match=r"^body\.fc\.input: not among"):
        find_amax(row("input", (1, 4)), seen())


def test_statistics_survive_saving_bit_for_bit(tmp_path):
    needs = [
        Need("ä.input", (1, 2), False, (1, 4)),
        Need("b.output", (1, 8, 3), True, (1, 8, 3)),
    ]
    before = seen(*needs, fill=1 / 3)
    before.save(tmp_path / "s.safetensors", "model a, data b")
    after = Statistics.load(tmp_path / "s.safetensors", "model a, data b")
    assert after.samples == before.samples and after.covers(needs)
    for need in needs:
        for old, new in zip(before.of(need), after.of(need), strict=True):
            np.testing.assert_array_equal(old, new)
            assert (old is None) == (new is None) and (new is None or new.dtype == old.dtype)
    assert os.listdir(tmp_path) == ["s.safetensors"]


def test_statistics_of_another_model_or_data_are_refused(tmp_path):
    path = tmp_path / "s.safetensors"
    seen().save(path, "model a, data b")
    with pytest.raises(UserError, match="are of model a, data b, not of model a, data c"):
        Statistics.load(path, "model a, data c")


@pytest.mark.parametrize("content", [b"", b"no safetensors", b"\0" * 100])
def test_a_damaged_file_is_one_sentence(tmp_path, content):
    path = tmp_path / "s.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match="cannot read calibration statistics"):
        Statistics.load(path, "key")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "s.safetensors"
    seen().save(path, "old")

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError):
        seen().save(path, "new")
    assert Statistics.load(path, "old").samples == 10
    assert os.listdir(tmp_path) == ["s.safetensors"]


def test_merging_is_seeing_both_data_and_joining_is_seeing_more_of_the_same():
    a, b = Need("a.input", (1, 4), True, (1, 4)), Need("b.input", (1, 4), False, (1, 4))
    merged = seen(a, fill=3, samples=10).merge(seen(a, fill=5, samples=6))
    assert merged.samples == 16 and merged.amax[a] == 5 and merged.counts[a].sum() == 1400
    joined = seen(a).join(seen(b))
    assert joined.samples == 10 and joined.covers([a, b])
    with pytest.raises(ValueError):
        seen(a).merge(seen(b))
    with pytest.raises(ValueError):
        seen(a, samples=10).join(seen(b, samples=11))


def test_exported_amax_comes_back_bit_for_bit(tmp_path):
    weight = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    rows = [row(block=(1, 2)), row("input", (1, 4))]
    amax = {rows[0].site: find_amax(rows[0], weight=weight), rows[1].site: np.float32([[0.1]])}
    export_amax(tmp_path / "amax.json", rows, amax)
    again = import_amax(tmp_path / "amax.json", rows)
    assert again.keys() == amax.keys()
    for site, grid in again.items():
        assert grid.dtype == np.float32
        np.testing.assert_array_equal(grid, amax[site])


def test_amax_of_other_blocks_is_refused(tmp_path):
    path = tmp_path / "amax.json"
    export_amax(path, [row()], {row().site: np.float32([[1]])})
    with pytest.raises(DataError, match=r"body\.fc\.weight has blocks \[8, 4\] of \[8, 4\]"):
        import_amax(path, [row(block=(1, 4))])


@pytest.mark.parametrize("bad", [[[0.0]], [[-1.0]], [[float("nan")]], [[1.0, 2.0]], 1.0])
def test_amax_that_is_no_range_is_refused(tmp_path, bad):
    path = tmp_path / "amax.json"
    export_amax(path, [row()], {row().site: np.float32([[1]])})
    content = json.loads(path.read_text())
    content["sites"]["body.fc.weight"]["amax"] = bad
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"body\.fc\.weight needs \[1, 1\] positive numbers"):
        import_amax(path, [row()])


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"sites": {"a": 1}}', '{"sites": 3}'])
def test_a_file_that_holds_no_amax_is_one_sentence(tmp_path, content):
    path = tmp_path / "amax.json"
    path.write_text(content)
    with pytest.raises(DataError, match="not a file of amax values"):
        import_amax(path, [row()])


def test_a_missing_amax_file_is_one_sentence(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        import_amax(tmp_path / "none.json", [])
