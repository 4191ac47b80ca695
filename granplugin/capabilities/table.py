"""What an engine makes of Q/DQ, as data: ordered rules in one YAML file per backend and version.

The first rule whose every key matches a cell answers for it; a key that is not given matches
anything, and a list matches any of its words. `engine` is what the engine does with the plain
Q/DQ; `lowering` names how granplugin can write the same in what the engine has. A new fact is
one line above the rule that it corrects. `cases` are structures of several layers that an engine
computes wrongly though it has each of their products.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from granplugin.engines import PRECISIONS, TARGETS
from granplugin.errors import EngineError
from granplugin.suggest import did_you_mean

Op = Literal[
    "conv", "depthwise", "grouped", "transposed", "gemm", "linear", "matmul", "matmul_2d",
    "maxpool", "passive", "add", "add_shared", "activations", "embedding",
]  # fmt: skip
"""gemm: a Linear on rank 2; linear: one on rank 3 and more, a MatMul with a transposed weight;
matmul and matmul_2d: a MatMul with a weight stored as (in, out), on rank 3 and 2; passive: pools
other than maximum, norms and activations, which have no quantizable weight; add: the residual add
behind a layer, its `input` being the skip input and its `weight` that layer's, per_tensor or
per_channel (as with a batch norm kept); add_shared: one whose skip input a layer reads too, through
the same Q/DQ; activations: a MatMul of two activations, its `input` and its `other`; embedding: a
Gather of rows of a weight."""
ACTIVATIONS: Op = "activations"
LOOKUP: Op = "embedding"
CONVS: tuple[Op, ...] = ("conv", "depthwise", "grouped")

Scales = Literal[
    "float", "per_tensor", "per_tensor(1-D)",
    "per_channel", "per_channel(in)", "per_channel(kernel)",
    "per_batch", "per_token", "per_row", "per_position",
    "per_block(out)", "per_block(in)", "per_block(kernel)", "per_block(space)", "per_element",
    "reshaped", "per_tensor(dynamic)", "per_token(dynamic)",
]  # fmt: skip
"""One tensor's scales as the engine reads them.

float: not quantized; per_tensor(1-D): one scale written as a vector; per_channel: along a weight's
output channels or an input's channels, with (in) or (kernel) along another axis of a weight;
per_batch, per_token, per_position: along the batch, the rows or the spatial axes of an input;
per_row: each row of each sample; per_block: cut along the named axis - of an input, its channels
are (in) - and per element along the others; reshaped: an input whose scales differ along several
axes as granplugin writes it, reshaped so that they lie along one axis, and back;
per_tensor(dynamic), per_token(dynamic): of each sample, or of its rows, computed at run time.
"""
Formats = Literal["int8", "fp8", "int4", "nvfp4", "mxfp8", "mixed"]
Structure = Literal[
    "concatenation", "concatenation of quantized tensors", "dense connections",
    "split, sums, concatenation", "depthwise convolution, concatenation",
    "resizing, concatenation", "transposed convolution, concatenation", "resizing, sum", "gate",
    "gate of an inverted residual block", "gate of a convolution without bias",
    "convolution without bias read twice", "convolution without bias of one channel read twice",
    "convolution without bias, pooled and clipped",
    "convolution without bias, scaled and read twice",
    "convolution without bias, clipped on one of two ways",
    "residual sum", "channel shuffle", "maximum", "kept maximum", "minimum", "global maximum pool",
    "rectified maximum", "spatial gate", "mean", "sum", "norm", "padding", "pool and convolution of one tensor", "quantized twice",
    "several outputs", "normalization, linear layers", "attention",
]  # fmt: skip
"""What stands around products; the probe has one small network of each."""
Outcome = Literal["quantized", "fused-dequant", "float", "error", "miscompile", "undocumented"]
LOWERINGS = {
    "row_scale": "each row or sample is divided by its scale before an exact per_tensor product, "
    "and multiplied by it after",
    "fold": "the channels' scales are folded into the weights, which is exact here",
    "rescale": "the channels' scales are moved into the weights, which are quantized again",
}
"""Lowering -> what it does, for the user."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One case of the table: an op with the scales of its weight and input - or, of a product of
    two activations, whose weight is "none", of its input and the other one -, or of its output.

    `format` is that of all quantized tensors, mixed if they differ; `size` is a per_block
    weight's block size, or else a per_block input's; `graph` is the precision of what is not
    quantized; `targets` the compute capabilities built for, none for the engine's default. A
    weight that is not `stored` in its format is float in the file, with Q/DQ behind it.
    """

    op: str
    format: str
    weight: str = "float"
    input: str = "float"
    output: str = "float"
    size: int | None = None
    graph: str = "fp32"
    targets: tuple[str, ...] = ()
    stored: bool = True
    other: str = "float"


_Words = frozenset[str] | None


def _some(known: Collection[str] = ()) -> BeforeValidator:
    """One word or a list of them; where they are `known`, none but these."""

    def check(value: Any) -> Any:
        words = [value] if isinstance(value, (str, int)) else value
        if not isinstance(words, list):
            return words
        if len(set(map(str, words))) < max(len(words), 1):
            raise ValueError("a list of words is not empty and has each of them once")
        if unknown := [word for word in words if known and word not in known]:
            raise ValueError(f"{unknown[0]!r} is none of {', '.join(known)}")
        return frozenset(words)

    return BeforeValidator(check)


def _lowering(value: Any) -> Any:
    if value is not None and value not in LOWERINGS:
        raise ValueError(f"{value!r} is none of {', '.join(LOWERINGS)}")
    return value


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


Sentence = Annotated[str, Field(pattern=r"^[^\s].*[^\s.;]$")]
"""Text that can stand in the middle of a message: no full stop at its end."""


class TableRule(_Strict):
    """One line of the table: the keys down to `stored` say which cells, the others what is so."""

    op: Annotated[_Words, _some(get_args(Op))] = None
    format: Annotated[_Words, _some(get_args(Formats))] = None
    weight: Annotated[_Words, _some(get_args(Scales))] = None
    input: Annotated[_Words, _some(get_args(Scales))] = None
    other: Annotated[_Words, _some(get_args(Scales))] = None
    output: Annotated[_Words, _some(get_args(Scales))] = None
    size: Annotated[frozenset[int] | None, _some()] = None
    graph: Annotated[_Words, _some(PRECISIONS)] = None
    target: Annotated[_Words, _some(TARGETS)] = None
    stored: bool | None = None
    engine: Outcome
    lowering: Annotated[str | None, BeforeValidator(_lowering)] = None
    why: Sentence
    source: Sentence = ""

    @model_validator(mode="after")
    def _lowering_is_needed(self) -> TableRule:
        if self.lowering and self.engine == "quantized":
            raise ValueError("what the engine has needs no lowering")
        return self

    def matches(self, cell: Cell) -> bool:
        """Whether every key that is given holds."""
        return (
            (self.op is None or cell.op in self.op)
            and (self.format is None or cell.format in self.format)
            and (self.weight is None or cell.weight in self.weight)
            and (self.input is None or cell.input in self.input)
            and (self.other is None or cell.other in self.other)
            and (self.output is None or cell.output in self.output)
            and (self.size is None or cell.size in self.size)
            and (self.graph is None or cell.graph in self.graph)
            and (self.stored is None or cell.stored == self.stored)
            and (self.target is None or not self.target.isdisjoint(cell.targets))
        )


class Case(_Strict):
    """Structures that an engine does not compute rightly in the plain form, though it has each of
    their products; `form` names the equal one that it is given (graph.edit.forms), without which
    what it computes wrongly is left float once it is found."""

    structure: Annotated[frozenset[str], _some(get_args(Structure))]
    engine: Literal["miscompile", "error"]
    form: str | None = None
    why: Sentence
    source: Sentence = ""


class Faster(_Strict):
    """An equal form (graph.edit.forms) that an engine computes as rightly and sooner."""

    form: str
    why: Sentence
    source: Sentence = ""


class _File(_Strict):
    backend: str
    version: Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)*$")]
    source: Sentence
    rules: Annotated[list[TableRule], Field(min_length=1)]
    cases: list[Case] = []
    faster: list[Faster] = []

    @model_validator(mode="after")
    def _answers_everything(self) -> _File:
        last = self.rules[-1]
        if any(getattr(last, key) is not None for key in _KEYS):
            raise ValueError("the last rule must match everything")
        for earlier, rule in enumerate(self.rules[:-1], 1):
            if all(getattr(rule, key) is None for key in _KEYS):
                raise ValueError(f"rule {earlier} matches everything: no later one is ever used")
        return self


_KEYS = (
    "op",
    "format",
    "weight",
    "input",
    "other",
    "output",
    "size",
    "graph",
    "target",
    "stored",
)


@dataclass(frozen=True)
class Table:
    """The rules of one backend; `note` says when they are those of another version."""

    backend: str
    version: str
    rules: tuple[TableRule, ...]
    note: str | None = None
    cases: tuple[Case, ...] = ()
    faster: tuple[Faster, ...] = ()

    @property
    def forms(self) -> tuple[str, ...]:
        """The equal forms that the engine's files are written in where they ask for them."""
        repairs = (case.form for case in self.cases if case.form is not None)
        return tuple(dict.fromkeys([*(each.form for each in self.faster), *repairs]))

    def case(self, structure: str) -> Case | None:
        """What is not computed rightly of a structure; None where nothing is known to be."""
        return next((case for case in self.cases if structure in case.structure), None)

    def rule(self, cell: Cell) -> TableRule:
        """The first rule that matches; the last one always does."""
        return next(rule for rule in self.rules if rule.matches(cell))


def parse(text: str, name: str) -> Table:
    """A table from YAML; raises EngineError that names the rule and the key."""
    try:
        file = _File.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as err:
        raise EngineError(f"{name}: not YAML: {' '.join(str(err).split())}") from err
    except ValidationError as err:
        wrong = err.errors()[0]
        at = ".".join(str(n + 1) if isinstance(n, int) else n for n in wrong["loc"])
        raise EngineError(f"{name}: {at or 'the file'}: {wrong['msg']}") from err
    rules = tuple(
        rule if rule.source else rule.model_copy(update={"source": file.source})
        for rule in file.rules
    )
    faster = (
        each if each.source else each.model_copy(update={"source": file.source})
        for each in file.faster
    )
    cases = (
        case if case.source else case.model_copy(update={"source": file.source})
        for case in file.cases
    )
    return Table(file.backend, file.version, rules, cases=tuple(cases), faster=tuple(faster))


@cache
def backends() -> dict[str, tuple[str, ...]]:
    """Backend -> the versions there are tables of, oldest first."""
    found: dict[str, list[str]] = {}
    for file in files(__package__).iterdir():
        if file.name.endswith(".yaml"):
            backend, _, version = file.name.removesuffix(".yaml").rpartition("-")
            found.setdefault(backend, []).append(version)
    return {name: tuple(sorted(found[name], key=_numbers)) for name in sorted(found)}


@cache
def load_table(backend: str, version: str | None = None) -> Table:
    """The table for a backend's version: the nearest not newer, of the same major if there is one.

    Without a version, the newest. Raises EngineError for a backend without a table.
    """
    if backend not in backends():
        raise EngineError(
            f"nothing is known of engine {backend!r}{did_you_mean(backend, backends())}"
        )
    known = backends()[backend]
    chosen = known[-1]
    if version is not None:
        major = [v for v in known if _numbers(v)[:1] == _numbers(version)[:1]]
        not_newer = [v for v in known if _numbers(v) <= _numbers(version)]
        of_major = [v for v in major if v in not_newer]
        chosen = (of_major or major[:1] or not_newer or known[:1])[-1]
    name = f"{backend}-{chosen}.yaml"
    table = parse((files(__package__) / name).read_text(encoding="utf-8"), name)
    if version is None or _numbers(version)[: len(_numbers(chosen))] == _numbers(chosen):
        return table
    note = (
        f"{backend} {version} is not known; its promises are those of {chosen} "
        f"(granplugin capabilities --backend {backend} --probe shows what differs)"
    )
    return Table(table.backend, table.version, table.rules, note, table.cases, table.faster)


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers: 1.7.1.116 -> (1, 7, 1, 116); what is no number ends them."""
    numbers = []
    for part in version.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


OPS: tuple[str, ...] = get_args(Op)
