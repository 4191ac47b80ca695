"""report.html: whatever the names, nothing but the page's own script runs; what is damaged is
named; and in a browser it logs nothing, asks for nothing, and does what it says."""

from __future__ import annotations

import base64
import hashlib
import json
from html.parser import HTMLParser

import pytest
from browser import CHROMIUM, browser
from conftest import run_main
from page_values import big_run, kept
from report_values import HOSTILE, report

from granplugin.report.schema.page import KeptForPage
from granplugin.report.show import as_page
from granplugin.report.view.page.layers import rule_text


class Elements(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.inside = tag
        self.found.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts[-1] += data


def test_only_its_own_scripts_may_run_whatever_the_names():
    page = Elements(as_page(kept()))
    data, *scripts = page.scripts
    assert json.loads(data)["layers"][1]["name"].startswith("</script>")
    policy = next(a["content"] for t, a in page.found if "http-equiv" in a)
    for script in scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert len(scripts) == 2
    for tag, attributes in page.found:
        assert not any(name.startswith("on") for name in attributes), tag
        assert not any(name in ("src", "srcdoc", "action") for name in attributes), tag
        assert attributes.get("href", "#").startswith("#")


def test_a_rule_is_told_with_its_lines():
    text = "rules:\n  # why\n  - id: a\n    match: x\n\n    weight: float\n  - {id: b}\ndefaults: float\n"
    assert rule_text({"r.yaml": text}, "r.yaml:3:5").endswith("weight: float")
    assert rule_text({"r.yaml": text}, "r.yaml:4:5").strip().startswith("- id: a")
    assert rule_text({"r.yaml": text}, "r.yaml:7:5").strip() == "- {id: b}"
    assert rule_text({"r.yaml": text}, "r.yaml:8:1") == "defaults: float"
    assert rule_text({"r.yaml": text}, "preset") == ""


def run_folder(folder):
    """What apply leaves, as far as a page needs it."""
    folder.mkdir()
    (folder / "report.json").write_text(report().model_dump_json())
    (folder / "page.json").write_text(KeptForPage(command="granplugin apply").model_dump_json())
    return folder


@pytest.mark.parametrize(
    ("damaged", "content"),
    [
        ("plan.json", "{"),
        ("plan.json", '{"variants": {"a": [{"layer": 1}]}}'),
        ("analysis.json", '{"version": 99}'),
        ("page.json", "[]"),
    ],
)
def test_what_is_damaged_is_named_and_the_rest_shown(tmp_path, damaged, content):
    folder = run_folder(tmp_path / "run")
    (folder / damaged).write_text(content)
    done = run_main("report", folder)
    assert done.code == 0
    page = (folder / "report.html").read_text()
    assert f"{damaged} cannot be read, so what it holds is not shown" in page
    assert "limit top1_drop" in page


def test_a_report_of_the_schema_before_is_shown_and_one_of_another_version_names_who_reads_it(
    tmp_path,
):
    folder = run_folder(tmp_path / "run")
    old = json.loads(report("mine").model_dump_json())
    old |= {"version": 1, "smallest_provable_drop": 0.7}
    del old["provable"]
    for variant in old["variants"]:
        for engine in variant["engines"]:
            for key in ("batch", "targets", "native_layers", "native_in_float"):
                del engine[key]
            moved = engine.pop("moved")
            engine["traffic_bytes"] = moved and moved["activations"]
            for metric in engine["metrics"].values():
                del metric["outputs"], metric["lower_is_better"]
            for latency in engine["latency"]:
                latency["spread"] = latency.pop("iqr")
    (folder / "report.json").write_text(json.dumps(old))
    assert run_main("report", folder).code == 0
    page = (folder / "report.html").read_text()
    assert "limit top1_drop" in page
    assert "is not shown" not in page
    (folder / "analysis.json").write_text('{"version": 1, "granplugin": "0.1.0"}')
    assert run_main("report", folder).code == 0
    assert "show it with granplugin 0.1.0, or make it again: granplugin analyze" in (
        folder / "report.html"
    ).read_text().replace("&#x27;", "'")


@pytest.mark.parametrize("report_json", [None, "{}", '{"version": 7}'])
def test_a_folder_without_a_report_is_refused(tmp_path, report_json):
    folder = tmp_path / "run"
    folder.mkdir()
    if report_json:
        (folder / "report.json").write_text(report_json)
    done = run_main("report", folder)
    assert done.code == 2
    if report_json and "7" in report_json:
        told = "it is of schema version 7 and granplugin "
        assert told in done.stderr
        assert "reads 3: make it again: granplugin apply" in done.stderr
    assert "has neither report.json nor analysis.json that can be read" in done.stderr
    assert not (folder / "report.html").exists()


def test_a_run_of_which_no_engine_took_any_variant_has_a_page_all_the_same(tmp_path):
    folder, made = run_folder(tmp_path / "run"), report("mine")
    nothing = dict(
        refused="no such operator", metrics={}, latency=[], layers=[], verdicts=[], moved=None,
        findings=[], kernels=None, cannot_run=None,
    )  # fmt: skip
    variants = [
        variant.model_copy(
            update={"engines": [each.model_copy(update=nothing) for each in variant.engines]}
        )
        for variant in made.variants
    ]
    empty = made.model_copy(update={"variants": variants, "limits": []})
    (folder / "report.json").write_text(empty.model_dump_json())
    assert run_main("report", folder).code == 0
    page = (folder / "report.html").read_text()
    assert "REFUSED: fp32, mine: no such operator" in page
    assert "No time was measured" in page


def test_compare_writes_a_page_with_both_plans(tmp_path):
    big_run(tmp_path / "run", 3)
    layers = sorted((tmp_path / "run").rglob("layers.json"))
    done = run_main("compare", *layers[:2], "--html", tmp_path / "both.html")
    assert done.code == 0, done.stderr
    data = json.loads(Elements((tmp_path / "both.html").read_text()).scripts[0])
    assert [len(plan["kernels"]) for plan in data["plans"]] == [3, 3]


def test_open_shows_the_page_or_says_that_there_is_no_browser(tmp_path, monkeypatch):
    folder, shown = run_folder(tmp_path / "run"), []
    monkeypatch.setattr("webbrowser.open", lambda url: not shown.append(url))
    assert "no browser" not in run_main("report", folder, "--open").stdout
    assert shown == [(folder / "report.html").resolve().as_uri()]
    monkeypatch.setattr("webbrowser.open", lambda url: False)
    assert "no browser could be opened" in run_main("report", folder, "--open").stdout


def test_a_page_that_cannot_be_written_is_said(tmp_path):
    folder = run_folder(tmp_path / "run")
    done = run_main("report", folder, "--html", tmp_path / "no" / "such.html")
    assert done.code == 2
    assert "cannot be written: No such file or directory; give --html" in done.stderr


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    if not CHROMIUM:
        pytest.skip("chromium is not installed: apt-get install chromium")
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.mark.xdist_group("browser")
def test_in_a_browser_nothing_is_logged_asked_for_or_hacked_and_it_works(tab, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(as_page(kept(40)))
    tab.size(1280, 900)
    tab.open(page)
    assert not tab.logged
    assert not tab.requested
    assert tab.ask("window.hacked === undefined")
    rows = "document.querySelectorAll('#heat tbody tr').length"
    assert tab.ask(rows) == 40
    # Filter.
    tab.ask(
        "(f => { f.value = '39'; f.dispatchEvent(new Event('input')); })"
        "(document.getElementById('layer-filter'))"
    )
    assert tab.ask(rows) == 1
    tab.ask(
        "(f => { f.value = ''; f.dispatchEvent(new Event('input')); })"
        "(document.getElementById('layer-filter'))"
    )
    # Sort by a click on a head, and again the other way.
    first = "document.querySelector('#heat tbody tr button').textContent"
    tab.ask("document.querySelector('#heat th').click()")
    up = tab.ask(first)
    tab.ask("document.querySelector('#heat th').click()")
    assert tab.ask(first) != up
    # A click on a layer opens it, with its plots, and gives it an address.
    tab.ask("document.querySelector('#heat tbody tr button').click()")
    tab.ask("new Promise(done => setTimeout(done, 50))")
    assert tab.ask("document.querySelector('#layer h3').textContent") == tab.ask(first)
    assert tab.ask("document.querySelectorAll('#layer .plot svg.main-svg').length") > 0
    fragment = tab.ask("location.hash")
    assert fragment.startswith("#layer=")
    # So does a click on a cell; a figure below is of a layer with its calibrators' lines.
    tab.ask("document.querySelectorAll('#heat tbody tr')[3].querySelector('td.hot').click()")
    tab.ask("new Promise(done => setTimeout(done, 50))")
    assert tab.ask("location.hash") not in ("", fragment)
    assert HOSTILE in tab.ask(
        "[...document.querySelectorAll('#layer .legendtext')].map(e => e.dataset.unformatted).join()"
    ).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    # Variants are sorted by any column, each with its notes below it.
    name = "document.querySelector('.verdict tbody td').textContent"
    before = tab.ask(name)
    tab.ask("document.querySelector('.verdict thead th').click()")
    tab.ask("document.querySelector('.verdict thead th').click()")
    assert tab.ask(name) != before
    # Two plans side by side, place by place.
    assert tab.ask("document.querySelectorAll('#plan-both .kernel').length") == 80
    assert tab.ask("document.querySelectorAll('#plan-both .differs').length") == 0
    assert not tab.logged
    assert tab.ask("window.hacked === undefined")
    # The address opens it again; on a phone nothing is wider than the screen.
    tab.size(390, 800)
    tab.open(page, fragment)
    assert tab.ask("!document.getElementById('layer').hidden")
    assert tab.ask("document.documentElement.scrollWidth <= window.innerWidth")
    assert not tab.logged
