"""The verbs by the step of the work that they are of; a verb's module is imported when it is called."""

from __future__ import annotations

import functools
import inspect
import keyword
from collections.abc import Callable, Iterator, MutableMapping
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from granplugin.cli.telling import Plain, Quiet, Telling, Verbose
from granplugin.stdout import aside

_FOLDER = Path(__file__).parent
_SHARED = {"__init__", "gate", "next_steps", "telling", "verbs"}
"""Modules that are no verbs."""

STEPS: dict[str, tuple[str, ...]] = {
    "Look": ("doctor", "inspect", "init"),
    "Decide": ("plan", "analyze"),
    "Build": ("apply", "export"),
    "Check": ("audit", "compare", "import", "report"),
    "House": ("runs", "clean", "check", "explain", "capabilities", "convert", "schema"),
}
"""Step of the work -> its verbs, in the order of the help; others of the last step follow them."""


@functools.cache
def verbs() -> tuple[str, ...]:
    """All of them: those of STEPS, then by name those that are not in it."""
    known = [verb for step in STEPS.values() for verb in step]
    modules = {each.stem for each in _FOLDER.glob("*.py")} - _SHARED
    return (*known, *sorted({module.rstrip("_") for module in modules} - set(known)))


def said_of(verb: str) -> str:
    """What it does, in a line: the first of its module, which is read and not imported."""
    file = _FOLDER / f"{module_of(verb).rpartition('.')[2]}.py"
    with file.open(encoding="utf-8") as text:
        return text.readline().strip().strip('"')


def module_of(verb: str) -> str:
    """
    >>> module_of("plan"), module_of("import")
    ('granplugin.cli.plan', 'granplugin.cli.import_')
    """
    return f"granplugin.cli.{verb}_" if keyword.iskeyword(verb) else f"granplugin.cli.{verb}"


class _Commands(MutableMapping[str, Any]):
    """Verb -> its command, made when it is asked for."""

    def __init__(self) -> None:
        self.made: dict[str, Any] = {}

    def __getitem__(self, verb: str) -> Any:
        if verb not in self.made:
            if verb not in verbs():
                raise KeyError(verb)
            self.made[verb] = _command(verb)
        return self.made[verb]

    def __setitem__(self, verb: str, command: Any) -> None:
        self.made[verb] = command

    def __delitem__(self, verb: str) -> None:
        del self.made[verb]

    def __iter__(self) -> Iterator[str]:
        return iter(verbs())

    def __len__(self) -> int:
        return len(verbs())


class Verbs(TyperGroup):
    """The program: it lists its verbs by the step of the work that they are of."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "commands": {}})
        self.commands = _Commands()

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        super().format_help_text(ctx, formatter)
        wide = max(map(len, verbs()))
        others = [verb for verb in verbs() if not any(verb in step for step in STEPS.values())]
        for step, listed in STEPS.items():
            more = others if step == list(STEPS)[-1] else ()
            with formatter.section(step):
                formatter.write_dl([(f"{v:{wide}}", said_of(v)) for v in (*listed, *more)])

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """They stand before the options."""


def _command(verb: str) -> Any:
    """The command of one verb: the function of its name in its module, whose docstring is its help,
    and its EXAMPLE, if it has one."""
    module = import_module(module_of(verb))
    function = getattr(module, module.__name__.rpartition(".")[2])
    example = getattr(module, "EXAMPLE", None)
    app = typer.Typer(rich_markup_mode=None, add_completion=False)
    app.command(
        name=verb,
        epilog=f"Example: {example}" if example else None,
    )(_told(aside(function)))
    return typer.main.get_command(app)


def _told(verb: Callable[..., int]) -> Callable[..., int]:
    """The verb with the options of every verb, which may stand before or behind its name."""
    own = inspect.signature(verb, eval_str=True)
    keyword_only = inspect.Parameter.KEYWORD_ONLY
    further = [
        inspect.Parameter("context", keyword_only, annotation=typer.Context),
        *(
            inspect.Parameter(name, keyword_only, annotation=option, default=False)
            for name, option in (("quiet", Quiet), ("verbose", Verbose), ("plain", Plain))
        ),
    ]

    @wraps(verb)
    def run(
        *words: Any, context: typer.Context, quiet: bool, verbose: bool, plain: bool, **options: Any
    ) -> int:
        before = context.obj or Telling()
        with before.and_(Telling(quiet=quiet, verbose=verbose, plain=plain)).told():
            return verb(*words, **options)

    run.__signature__ = own.replace(  # type: ignore[attr-defined]
        parameters=[*own.parameters.values(), *further]
    )
    return run
