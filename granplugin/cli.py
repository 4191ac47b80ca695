"""The verbs: parse, one call, print. Stages are imported inside the verb that needs them."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.console import Console
from rich.logging import RichHandler

import granplugin
from granplugin.errors import UserError
from granplugin.progress import console

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Quantization granularity, layer by layer, for NVIDIA modelopt and TensorRT.",
    epilog="Start with: granplugin apply recipes/digits_mobilenet.yaml",
)

Recipes = Annotated[list[Path], typer.Argument(metavar="RECIPE...", show_default=False)]
OneRecipe = Annotated[Path, typer.Argument(metavar="RECIPE", show_default=False)]
Settings = Annotated[
    Optional[list[str]],
    typer.Option("--set", metavar="KEY=VALUE", help="Change one key, as data.batch_size=8."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON; `granplugin schema` documents it.")]
Out = Annotated[Optional[Path], typer.Option(help="The run folder; default runs/<name>.")]


# ClickException, which typer has of click or of its own, depending on its version.
_UsageError = typer.BadParameter.__mro__[2]


def call(argv: Sequence[str]) -> int:
    """Run one command line; the exit code. Raises what the verb raises."""
    command = typer.main.get_command(app)
    try:
        result = command.main(args=list(argv), prog_name="granplugin", standalone_mode=False)
    except typer.Abort as err:  # typer's for ^C and, of all things, for an EOFError
        raise err.__cause__ or KeyboardInterrupt from None
    except _UsageError as err:
        err.show()
        return err.exit_code
    except SystemExit as err:  # typer's for a reader of stdout that went away
        raise (err.__context__ if isinstance(err.__context__, BrokenPipeError) else err) from None
    if result == 130:  # newer typers' for ^C
        raise KeyboardInterrupt
    return result if isinstance(result, int) else 0


def _version(wanted: bool) -> None:
    if wanted:
        print(f"granplugin {granplugin.__version__}")
        raise typer.Exit()


@app.callback()
def options(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Tell each step.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of every verb."""
    logging.captureWarnings(True)
    logging.raiseExceptions = False  # where the log cannot be written, the run says so itself
    root = logging.getLogger()
    root.handlers.clear()
    root.setLevel(logging.INFO)
    logging.getLogger("granplugin").setLevel(logging.DEBUG)
    for chatty in ("onnxscript", "onnx_ir"):  # they print every node, several times
        logging.getLogger(chatty).setLevel(logging.WARNING)
    handler = RichHandler(
        # The progress bars' console, so that lines go above the bar.
        console=console, show_time=False, show_path=False, show_level=False,
        markup=False, highlighter=None,
    )  # fmt: skip
    handler.setLevel(logging.INFO if verbose or console.is_terminal else logging.WARNING)
    handler.addFilter(lambda record: record.name.startswith("granplugin"))
    root.addHandler(handler)


@app.command(
    epilog="Example: granplugin apply recipes/digits_mobilenet.yaml --set data.batch_size=8"
)
def apply(recipes: Recipes, settings: Settings = None, out: Out = None, json_: Json = False) -> int:
    """Build and measure baselines, recipes and variants, and compare them."""
    from granplugin.recipe.load import load_recipe

    loaded = [load_recipe(path, settings or ()) for path in recipes]
    from granplugin.store.run_folder import open_run

    with open_run(out or Path("runs") / loaded[0].recipe.name) as run:
        from granplugin.pipelines import apply as pipeline

        report = pipeline.apply(loaded, run)
        where = run.path
    _show(report, where, json_)
    return _verdict(report)


def _show(report: Any, where: Path, json_: bool) -> None:
    if json_:
        print(report.model_dump_json(indent=1))
        return
    from granplugin.report.terminal import WIDTH, render

    console = Console(width=WIDTH, highlight=False)
    console.print(render(report))
    console.print(f"report: {where / 'report.md'}", soft_wrap=True)


def _verdict(report: Any) -> int:
    from granplugin.backends import TARGETED

    if any(
        engine.broken_promises
        for variant in report.variants
        if variant.kind != "baseline"
        for engine in variant.engines
        if engine.engine in TARGETED
    ):
        return 3
    verdicts = {limit.verdict for limit in report.limits}
    return 1 if "missed" in verdicts else 4 if "cannot tell" in verdicts else 0


@app.command(epilog="Example: granplugin export recipe.yaml --out to_the_jetson")
def export(
    recipe: OneRecipe,
    out: Annotated[
        Optional[Path], typer.Option(help="The folder to write; default runs/<name>/to_<engine>.")
    ] = None,
    engine: Annotated[str, typer.Option(help="tensorrt or tensorrt_rtx.")] = "tensorrt",
    samples: Annotated[
        Optional[int], typer.Option(min=1, help="Evaluation samples; default all.")
    ] = None,
    run_folder: Annotated[
        Optional[Path], typer.Option("--run", help="The run folder; default runs/<name>.")
    ] = None,
    settings: Settings = None,
) -> int:
    """Leave a folder that builds and measures on a machine with trtexec and no Python."""
    from granplugin.backends.trtexec import PROGRAMS
    from granplugin.recipe.load import load_recipe
    from granplugin.suggest import did_you_mean

    loaded = load_recipe(recipe, settings or ())
    if engine not in PROGRAMS:
        hint = did_you_mean(engine, PROGRAMS)
        raise UserError(f"{engine!r} cannot be exported for{hint}")
    from granplugin.store.run_folder import open_run

    with open_run(run_folder or Path("runs") / loaded.recipe.name, "export_log.txt") as run:
        from granplugin.deploy.export import export

        out = out or run.path / f"to_{engine}"
        manifest = export(loaded, run, engine, out, samples)
        where = run.path
    scripts = " or ".join(program.script for program in PROGRAMS[engine])
    print(
        f"{out}: {len(manifest.variants)} variants, {sum(manifest.counts)} samples\n"
        f"Copy it to the target, run {scripts} there, and enter what comes back:\n"
        f"  granplugin import {where} results"
    )
    return 0


@app.command(name="import", epilog="Example: granplugin import runs/digits_mobilenet results")
def import_(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", show_default=False)],
    files: Annotated[list[Path], typer.Argument(metavar="FILES...", show_default=False)],
    variant: Annotated[
        Optional[str], typer.Option(help="The variant the files are of, where no folder says.")
    ] = None,
    json_: Json = False,
) -> int:
    """Audit what came back from an exported folder, and enter it into the run's report."""
    from granplugin.errors import RunError
    from granplugin.store.run_folder import open_run

    if not run_folder.is_dir():
        raise RunError(f"{run_folder}: there is no such run folder")
    with open_run(run_folder, "import_log.txt") as run:
        from granplugin.deploy.imported import import_results

        report = import_results(run, files, variant)
    _show(report, run_folder, json_)
    return _verdict(report)


@app.command(epilog="Example: granplugin inspect recipes/digits_mobilenet.yaml")
def inspect(
    recipe: OneRecipe, settings: Settings = None, out: Out = None, json_: Json = False
) -> int:
    """What the layers are: shapes, ranges, spreads and defaults; nothing is calibrated."""
    from granplugin.errors import RecipeError
    from granplugin.recipe.load import load_recipe
    from granplugin.report import inspect_text as text
    from granplugin.store.run_folder import open_run

    loaded = load_recipe(recipe, settings or (), data=False)
    with open_run(out or Path("runs") / loaded.recipe.name, "inspect_log.txt") as run:
        from granplugin.pipelines.inspection import inspect as look
        from granplugin.runs.session import Session

        found = look(Session(loaded, run))
        print(text.to_json(found) if json_ else "\n".join(text.lines(found)))
        # The layers are what one needs to see to mend a rule.
        if found.refused:
            raise RecipeError(found.refused)
    return 0


@app.command(epilog="Example: granplugin plan recipe.yaml --why features.0.0")
def plan(
    recipe: OneRecipe,
    variant: Annotated[Optional[str], typer.Option(help="A variant of the recipe.")] = None,
    why: Annotated[Optional[str], typer.Option(metavar="LAYER", help="One layer's story.")] = None,
    modelopt: Annotated[bool, typer.Option(help="The config as modelopt takes it.")] = False,
    settings: Settings = None,
    out: Out = None,
    json_: Json = False,
) -> int:
    """What each site gets, and the rule that decided it; nothing is calibrated."""
    from granplugin.recipe.load import RECIPE, load_recipe, load_variants
    from granplugin.suggest import did_you_mean

    loaded = load_recipe(recipe, settings or ())
    variants = load_variants(loaded)
    name = variant or RECIPE
    if name not in variants:
        raise UserError(f"{recipe}: no variant is called {name!r}{did_you_mean(name, variants)}")
    from granplugin.store.run_folder import open_run

    # log.txt is the last apply's.
    with open_run(out or Path("runs") / loaded.recipe.name, "plan_log.txt") as run:
        from granplugin.planning.plan import why as story
        from granplugin.planning.plan_file import plan_file
        from granplugin.runs.session import Session
        from granplugin.runs.variants import plan_jobs

        session = Session(loaded, run)
        jobs = plan_jobs([loaded], session.layers)
        plans = {job.name: job.plan for job in jobs}
        run.publish("plan.json", plan_file(session.key, session.text_key, session.layers, plans))
        layers = session.layers
    plans = [job.plan for job in jobs if job.kind != "baseline"]
    found = dict(zip(variants, plans, strict=True))[name]
    from granplugin.planning.plan_file import row_json
    from granplugin.report.verbs import PlanOutput, WhyOutput

    if modelopt:
        from granplugin.planning.quantize_config import config

        print(json.dumps(config(found.quantized), indent=1))
        return 0
    if why:
        output: Any = WhyOutput(layer=why, story=story(variants[name], layers, why))
        told = output.model_dump_json(indent=1) if json_ else "\n".join([why, *output.story])
        print(told)
        return 0
    written = next(job.written for job in jobs if job.plan is found)
    if json_:
        rows = [row_json(row) for row in found.rows]
        rules = [
            {"rule": u.rule, "where": u.where, "matched": u.matched, "decides": u.decides}
            for u in found.uses
        ]
        output = PlanOutput(
            recipe=str(recipe), variant=name, rows=rows, rules=rules, notes=list(found.notes),
            promises={
                engine: {
                    site: {
                        "kind": p.kind, "reason": p.reason, "source": p.source,
                        "made": of_engine.made.get(site),
                    }
                    for site, p in of_engine.promises.items()
                }
                for engine, of_engine in written.items()
            },
        )  # fmt: skip
        print(output.model_dump_json(indent=1))
        return 0
    from granplugin.report.plan_text import plan_lines

    promises = {engine: of_engine.promises for engine, of_engine in written.items()}
    made = {engine: of_engine.made for engine, of_engine in written.items()}
    for line in plan_lines(found, promises, made):
        print(line)
    return 0


@app.command(epilog="Example: granplugin analyze recipe.yaml --write-recipe suggested.yaml")
def analyze(
    recipe: OneRecipe,
    write_recipe: Annotated[
        Optional[Path], typer.Option(metavar="FILE", help="Write the suggested recipe there.")
    ] = None,
    all_: Annotated[
        bool, typer.Option("--all", help="Show every layer, not the worst 15.")
    ] = False,
    statistics: Annotated[
        Optional[Path],
        typer.Option(metavar="FILE", help="The statistics.safetensors of an earlier analysis."),
    ] = None,
    costs: Annotated[
        bool, typer.Option(help="Build engines to count each setting's kernels and MB.")
    ] = True,
    settings: Settings = None,
    out: Out = None,
    json_: Json = False,
) -> int:
    """Which layer loses what, at which granularity, and why; and the overrides it takes."""
    from granplugin.recipe.load import load_recipe

    loaded = load_recipe(recipe, settings or ())
    from granplugin.store.run_folder import open_run

    # log.txt is the last apply's.
    with open_run(out or Path("runs") / loaded.recipe.name, "analyze_log.txt") as run:
        from granplugin.analysis import result
        from granplugin.report.analysis_markdown import to_markdown
        from granplugin.runs.session import Session

        if write_recipe:
            result.check_target(write_recipe, loaded)
        session = Session(loaded, run)
        found = result.analyze(session, costs, statistics)
        run.publish("analysis.md", to_markdown(found))
        run.publish("analysis.json", found.model_dump_json(indent=1))
        where = run.path
    if json_:
        print(found.model_dump_json(indent=1))
    else:
        from granplugin.report.analysis_text import lines

        print("\n".join(lines(found, all_)))
        print(f"analysis: {where / 'analysis.md'}")
    if write_recipe:
        result.write_recipe(found, session, write_recipe, settings or ())
        if not json_:
            print(f"recipe: {write_recipe}")
    return 0


@app.command(epilog="Example: granplugin check recipes/*.yaml")
def check(recipes: Recipes, settings: Settings = None, out: Out = None, json_: Json = False) -> int:
    """Validate recipes without running anything; rules too, where the last plan still holds."""
    from granplugin.pipelines.check import check_recipe
    from granplugin.report.verbs import CheckOutput

    found = [check_recipe(path, settings or (), out) for path in recipes]
    if json_:
        print(CheckOutput(recipes=found).model_dump_json(indent=1))
    for each in found if not json_ else ():
        for error in each.errors:
            print(error, file=sys.stderr)
        if each.ok:
            print(f"{each.recipe}: good; checked its {each.checked}{each.why}")
    return 0 if all(each.ok for each in found) else 2


@app.command()
def schema(
    what: Annotated[
        str, typer.Argument(help="recipe, report, inspect, plan, check, audit ...")
    ] = "recipe",
) -> int:
    """JSON Schema of recipes (for editors), or of what a verb prints with --json."""
    from granplugin.recipe.schema import json_schema
    from granplugin.report import model
    from granplugin.report.verbs import OUTPUTS
    from granplugin.suggest import did_you_mean

    if what == "recipe":
        found = json_schema()
    elif what == "report":
        found = model.json_schema()
    elif what in OUTPUTS:
        found = OUTPUTS[what].model_json_schema(mode="serialization")
    else:
        known = ["recipe", "report", *OUTPUTS]
        raise UserError(f"no schema is called {what!r}{did_you_mean(what, known)}")
    print(json.dumps(found, indent=1))
    return 0


@app.command(name="capabilities", epilog="Example: granplugin capabilities --backend tensorrt_rtx")
def show_capabilities(
    backend: Annotated[str, typer.Option(help="The engine.")] = "tensorrt_rtx",
    probe: Annotated[
        bool, typer.Option(help="Rebuild the small networks behind the table; takes minutes.")
    ] = False,
    json_: Json = False,
) -> int:
    """What an engine has, by operation and granularity; --probe compares it with its builds."""
    from granplugin import backends, capabilities
    from granplugin.report import capabilities_text as text

    reason = backends.load(backend).unavailable()
    table = capabilities.load(backend, None if reason else backends.load(backend).version())
    if not probe:
        lines = capabilities.listing(table)
        print(text.table_json(table, lines) if json_ else "\n".join(text.table_lines(table, lines)))
        return 0
    if reason:
        raise UserError(f"{backend} cannot be probed: {reason}")
    from granplugin.capabilities.probe import probe as rebuild

    cells = rebuild(backend)
    print(text.probe_json(table, cells) if json_ else "\n".join(text.probe_lines(cells)))
    return 3 if any(cell.differs for cell in cells) else 0


@app.command(epilog="Example: granplugin audit model.onnx --layers layers.json")
def audit(
    onnx: Annotated[Path, typer.Argument(metavar="ONNX", show_default=False)],
    backend: Annotated[str, typer.Option(help="tensorrt_rtx or tensorrt.")] = "tensorrt_rtx",
    layers: Annotated[
        Optional[Path],
        typer.Option(help="An engine built elsewhere: trtexec's --exportLayerInfo, or layers.txt."),
    ] = None,
    profile: Annotated[Optional[Path], typer.Option(help="Its trtexec --exportProfile.")] = None,
    plan: Annotated[
        Optional[Path], typer.Option(help="The plan.json the file was made by.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Samples it is built for here.")] = 1,
    json_: Json = False,
) -> int:
    """What an engine does with any Q/DQ ONNX: a verdict for every quantized site, and lint."""
    from granplugin.audits.audit_file import audit_file
    from granplugin.report import audit_text as text

    found = audit_file(onnx, backend, layers, profile, plan, batch)
    print(text.to_json(found) if json_ else "\n".join(text.lines(found)))
    return found.exit_code


@app.command(epilog="Example: granplugin compare runs/x/variants/fp32 runs/x/variants/x")
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", show_default=False)],
    b: Annotated[Path, typer.Argument(metavar="B", show_default=False)],
    backend: Annotated[str, typer.Option(help="What ONNX is built with.")] = "tensorrt_rtx",
    batch: Annotated[int, typer.Option(min=1, help="Samples ONNX is built here for.")] = 1,
    profile: Annotated[
        Optional[list[Path]], typer.Option(help="trtexec's --exportProfile, of A and then of B.")
    ] = None,
    json_: Json = False,
) -> int:
    """Two engines side by side: engine folders, layers files, ONNX files or variants of a run."""
    from granplugin.audits.compare_engines import compare_engines
    from granplugin.report import compare_text as text

    found = compare_engines(a, b, backend, batch, profile or ())
    print(text.to_json(found) if json_ else "\n".join(text.lines(found)))
    return 0


@app.command()
def doctor(json_: Json = False) -> int:
    """What is installed, which engines work, and why the others do not."""
    from granplugin.pipelines import doctor as examination

    found = examination.examine()
    print(found.model_dump_json(indent=1) if json_ else "\n".join(examination.lines(found)))
    return 0 if not found.missing else 2
