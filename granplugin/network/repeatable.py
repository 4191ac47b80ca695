"""Whether a forward gives the same outputs for the same batch, and what draws lots where not."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from granplugin.errors import ModelError
from granplugin.network.forward import Example, call, copied, flatten_outputs, following
from granplugin.network.raised import is_users, line_of, passed_on
from granplugin.network.torch_calls import name_of
from granplugin.words import first

# Of an output's largest value: a forward that draws nothing repeats to the bit on a CPU, and but for
# the order of its sums on a GPU.
_TOLERANCE = 1e-3
_PASSES = 20
_DROPOUTS = frozenset(
    "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout".split()
)


def check_repeatable(model: nn.Module, example: Example, outputs: Mapping[str, Tensor]) -> None:
    """ModelError where another pass does not give the `outputs` that one gave, with what draws
    random numbers in it. Where some are drawn, several passes tell whether outputs depend on them.
    """
    for _ in range(_PASSES):
        before = _state()
        again = flatten_outputs(call(model, copied(example)))
        for name, output in outputs.items():
            if told := _differs(output, again.get(name)):
                raise ModelError(
                    f"the model's forward does not repeat: for one batch, its output {name!r} had "
                    f"{told} in another pass; {_cause(model, example)}"
                )
        if not _moved(before):
            return


def _differs(before: Tensor, after: Tensor | None) -> str | None:
    if after is None or after.shape != before.shape:
        return "another shape"
    if not before.is_floating_point() or not before.numel():
        return None  # decisions may flip where two values tie
    largest, moved = float(before.abs().max()), float((after - before).abs().max())
    if moved <= _TOLERANCE * largest:
        return None
    return f"other values, by {moved:.2g} where its largest is {largest:.2g},"


def _cause(model: nn.Module, example: Example) -> str:
    draws = _Draws()
    with draws.hooked(model):
        call(model, copied(example), draws)
    if not draws.found:
        return (
            "it keeps something from one call to the next, or draws random numbers that torch does "
            "not; let it do neither in eval mode"
        )
    dropouts = [where for name, where in draws.found if name in _DROPOUTS]
    if len(dropouts) == len(draws.found):
        return (
            f"{first(dropouts)} drops values in eval mode too; pass training=self.training, or take "
            "nn.Dropout"
        )
    named = [where for name, where in draws.found if name not in _DROPOUTS]
    return f"{first(named)} draws random numbers in eval mode; let it do so in training only"


class _Draws(TorchFunctionMode):
    """`found`: each function that moves torch's random state, with its name, module and line."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []
        self._inside = [""]

    @contextmanager
    def hooked(self, model: nn.Module) -> Iterator[None]:
        """Sees which module calls what."""
        with following(model, lambda module, name: self._inside.append(name), self._inside.pop):
            yield

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        before = _state()
        result = passed_on(func, args, kwargs)
        if _moved(before) or (kwargs or {}).get("generator") is not None:
            module, name = self._inside[-1], name_of(func)
            told = f"{name} in {module!r}" if module else name
            at = f"{told} ({_line()})"
            if (name, at) not in self.found:
                self.found.append((name, at))
        return result


def _state() -> list[Tensor]:
    on_gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return [torch.get_rng_state(), *on_gpu]


def _moved(before: list[Tensor]) -> bool:
    """Whether random numbers were drawn since."""
    return any(not torch.equal(x, y) for x, y in zip(before, _state(), strict=True))


def _line() -> str:
    """File and line of the innermost call that is neither torch's nor ours."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not is_users(frame):
        frame = frame.f_back
    return "its call is not Python's" if frame is None else line_of(frame.f_code, frame.f_lineno)
