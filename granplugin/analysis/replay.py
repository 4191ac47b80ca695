"""Running a network again from one layer on: what ended before the layer began is not computed.

A first pass records which module's forward began and ended when, as numbers on one clock. When a
layer is changed, nothing that ended before its first call depends on it; so in a replay, each
module whose call had ended by then returns what it returned in the recording, the largest such
modules first, and everything from the layer on runs. Python decides the order, so this holds for
any forward that does the same thing for every batch; `Script.replayable` checks it, layer by
layer, and a layer that fails is run from the start.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from granplugin.errors import ModelError
from granplugin.network.forward import evaluating, flatten_outputs
from granplugin.network.torch_calls import tensors_in

Forward = Callable[[], Any]
Change = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""What is called in place of a module's forward: (its forward, args, kwargs) -> its result."""


@dataclass
class _Event:
    module: nn.Module
    end: int = -1
    result: Any = None
    versions: tuple[int, ...] = ()


class Diverged(Exception):
    """A replay that called other modules than the recording."""


@dataclass
class Script:
    """Which modules a model's forward calls, and how to run it in part.

    `changes` maps modules to what is called in place of their forward.
    """

    model: nn.Module
    events: list[_Event] = field(default_factory=list)
    wanted: frozenset[int] = frozenset()
    """Events whose results replays return."""
    mutated: frozenset[int] = frozenset()
    """Those that are changed in place later on: they are copied."""
    starts: dict[nn.Module, int] = field(default_factory=dict)
    """Module -> its first event."""

    def __post_init__(self) -> None:
        self.changes: Mapping[nn.Module, Change] = {}
        self._mode: Callable[..., Any] | None = None
        self._at = self._target = 0
        self._learnt: list[tuple[nn.Module, int]] = []
        self._output: Any = None

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Every module's forward goes through this script meanwhile, in eval mode."""
        modules = [m for m in self.model.modules() if m is not self.model]
        modules = [m for m in modules if not isinstance(m, torch.jit.ScriptModule)]
        own = {m: m.__dict__.get("forward") for m in modules}
        try:
            for module in modules:
                module.__dict__["forward"] = partial(self._call, module, module.forward)
            with evaluating(self.model):
                yield
        finally:
            for module, forward in own.items():
                if forward is None:
                    module.__dict__.pop("forward", None)
                else:
                    module.__dict__["forward"] = forward

    def learn(self, forward: Forward, targets: Iterable[nn.Module]) -> None:
        """Find out, on a small batch, what replays from each of these modules will need."""
        self.wanted = self.mutated = frozenset()
        self._record(forward, keep_all=True)
        self._learnt = self._calls()
        self.starts = {}
        for at, event in enumerate(self.events):
            self.starts.setdefault(event.module, at)
        wanted: set[int] = set()
        for target in targets:
            if target in self.starts:
                wanted.update(self._ended_before(self.starts[target]))
        self.mutated = frozenset(
            at for at in wanted if _versions(self.events[at].result) != self.events[at].versions
        )
        self.wanted = frozenset(wanted)
        self.forget()

    def replayable(self, forward: Forward, target: nn.Module) -> bool:
        """Whether a replay from `target`, with nothing changed, gives the recording's very bits.

        To be called behind a `record` of the same batch. Runs the model on something else first:
        a module that is not called again must not have left behind what others read.
        """
        if target not in self.starts:
            return False
        changes = self.changes
        self.changes = {**changes, self._first_leaf(): _other}
        # Nothing is asked of this run but that it leaves something else behind.
        with suppress(Exception):
            self._run(forward, self._live)
        self.changes = changes
        try:
            found = flatten_outputs(self.replay(forward, target))
        except (Diverged, ModelError):
            # Of a residual add whose one side comes from the recording, the other is missed.
            return False
        expected = flatten_outputs(self._output)
        return expected.keys() == found.keys() and all(
            torch.equal(tensor, found[name]) for name, tensor in expected.items()
        )

    def record(self, forward: Forward) -> Any:
        """Run the model whole, keeping what replays need; its output."""
        self._output = self._record(forward, keep_all=False)
        return self._output

    def replay(self, forward: Forward, target: nn.Module) -> Any:
        """Run the model from the first call of `target` on, on what the last recording kept.

        Raises Diverged where the recording or the replay called other modules than `learn` saw.
        """
        if self._calls() != self._learnt:
            raise Diverged
        self._at, self._target = 0, self.starts[target]
        result = self._run(forward, self._replayed)
        if self._at <= self._target:
            raise Diverged
        return result

    def run(self, forward: Forward) -> Any:
        """Run the model whole."""
        return self._run(forward, self._live)

    def forget(self) -> None:
        """Free what the last recording kept."""
        self._output = None
        for event in self.events:
            event.result, event.versions = None, ()

    def _calls(self) -> list[tuple[nn.Module, int]]:
        return [(event.module, event.end) for event in self.events]

    def _first_leaf(self) -> nn.Module:
        return next(event.module for at, event in enumerate(self.events) if event.end == at + 1)

    def _record(self, forward: Forward, keep_all: bool) -> Any:
        self.events = []
        self._keep_all = keep_all
        return self._run(forward, self._recorded)

    def _run(self, forward: Forward, mode: Callable[..., Any]) -> Any:
        self._mode = mode
        try:
            return forward()
        finally:
            self._mode = None

    def _call(
        self, module: nn.Module, original: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        if self._mode is None:
            return original(*args, **kwargs)
        return self._mode(module, original, args, kwargs)

    def _live(
        self,
        module: nn.Module,
        original: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        change = self.changes.get(module)
        return original(*args, **kwargs) if change is None else change(original, args, kwargs)

    def _recorded(
        self,
        module: nn.Module,
        original: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        at = len(self.events)
        event = _Event(module)
        self.events.append(event)
        result = self._live(module, original, args, kwargs)
        event.end = len(self.events)
        if self._keep_all:
            event.result, event.versions = result, _versions(result)
        elif at in self.wanted:
            event.result = _copied(result) if at in self.mutated else result
        return result

    def _replayed(
        self,
        module: nn.Module,
        original: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        at = self._at
        if at > self._target:
            return self._live(module, original, args, kwargs)
        event = self.events[at]
        if event.module is not module:
            raise Diverged
        if event.end <= self._target:
            if at not in self.wanted:
                raise Diverged
            self._at = event.end
            return _copied(event.result) if at in self.mutated else event.result
        self._at = at + 1
        return self._live(module, original, args, kwargs)

    def _ended_before(self, target: int) -> Iterator[int]:
        """The largest events that had ended when event `target` began."""
        at = 0
        while at < target:
            event = self.events[at]
            if event.end <= target:
                yield at
                at = event.end
            else:
                at += 1


def _versions(result: Any) -> tuple[int, ...]:
    # Tensors made in inference mode have no version: changes in place go unseen there, until
    # `replayable` finds other bits.
    return tuple(0 if x.is_inference() else x._version for x in tensors_in(result))


def _other(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _mapped(lambda x: -x if x.is_floating_point() else x, forward(*args, **kwargs))


def _copied(result: Any) -> Any:
    return _mapped(Tensor.clone, result)


def _mapped(function: Callable[[Tensor], Tensor], result: Any) -> Any:
    """The same nest of tuples, lists and dicts, with other tensors."""
    if isinstance(result, Tensor):
        return function(result)
    if isinstance(result, (tuple, list)):
        parts = [_mapped(function, part) for part in result]
        return result._make(parts) if hasattr(result, "_make") else type(result)(parts)
    if isinstance(result, dict):
        # A copy, for those dicts whose keys are attributes too.
        mapped = copy.copy(result)
        for key, part in result.items():
            mapped[key] = _mapped(function, part)
        return mapped
    return result
