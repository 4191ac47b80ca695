"""Code blocks of README.md and docs/, run as a reader would: a page from top to bottom, in one folder.

A block's language says what it is:

    python, yaml   whose first line is a comment with a file's name: that file is written
    python         runs, in one namespace a page
    yaml           a recipe, or keys of one: it loads
    sh             commands; granplugin's run, in order
    console        `$ command` and lines of what it prints; `...` stands for others
    text           output that was measured: its commands are granplugin's, with options it has
"""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from conftest import ROOT, run_main

import granplugin
from granplugin import cli

NOT_RUN = {"bash", "cd", "cp", "docker", "git", "mkdocs", "pip", "pytest", "scp", "sh", "trtexec"}
"""Commands of others, which a page may show."""


class Block(NamedTuple):
    language: str
    text: str
    line: int

    @property
    def file(self) -> str | None:
        """The file that it is to be written to."""
        named = re.match(r"# ([\w./-]+\.(?:py|ya?ml))\n", self.text)
        return named[1] if named and self.language in ("python", "yaml") else None


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    fence = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
    return [
        Block(found[2], re.sub(f"^{found[1]}", "", found[3], flags=re.MULTILINE),
              text.count("\n", 0, found.start()) + 1)
        for found in fence.finditer(text)
    ]  # fmt: skip


def pages() -> list[Path]:
    """All that have blocks to run; those made from the package have their own tests."""
    made = {ROOT / "docs" / name for name in ("words.md", "lint.md", "errors.md")}
    return [ROOT / "README.md", *sorted(set((ROOT / "docs").glob("*.md")) - made)]


QUICKSTART = "granplugin apply recipes/digits_mobilenet.yaml"
BASE = f"""
version: 1
model: {{callable: {ROOT}/recipes/networks.py:mobilenet_v2}}
data:
  calibration: {{npz: {ROOT}/recipes/data/digits.npz, inputs: {{image: train_images}}}}
  evaluation:
    {{npz: {ROOT}/recipes/data/digits.npz, inputs: {{image: test_images}}, labels: test_labels}}
metrics: [top1]
engines: [openvino, onnxruntime]
optional_engines: [tensorrt, tensorrt_rtx]
baselines: [fp32, fp16, tensorrt@11]
rules:
  - {{id: coarse, match: {{type: Conv2d}}, weight: per_tensor}}
  - {{id: rescue, match: features.1.depthwise.conv, weight: per_channel}}
"""
"""What keys that a page shows alone are put into."""


def run_page(page: Path, but: str = "") -> None:
    """In the current folder, which has what a clone has; blocks of the language `but` are left out."""
    names: dict[str, Any] = {"__name__": "__main__"}
    path, modules = list(sys.path), set(sys.modules)
    try:
        _run_page(page, but, names)
    finally:  # of another page a module may have the same name
        sys.path[:] = path
        for module in set(sys.modules) - modules:
            file = getattr(sys.modules[module], "__file__", None) or ""
            if Path(file).is_relative_to(Path.cwd()):
                del sys.modules[module]


def _run_page(page: Path, but: str, names: dict[str, Any]) -> None:
    for block in blocks(page):
        if block.language == but:
            continue
        where = f"{page.name}:{block.line}"
        if block.file:
            path = Path(block.file)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
        if block.language == "python" and not block.file:
            exec(compile(block.text, where, "exec"), names)
        elif block.language == "yaml":
            _load(block, where)
        elif block.language == "sh":
            for command in commands(block.text):
                _run(command, where)
        elif block.language == "console":
            _compare(block.text, where)
        elif block.language == "text":
            for line in re.findall(r"^\$ (granplugin .*)$", block.text, re.MULTILINE):
                parse(shlex.split(line, comments=True)[1:])


def commands(text: str) -> Iterator[str]:
    """One a line, or between `&&`; a line goes on behind a backslash."""
    for line in text.replace("\\\n", " ").splitlines():
        for command in line.split(" && "):
            if command.strip() and not command.strip().startswith("#"):
                yield command.strip()


def _run(command: str, where: str) -> str:
    """Run it, unless it is others'; what it prints, which may go to a file."""
    words = shlex.split(command, comments=True)
    wanted = int(re.search(r"# exit code (\d+)", command)[1]) if "# exit code" in command else 0
    if words[0] in NOT_RUN or command.partition("  #")[0].strip() == QUICKSTART:
        return ""
    target = words[words.index(">") + 1] if ">" in words else None
    words = words[: words.index(">")] if target else words
    assert words[0] in ("granplugin", "python"), f"{where}: {command}"
    if words[0] == "python":
        runpy.run_path(words[1], run_name="__main__")
        return ""
    code, out, err = run_main(*words[1:])
    assert code == wanted, f"{where}: {command}: exit code {code}\n{err}"
    if target:
        Path(target).write_text(out, encoding="utf-8")
    return out + err


def _compare(text: str, where: str) -> None:
    """Lines that are shown are printed, in this order."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        printed = iter(_run(command, where).splitlines())
        for line in shown.splitlines():
            if line != "..." and line.strip():
                assert line in printed, f"{where}: {command} does not print, in this order: {line}"


def _load(block: Block, where: str) -> None:
    said = yaml.safe_load(block.text)
    if "jobs" in said or "repos" in said:  # a workflow, or hooks
        return
    if block.file and "model" in said:
        granplugin.load(Path(block.file))
    elif "model" in said and "data" in said:
        granplugin.load(block.text)
    else:
        _load_keys(yaml.safe_dump({**yaml.safe_load(BASE), **said}, sort_keys=False))


def _load_keys(text: str) -> None:
    """Files that keys shown alone name need not be there."""
    try:
        granplugin.load(text)
    except granplugin.RecipeError as err:
        missing = re.findall(r"no such file: ([^\s;]+)", str(err))
        if not missing:
            raise
        for file in missing:
            Path(file).touch()
        granplugin.load(text)


def parse(argv: list[str]) -> None:
    """Refuse a verb or an option that there is not."""
    import typer

    group = typer.main.get_command(cli.program())
    verb = group.commands[argv[0]]  # type: ignore[attr-defined]
    given = [word for word in argv[1:] if word not in (">",)]
    try:
        verb.make_context(argv[0], given)
    except Exception as err:
        raise AssertionError(f"granplugin {shlex.join(argv)}: {err}") from err
