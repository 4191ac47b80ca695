"""Build, measure and compare baselines, recipes and variants."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Optional

import typer

from granplugin.cli import From, Json, Out, Recipes, Settings, show, taking
from granplugin.cli.gate import Annotations, Junit, gate
from granplugin.cli.next_steps import after_run, say_next, typed
from granplugin.stdout import say

if TYPE_CHECKING:
    from granplugin.pipelines.apply import Applied

EXAMPLE = "granplugin apply recipes/digits_mobilenet.yaml --set data.batch_size=8"


def apply(
    recipes: Recipes,
    settings: Settings = None,
    checkpoint: From = None,
    out: Out = None,
    junit: Junit = None,
    annotations: Annotations = None,
    mlflow: Annotated[
        Optional[str],
        typer.Option(metavar="URI", help="Enter the run in this MLflow store, too."),
    ] = None,
    json_: Json = False,
) -> int:
    """Build and measure baselines, recipes and variants, and compare them."""
    from granplugin.recipe.load import load_recipe

    settings = taking(settings, checkpoint)
    with gate("apply", junit, annotations) as decided:
        loaded = [load_recipe(path, settings) for path in recipes]

        store = None
        if mlflow is not None:
            from granplugin.runs.tracked import open_store

            store = open_store(mlflow, loaded[0].recipe.name)

        from granplugin.pipelines.apply import apply

        applied = apply(loaded, out)
        decided.decide(applied.report)
    words = [typed(path, settings, out) for path in recipes]
    show_report(applied, json_, dict(zip((str(each.path) for each in loaded), words, strict=True)))
    if store is not None:
        entered = store.track(applied.report, applied.folder, applied.exit_code)
        if not json_:
            say(f"mlflow: run {entered} of experiment {loaded[0].recipe.name} in {mlflow}")
    return applied.exit_code


def show_report(applied: Applied, json_: bool, words: dict[str, tuple[str, ...]]) -> None:
    """A run's report on stdout, where the whole of it is, and what to do next; `words` are each
    recipe's, as it was typed."""
    show(applied.report, json_)
    if not json_:
        say(f"report: {applied.folder / 'report.html'}, and as text report.md")
        say_next(after_run(applied.report, applied.folder, words))
