"""What defaults and rules say of a layer: each key with the last that said it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from granplugin.errors import RecipeError
from granplugin.quant.layers import Layer
from granplugin.quant.site import MULTIPLIED, Operand
from granplugin.recipe.decisions import Decision, Rule
from granplugin.recipe.loaded import LoadedPart
from granplugin.recipe.presets import PRESETS, as_given, left_float, spelt_out
from granplugin.recipe.settings import FLOAT

PRESET = -1
"""The position of the defaults, in front of rule 0."""

GIVEN = "checkpoint"
"""What decides, before any rule, of a network that comes quantized."""

_KEYS = ("format", "granularity", "calibrator", "amax")


class Sayings:
    """A recipe's defaults and rules, by position: what they are called, where they stand, and what
    they make of a layer."""

    def __init__(self, loaded: LoadedPart) -> None:
        self.loaded = loaded
        self.rules = loaded.recipe.rules
        defaults = loaded.recipe.defaults
        self.defaults = spelt_out(defaults) if isinstance(defaults, Decision) else PRESETS[defaults]
        self.labels = [loaded.rule_label(index) for index in range(len(self.rules))]
        self.wheres = [str(loaded.mark("rules", index)) for index in range(len(self.rules))]
        self.left_float = partial(left_float, defaults)
        told = "defaults" if isinstance(defaults, Decision) else defaults
        self._default_label = loaded.recipe.base or told
        self._default_where = str(loaded.mark("defaults"))
        self._given = str(loaded.mark("model", "quantized"))
        self._settled: dict[tuple[Decision, tuple[int, ...], tuple[Operand, ...]], Settled] = {}

    def settle(self, layer: Layer, rules: Sequence[int]) -> Settled:
        """What the defaults and these rules, which match it, make of a layer."""
        # Layers of one kind with the same rules are settled alike: 10,000 layers, a dozen times.
        before = self.defaults(layer) if layer.given is None else as_given(layer.given)
        key = (before, tuple(rules), layer.operands)
        if key not in self._settled:
            said = [(PRESET, key[0]), *((index, self.rules[index]) for index in rules)]
            self._settled[key] = Settled(layer.operands, said)
        return self._settled[key]

    def name(self, index: int, given: bool = False) -> tuple[str, str]:
        """What a rule, or what is before them, is called, and where it stands: the defaults, or
        what the network came with."""
        if index == PRESET and given:
            return GIVEN, self._given
        if index == PRESET:
            return self._default_label, self._default_where
        return self.labels[index], self.wheres[index]

    def error(self, index: int, operand: str, key: str, message: str) -> RecipeError:
        """At a key of a rule or of the defaults."""
        at = ("defaults", operand, key) if index == PRESET else ("rules", index, operand, key)
        return self.loaded.error(at, message)


class Settled:
    """What is said of a layer with these operands.

    `history` has every word that was said, `last_words`, per operand, those with the last word on
    some key, `deciding` the last of them.
    """

    def __init__(
        self, operands: tuple[Operand, ...], said: Sequence[tuple[int, Decision | Rule]]
    ) -> None:
        self.operands = operands
        self.values: dict[tuple[str, str], tuple[Any, int]] = {}
        self.history: list[tuple[str | None, str, int, Any]] = []
        self.bn, self.bn_rule = "keep", PRESET
        self.half, self.half_rule = False, PRESET
        self.on_unsupported: tuple[str, ...] | None = None
        self.unsupported_rule = PRESET
        for index, decision in said:
            self._apply(index, decision)
        floats = {each for each in operands if self.value(each, "format") in (None, FLOAT)}
        self.is_float = len(floats) == len(operands)
        self.last_words = {
            each: {self.source(each, key) for key in self._keys(each, each in floats)}
            for each in operands
        }
        self.deciding = {each: max(words) for each, words in self.last_words.items()}

    def value(self, operand: str, key: str) -> Any:
        return self.values.get((operand, key), (None, PRESET))[0]

    def source(self, operand: str, key: str) -> int:
        return self.values.get((operand, key), (None, PRESET))[1]

    def _apply(self, index: int, decision: Decision) -> None:
        if decision.format is not None:
            multiplied = [each for each in self.operands if each in MULTIPLIED]
            for operand in self.operands if decision.format == FLOAT else multiplied:
                self._set(operand, "format", index, decision.format)
        for operand in self.operands:
            settings = getattr(decision, operand)
            for key in _KEYS if settings is not None else ():
                value = getattr(settings, key)
                if value is not None:
                    self._set(operand, key, index, value)
            if settings is not None and settings.calibrator and settings.amax is None:
                self.values.pop((operand, "amax"), None)  # ranges are found again
        if decision.bn is not None:
            self.bn, self.bn_rule = decision.bn, index
            self.history.append((None, "bn", index, decision.bn))
        if decision.on_unsupported is not None:
            self.on_unsupported, self.unsupported_rule = decision.on_unsupported, index
            self.history.append((None, "on_unsupported", index, ", ".join(decision.on_unsupported)))
        if decision.half is not None:
            self.half, self.half_rule = True, index
            self.history.append((None, "half", index, decision.half))

    def _keys(self, operand: str, is_float: bool) -> tuple[str, ...]:
        """The keys whose word counts."""
        granularity = self.value(operand, "granularity")
        if is_float:
            return _KEYS[:1]
        return _KEYS[:2] if granularity is not None and granularity.at_run_time else _KEYS

    def _set(self, operand: str, key: str, index: int, value: Any) -> None:
        self.values[operand, key] = (value, index)
        self.history.append((operand, key, index, value))
