"""A recipe's document with a key changed, or a rule added or left out; marks move along."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from granplugin.errors import RecipeError
from granplugin.quant.site import OPERANDS
from granplugin.recipe.decisions import of_base
from granplugin.recipe.explain import MESSAGES
from granplugin.recipe.paths import anchored
from granplugin.recipe.settings import long_form
from granplugin.recipe.source import Document, get, rule_marks, subtree
from granplugin.recipe.yaml_text import Location, Mark
from granplugin.suggest import did_you_mean

VARIED = ("rules", "defaults", "share", "precision")
"""What a variant may change; the rest (model, data, engines ...) is the run's."""


def with_value(
    document: Document, dotted: str, value: Any, marks: Mapping[Location, Mark], mark: Mark
) -> Document:
    """A document with one value changed; `rules.<id>` finds a rule by its id or number."""
    at: Location = ()
    root = _copy(document.value)
    holder: Any = root
    *above, last = dotted.split(".")
    for part in above:
        key = _key(holder, at, part, mark)
        inside = holder.get(key) if isinstance(holder, dict) else holder[key]
        at = (*at, key)
        if at == ("rules",) and inside is None:
            inside = []
        elif inside is None:
            inside = {}
        elif at[0] in VARIED and key in OPERANDS:
            try:
                inside = long_form(inside)
            except ValueError as err:
                raise document.error(at, str(err)) from err
        elif at[0] == "rules" and key == "match" and isinstance(inside, (str, list)):
            inside = {"name": inside}
        if not isinstance(inside, (dict, list)):
            raise RecipeError(f"{mark}: {part!r} is {inside!r}, which has no keys to change")
        holder[key] = inside
        holder = inside
    key = _key(holder, at, last, mark)
    holder[key] = value
    at = (*at, key)
    kept = {loc: m for loc, m in document.marks.items() if loc[: len(at)] != at}
    new = {at[:n]: mark for n in range(1, len(at)) if at[:n] not in kept}
    moved = {at + loc: m for loc, m in marks.items()}
    return anchored(replace(document, value=root, marks={**kept, **new, **moved, at: mark}))


def _key(holder: Any, at: Location, part: str, mark: Mark) -> str | int:
    if isinstance(holder, dict):
        return part
    if at != ("rules",):
        raise RecipeError(f"{mark}: {'.'.join(map(str, at))!r} is a list; set it as a whole")
    return rule_index(holder, part, mark)


def rules_of(document: Document) -> list[Any]:
    """The rules as they are written. Raises RecipeError where that is no list."""
    rules = document.value.get("rules", [])
    if not isinstance(rules, list):
        raise document.error(("rules",), MESSAGES["list_type"])
    return rules


def without_rules(document: Document, dropped: Collection[int]) -> Document:
    """The document without the rules at these positions."""
    rules = rules_of(document)
    kept = [n for n in range(len(rules)) if n not in dropped]
    others = {at: m for at, m in document.marks.items() if at[:1] != ("rules",) or len(at) == 1}
    marks = others | rule_marks(document, {old: new for new, old in enumerate(kept)})
    value = {**document.value, "rules": [rules[n] for n in kept]}
    return replace(document, value=value, marks=marks)


def with_rule(document: Document, source: Document, at: Location) -> Document:
    """The document with the rule at `at` of `source` behind its own."""
    rules = [*rules_of(document), get(source.value, at)]
    marks = {("rules",): document.mark(()), **document.marks}
    marks |= subtree(source, at, ("rules", len(rules) - 1))
    return replace(document, value={**document.value, "rules": rules}, marks=marks)


def rule_index(rules: Sequence[Any], name: str, mark: Mark) -> int:
    """The position of the rule with this id or number. Raises RecipeError, at `mark`."""
    ids = [rule.get("id") if isinstance(rule, dict) else None for rule in rules]
    ids = [given if isinstance(given, str) else None for given in ids]  # the schema refuses others
    if name in ids:
        return ids.index(name)
    own = [index for index, given in enumerate(ids) if not of_base(given)]
    numbers = [str(number) for number in range(1, len(own) + 1)]
    if name in numbers:
        return own[numbers.index(name)]
    known = list(filter(None, ids))
    hint = did_you_mean(name, known) if known else "; no rule here has an id"
    raise RecipeError(f"{mark}: no rule has the id {name!r}{hint}")


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(inside) for key, inside in value.items()}
    return [_copy(inside) for inside in value] if isinstance(value, list) else value
