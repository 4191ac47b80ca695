"""report.html of a run folder: whatever of a run and its analysis is there, as one page."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

import granplugin
from granplugin.backends.engine_plan import LOW, EngineLayer, EnginePlan
from granplugin.backends.nvidia.plan_reader import read_plan
from granplugin.errors import RunError, UserError
from granplugin.planning.row_json import row_from_json
from granplugin.planning.rows import Row
from granplugin.reading import read_json
from granplugin.recipe.code_key import code_files
from granplugin.recipe.loaded import Loaded
from granplugin.recipe.paths import shown
from granplugin.recipe.strict import paths_of
from granplugin.report.schema.analysis import Analysis
from granplugin.report.schema.earlier import migrated
from granplugin.report.schema.page import EnginePlanOf, KeptForPage, Kernel, RecipeText
from granplugin.report.schema.run import Report
from granplugin.report.show import as_page, output_page
from granplugin.report.view.page.kept import Kept
from granplugin.results.parts import Part
from granplugin.store.keys import file_sha256
from granplugin.store.whole_file import write_whole

PAGE = "report.html"
OF_RUN = "page.json"
OF_ANALYSIS = "analysis_page.json"

Read = TypeVar("Read", bound=Part)


def page_of(folder: Path, report: Report | None = None, analysis: Analysis | None = None) -> str:
    """The page of what is in `folder`; `report` and `analysis` are those that are not there yet.
    What is damaged is left out and named. Raises RunError where there is neither."""
    missing: list[str] = []
    report = report or _read(folder, "report.json", Report, missing)
    analysis = analysis or _read(folder, "analysis.json", Analysis, missing)
    if report is None and analysis is None:
        told = f" ({'; '.join(missing)})" if missing else ""
        raise RunError(
            f"{folder}: has neither report.json nor analysis.json that can be read{told}; "
            "`granplugin apply` and `granplugin analyze` leave them in their run folder"
        )
    return as_page(
        Kept(
            name=report.name if report else f"Analysis of {folder.name}",
            report=report,
            analysis=analysis,
            rows=_rows(folder, missing),
            plans=tuple(_plans(folder, report, missing)) if report else (),
            of_run=_read(folder, OF_RUN, KeptForPage, missing) if report else None,
            of_analysis=_read(folder, OF_ANALYSIS, KeptForPage, missing) if analysis else None,
            missing=tuple(missing),
        )
    )


def read_report(folder: Path) -> Report:
    """The report of a run. Raises RunError where there is none that can be read."""
    missing: list[str] = []
    report = _read(folder, "report.json", Report, missing)
    if report is None:
        raise RunError(f"{folder}: {missing[0] if missing else 'has no report.json'}")
    return report


def write_verb_page(
    target: Path, output: Part, plans: Mapping[str, tuple[str, EnginePlan]]
) -> None:
    """What `audit` and `compare` found, as a page with the engines' `plans`: name -> engine, plan.
    Raises RunError where it cannot be written."""
    kernels = [
        EnginePlanOf(engine=engine, variant=name, kernels=_kernels(plan))
        for name, (engine, plan) in plans.items()
    ]
    write_page(target, output_page(output, kernels))


def write_page(target: Path, page: str) -> None:
    """RunError where it cannot be written."""
    try:
        write_whole(target, page.encode())
    except OSError as err:
        raise RunError(f"{target}: cannot be written: {err.strerror}; give --html") from err


def summary_of(folder: Path) -> tuple[str | None, list[str], int]:
    """When a run was made, of which recipes, and how many variants it has; None and nothing where
    its report cannot be read."""
    report = _read(folder, "report.json", Report, [])
    if report is None:
        return None, [], 0
    return report.created, report.recipes, len(report.variants)


def recipe_texts(recipes: Sequence[Loaded]) -> list[RecipeText]:
    """The recipes and what they extend, of those that are files."""
    files = dict.fromkeys(
        mark.file for loaded in recipes for mark in loaded.document.marks.values()
    )
    return [
        RecipeText(path=file, text=Path(file).read_text("utf-8"), sha256=file_sha256(Path(file)))
        for file in files
        if Path(file).is_file()
    ]


def files_read(recipes: Sequence[Loaded]) -> dict[str, str]:
    """The files of weights, data and code that recipes name -> their SHA-256. A folder of images
    has none."""
    found: list[Path] = []
    for recipe in (loaded.recipe for loaded in recipes):
        data = recipe.data
        sources = [each for each in (data.calibration, data.evaluation, data.analysis) if each]
        found += recipe.model.files
        found += (getattr(each, key) for each in sources for key in paths_of(type(each))
                  if isinstance(getattr(each, key), Path))  # fmt: skip
        callables = [getattr(each, "callable", None) for each in sources]
        for target in (*recipe.model.code, *callables, recipe.evaluate):
            found += code_files(target.path) if target is not None and target.path else ()
    return {shown(path): file_sha256(path) for path in dict.fromkeys(found) if path.is_file()}


def command(verb: str, recipes: Sequence[Loaded], folder: Path) -> str:
    """The command line that does it again."""
    told = ["granplugin", verb, *(str(each.path) for each in recipes)]
    for setting in recipes[0].settings:
        told += ["--set", setting]
    return shlex.join([*told, "--out", str(folder)])


def _read(folder: Path, name: str, schema: type[Read], missing: list[str]) -> Read | None:
    path = folder / name
    if not path.is_file():
        return None

    def read() -> Read:
        data = read_json(path, RunError)
        if not isinstance(data, dict):
            raise ValueError("it is no object")
        data = migrated(schema, data)
        found, known = data.get("version"), schema.model_fields["version"].default
        if found != known:
            wrote, own = data.get("granplugin"), granplugin.__version__
            where = f" with granplugin {wrote}" if wrote and wrote != own else ""
            raise ValueError(
                f"it is of schema version {found} and granplugin {own} reads {known}: "
                f"{'show it' + where + ', or ' if where else ''}make it again: {_again(folder, name)}"
            )
        return schema.model_validate(data)

    return _told(name, missing, read)


def _again(folder: Path, name: str) -> str:
    """The command line that the folder keeps of the verb that wrote the file, or the verb."""
    verb, kept = ("analyze", OF_ANALYSIS) if name.startswith("analysis") else ("apply", OF_RUN)
    page = _read(folder, kept, KeptForPage, []) if name != kept else None
    return page.command if page and page.command else f"granplugin {verb}"


def _rows(folder: Path, missing: list[str]) -> dict[str, tuple[Row, ...]]:
    path = folder / "plan.json"
    if not path.is_file():
        return {}

    def read() -> dict[str, tuple[Row, ...]]:
        variants = read_json(path, RunError)["variants"]
        return {name: tuple(map(row_from_json, rows)) for name, rows in variants.items()}

    return _told(path.name, missing, read) or {}


def _plans(folder: Path, report: Report, missing: list[str]) -> Iterator[EnginePlanOf]:
    for variant in report.variants:
        for engine in variant.engines:
            place = Path("variants") / variant.name / engine.engine
            path = folder / place / "layers.json"
            if path.is_file():
                plan = _told(str(place / "layers.json"), missing, partial(_plan, path))
                if plan is not None:
                    yield EnginePlanOf(
                        engine=engine.engine, variant=variant.name, kernels=_kernels(plan)
                    )


def _plan(path: Path) -> EnginePlan:
    return read_plan(path.read_text("utf-8", "replace"))


def _kernels(plan: EnginePlan) -> list[Kernel]:
    return [
        Kernel(
            name=kernel.name,
            does=_does(kernel),
            arithmetic=_arithmetic(kernel),
            bytes=moved.total,
            nodes=list(kernel.onnx_nodes),
        )
        for kernel, moved in zip(plan.kernels, plan.moved_by, strict=True)
    ]


def _does(kernel: EngineLayer) -> Any:
    if not kernel.multiplies:
        return "moves"
    if not (kernel.inputs or kernel.constants):
        return "unknown"
    low = [tensor.dtype in LOW for tensor in (*kernel.inputs, *kernel.constants)]
    return "low" if sum(low) >= 2 else "float"


def _arithmetic(kernel: EngineLayer) -> str:
    read = dict.fromkeys(tensor.dtype for tensor in kernel.inputs)
    written = dict.fromkeys(tensor.dtype for tensor in kernel.outputs)
    return f"{'+'.join(read) or '-'} > {'+'.join(written) or '-'}"


Value = TypeVar("Value")


def _told(name: str, missing: list[str], read: Callable[[], Value]) -> Value | None:
    """What was read, or None and a sentence on what is not shown."""
    try:
        return read()
    except ValidationError as err:
        first = err.errors()[0]
        place = ".".join(map(str, first["loc"]))
        why = f"{place}: {first['msg']}" if place else first["msg"]
    except (UserError, OSError, ValueError, LookupError, TypeError, AttributeError) as err:
        why = (str(err).splitlines() or [type(err).__name__])[0]
    missing.append(f"{name} cannot be read, so what it holds is not shown: {why[:200]}")
    return None
