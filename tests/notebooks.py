"""The notebooks of examples/, run without a server: `python tests/notebooks.py` writes their outputs.

A cell is code in one namespace; the value of its last expression is shown as a notebook shows it.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"

Output = dict[str, Any]


@contextlib.contextmanager
def beside_recipes(folder: Path) -> Iterator[None]:
    """In a copy of examples/ in this folder, whose modules can be imported, as in a notebook."""
    shutil.copytree(EXAMPLES, folder / "examples", ignore=shutil.ignore_patterns("runs", "__*"))
    (folder / "recipes").symlink_to(ROOT / "recipes")
    before, path, modules = Path.cwd(), list(sys.path), set(sys.modules)
    os.chdir(folder / "examples")
    sys.path.insert(0, "")
    try:
        yield
    finally:
        os.chdir(before)
        sys.path[:] = path
        for name in {file.stem for file in EXAMPLES.glob("*.py")} - modules:
            sys.modules.pop(name, None)


def run(notebook: Path) -> list[list[Output]]:
    """The outputs of each of its code cells, in the current folder."""
    names: dict[str, Any] = {"__name__": "__main__"}
    return [
        _run_cell("".join(cell["source"]), names, f"{notebook.name}[{number}]")
        for number, cell in enumerate(json.loads(notebook.read_text(encoding="utf-8"))["cells"])
        if cell["cell_type"] == "code"
    ]


def _run_cell(source: str, names: dict[str, Any], where: str) -> list[Output]:
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed, value = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, where, "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), where, "eval"), names)
    outputs: list[Output] = []
    if printed.getvalue():
        outputs.append(
            {"name": "stdout", "output_type": "stream", "text": lines(printed.getvalue())}
        )
    if value is not None:
        data = {"text/plain": lines(repr(value))}
        if hasattr(value, "_repr_html_"):
            data["text/html"] = lines(value._repr_html_())
        outputs.append({"data": data, "metadata": {}, "output_type": "execute_result"})
    return outputs


def lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def write(notebook: Path) -> None:
    """Its outputs as they are here and now."""
    told = json.loads(notebook.read_text(encoding="utf-8"))
    code = [cell for cell in told["cells"] if cell["cell_type"] == "code"]
    for number, (cell, outputs) in enumerate(zip(code, run(notebook), strict=True), 1):
        counted = [
            {**each, "execution_count": number} if each["output_type"] == "execute_result" else each
            for each in outputs
        ]
        cell.update(outputs=counted, execution_count=number)
    notebook.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, beside_recipes(Path(folder)):
        for file in sorted(EXAMPLES.glob("*.ipynb")):
            write(file)
