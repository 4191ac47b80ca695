"""Before calibration: what each engine promises for each row, and what is made of the rest.

Of a row that a targeted engine does not have, the first that can be done of `on_unsupported` is
done, in that engine's file alone: lower (exactly, from what it has), coarsen (the finest coarser
granularity it has), simulate (float arithmetic) or float (not quantized).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from types import MappingProxyType

from granplugin import backends, capabilities
from granplugin.backends.gpu import gpu
from granplugin.capabilities import Book, Promise
from granplugin.engines import ENGINES, taking
from granplugin.errors import RecipeError
from granplugin.graph.methods import How
from granplugin.planning.rows import Plan, QuantizedRow, Row, as_float
from granplugin.planning.sharing import shared_skips
from granplugin.quant.formats import FORMATS
from granplugin.quant.granularity import PerTensor, coarser
from granplugin.quant.layers import PRODUCTS, Layer
from granplugin.quant.site import MULTIPLIED
from granplugin.recipe.presets import PRESETS
from granplugin.recipe.schema import Recipe
from granplugin.recipe.settings import FLOAT

LEFT_FLOAT = "left float"
COMPUTED_WRONGLY = "left float: computed wrongly"
"""What is made of a row that an engine, compared with the reference, does not compute rightly."""
_IN_FLOAT = ("simulated", LEFT_FLOAT)


@dataclass(frozen=True)
class Written:
    """A plan as it is written for one engine.

    `rows` are the plan's, but for those coarsened or left float; `how` is as graph.qdq.insert takes
    it; `made` says in words what was made of a site; `promises` are the engine's for `rows`.
    """

    rows: tuple[Row, ...]
    how: Mapping[str, How] = field(default_factory=dict)
    made: Mapping[str, str] = field(default_factory=dict)
    promises: Mapping[str, Promise] = field(default_factory=dict)


def engines_of(recipe: Recipe) -> list[str]:
    """The recipe's engines, with the optional ones that are installed."""
    optional = [
        name for name in recipe.optional_engines if not backends.backend_of(name).unavailable()
    ]
    return [*recipe.engines, *(name for name in optional if name not in recipe.engines)]


def forms_of(engine: str) -> tuple[str, ...]:
    """The equal forms that an engine's files are written in where they ask for them, by the table
    of its version."""
    if engine not in capabilities.backends():
        return ()
    return capabilities.load_table(engine, _version(engine)).forms


def _version(engine: str) -> str | None:
    module = backends.backend_of(engine)
    return None if module.unavailable() else module.version()


def targets_of(recipe: Recipe) -> dict[str, tuple[str, ...]]:
    """Engine -> the compute capabilities it is built for, where that is known."""
    found = {name: tuple(recipe.build.targets) for name in taking("targets")}
    for name in engines_of(recipe):
        if ENGINES[name].builds_for == "this gpu" and (here := gpu()):
            found[name] = (here.target,)
    return found


def decide(
    plan: Plan,
    layers: Sequence[Layer],
    engines: Sequence[str],
    on_unsupported: Sequence[str] | None,
    precision: str = "fp32",
    targets: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
) -> dict[str, Written]:
    """Engine -> what is written for it; `precision` is that of the rest of the graph, `targets`
    are those of `targets_of`.

    `on_unsupported` holds for rows of which no rule says another; with None, as for a baseline,
    every row is written as it is. Raises RecipeError, at the deciding rule's line, for the first
    row of which nothing can be made.
    """
    by_name = {layer.name: layer for layer in layers}
    shared = shared_skips(plan.rows)
    found = {}
    for engine in engines:
        if engine not in capabilities.backends():
            found[engine] = Written(plan.rows)
            continue
        graph = precision if precision in ENGINES[engine].precisions else "fp32"
        book = Book(
            capabilities.load_table(engine, _version(engine)),
            graph,
            targets.get(engine, ()),
            shared,
        )
        default = on_unsupported if ENGINES[engine].targeted else None
        rows: list[Row] = []
        how: dict[str, How] = {}
        made: dict[str, str] = {}
        promises: dict[str, Promise] = {}
        for name, group in groupby(plan.rows, lambda row: row.layer):
            of_layer = _Decision(engine, book, by_name[name], tuple(group))
            if default is not None:
                of_layer.decide(default)
            rows += of_layer.rows
            how |= of_layer.how
            made |= of_layer.made
            promises |= of_layer.promises
        found[engine] = Written(tuple(rows), how, made, promises)
    return found


class _Decision:
    """One layer's rows for one engine."""

    def __init__(self, engine: str, book: Book, layer: Layer, rows: tuple[Row, ...]) -> None:
        self.engine, self.book, self.layer = engine, book, layer
        self.planned = self.rows = rows
        self.how: dict[str, How] = {}
        self.made: dict[str, str] = {}
        self.plain = self.promises = self._promised(rows)

    def decide(self, default: Sequence[str]) -> None:
        """Make something of each row that the engine does not have; RecipeError where it cannot.

        One after another: what becomes of a layer's weight changes what its input needs.
        """
        while (row := self._next()) is not None:
            promise = self.promises[row.site]
            choices = row.on_unsupported or default
            if row.site in self.made or not any(self._make(c, row, promise) for c in choices):
                # What was coarsened has to be native beside its partner, too.
                raise RecipeError(self._refusal(row, self.plain[row.site]))

    def _next(self) -> QuantizedRow | None:
        for row in self.planned:
            promise = self.promises.get(row.site)
            made = self.made.get(row.site, "")
            if (
                promise is None
                or not row.quantized
                or promise.kind == "native"
                or promise.cause not in (None, row.operand)
            ):
                continue
            by_preset = row.rule in PRESETS and row.on_unsupported is None
            idle = row.operand == "skip" or row.type not in PRODUCTS
            if promise.kind == "simulated" and (idle or by_preset):
                # Nothing multiplies in residual adds, pools and norms; and what a preset alone
                # says of a layer is what the engine makes of it: the audit tells.
                continue
            if made == "" or made.startswith("coarsened"):
                return row
        return None

    def _make(self, choice: str, row: QuantizedRow, promise: Promise) -> bool:
        """Do this with the row, if it can be done."""
        if choice == "error":
            raise RecipeError(self._refusal(row, promise))
        if choice == "lower" and promise.kind == "lowered":
            self.made[row.site] = "lowered"
            if not row.dynamic:  # which is so in every file
                self.how[row.site] = "lower"
            return True
        if choice == "coarsen" and (coarse := self._coarser(row)) is not None:
            self.made[row.site] = f"coarsened to {coarse.granularity}"
            self._replace(coarse)
            written = [row for row in self.rows if self.made.get(row.site) not in _IN_FLOAT]
            self.promises = {**self.promises, **self._promised(written)}
            if self.promises[row.site].kind == "native":
                own = replace(self.promises[row.site], reason=promise.reason)
                self.promises[row.site] = own
            return True
        if choice == "simulate" or choice == FLOAT:
            for other in self._together(row):
                simulated = {other.site: replace(promise, kind="simulated")}
                self.promises = {**self.promises, **simulated}
                self.how.pop(other.site, None)
                if choice == "simulate":
                    self.how[other.site], self.made[other.site] = "simulate", "simulated"
                    self._replace(other)
                else:
                    self.made[other.site] = LEFT_FLOAT
                    self._replace(as_float(other))
            return True
        return False

    def _together(self, row: QuantizedRow) -> list[QuantizedRow]:
        """The rows that run in float with this one: its layer's weight and input, or it alone."""
        if row.operand not in MULTIPLIED:
            return [row]
        return [other for other in self.planned if other.quantized and other.operand in MULTIPLIED]

    def _coarser(self, row: QuantizedRow) -> QuantizedRow | None:
        """The row with the finest coarser granularity that the engine has, beside the plainest
        partner."""
        partners = [
            replace(other, format=row.format, granularity=PerTensor())
            for other in self._together(row)
            if other.site != row.site
        ]
        for coarse in coarser_rows(row):
            if self._promised([coarse, *partners])[row.site].kind == "native":
                return coarse
        return None

    def _promised(self, rows: Sequence[Row]) -> dict[str, Promise]:
        """Site -> promise for these rows of the layer."""
        of_roles = self.book.of_layer(self.layer, [row for row in rows if row.quantized])
        return {f"{self.layer.name}.{role}": promise for role, promise in of_roles.items()}

    def _replace(self, changed: Row) -> None:
        self.rows = tuple(changed if row.site == changed.site else row for row in self.rows)

    def _refusal(self, row: QuantizedRow, promise: Promise) -> str:
        ways_out = ["on_unsupported: simulate or float runs its layer in float"]
        if promise.kind == "lowered":
            ways_out = ["on_unsupported: lower writes it so"]
        elif (coarse := self._coarser(row)) is not None:
            ways_out.insert(0, f"on_unsupported: coarsen makes it {coarse.granularity}")
        return (
            f"{row.where}: {self.engine} does not have {row.format} {row.granularity} for the "
            f"{row.operand} of {row.layer!r}: {promise.reason}; {', '.join(ways_out)}"
        )


def coarser_rows(row: QuantizedRow) -> Iterator[QuantizedRow]:
    """The row with each coarser granularity, finest first, its scales constants.

    Scales of run time are of one sample, constant ones of all: there the same block is coarser.
    A format with blocks of its own has no coarser ones.
    """
    if FORMATS[row.format].block is not None:
        return
    for granularity in coarser(row.at, row.block):
        if granularity.block(row.at) != row.block or row.dynamic:
            note = f"coarsened from {row.granularity}"
            yield replace(row, granularity=granularity, note=note)
