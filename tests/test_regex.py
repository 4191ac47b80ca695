"""Regular expressions over names: what `re` matches, in linear time."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from granplugin.recipe import regex
from granplugin.recipe.regex import matcher_of

PARTS = st.sampled_from(
    ["a", "b", r"\.", ".", "[ab]", "[^a]", r"\d", r"[a-c\d]", r"\w", "^", "$", "(?i:A)", ""]
)
EXPRESSIONS = st.recursive(
    PARTS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map("".join),
        st.lists(inner, min_size=1, max_size=3).map(lambda each: f"({'|'.join(each)})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{0,3}", "{1,}", "*?"])).map(
            lambda each: f"(?:{each[0]}){each[1]}"
        ),
    ),
    max_leaves=8,
)


@given(EXPRESSIONS, st.lists(st.text("abAB.1", max_size=6), min_size=1, max_size=4))
def test_the_automaton_matches_what_re_does(expression, names):
    automaton = regex._Automaton(regex._parser.parse(expression), expression)
    for name in names:
        said = re.compile(expression).fullmatch(name) is not None
        assert automaton.matches(name) == said == matcher_of(expression)(name), (expression, name)


@pytest.mark.parametrize(
    "expression",
    ["(a+)+b", "(a*)*b", "(a|a)*b", "(a|aa)+b", "a?" * 40 + "a" * 40 + "b", ".*" * 9 + "b",
     "(a{0,40}){0,40}b", "(.*a){12}b", "((a|b)?)*c", "(a|a)" * 40 + "b", "(?i)(A+)+b"],
)  # fmt: skip
def test_no_expression_takes_longer_for_a_name_that_almost_matches(expression):
    """Each takes `re` for ever; that this test ends is what it says."""
    assert not matcher_of(expression)("a" * 60)


@pytest.mark.parametrize(
    "expression", ["(?!head|stem).*", r".*\.(?:q|k)_proj", r"(?<!x)a.*", r"\bq.*"]
)
def test_what_few_repeats_have_is_matched_by_re(expression):
    assert matcher_of(expression)("q.q_proj") == bool(re.fullmatch(expression, "q.q_proj"))


@pytest.mark.parametrize(
    ("expression", "said"),
    [(r"(?!(a+)+b).*", "look-around"), (r"(a+)+\1", "back reference"), (r"(a+)+\b", "word boundary"),
     ("(a{99}){9999}(b+)+", "too long"), ("(", "not a regular expression")],
)  # fmt: skip
def test_what_cannot_be_matched_in_linear_time_is_refused(expression, said):
    with pytest.raises(ValueError, match=said):
        matcher_of(expression)
