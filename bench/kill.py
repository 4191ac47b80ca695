"""Runs killed (SIGKILL) at random moments: what is in the folder is always of one recipe, and the run
after is bit for bit what one that nobody kills makes.

Processes are forked from one that has the libraries loaded, so that the moments fall into the work.

python bench/kill.py --count 200 --save
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import io
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random

from campaign import save
from tiny import RECIPES, write

from granplugin import backends
from granplugin.__main__ import main
from granplugin.backends.nvidia.build import Options
from granplugin.backends.nvidia.plan_reader import inspector_json

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from forks import IMPORTED  # what a process may have imported that is to be forked

PIPELINES = ("analyze", "apply", "export", "import_")
VERBS = ("apply", "apply", "analyze", "export", "import")
OUT = "run"
LONGEST = 10.0
"""Seconds that a run is given before it is killed at most: an analysis is much longer."""


def start(argv: list[str]) -> int:
    """The process id of this command line, running."""
    process = os.fork()
    if not process:
        with open("said.txt", "w") as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            sys.stdout = sys.stderr = said
            os._exit(main(argv))
    return process


def finish(argv: list[str]) -> float:
    """Run it to its end; the seconds that took."""
    begin = time.perf_counter()
    _, status = os.waitpid(start(argv), 0)
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, 1, 3, 4):
        raise SystemExit(f"{' '.join(argv)}: ended with {code}: {Path('said.txt').read_text()}")
    return time.perf_counter() - begin


def argv_of(verb: str, recipe: str, out: str = OUT) -> list[str]:
    if verb == "import":
        return [verb, out, f"came-{recipe}"]
    if verb == "export":
        return [verb, f"{recipe}.yaml", "--run", out, "--out", f"to-{recipe}"]
    return [verb, f"{recipe}.yaml", "--out", out, *(["--no-costs"] if verb == "analyze" else [])]


def made(folder: Path) -> dict[str, str]:
    """What a recipe decides bit for bit, each by its hash: models, plan, configs, figures."""
    files = [*folder.glob("variants/*/*.onnx"), *folder.glob("float.onnx")]
    files += [folder / name for name in ("modelopt.json", "measurements.json")]
    return {file.relative_to(folder).as_posix(): sha_of(file) for file in files if file.exists()}


def sha_of(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def recipe_of(folder: Path) -> str | None:
    """Whose report is in the folder, if there is one."""
    file = folder / "report.json"
    return Path(json.loads(file.read_text())["recipes"][0]).stem if file.exists() else None


def brought(recipe: str) -> None:
    """What another machine would send back of an exported run: the plans of its engines."""
    sent, results = Path(f"to-{recipe}"), Path(f"came-{recipe}")
    results.mkdir()
    shutil.copyfile(sent / "manifest.json", results / "manifest.json")
    engine = backends.backend_of("tensorrt_rtx")
    for model in sent.glob("variants/*/model.onnx"):
        if model.parent.name == "fp32":  # whose plan is as good as any for what is tried here
            built = engine.build(model, Path("engine"), Options(batch=16))
            told = inspector_json(engine.engine_plan(built))
    for folder in sent.glob("variants/*"):
        (results / folder.name).mkdir()
        (results / folder.name / "layers.json").write_text(told)


class Campaign:
    """What was killed, and what was wrong after it."""

    def __init__(self, seed: int) -> None:
        self.drawn = Random(seed)
        self.wanted: dict[str, dict[str, str]] = {}
        self.seconds: dict[str, float] = {}
        self.killed, self.ended = Counter[str](), Counter[str]()
        self.faults: list[str] = []
        self.unreported = 0

    def prepare(self) -> None:
        """Each recipe's results without a kill, and how long each verb takes; once in this process,
        so that those that are forked from it have nothing left to import."""
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            main(argv_of("apply", "coarse", "warm"))
            main([*argv_of("analyze", "coarse", "warm")])
        for recipe in RECIPES:
            whole = f"whole-{recipe}"
            finish(argv_of("apply", recipe, whole))
            self.wanted[recipe] = made(Path(whole))
            finish(argv_of("export", recipe, whole))
            brought(recipe)
            shutil.copytree(whole, f"before-{recipe}")
            self.seconds["import"] = finish(argv_of("import", recipe, whole))
        self.seconds["apply"] = self.seconds["analyze"] = finish(argv_of("apply", "coarse"))
        self.seconds["export"] = finish(argv_of("export", "coarse"))

    def kill(self, verb: str, recipe: str, share: float) -> None:
        """Start it and kill it within this share of its time."""
        process = start(argv_of(verb, recipe))
        time.sleep(self.drawn.uniform(0, min(self.seconds[verb] * share, LONGEST)))
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        (self.killed if os.WIFSIGNALED(status) else self.ended)[verb] += 1

    def apply_after(self, what: str) -> None:
        """What is there is of one recipe; and an apply makes what one that nobody kills does."""
        reported, found = recipe_of(Path(OUT)), made(Path(OUT))
        self.unreported += reported is None
        if reported and any(found[name] != of for name, of in self.wanted[reported].items()):
            self.faults.append(f"{what}: the report is of {reported}, a file is not")
        again = self.drawn.choice(list(RECIPES))
        finish(argv_of("apply", again))
        if recipe_of(Path(OUT)) != again or made(Path(OUT)) != self.wanted[again]:
            self.faults.append(f"{what}: the run after is not bit-equal")
        left = [*Path(OUT).glob("cache/.making-*"), *Path(OUT).glob(".publish*")]
        if left:
            self.faults.append(f"{what}: left behind: {left}")

    def import_killed(self, what: str, recipe: str) -> None:
        """An import into a run that has none of it: all of it is entered or nothing, and once more
        enters what one that nobody kills does."""
        shutil.rmtree(OUT)
        shutil.copytree(f"before-{recipe}", OUT)
        self.kill("import", recipe, 1)
        report = Path(OUT) / "report.json"
        self.unreported += not report.exists()
        whole = {sha_of(Path(f"{of}-{recipe}") / "report.json") for of in ("before", "whole")}
        if report.exists() and sha_of(report) not in whole:
            self.faults.append(f"{what}: the report is neither the old nor the new one")
        finish(argv_of("import", recipe))
        if tree(Path(OUT)) != tree(Path(f"whole-{recipe}")):
            self.faults.append(f"{what}: the import after is not bit-equal")

    def run(self, count: int, minutes: float) -> None:
        until, cold = time.monotonic() + 60 * minutes, False
        while self.killed.total() < count and time.monotonic() < until:
            verb, recipe = self.drawn.choice(VERBS), self.drawn.choice(list(RECIPES))
            what = f"kill {self.killed.total()}, {verb} {recipe}"
            print(f"{what}; faults: {self.faults}", file=sys.stderr, flush=True)
            if verb == "import":
                self.import_killed(what, recipe)
            else:
                self.kill(verb, recipe, 1 if cold else 0.5)
            self.apply_after(what)
            if cold := self.drawn.random() < 0.3:  # from an empty cache, too
                for file in Path(OUT).glob("cache/*.onnx"):
                    file.unlink()


def tree(folder: Path) -> dict[str, str]:
    """Every result in a run folder by its hash, but for the page, which says when it was written."""
    return {
        file.relative_to(folder).as_posix(): sha_of(file)
        for file in folder.rglob("*")
        if file.is_file() and file.suffix not in (".html", ".lock", ".txt")
        and "cache" not in file.relative_to(folder).parts
    }  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="so many kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=120, help="start no other run after them")
    parser.add_argument("--save", action="store_true", help="into bench/results")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory(prefix="granplugin-kill-") as scratch:
        os.chdir(scratch)
        write(Path(scratch))
        for name in (*IMPORTED, *(f"granplugin.pipelines.{verb}" for verb in PIPELINES)):
            importlib.import_module(name)

        campaign = Campaign(given.seed)
        campaign.prepare()
        campaign.run(given.count, given.minutes)
        os.chdir("/")
    found = {
        "seed": given.seed,
        "kills": campaign.killed.total(),
        "killed": dict(campaign.killed),
        "ended before": dict(campaign.ended),
        "without a report until the next run": campaign.unreported,
        "faults": campaign.faults,
    }
    told = "\n".join(f"{key}: {value}" for key, value in found.items())
    print(told)
    if given.save:
        save("kill", told, found)
    sys.exit(bool(campaign.faults))
