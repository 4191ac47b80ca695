"""explain: every word that a recipe or a report has leads to a page, which has it."""

from __future__ import annotations

from typing import get_args

import pytest
from conftest import run_main

from granplugin import topics
from granplugin.audits.lint import CODES
from granplugin.engines import PromiseKind
from granplugin.pipelines.explain import page
from granplugin.quant.calibrators import CALIBRATORS
from granplugin.quant.formats import FORMATS
from granplugin.quant.granularity import GRANULARITIES
from granplugin.recipe.decisions import WAYS
from granplugin.recipe.presets import PRESETS
from granplugin.results.audited import Kind

WORDS = [
    *GRANULARITIES, *FORMATS, *CALIBRATORS, *PRESETS, *WAYS, *get_args(PromiseKind),
    *get_args(Kind), "0", "1", "2", "3", "4", "70", "130", *topics.TOPICS, *CODES,
]  # fmt: skip


@pytest.mark.parametrize("word", WORDS)
def test_every_word_has_a_page_of_80_columns(word):
    lines = page(word).splitlines()
    assert 8 < len(lines) < 50
    assert [line for line in lines if len(line) > 80] == []
    if word not in CODES and word not in topics.TOPICS:
        assert word in page(word)


def test_all_pages_are_listed_and_a_wrong_word_gets_the_near_one():
    listed = run_main("explain")
    assert listed.code == 0
    assert all(topic in listed.stdout for topic in (*topics.TOPICS, *CODES))
    assert all(len(line) <= 80 for line in listed.stdout.splitlines())
    wrong = run_main("explain", "granularty")
    assert wrong.code == 2
    assert "did you mean 'granularity'?" in wrong.stderr
