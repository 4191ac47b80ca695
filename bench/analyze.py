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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from analysis_processes import memory_of, resuming
from analysis_stages import (
    FOUR,
    Clock,
    Stages,
    bare,
    fresh,
    session_of,
    settings_of,
    stage_by_stage,
)
from measure import Figure, main, of_values, torch_network

from granplugin.analysis import measuring
from granplugin.analysis.effects import Wanted, alone_name, restored_name
from granplugin.analysis.local import LocalErrors
from granplugin.analysis.replayed import Effects, References
from granplugin.analysis.rounded import run as forward
from granplugin.network.forward import flatten_outputs
from granplugin.runs.session import Session

SAMPLES = {"mobilenet_v2": 32, "resnet_50": 16}
TOP = 15


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


def naive_loop(session: Session) -> Callable[[Clock], None]:
    """Runs the network under modelopt's context manager for three layers: the first, the middle
    and the last one that is asked about, taking the energy of the layer's output."""
    # Not at the top: the processes whose memory is measured do without modelopt, as analyze does.
    import modelopt.torch.quantization as mtq

    stages = Stages(session)
    none = {"quant_cfg": [{"quantizer_name": "*", "enable": False}], "algorithm": None}
    model = mtq.quantize(copy.deepcopy(torch_network(session).module()), none)
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
                forward(model, torch_network(session).tensors(batch))
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
        batches = [torch_network(session).tensors(batch) for batch in session.analysis]
        local = LocalErrors(
            stages.analyst.model,
            list(stages.network.tried.values()),
            frozenset(key for t in stages.network.tried.values() for key in t.figures()),
        )
        network_ = stages.network
        top = dict(list(network_.start().items())[:TOP])
        alone = {alone_name(network_, *each): each for each in top.items()}
        restored = {restored_name(network_, name): name for name in top}
        effects = Effects(
            stages.analyst.model,
            Wanted(network_, {}, alone, restored, None),
            torch_network(session).tensors(session.example),
            lambda found: {name: t.cpu().numpy() for name, t in flatten_outputs(found).items()},
            References(),
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
                    forward(stages.analyst.model, batch)
            with lap("exact"):
                for batch in batches:
                    local.run(
                        lambda: forward(stages.analyst.model, batch),
                        len(batch["pixel_values"]),
                    )
            for what, names in (("alone", alone), ("restored", restored)):
                with lap(what):
                    for batch in batches:
                        effects.run(batch, None, frozenset(names))
            with lap("F"):
                for batch in batches:
                    forward(stages.analyst.model, batch)

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


if __name__ == "__main__":
    main(__doc__, measure, rounds=3)
