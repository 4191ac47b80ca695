"""What an analysis costs beyond running the model: local errors, effects, memory, resuming.

    python bench/analyze.py

F is one bare float forward pass over the samples, taken before and after what is held against it.
C counts settings: those of a weight and those of an input, less one. The local errors of a setting
are three figures: of the layer's output with its weight, its input, or both rounded. What `exact`
measures on all samples is by default measured on a quarter of them, behind a pass over all samples
for ranges and histograms. The naive loop is modelopt's own: one layer's quantizer at a time is
configured, and the whole network run, once per layer and setting and for one figure; it is
measured on three layers and scaled to all. An effect is that of one layer on the network's output.
Values are wall time; notes have the processor's time, which other work on the machine moves less.
"""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from measure import HERE, Figure, main, of_values, run

from granplugin.analysis import measuring
from granplugin.analysis import subject as of_analysis
from granplugin.analysis.effects import Wanted, alone_name, restored_name
from granplugin.analysis.local import LocalErrors
from granplugin.analysis.questions import ask_all
from granplugin.analysis.ranges import find_ranges, gather
from granplugin.analysis.replayed import Effects
from granplugin.analysis.rounded import run as forward
from granplugin.analysis.tried import round_all
from granplugin.calibration.statistics import Statistics
from granplugin.network.forward import flatten_outputs
from granplugin.planning.plan import make_plan
from granplugin.recipe.load import load_recipe
from granplugin.runs.session import Session
from granplugin.store.run_folder import RunFolder, open_run

SAMPLES = {"mobilenet_v2": 32, "resnet_50": 16}
MEMORY_SAMPLES = (64, 1024)
MEMORY_SIZE = 96
RESUME_SAMPLES = 64
TOP = 15

FOUR = [
    "analyze.weights=[per_tensor, per_channel]",
    "analyze.inputs=[per_tensor]",
    "analyze.calibrators=[max]",
]
"""C = 4: two granularities, the batch norm folded and kept."""


class Clock:
    """Seconds of the wall and of the process by name, one value per round."""

    def __init__(self) -> None:
        self.wall: dict[str, list[float]] = defaultdict(list)
        self.process: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def lap(self, name: str) -> Iterator[None]:
        wall, process = time.perf_counter(), time.process_time()
        yield
        self.wall[name].append(time.perf_counter() - wall)
        self.process[name].append(time.process_time() - process)

    def times_f(self, title: str, *names: str, per: float = 1, goal: float | None = None) -> Figure:
        """The seconds of these names together over those of F, round by round, divided by `per`."""

        def ratios(seconds: Mapping[str, Sequence[float]]) -> list[float]:
            # F is taken twice a round.
            bare = np.reshape(seconds["F"], (-1, 2)).mean(1)
            together = np.sum([seconds[name] for name in names], axis=0)
            return (together / bare / per).tolist()

        note = f"processor {np.median(ratios(self.process)):.2f} F"
        return of_values(title, ratios(self.wall), "F", goal=goal, note=note)


def measure(rounds: int) -> Sequence[Figure]:
    figures: list[Figure] = []
    # Analyze itself measures 32 samples at least; here a quarter is a quarter.
    measuring.LEAST_SAMPLES = 1
    for network, samples in SAMPLES.items():
        figures += local_errors(network, samples, rounds)
        figures += network_effects(network, rounds)
    if torch.cuda.is_available():
        for network in SAMPLES:
            figures += on_device(network, 256, rounds, "cuda")
    return figures + memory_of("mobilenet_v2") + resuming("mobilenet_v2")


@contextmanager
def session_of(network: str, samples: int, settings: Sequence[str] = ()) -> Iterator[Session]:
    with tempfile.TemporaryDirectory() as folder, open_run(Path(folder) / "run") as run_folder:
        yield open_session(network, samples, settings, run_folder)


def open_session(
    network: str, samples: int, settings: Sequence[str], run_folder: RunFolder
) -> Session:
    settings = [f"data.calibration.args.samples={samples}", "data.batch_size=16", *settings]
    return Session(load_recipe(HERE / f"{network}.yaml", settings), run_folder)


class Stages:
    """The stages of an analysis up to the local errors, one after the other, each timed alone."""

    def __init__(self, session: Session) -> None:
        self.session, self.clock = session, of_analysis.Clock()
        plan = make_plan(session.loaded, session.layers)
        samples = session.calibration.samples
        self.questions = ask_all(session.layers, plan, session.recipe.analyze, samples)
        self.subject = of_analysis.open_subject(session, self.questions)
        self.seen: Statistics | None = None

    def statistics(self) -> None:
        self.seen = gather(self.session, self.questions, self.subject, self.seen, self.clock)

    def ranges(self) -> None:
        self.found = find_ranges(self.questions, self.subject.analyst, self.seen, None)

    def tried(self) -> None:
        self.network = round_all(self.questions, self.subject.analyst.held, self.found.amax)

    def local(self) -> None:
        exact, seed = self.session.recipe.analyze.exact, self.session.recipe.data.seed
        drawn = measuring.draw(self.subject.data.samples, exact, seed)
        measuring.local_errors(self.subject, self.network, drawn, self.clock)

    def effects(self, **wanted: Sequence) -> None:
        task = measuring.effects_task(self.subject, self.network, **wanted)
        measuring.measure_effects(task, self.clock)

    def rounded(self) -> Stages:
        """Itself, behind the stages that the passes need."""
        self.statistics()
        self.ranges()
        self.tried()
        return self


def fresh(session: Session) -> Stages:
    """An analysis that finds nothing kept but the traced layers."""
    shutil.rmtree(session.run.path / "analysis", ignore_errors=True)
    for path in session.run.cache.glob("statistics-*"):
        path.unlink()
    return Stages(session)


def bare(stages: Stages) -> None:
    subject = stages.subject
    for batch in subject.batches(np.arange(subject.data.samples)):
        subject.forward(batch)


def local_errors(network: str, samples: int, rounds: int) -> list[Figure]:
    four, grid, naive = Clock(), Clock(), Clock()
    with (
        session_of(network, samples, FOUR) as session,
        session_of(network, samples, [*FOUR, "analyze.exact=true"]) as exact,
        session_of(network, samples) as default,
    ):
        loop = naive_loop(session)
        bare(fresh(session))
        for _ in range(rounds):
            with four.lap("F"):
                bare(stages := fresh(session))
            stage_by_stage(four, stages)
            complete = fresh(exact)
            complete.seen = stages.seen
            complete.rounded()
            with four.lap("exact"):
                complete.local()
            loop(naive)
            with four.lap("F"):
                bare(stages)
            with grid.lap("F"):
                bare(stages)
            stage_by_stage(grid, fresh(default))
            with grid.lap("F"):
                bare(stages)
        settings = [settings_of(Stages(each)) for each in (session, default)]
        layers = len(stages.questions.layers)
    naive.wall["F"], naive.process["F"] = four.wall["F"], four.process["F"]
    c, many = settings
    figures = [
        of_values(f"{network}: F", four.wall["F"], "s", note=f"{layers} layers, {samples} samples"),
        four.times_f(f"{network}: exact, C = {c}", "exact", goal=1 + 3.3 * c),
        four.times_f("  with the pass for ranges", "statistics", "ranges", "tried", "exact"),
        four.times_f(f"{network}: a quarter, C = {c}", "local"),
        four.times_f(
            "  with the pass for ranges", "statistics", "ranges", "tried", "local",
            goal=2 + 0.6 * c,
        ),
        naive.times_f(
            f"{network}: naive loop, C = {c}", "naive", per=3 / layers / c
        ),
        grid.times_f(
            f"{network}: default settings, C = {many}", "statistics", "ranges", "tried", "local",
            goal=2 + 0.6 * many,
        ),
    ]  # fmt: skip
    names = {
        "statistics": "ranges and histograms",
        "ranges": "calibrators",
        "tried": "rounded weights",
        "local": "local errors",
    }
    return figures + [grid.times_f(f"  of it {said}", name) for name, said in names.items()]


def stage_by_stage(clock: Clock, stages: Stages) -> None:
    for stage in ("statistics", "ranges", "tried", "local"):
        with clock.lap(stage):
            getattr(stages, stage)()


def settings_of(stages: Stages) -> int:
    """C, of the layers for which most is tried."""
    return max(len(each.weights) + len(each.inputs) for each in stages.questions.layers) - 1


def naive_loop(session: Session) -> Callable[[Clock], None]:
    """Runs the network under modelopt's context manager for three layers: the first, the middle
    and the last one that is asked about, taking the energy of the layer's output."""
    # Not at the top: the processes whose memory is measured do without modelopt, as analyze does.
    import modelopt.torch.quantization as mtq

    stages = Stages(session)
    none = {"quant_cfg": [{"quantizer_name": "*", "enable": False}], "algorithm": None}
    model = mtq.quantize(copy.deepcopy(session.network.module()), none)
    names = [each.layer.name for each in stages.questions.layers]
    names = [names[0], names[len(names) // 2], names[-1]]

    def one(name: str) -> None:
        per_channel = {"num_bits": 8, "axis": 0}
        config = [{"quantizer_name": f"{name}.weight_quantizer", "cfg": per_channel}]
        seen: list[torch.Tensor] = []
        hook = model.get_submodule(name).register_forward_hook(
            lambda m, args, out: seen.append(out)
        )
        with mtq.set_quantizer_by_cfg_context(model, config):
            for batch in stages.subject.batches(np.arange(session.analysis.samples)):
                forward(model, session.network.tensors(batch))
                seen.pop().square().sum()
        hook.remove()

    def loop(clock: Clock) -> None:
        with clock.lap("naive"):
            for name in names:
                one(name)

    return loop


def network_effects(network: str, rounds: int) -> list[Figure]:
    """Alone and all but one, of the top layers in each round; alone, of all of them in one."""
    clock, whole = Clock(), Clock()
    with session_of(network, SAMPLES[network], FOUR) as session:
        stages = fresh(session).rounded()
        start = list(stages.network.start().items())
        top = [start[at] for at in np.linspace(0, len(start) - 1, TOP).round().astype(int)]
        bare(stages)

        def timed(clock: Clock, **wanted: Sequence) -> None:
            shutil.rmtree(session.run.path / "analysis", ignore_errors=True)
            with clock.lap("F"):
                bare(stages)
            for what, each in wanted.items():
                with clock.lap(what):
                    stages.effects(**{what: each})
            with clock.lap("F"):
                bare(stages)

        for _ in range(rounds):
            timed(clock, alone=top, restored=[name for name, _ in top])
        timed(whole, alone=start)
    k, every = len(top), len(start)
    return [
        clock.times_f(f"{network}: effect alone, per layer of {k}", "alone", per=k, goal=0.8),
        clock.times_f("  all but one", "restored", per=k, goal=0.8),
        whole.times_f(f"  alone, per layer of all {every}", "alone", per=every, goal=0.8),
    ]


def on_device(network: str, samples: int, rounds: int, device: str) -> list[Figure]:
    """The passes alone, on data that are on the device."""
    clock = Clock()
    with session_of(network, samples, [*FOUR, f"device={device}", "data.batch_size=64"]) as session:
        stages = fresh(session).rounded()
        batches = [session.network.tensors(batch) for batch in session.analysis]
        local = LocalErrors(
            stages.subject.analyst.model,
            list(stages.network.tried.values()),
            frozenset(key for t in stages.network.tried.values() for key in t.figures()),
        )
        network_ = stages.network
        top = dict(list(network_.start().items())[:TOP])
        alone = {alone_name(network_, *each): each for each in top.items()}
        restored = {restored_name(network_, name): name for name in top}
        effects = Effects(
            stages.subject.analyst.model,
            Wanted(network_, {}, alone, restored, None),
            session.network.tensors(session.example),
            lambda found: {name: t.cpu().numpy() for name, t in flatten_outputs(found).items()},
        )

        @contextmanager
        def lap(name: str) -> Iterator[None]:
            with clock.lap(name):
                yield
                if device == "cuda":
                    torch.cuda.synchronize()

        def passes() -> None:
            with lap("F"):
                for batch in batches:
                    forward(stages.subject.analyst.model, batch)
            with lap("exact"):
                for batch in batches:
                    local.run(
                        lambda: forward(stages.subject.analyst.model, batch),
                        len(batch["pixel_values"]),
                    )
            for what, names in (("alone", alone), ("restored", restored)):
                with lap(what):
                    for batch in batches:
                        effects.run(batch, None, frozenset(names))
            with lap("F"):
                for batch in batches:
                    forward(stages.subject.analyst.model, batch)

        passes()
        for seconds in (clock.wall, clock.process):
            seconds.clear()
        for _ in range(rounds):
            passes()
        c, k = settings_of(stages), len(top)
    speed = [samples / seconds for seconds in clock.wall["F"]]
    exact = [samples / seconds for seconds in clock.wall["exact"]]
    return [
        of_values(f"{network}, {device}: F", speed, "images/s", note=f"{samples} samples resident"),
        of_values(f"{network}, {device}: exact, C = {c}", exact, "images/s"),
        clock.times_f(f"{network}, {device}: exact, C = {c}", "exact", goal=1 + 3.3 * c),
        clock.times_f("  effect alone, per layer", "alone", per=k, goal=0.8),
        clock.times_f("  all but one, per layer", "restored", per=k, goal=0.8),
    ]


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


if __name__ == "__main__":
    if sys.argv[1:2] == ["--memory"]:
        memory_child(*sys.argv[2:])
    elif sys.argv[1:2] == ["--local"]:
        local_child(*sys.argv[2:])
    else:
        main(__doc__, measure, rounds=3)
