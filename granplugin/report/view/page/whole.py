"""The page of what a run folder holds."""

from __future__ import annotations

from collections.abc import Iterator

from granplugin.report.schema.page import PageData
from granplugin.report.view.analysis import analysis_view
from granplugin.report.view.elements import Block, Item, Paragraph, Section, Terms, Verbatim
from granplugin.report.view.page.kept import Kept, Page
from granplugin.report.view.page.layers import layers_of, measures_of
from granplugin.report.view.page.overview import overview, spots
from granplugin.report.view.page.run import verdict
from granplugin.report.view.run_facts import version_of
from granplugin.report.view.run_whole import run_whole_view
from granplugin.report.view.senses import SENSES
from granplugin.words import duration


def page_view(kept: Kept) -> Page:
    """Whatever of it is there; what is not is named."""
    first: list[Block] = [Item(told, sense="doubtful") for told in kept.missing]
    tables: list[Block] = []
    if kept.report:
        first.append(verdict(kept.report))
        first += overview(kept.report)
        tables.append(_aside("All figures of the run", run_whole_view(kept.report)))
    if kept.analysis:
        first.append(_advice(kept))
        tables.append(_aside("The analysis, as the terminal has it", analysis_view(kept.analysis)))
    layers = layers_of(kept)
    x, y, points = spots(kept.report) if kept.report else ([], [], [])
    data = PageData(
        x=x,
        y=y,
        spots=points,
        measures=measures_of(layers),
        loss=_loss_unit(kept),
        layers=layers,
        plans=list(kept.plans),
    )
    return Page(
        title=kept.name,
        verdict=Section("", tuple(first)),
        tables=Section("", tuple(tables)),
        provenance=Section("", tuple(_provenance(kept))),
        data=data,
    )


def _aside(title: str, section: Section) -> Section:
    return Section(title, section.blocks, aside=True)


def _advice(kept: Kept) -> Section:
    assert kept.analysis
    advice = kept.analysis.advice
    return Section("", (Paragraph(f"Analysis: {advice.said}", SENSES[advice.verdict]),))


def _loss_unit(kept: Kept) -> str:
    if kept.analysis is None:
        return ""
    units = {"metric": "points", "decisions": "% of decisions", "outputs": "% relative error"}
    return units[kept.analysis.loss]


def _provenance(kept: Kept) -> Iterator[Block]:
    pairs: list[tuple[str, str]] = []
    sources = [of for of in (kept.of_run, kept.of_analysis) if of]
    of_what = kept.report or kept.analysis
    if kept.report:
        pairs += [("run", f"{kept.report.created}, {duration(kept.report.seconds)}")]
    if of_what:
        machine = of_what.machine
        installed = {"granplugin": of_what.granplugin, "Python": machine.python, **machine.packages}
        if kept.report:
            installed |= {of[0].engine: version_of(of) for of in kept.report.by_engine}
        pairs += [
            ("machine", f"{machine.processor}, {machine.cores} cores, {machine.system}"),
            ("versions", ", ".join(f"{n} {v}" for n, v in installed.items())),
        ]
    for of in sources:
        pairs += [("again", of.command)] if of.command else []
    for of in sources:
        pairs += [(name, str(seed)) for name, seed in of.seeds.items()]
    texts = {each.path: each for of in sources for each in of.recipes}
    hashes = {path: each.sha256 for path, each in texts.items()}
    hashes |= {path: sha for of in sources for path, sha in of.files.items()}
    pairs += [(f"sha256 of {path}", sha) for path, sha in hashes.items()]
    yield Terms(tuple(dict.fromkeys(pairs)))
    for path, each in texts.items():
        yield Section(path, (Verbatim(tuple(each.text.splitlines()), "yaml"),))
