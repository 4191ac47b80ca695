"""What tests of the whole path share: main(argv), one run of the quickstart, and a tiny project."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir
from typing import Any, NamedTuple

# Workers share the cores, so each computes on one thread. Said before numpy and torch are imported:
# they read it then, as do the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"

# What is freed is kept for what comes next: to have it from the system page by page takes a fifth
# of the time that is spent there. The workers and the processes that tests start read it.
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**29))
os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**26))
os.environ.setdefault("MALLOC_TOP_PAD_", str(2**24))

import hypothesis
import numpy as np
import pytest
import yaml
from exporter import share_what_exports_have_in_common
from forks import Forks, forking
from made_once import sharing

from granplugin import progress
from granplugin.report.schema.run import Report

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "recipes"

# What runs longest starts first, so that the workers end together.
LONGEST = (
    "quickstart efficientnet test_skips test_analysis test_apply test_cli test_products test_deploy "
    "test_equal_forms test_gates test_wrong_engines"
).split()


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two workers for the whole suite; what is named on the command line runs in this process."""
    return 2 if config.args_source is pytest.Config.ArgsSource.TESTPATHS else 0


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share a fixture run on one worker: those of a file, and all of the quickstart's.

    What a test's own mark `xdist_group` says goes before.
    """
    if "CI" in os.environ:
        _try_fewer_examples(items)
    groups = {item: _group(item) for item in items}
    for item, group in groups.items():
        item.add_marker(pytest.mark.xdist_group(group))
    rank = {group: at for at, group in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(groups[item], len(rank)))


def _try_fewer_examples(items: list[pytest.Item]) -> None:
    """Half of what a law says for itself: here they are the same ones each time, so that more of
    them find nothing that they did not find before."""
    laws = {getattr(item.obj, "__func__", item.obj) for item in items if _is_law(item)}
    for law in laws:
        own = law._hypothesis_internal_use_settings
        count = min(own.max_examples, max(FEWEST, own.max_examples // 2))
        law._hypothesis_internal_use_settings = hypothesis.settings(own, max_examples=count)


def _is_law(item: pytest.Item) -> bool:
    return hypothesis.is_hypothesis_test(getattr(item, "obj", None))


FEWEST = 15


def _group(item: pytest.Item) -> str:
    if mark := item.get_closest_marker("xdist_group"):
        return mark.args[0]
    return "quickstart" if "quickstart" in getattr(item, "fixturenames", ()) else item.path.stem


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    share_what_exports_have_in_common()
    _leave_libraries_to_themselves()


def _leave_libraries_to_themselves() -> None:
    """The collector looks through what a test makes, not each time through the half a million
    objects that torch, modelopt and the tests are: that takes half a second."""
    if len(sys.modules) > _collected[-1] + 100:
        _collected.append(len(sys.modules))
        gc.freeze()
    gc.enable()


_collected = [0]
gc.set_threshold(20_000, 20, 20)
gc.disable()  # until the first test: what is imported before it stays


# On a machine that does other work too, a slow example says nothing of the code, nor does a stage
# that tells how long it runs.
progress.SECONDS = 3600.0
hypothesis.settings.register_profile(
    "busy",
    deadline=None,
    # Those in CI are always the same; further ones are tried wherever somebody works on it.
    max_examples=40,
    derandomize="CI" in os.environ,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("busy")


def too_wide(text: str) -> list[str]:
    """Lines of more than 80 columns, but for those that a path is in: a worker's folders have long
    names."""
    return [line for line in text.splitlines() if len(line) > 80 and gettempdir() not in line]


class Done(NamedTuple):
    """What one command line came to."""

    code: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Applied:
    """A finished run: its folder and report, and what was printed."""

    folder: Path
    report: Report
    stdout: str
    stderr: str
    code: int


def run_main(*argv: object) -> Done:
    """main(argv) in this process."""
    from granplugin.__main__ import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in argv])
    return Done(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tiny networks are no faster with more threads, and far slower on a busy machine."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def command() -> str:
    """The installed command."""
    return str(Path(sys.executable).with_name("granplugin"))


@pytest.fixture(scope="session")
def forks(tmp_path_factory) -> Iterator[Forks]:
    """Processes of their own that have torch and modelopt from the beginning."""
    with forking(_common(tmp_path_factory)) as server:
        yield server


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory) -> Applied:
    """`granplugin apply recipes/digits_mobilenet.yaml`."""
    folder = tmp_path_factory.mktemp("runs") / "digits_mobilenet"
    done = run_main("apply", RECIPES / "digits_mobilenet.yaml", "--out", folder)
    assert (folder / "report.json").exists(), done.stderr
    report = Report.model_validate_json((folder / "report.json").read_text())
    return Applied(folder, report, done.stdout, done.stderr, done.code)


@pytest.fixture(scope="session", autouse=True)
def _made_once(tmp_path_factory) -> Iterator[None]:
    with sharing(_common(tmp_path_factory) / "made_once"):
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_thread_of_onnx_runtime() -> Iterator[None]:
    """Its second thread waits for its next part by counting, which takes as long as it computes."""
    from granplugin.graph import reference

    options = reference.session_options
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            reference,
            "session_options",
            lambda threads=None, folder=None: options(threads or 1, folder),
        )
        yield


def _common(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all workers."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


def lend(made: Path, folder: Path, *stages: str) -> None:
    """Give a run what these stages made in another: neither is made again for the same content."""
    cache = folder / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        for path in made.glob(f"cache/{stage}-*"):
            shutil.copy(path, cache)


NETS = '''
from dataclasses import dataclass

import torch
from torch import nn


class Tiny(nn.Module):
    """A convolution, a depthwise one, a classifier; channels of very different ranges."""

    def __init__(self, classes=4):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.depthwise_bn = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, classes)
        with torch.no_grad():
            for bn in (self.bn, self.depthwise_bn):
                bn.weight.copy_(torch.logspace(-1, 1, 8))
                bn.running_mean.normal_()
                bn.running_var.uniform_(0.5, 2)

    def forward(self, image):
        x = self.bn(self.conv(image)).relu()
        x = self.depthwise_bn(self.depthwise(x)).relu()
        return self.head(x.mean((2, 3)))


def tiny(**args):
    return Tiny(**args)
'''


class Project:
    """A folder with a network, data and a recipe, small enough to apply in seconds."""

    def __init__(self, folder: Path, exported: Path | None = None) -> None:
        """`exported` is a run of the same network, whose export `apply` takes."""
        self.folder, self.exported = folder, exported
        self.write("nets.py", NETS)
        rng = np.random.default_rng(0)
        self.arrays = {
            "images": rng.standard_normal((64, 1, 8, 8), np.float32),
            "labels": rng.integers(0, 4, 64),
        }
        self.out = folder / "runs" / "recipe"

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return path

    def recipe(self, file: str = "recipe.yaml", **changes: Any) -> Path:
        """Write the data and a recipe of it; a change of None leaves the key out."""
        np.savez(self.folder / "data.npz", **self.arrays)
        images = {"npz": "data.npz", "inputs": {"image": "images"}}
        recipe = {
            "version": 1,
            "model": {"callable": "nets.py:tiny"},
            "data": {
                "calibration": images,
                "evaluation": {**images, "labels": "labels"},
                "batch_size": 16,
            },
            "metrics": ["top1", "agreement", "sqnr_db"],
            "engines": ["onnxruntime"],
            "baselines": ["fp32"],
            **changes,
        }
        recipe = {key: value for key, value in recipe.items() if value is not None}
        return self.write(file, yaml.safe_dump(recipe, sort_keys=False))

    def apply(self, *argv: object) -> Done:
        """Apply recipe.yaml, or the recipes and options given, in runs/recipe."""
        if self.exported:
            lend(self.exported, self.out, "float")
        return run_main("apply", *(argv or [self.folder / "recipe.yaml"]), "--out", self.out)

    def report(self) -> Report:
        return Report.model_validate_json((self.out / "report.json").read_text())

    def onnx(self, variant: str = "recipe") -> bytes:
        return (self.out / "variants" / variant / "model.onnx").read_bytes()


@pytest.fixture
def project(tmp_path, _tiny) -> Project:
    """A project that was never applied; its network was exported already, as it is at first."""
    return Project(tmp_path, exported=_tiny / "runs" / "recipe")


@pytest.fixture(scope="session")
def _tiny(tmp_path_factory) -> Path:
    made = Project(tmp_path_factory.mktemp("tiny"))
    made.recipe()
    done = made.apply()
    assert done.code == 0, done.stderr
    return made.folder


@pytest.fixture
def applied(_tiny, tmp_path) -> Project:
    """A project that was applied once."""
    shutil.copytree(_tiny, tmp_path, dirs_exist_ok=True)
    return Project(tmp_path)
