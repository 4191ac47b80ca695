"""Matching: what a pattern and each key of a match select."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_values import layer_of

from granplugin.recipe.glob import matcher
from granplugin.recipe.match import Match, nearest, select, within

parts = st.text("ab1_", min_size=1, max_size=3)
names = st.lists(parts, min_size=1, max_size=4).map(".".join)


def matches(glob, name):
    return matcher(glob)(name)


@given(names)
def test_a_name_matches_itself_alone(name):
    assert matches(name, name)
    assert not matches(name, name + "x") and not matches(name, "x." + name)


@given(st.lists(parts, min_size=1, max_size=4), st.data())
def test_a_star_stands_for_one_level(levels, data):
    at = data.draw(st.integers(0, len(levels) - 1))
    glob = ".".join([*levels[:at], "*", *levels[at + 1 :]])
    name = ".".join(levels)
    assert matches(glob, name)
    deeper = ".".join([*levels[:at], "x", "y", *levels[at + 1 :]])
    assert not matches(glob, deeper)


@given(st.lists(parts, min_size=1, max_size=4), st.integers(0, 4))
def test_two_stars_stand_for_any_number_of_levels(levels, kept):
    name = ".".join(levels)
    assert matches("**", name)
    if levels[kept:]:
        assert matches(".".join(["**", *levels[kept:]]), name)


@given(names)
def test_a_regular_expression_matches_whole_names(name):
    assert matches("re:.*", name) and matches(f"re:{name}", name)
    assert not matches(f"re:{name}", name + "x")


@given(names, st.sampled_from("+()[]^$|\\{}"))
def test_only_stars_and_question_marks_are_special_in_a_glob(name, sign):
    assert matches(name + sign, name + sign)
    assert not matches(name + sign, name + name[-1])


LAYERS = [
    layer_of("stem.conv", "Conv2d", shapes={"weight": (8, 3, 3, 3)}, traits=frozenset({"first"}),
          spread=2.0),
    layer_of("block.0.conv", "Conv2d", shapes={"weight": (8, 1, 3, 3)}, traits=frozenset({"depthwise"}),
          spread=50.0, groups=8),
    layer_of("block.1.conv", "Conv2d", shapes={"weight": (16, 8, 1, 1)}, traits=frozenset({"pointwise"})),
    layer_of("head.fc", "Linear", shapes={"weight": (10, 16)}, traits=frozenset({"last"}), spread=1.0),
    layer_of("pool", "AvgPool2d", shapes={"input": (1, 16, 4, 4)}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("match", "found"),
    [
        ({"name": ["**"]}, [0, 1, 2, 3, 4]),
        ({"name": ["block.*.conv"]}, [1, 2]),
        ({"name": ["stem.conv", "head.**"]}, [0, 3]),
        ({"type": ["Linear", "AvgPool2d"]}, [3, 4]),
        ({"trait": ["depthwise"]}, [1]),
        ({"trait": ["depthwise", "first"]}, []),
        ({"size": ">= 160"}, [0, 3]),
        ({"size": "< 100"}, [1]),
        ({"spread": "> 1.5"}, [0, 1]),
        ({"spread": "<= 1e2"}, [0, 1, 3]),
        ({"type": ["Conv2d"], "spread": "< 10"}, [0]),
        ({"type": ["Conv2d"], "exclude": ["block.1.*"]}, [0, 1]),
    ],
)
def test_a_layer_is_selected_if_it_satisfies_every_key(match, found):
    assert select(Match(**match), LAYERS) == found


@given(st.sampled_from([">=", "<=", ">", "<"]), st.integers(0, 9), st.integers(0, 9))
def test_a_bound_compares_as_it_reads(sign, limit, number):
    assert within(f"{sign} {limit}", number) == eval(f"{number} {sign} {limit}")
    assert not within(f"{sign}{limit}", None)


@pytest.mark.parametrize(
    ("match", "said"),
    [
        ({"name": ["stem.cnv"]}, "'stem.cnv' matches no layer; nearest: 'stem.conv'"),
        ({"name": ["blocks.*.conv"]}, "'blocks.*.conv' matches no layer; nearest: 'block.*.conv'"),
        ({"name": ["block*"]}, "'block*' matches no layer; nearest: 'block**'"),
        ({"name": ["zzzzzzzz"]}, "'zzzzzzzz' matches no layer"),
        ({"name": ["stem.conv"], "type": ["Linear"]}, "no layer has name stem.conv, type Linear"),
        ({"trait": ["first", "last"]}, "no layer has trait first and last"),
        ({"size": ">= 1e9"}, "no layer has size >= 1e9"),
    ],
)
def test_a_match_without_a_layer_says_what_is_near(match, said):
    assert nearest(Match(**match), LAYERS).startswith(said)
