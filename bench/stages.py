"""Runs one granplugin command and writes where its time went, as JSON: stage -> seconds.

    python bench/stages.py seconds.json apply recipes/digits_mobilenet.yaml

A stage is a function of the table below or the import of a package; time inside one that is
called by another counts for the inner one. What no stage has is "the rest".
"""

from __future__ import annotations

import builtins
import functools
import importlib
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

STAGES = {
    "granplugin.network.models:build_model": "build the model",
    "granplugin.network.trace:trace": "trace",
    "granplugin.runs.jobs:plan_jobs": "plan",
    "granplugin.modelopt_bridge:convert": "convert and calibrate",
    "granplugin.network.export:export_float": "export",
    "granplugin.runs.variants:_write": "write Q/DQ and read it back",
    "granplugin.runs.checked:agreed": "agreement",
    "granplugin.runs.measure:build_engine": "build engines",
    "granplugin.runs.measure:scores": "accuracy: metrics",
    "granplugin.runs.measure:measure": "accuracy: outputs, layers read back",
    "granplugin.runs.latency:measure_latency": "latency",
    "granplugin.report.build.run:make_report": "report",
    "granplugin.pipelines.apply:publish": "publish",
}
PACKAGES = ("torch", "modelopt", "onnx", "onnx_ir", "onnxruntime", "openvino", "scipy", "pydantic")


class Watch:
    """Seconds by stage, each without those of the stages inside it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.running: list[str] = []
        self.since = perf_counter()

    def lap(self) -> None:
        now = perf_counter()
        self.seconds[self.running[-1] if self.running else "the rest"] += now - self.since
        self.since = now

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.lap()
        self.running.append(name)
        try:
            yield
        finally:
            self.lap()
            self.running.pop()


def watched(watch: Watch, function: Callable, stage: str) -> Callable:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with watch.stage(stage):
            return function(*args, **kwargs)

    return call


def watch_imports(watch: Watch) -> None:
    """Time each package's import, with all that it imports, and watch the stages in what came."""
    importing = builtins.__import__
    waiting = dict(STAGES)

    def watched_import(name: str, *args: Any, **kwargs: Any) -> Any:
        package = name.partition(".")[0]
        known = package not in PACKAGES or name in sys.modules
        if known or (watch.running and watch.running[-1].startswith("import ")):
            module = importing(name, *args, **kwargs)
        else:
            with watch.stage(f"import {package}"):
                module = importing(name, *args, **kwargs)
        for place in [place for place in waiting if place.partition(":")[0] in sys.modules]:
            owner, _, function = place.partition(":")
            if hasattr(sys.modules[owner], function):
                stage = waiting.pop(place)
                found = getattr(sys.modules[owner], function)
                setattr(sys.modules[owner], function, watched(watch, found, stage))
        return module

    builtins.__import__ = watched_import


def main() -> int:
    out, *argv = sys.argv[1:]
    watch = Watch()
    watch_imports(watch)
    code = importlib.import_module("granplugin.__main__").main(argv)
    watch.lap()
    Path(out).write_text(json.dumps(watch.seconds))
    return code


if __name__ == "__main__":
    sys.exit(main())
