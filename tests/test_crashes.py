"""A library that takes its process with it costs one engine's results: the others' stay, and what
died of what is told in a sentence."""

from __future__ import annotations

import contextlib
import os
import re
import time

import pytest

STAND_IN = """
import ctypes, os, sys
from granplugin import backends
from granplugin.backends.openvino import _Runner

openvino = backends.backend_of("openvino")
build, infer = openvino.build, _Runner._infer

def builds(onnx, out, options=None):
    if b"QuantizeLinear" in onnx.read_bytes():
        ctypes.string_at(0)
    return build(onnx, out, options)

def infers(self, feeds):
    if len(next(iter(feeds.values()))) == 1:
        os.abort()
    return infer(self, feeds)

openvino.build, _Runner._infer = builds, infers
sys.argv = ["granplugin", *sys.argv[1:]]
from granplugin.__main__ import run
run()
"""
"""OpenVINO that dies of Q/DQ, and of a batch of one."""


def test_crashes_cost_one_engine_what_it_crashed_of(forks, applied):
    recipe = applied.recipe(engines=["onnxruntime", "openvino"], optional_engines=[])
    done = forks.run(["-c", STAND_IN, "apply", recipe, "--out", applied.out])
    assert done.returncode == 3, done.stderr
    building, running = done.stderr.splitlines()[:2]
    assert re.fullmatch(
        r"openvino crashed \(SIGSEGV\) building \S+\.onnx; going on without that", building
    )
    assert re.fullmatch(
        r"openvino crashed \(SIGABRT\) running engine-\S+; going on without that", running
    )
    found = {
        (variant.name, engine.engine): engine
        for variant in applied.report().variants
        for engine in variant.engines
    }
    refused = {of: engine.refused for of, engine in found.items() if engine.refused}
    assert set(refused.values()) == {"openvino crashed (SIGSEGV) building it"}
    assert {engine for _, engine in refused} == {"openvino"} and ("fp32", "openvino") in found
    assert all(engine.metrics for of, engine in found.items() if of not in refused)
    assert "openvino crashed (SIGSEGV) building it" in done.stdout
    print(done.stdout)


@pytest.mark.parametrize(
    ("dies", "told"),
    [
        ("ctypes.string_at(0)", "the process crashed (SIGSEGV) in "),
        ("os.kill(os.getpid(), 9)", "the process was killed, most likely for want of memory"),
    ],
)
def test_a_crash_outside_of_engines_is_a_sentence(forks, project, dies, told):
    module = project.folder / "dies.py"
    module.write_text(f"import ctypes, os\n\n\ndef net():\n    {dies}\n")
    recipe = project.recipe(model={"callable": "dies.py:net"})
    done = forks.run(["granplugin", "inspect", recipe])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(told), done.stderr
    if "SIGSEGV" in told:
        assert f"in string_at, called by {module}:5, in net; " in done.stderr
    assert done.stderr.count("\n") == 1


def test_where_memory_is_limited_it_is_what_lacks(forks, project):
    done = forks.run(["granplugin", "inspect", project.recipe()], limits={"RLIMIT_AS": 300 * 2**20})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "there is not enough memory\n"


def test_a_process_that_is_killed_takes_its_child_along(forks, project):
    module = project.folder / "waits.py"
    module.write_text(
        "import os, time\n\n\ndef net():\n"
        "    open('pid', 'w').write(f'{os.getpid()} ')\n    time.sleep(60)\n"
    )
    recipe = project.recipe(model={"callable": "waits.py:net"})
    with forks.start(["granplugin", "inspect", recipe], cwd=project.folder) as process:
        told = project.folder / "pid"
        while not (told.exists() and told.read_text().endswith(" ")):
            time.sleep(0.01)
        child = int(told.read_text())
        assert child != process.pid
        process.kill()
    with contextlib.suppress(ProcessLookupError):
        while True:  # it ends, or this test does not
            os.kill(child, 0)
            time.sleep(0.01)
