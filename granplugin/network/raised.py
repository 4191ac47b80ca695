"""Whose an error is that came out of a model's forward, and which line and module raised it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import Any

from torch import nn

_OURS = __name__.partition(".")[0]
_LIBRARIES = frozenset({"torch", "modelopt", "importlib", "contextlib"})
_ENTRIES = frozenset({"__torch_function__", "__torch_dispatch__"})
"""Where torch enters a mode of ours; what called it is the user's, or a hook of ours."""


def passed_on(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> Any:
    """What a mode of ours is asked to call: an error that comes out of it is the caller's."""
    return function(*args, **(kwargs or {}))


@dataclass(frozen=True, slots=True)
class Raised:
    """Where an error was raised, as far as it is known: not in torch, but where that was called.
    `ours` where a hook of ours did."""

    ours: bool
    line: str | None
    module: str | None

    def __str__(self) -> str:
        known = [self.line, f"in {self.module!r}" if self.module else None]
        told = ", ".join(filter(None, known))
        return f" ({told})" if told else ""


def raised_in(model: nn.Module, err: BaseException) -> Raised:
    """Who raised the error below the function that caught it."""
    frames = list(_frames(err.__traceback__))[1:]
    module = next(filter(None, (_module(model, frame) for frame, _ in reversed(frames))), None)
    passing = False
    for frame, number in reversed(frames):
        package = _package(frame)
        if frame.f_code is _PASSED_ON:
            passing = True
        elif package == _OURS:
            if not passing:
                return Raised(True, None, module)
            passing = frame.f_code.co_name not in _ENTRIES
        elif package not in _LIBRARIES:
            return Raised(False, line_of(frame.f_code, number), module)
    return Raised(False, None, module)


def line_of(code: CodeType, number: int) -> str:
    """File and line as messages have them."""
    return f"{Path(code.co_filename).name}:{number}"


def is_users(frame: FrameType) -> bool:
    """Whether the frame is neither torch's nor ours."""
    return _package(frame) not in _LIBRARIES | {_OURS}


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


_PASSED_ON = passed_on.__code__


def _frames(traceback: TracebackType | None) -> Iterator[tuple[FrameType, int]]:
    """Outermost first, with the line that was running."""
    while traceback is not None:
        yield traceback.tb_frame, traceback.tb_lineno
        traceback = traceback.tb_next


def _module(model: nn.Module, frame: FrameType) -> str | None:
    """The name of the module whose method this is."""
    of = frame.f_locals.get("self")
    if not isinstance(of, nn.Module):
        return None
    # An exporter runs stand-ins of modules, which share what these hold.
    named = model.named_modules()
    return next((name for name, module in named if module.__dict__ is of.__dict__), None)
