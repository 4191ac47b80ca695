"""Cases as JUnit's XML, which CI servers read: a suite for what they are of."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence

from granplugin.report.view.cases import Case
from granplugin.visible import visible_lines

_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_ELEMENT = {"failed": "failure", "error": "error", "skipped": "skipped"}


def render(name: str, cases: Sequence[Case], seconds: float = 0.0) -> str:
    """The whole file; `name` is the verb's, `seconds` what it took in all."""
    root = ET.Element("testsuites", {"name": name, "time": f"{seconds:.3f}"} | _counts(cases))
    for of in dict.fromkeys(case.of for case in cases):
        own = [case for case in cases if case.of == of]
        suite = ET.SubElement(root, "testsuite", {"name": _text(of), "time": "0"} | _counts(own))
        for case in own:
            _add(suite, case)
    ET.indent(root)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def _counts(cases: Sequence[Case]) -> dict[str, str]:
    counts = Counter(case.outcome for case in cases)
    return {
        "tests": str(len(cases)),
        "failures": str(counts["failed"]),
        "errors": str(counts["error"]),
        "skipped": str(counts["skipped"]),
    }


def _add(suite: ET.Element, case: Case) -> None:
    at = case.place
    where = {"file": _text(at.file)} if at else {}
    where |= {"line": str(at.line)} if at and at.line else {}
    element = ET.SubElement(
        suite,
        "testcase",
        {"classname": _text(case.of), "name": _text(case.name), "time": "0"} | where,
    )
    if case.outcome == "passed":
        if case.told:
            ET.SubElement(element, "system-out").text = _text(case.told)
        return
    text = _text(case.told)
    ET.SubElement(element, _ELEMENT[case.outcome], message=text).text = (
        f"{_text(at.file)}:{at.line}: {text}" if at and at.line else text
    )


def _text(text: str) -> str:
    """Without what XML has no place for."""
    return _NO_XML.sub("?", visible_lines(text))
