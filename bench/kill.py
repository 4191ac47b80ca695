"""Runs killed (SIGKILL) at random moments: what is in the folder is always of one recipe, and the run
after is bit for bit what one that nobody kills makes.

Processes are forked from one that has the libraries loaded, so that the moments fall into the work.

python bench/kill.py --count 200 --save
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random

from campaign import save
from tiny import RECIPES, write

from granplugin.__main__ import main

VERBS = ("apply", "apply", "apply", "analyze", "export")
OUT = "run"


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
    if code not in (0, 1, 4):
        raise SystemExit(f"{' '.join(argv)}: ended with {code}: {Path('said.txt').read_text()}")
    return time.perf_counter() - begin


def argv_of(verb: str, recipe: str, out: str = OUT) -> list[str]:
    if verb == "export":
        return [verb, f"{recipe}.yaml", "--run", out, "--out", f"to-{recipe}"]
    return [verb, f"{recipe}.yaml", "--out", out, *(["--no-costs"] if verb == "analyze" else [])]


def made(folder: Path) -> dict[str, str]:
    """What a recipe decides bit for bit, each by its hash: models, plan, configs, figures."""
    files = [*folder.glob("variants/*/*.onnx"), *folder.glob("float.onnx")]
    files += [folder / name for name in ("modelopt.json", "measurements.json")]
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
        if file.exists()
    }


def recipe_of(folder: Path) -> str | None:
    """Whose report is in the folder, if there is one."""
    file = folder / "report.json"
    return Path(json.loads(file.read_text())["recipes"][0]).stem if file.exists() else None


def campaign(count: int, seed: int, minutes: float) -> dict[str, object]:
    drawn, faults = Random(seed), list[str]()
    wanted, seconds = {}, {}
    for recipe in RECIPES:
        finish(argv_of("apply", recipe, f"whole-{recipe}"))
        wanted[recipe] = made(Path(f"whole-{recipe}"))
    for verb in dict.fromkeys(VERBS):
        folder = f"timed-{verb}"
        seconds[verb] = finish(argv_of(verb, "coarse", folder))
    finish(argv_of("apply", "coarse"))
    killed, ended, unreported, cold = Counter[str](), Counter[str](), 0, False
    until = time.monotonic() + 60 * minutes
    for number in range(count):
        if time.monotonic() > until:
            count = number
            break
        verb, recipe = drawn.choice(VERBS), drawn.choice(list(RECIPES))
        process = start(argv_of(verb, recipe))
        time.sleep(drawn.uniform(0, seconds[verb] * (1 if cold else 0.5)))
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        (killed if os.WIFSIGNALED(status) else ended)[verb] += 1
        reported, found = recipe_of(Path(OUT)), made(Path(OUT))
        unreported += reported is None
        if reported is not None and any(found[name] != of for name, of in wanted[reported].items()):
            faults.append(
                f"kill {number}, {verb} {recipe}: the report is of {reported}, a file is not"
            )
        again = drawn.choice(list(RECIPES))
        finish(argv_of("apply", again))
        if recipe_of(Path(OUT)) != again or made(Path(OUT)) != wanted[again]:
            faults.append(f"kill {number}, {verb} {recipe}: the run after is not bit-equal")
        left = [*Path(OUT).glob("cache/.making-*"), *Path(OUT).glob(".publish*")]
        if left:
            faults.append(f"kill {number}, {verb} {recipe}: left behind: {left}")
        if cold := drawn.random() < 0.3:  # from an empty cache, too
            for file in Path(OUT).glob("cache/*.onnx"):
                file.unlink()
    return {
        "seed": seed, "runs": count, "killed": dict(killed), "ended before": dict(ended),
        "without a report until the next run": unreported, "faults": faults,
    }  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=120, help="start no other run after them")
    parser.add_argument("--save", action="store_true", help="into bench/results")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory(prefix="granplugin-kill-") as scratch:
        os.chdir(scratch)
        write(Path(scratch))
        from granplugin.pipelines import analyze, apply, export  # noqa: F401 - before the forks

        found = campaign(given.count, given.seed, given.minutes)
        os.chdir("/")
    told = "\n".join(f"{key}: {value}" for key, value in found.items())
    print(told)
    if given.save:
        save("kill", told, found)
    sys.exit(bool(found["faults"]))
