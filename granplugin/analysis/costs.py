"""What engines promise for a layer's setting, and what it costs there, measured on built engines.

A setting is a layer's weight row and input row. Settings of different layers stand in one plan of
the whole network, and a cost is what a really built engine of that plan has for the layer: so with
the other layers in the same plan's settings. Kernels do not depend on ranges, so plans that differ
in calibrators alone are built once.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from granplugin import backends
from granplugin.analysis.kernel_owners import NO_LAYER, owners_of
from granplugin.backends.engine_plan import EnginePlan, Moved
from granplugin.backends.gpu import gpu
from granplugin.calibration.statistics import Statistics
from granplugin.capabilities import KINDS, Promise
from granplugin.capabilities.legality import decide, targets_of
from granplugin.engines import ENGINES
from granplugin.errors import EngineError, ModelError
from granplugin.graph.read.graph import layer_of, read
from granplugin.planning.rows import Plan, Row
from granplugin.planning.sharing import following, tensors_of
from granplugin.progress import track
from granplugin.quant.calibrators import Calibrator
from granplugin.quant.layers import Layer
from granplugin.quant.site import MULTIPLIED
from granplugin.recipe.loaded import Loaded
from granplugin.recipe.schema import Recipe, StatisticsSpec
from granplugin.results.values import Job
from granplugin.runs.build_options import options_of
from granplugin.runs.calibrated import Calibrated
from granplugin.runs.session import Session
from granplugin.runs.variants import variant_task
from granplugin.store.keys import content_key, file_key
from granplugin.store.maker import made_by

log = logging.getLogger(__name__)

Setting = tuple[Row, Row]
"""A layer's weight row and input row."""
_SCALE_BYTES = 4
"""A scale is stored in float32, whatever the precision of the graph."""
_WAYS = ("lower", "simulate")
"""What is made of rows that an engine does not have, so that every plan can be built."""


@dataclass(frozen=True)
class Cost:
    """One layer in one plan on one engine.

    `promise` is the worst of its weight's and its input's (None: nothing is quantized, or nothing
    known of the engine), `reason` says why. `scales` counts those stored for both, of `scale_bytes`
    bytes. `kernels` are those of the built engine that work for the layer, `moved` the bytes that
    they read and write for one batch of data.batch_size samples; None where that was not measured,
    and `note` then says why. `note` also says where an engine was built of something else than the
    plain row.
    """

    promise: str | None
    reason: str
    scales: int
    scale_bytes: int
    kernels: int | None = None
    moved: Moved | None = None
    note: str | None = None

    @property
    def mb(self) -> float | None:
        """All that is moved, in MB (1e6 bytes); None where it is not known."""
        total = self.moved.total if self.moved else None
        return None if total is None else total / 1e6


@dataclass(frozen=True)
class _Built:
    """What an engine has for each layer, NO_LAYER included: kernels, and what they move, as Moved
    has it. `elsewhere` has the layers whose product is in a kernel of
    another layer, or of none that is told (NO_LAYER); `made` what was made of sites that the engine
    does not have."""

    kernels: Mapping[str, int]
    moved: Mapping[str, Sequence[int | None]]
    elsewhere: Mapping[str, str]
    made: Mapping[str, str]


def named_engines(recipe: Recipe) -> list[str]:
    """The recipe's engines and optional engines, installed or not."""
    return list(dict.fromkeys([*recipe.engines, *recipe.optional_engines]))


def setting_costs(
    session: Session,
    base: Plan,
    settings: Mapping[str, Sequence[Setting]],
    float_onnx: Path,
    statistics: Statistics | None = None,
    engines: Sequence[str] | None = None,
) -> dict[str, list[dict[str, Cost]]]:
    """Layer -> for each of its settings, in their order, engine -> cost; what `settings` does not
    name is as in `base`. As many engines are built as a layer has settings that differ in more than
    calibrators; the rest as `costs`."""
    firsts: dict[str, dict[tuple[Any, ...], Setting]] = {name: {} for name in settings}
    for name, each in settings.items():
        for setting in each:
            firsts[name].setdefault(_kind(setting), setting)
    distinct = {name: list(kinds.values()) for name, kinds in firsts.items()}
    plans = {str(j): plan for j, plan in enumerate(whole_plans(base, session.layers, distinct))}
    found = costs(session, plans, float_onnx, statistics, engines)
    return {
        name: [found[str(list(firsts[name]).index(_kind(setting))), name] for setting in each]
        for name, each in settings.items()
    }


def _kind(setting: Setting) -> tuple[Any, ...]:
    """What kernels depend on."""
    return setting[0].bn, *(row.form for row in setting)


def whole_plans(
    base: Plan, layers: Sequence[Layer], settings: Mapping[str, Sequence[Setting]]
) -> list[Plan]:
    """As few plans of the whole network as have every setting: plan j has each layer's j-th, or its
    last where it has fewer; other layers are as in `base`."""
    asked = {name: each for name, each in settings.items() if each}
    return [
        _with(base, layers, {name: each[min(j, len(each) - 1)] for name, each in asked.items()})
        for j in range(max(map(len, asked.values()), default=0))
    ]


def _with(base: Plan, layers: Sequence[Layer], chosen: Mapping[str, Setting]) -> Plan:
    sites = {row.site: row for pair in chosen.values() for row in pair}
    rows = [
        replace(
            sites.get(row.site, row), bn=chosen[row.layer][0].bn if row.layer in chosen else row.bn
        )
        for row in base.rows
    ]
    return Plan(tuple(following(rows, base.rows)))


def promises(
    session: Session, plans: Mapping[str, Plan], engines: Sequence[str] | None = None
) -> dict[str, dict[str, Mapping[str, Promise]]]:
    """Plan -> engine -> site -> promise, for rows as they are. `engines` (None: all that the recipe
    names) need not be installed: an engine that is not is taken in its newest known version."""
    recipe, engines = session.recipe, engines or named_engines(session.recipe)
    return {
        name: {
            engine: written.promises
            for engine, written in decide(
                plan, session.layers, engines, None, recipe.precision, targets_of(recipe)
            ).items()
        }
        for name, plan in plans.items()
    }


def costs(
    session: Session,
    plans: Mapping[str, Plan],
    float_onnx: Path,
    statistics: Statistics | None = None,
    engines: Sequence[str] | None = None,
) -> dict[tuple[str, str], dict[str, Cost]]:
    """(plan, layer) -> engine -> cost, for all layers of the model and NO_LAYER: summed over them,
    kernels and MB are the whole engine's.

    `float_onnx` is that of runs.calibrated. `statistics` say how large the inputs of layers are;
    what they do not have counts as 1. Built is what is installed and tells its kernels; what an
    engine has is kept in the run folder by content. An engine that cannot be built has costs that
    are not known, with the reason.
    """
    engines = list(named_engines(session.recipe) if engines is None else engines)
    promised = promises(session, plans, engines)
    built = _build_all(session, plans, float_onnx, statistics, engines)
    found: dict[tuple[str, str], dict[str, Cost]] = {}
    for name, plan in plans.items():
        of_layer: dict[str, list[Row]] = {layer.name: [] for layer in session.layers}
        of_layer[NO_LAYER] = []
        for row in plan.rows:
            of_layer[row.layer].append(row)
        for layer, rows in of_layer.items():
            found[name, layer] = {
                engine: _cost(layer, rows, promised[name][engine], built[name, engine])
                for engine in engines
            }
    return found


def _cost(
    layer: str, rows: Sequence[Row], promised: Mapping[str, Promise], built: _Built | str
) -> Cost:
    multiplied = [row for row in rows if row.operand in MULTIPLIED and row.quantized]
    told = [promised[row.site] for row in multiplied if row.site in promised]
    worst = max(told, key=lambda promise: KINDS.index(promise.kind), default=None)
    scales = sum(row.scales for row in multiplied if not row.dynamic)
    cost = Cost(
        worst.kind if worst else None, worst.reason if worst else "", scales, scales * _SCALE_BYTES
    )
    if isinstance(built, str):
        return replace(cost, note=built)
    if worst is not None and worst.kind == "refused":
        return replace(cost, note="not measured: it is refused")
    other = built.elsewhere.get(layer)
    if other == NO_LAYER:
        return replace(cost, note="not measured: the engine's plan does not tell its kernels")
    moved = Moved(*built.moved.get(layer, ()))
    made = sorted({built.made[row.site] for row in multiplied if row.site in built.made})
    notes = [f"measured as {how}" for how in made]
    if other:
        notes.append(f"its product is in a kernel of {other!r}, and counts there")
    if moved.total is None:
        notes.append("the engine does not tell the size of every tensor")
    return replace(
        cost,
        kernels=built.kernels.get(layer, 0),
        moved=moved,
        note="; ".join(notes) or None,
    )


def _build_all(
    session: Session,
    plans: Mapping[str, Plan],
    float_onnx: Path,
    statistics: Statistics | None,
    engines: Sequence[str],
) -> dict[tuple[str, str], _Built | str]:
    """(plan, engine) -> what was built, or why nothing was."""
    found: dict[tuple[str, str], _Built | str] = {}
    buildable = []
    for engine in engines:
        reason = backends.backend_of(engine).unavailable()
        if ENGINES[engine].tells_plan and reason is None:
            buildable.append(engine)
        else:
            told = reason or f"{engine} does not tell its kernels"
            found |= {(name, engine): f"not measured: {told}" for name in plans}
    known: dict[str, _Built | str] = {}
    work = [(name, engine) for name in plans for engine in buildable]
    float_key = file_key(float_onnx) if work else ""
    names = [f"{name} on {engine}" for name, engine in work]
    for name, engine in track(work, "building engines for costs", names=names):
        plan = _pinned(plans[name], session.layers, statistics)
        key = _key(session, plan, engine, float_key)
        if key not in known:
            known[key] = _build(session, plan, engine, float_onnx, key)
        found[name, engine] = known[key]
    return found


def _pinned(plan: Plan, layers: Sequence[Layer], statistics: Statistics | None) -> Plan:
    """The plan with ranges that need no data: weights' of max, others pinned to the largest value
    seen. Rows of one tensor that have one Q/DQ by their calibrators have one range, and those that
    have two have two."""
    tensors = tensors_of(layers)
    largest: dict[object, float] = {}
    for need, amax in (statistics.amax if statistics else {}).items():
        at = tensors.get(need.site, need.site)
        largest[at] = max(largest.get(at, 0.0), float(amax.max()))
    said: dict[object, list[tuple[Any, ...]]] = {}
    rows = []
    for row in plan.rows:
        row = replace(row, rule="analyze", on_unsupported=None)
        if row.quantized and not row.dynamic:
            pinned: float | None = None
            if not row.at.constant:
                at = tensors.get(row.observed, row.observed)
                ways = said.setdefault(at, [])
                if (row.calibrator, row.amax) not in ways:
                    ways.append((row.calibrator, row.amax))
                pinned = largest.get(at, 1.0) / 2 ** ways.index((row.calibrator, row.amax))
            row = replace(row, calibrator=Calibrator(), amax=pinned)
        rows.append(row)
    return Plan(tuple(rows))


def _key(session: Session, plan: Plan, engine: str, float_key: str) -> str:
    recipe = session.recipe
    rows = [
        [row.site, row.bn, *row.form, *((row.amax, row.share) if row.quantized else ())]
        for row in plan.rows
    ]
    build = recipe.build.model_dump(mode="json", exclude={"seconds", "memory_mb", "shapes"})
    return content_key(
        float_key, rows, engine, backends.backend_of(engine).version(), gpu(), build, recipe.precision,
        recipe.data.batch_size, session.calibration.key(),
        made_by("granplugin.analysis.costs", type(backends.backend_of(engine)).__module__),
    )  # fmt: skip


def _build(session: Session, plan: Plan, engine: str, float_onnx: Path, key: str) -> _Built | str:
    recipe, module = session.recipe, backends.backend_of(engine)
    written = decide(plan, session.layers, [engine], _WAYS, recipe.precision, targets_of(recipe))
    # Ranges of the recipe's file are for its own rows.
    bare = recipe.model_copy(update={"statistics": StatisticsSpec()})
    loaded = Loaded(bare, session.loaded.document, session.loaded.path)
    job = Job("analysis", "variant", loaded, plan, recipe.precision, written)

    def build() -> dict[str, Any]:
        calibrated = Calibrated(float_onnx, None, {})
        built = variant_task(session, job, calibrated, [engine]).run(session.run.kept)
        # Only where every size is fixed does the plan say how large tensors are.
        options = options_of(recipe, session.input_sizes, built, module, fixed=True)
        file = built.file(engine).path
        with TemporaryDirectory(dir=session.run.cache, prefix=".making-") as folder:
            try:
                told = module.engine_plan(module.build(file, Path(folder) / "engine", options))
            except EngineError as err:
                raise EngineError(str(err).replace(file.name, "it")) from err
        assert told is not None, "only engines that tell their plan are built"
        products = {product.node.name: layer_of(product.node) for product in read(file).products}
        return {**_by_layer(told, products, session.layers), "made": dict(written[engine].made)}

    try:
        return _Built(**session.run.kept.made_json("cost", key, build))
    except (EngineError, ModelError) as err:
        log.warning("costs on %s are not known: %s", engine, err)
        return f"not measured: {err}"


def _by_layer(
    plan: EnginePlan, products: Mapping[str, str], layers: Sequence[Layer]
) -> dict[str, dict[str, Any]]:
    """Kernels, and the bytes they move, by layer; `products` are the nodes that multiply, each with
    the module it is of."""
    owners, elsewhere = owners_of(plan, products, layers)
    kernels: dict[str, int] = dict.fromkeys(owners, 0)
    moved = dict.fromkeys(owners, Moved())
    for owner, each in zip(owners, plan.moved_by, strict=True):
        kernels[owner] += 1
        moved[owner] += each
    told = {owner: astuple(of) for owner, of in moved.items()}
    return {"kernels": kernels, "moved": told, "elsewhere": elsewhere}
