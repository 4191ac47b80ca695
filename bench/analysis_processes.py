"""What an analysis takes that only a process of its own shows: its memory, and going on after a kill."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from analysis_stages import FOUR, Stages, bare, open_session, session_of
from measure import Figure, run

from granplugin.store.run_folder import open_run

MEMORY_SAMPLES = (64, 1024)
MEMORY_SIZE = 96
RESUME_SAMPLES = 64


def memory_of(network: str) -> list[Figure]:
    """The peak of a process that runs every pass of an analysis, for few samples and for many."""
    peaks = [
        float(run([sys.executable, __file__, "--memory", network, samples]))
        for samples in MEMORY_SAMPLES
    ]
    figures = [
        Figure(f"{network}: peak memory, {samples} samples", peak, "MB")
        for samples, peak in zip(MEMORY_SAMPLES, peaks, strict=True)
    ]
    name = f"{network}: peak memory, {MEMORY_SAMPLES[1]} / {MEMORY_SAMPLES[0]} samples"
    said = f"images of {MEMORY_SIZE} x {MEMORY_SIZE}, default settings"
    return [*figures, Figure(name, peaks[1] / peaks[0], "x", goal=1.05, note=said)]


def memory_child(network: str, samples: str) -> None:
    settings = [
        f"data.calibration.args.size={MEMORY_SIZE}",
    ]
    with session_of(network, int(samples), settings) as session:
        stages = Stages(session).rounded()
        stages.local()
        (*_, last) = stages.network.start().items()
        stages.effects(alone=[last], restored=[last[0]])
    # Not ru_maxrss: a child's begins at its parent's.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(int(status["VmHWM"].split()[0]) / 1024)


def resuming(network: str) -> list[Figure]:
    """Seconds of the local pass alone: whole, behind one that was killed, with a setting more."""
    with tempfile.TemporaryDirectory() as folder:
        whole_run, killed_run = Path(folder) / "whole", Path(folder) / "killed"
        whole = local_pass(network, whole_run)
        more = local_pass(
            network, whole_run, "analyze.inputs=[per_tensor, {granularity: per_channel}]"
        )
        # Its ranges are there, as they would be; what is killed is the local pass.
        shutil.copytree(whole_run / "cache", killed_run / "cache")
        command = [sys.executable, __file__, "--local", network, killed_run]
        child = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True)
        assert child.stdout.readline() == "begun\n"
        time.sleep(whole[0] / 2)
        child.kill()
        child.communicate()
        rest = local_pass(network, killed_run)
    said = f"{RESUME_SAMPLES} samples, C = 4"
    return [
        Figure(title, wall, "s", note=f"{note}processor {process:.2f} s")
        for title, (wall, process), note in (
            (f"{network}: exact local errors, whole", whole, f"{said}; "),
            ("  the rest, after a kill at half of that", rest, ""),
            ("  one more setting of each input", more, ""),
        )
    ]


def local_pass(network: str, folder: Path, *settings: str) -> tuple[float, float]:
    """Seconds of the wall and of the processor."""
    out = run([sys.executable, __file__, "--local", network, folder, *settings])
    wall, process = out.splitlines()[-1].split()
    return float(wall), float(process)


def local_child(network: str, folder: str, *settings: str) -> None:
    with open_run(Path(folder)) as run_folder:
        exact = [*FOUR, "analyze.exact=true", *settings]
        stages = Stages(open_session(network, RESUME_SAMPLES, exact, run_folder))
        bare(stages)
        stages.rounded()
        print("begun", flush=True)
        wall, process = time.perf_counter(), time.process_time()
        stages.local()
        print(time.perf_counter() - wall, time.process_time() - process)


CHILDREN = {"--memory": memory_child, "--local": local_child}

if __name__ == "__main__":
    CHILDREN[sys.argv[1]](*sys.argv[2:])
