"""The notebooks of examples/ run, from top to bottom, and show what they are about."""

from __future__ import annotations

import json

import pytest
from notebooks import EXAMPLES, beside_recipes, run


@pytest.fixture(scope="module")
def shown(tmp_path_factory) -> dict[str, str]:
    """Notebook -> all that its cells show."""
    with beside_recipes(tmp_path_factory.mktemp("clone")):
        return {
            file.stem: json.dumps(run(file), ensure_ascii=False)
            for file in sorted(EXAMPLES.glob("*.ipynb"))
        }


@pytest.mark.parametrize(
    ("notebook", "said"),
    [
        ("quickstart", "<table"),
        ("analyze_and_mend", "{match: depthwise.0, bn: keep}"),
        ("onnx_file", "honoured"),
    ],
)
def test_a_notebook_shows_what_it_is_about(shown, notebook, said):
    assert said in shown[notebook]
    # So does the file, for those who read and do not run it.
    kept = (EXAMPLES / f"{notebook}.ipynb").read_text(encoding="utf-8")
    assert said.replace('"', '\\"') in kept
