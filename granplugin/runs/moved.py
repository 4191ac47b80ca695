"""The float network of a run with the weights that its rules' algorithms chose."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from safetensors.numpy import load_file, save_file

from granplugin.errors import ModelError
from granplugin.planning.moving import rows_of
from granplugin.planning.plan import make_plan
from granplugin.planning.rows import Moved, Plan, QuantizedRow
from granplugin.progress import stage
from granplugin.recipe.algorithms import SVDQUANT, Algorithm
from granplugin.store.keys import content_key
from granplugin.store.maker import made_by
from granplugin.words import counted, first

if TYPE_CHECKING:
    from granplugin.runs.session import Session
    from granplugin.sources.torch_network import TorchNetwork

MovedWeights = dict[str, dict[str, np.ndarray]]
"""Linear layer -> the tensors of a Change of it, by name."""
_CLOSE = 1e-4
"""Of the largest output: what float32 sums in another order may differ by."""


def moved(plain: Session) -> TorchNetwork:
    """The network of a session as it was given, with what the recipe's algorithms change.

    What they choose is found once, on the calibration data, and kept in the run folder. Raises
    RecipeError for layers that they do not fit, ModelError, at the rule's line, where an algorithm
    changes nothing or the float network's outputs.
    """
    network = cast("TorchNetwork", plain.network)
    plan = make_plan(plain.loaded, plain.layers)
    if not plan.moved:
        return network
    told = [(each.layer, each.algorithm.told) for each in plan.moved]
    forms = [(row.site, *row.form, row.amax) for row in _rows(plan, plan.moved)]
    maker = made_by(__name__, "granplugin.modelopt_bridge.algorithms", libraries=network.libraries)
    key = content_key(plain.statistics_key, told, forms, maker)
    notes = list(_notes(plan.moved))

    def find(path: Path) -> None:
        found: MovedWeights = {}
        for algorithm, asked in _by_algorithm(plan.moved):
            where = asked[0].where
            try:
                batches = partial(plain.calibrating, f"running {algorithm}")
                own = network.moved(_rows(plan, asked), algorithm, batches)
                if missed := [each.layer for each in asked if each.layer not in own]:
                    raise ModelError(f"modelopt changed nothing in {first(missed)}")
                with stage(f"comparing the float network with the weights of {algorithm}"):
                    changed = network.with_moved(own, key, ())
                    check_same(
                        f"the weights of {algorithm}",
                        network.outputs(plain.example),
                        changed.outputs(plain.example),
                    )
            except ModelError as err:
                raise ModelError(f"{where}: {algorithm}: {err}") from err
            found |= own
        save_file(
            {f"{name}.{part}": np.ascontiguousarray(array)
             for name, parts in found.items()
             for part, array in parts.items()},
            path,
        )  # fmt: skip

    kept = load_file(plain.run.kept.made("moved", key, ".safetensors", find))
    found: MovedWeights = {each.layer: {} for each in plan.moved}
    for name, array in kept.items():
        layer, _, part = name.rpartition(".")
        found[layer][part] = array
    return network.with_moved(found, key, notes)


def check_same(
    what: str, before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]
) -> None:
    """ModelError where outputs of the float network, by name, are not what they were before."""
    for name, values in before.items():
        largest = float(np.abs(values).max(initial=0))
        off = float(np.abs(after[name] - values).max(initial=0))
        if not off <= _CLOSE * largest:
            raise ModelError(
                f"with {what} output {name!r} of the float network differs by {off:.3g} of "
                f"{largest:.3g}; it is run in float32 alone"
            )


def _by_algorithm(asked: Sequence[Moved]) -> list[tuple[Algorithm, list[Moved]]]:
    found: dict[Algorithm, list[Moved]] = {}
    for each in asked:
        found.setdefault(each.algorithm, []).append(each)
    return list(found.items())


def _rows(plan: Plan, asked: Sequence[Moved]) -> list[QuantizedRow]:
    return rows_of({each.layer for each in asked}, plan.quantized)


def _notes(asked: Sequence[Moved]) -> Iterator[str]:
    for algorithm, own in _by_algorithm(asked):
        names = [each.layer for each in own]
        branch = ", with a float branch of low rank" if algorithm.method == SVDQUANT else ""
        yield (
            f"{algorithm} changed the weights of {counted(names, 'layer')} and scales their inputs"
            f"{branch}: {first(names)} ({own[0].rule}); baselines and variants are of this network, whose "
            "float outputs are the same"
        )
