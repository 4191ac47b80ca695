"""What one forward pass computed from what: values, and the operations that read and wrote them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from granplugin.quant.site import Shape

Kind = Literal["add", "concat", "copy", "move", "product", "softmax", "choice", "other"]
"""What an operation is to the search for skip inputs, attention and roles: an add of two values, a
concatenation, a copy that a forward pass does nothing by, one that puts values elsewhere or leaves
some out, a product with a weight or of two values, a softmax, one that tells which values are the
largest, or none of these."""


@dataclass(frozen=True, slots=True, eq=False)
class Op:
    """One operation: the values it read - its operands first, in order, and what shares memory with
    one that it changes - and wrote; `at` counts the operations. Of an add whose two operands are
    floats of one shape, `shape` is that shape with 1 on axis 0. `wider` are those of `writes`
    of which a part was changed in place."""

    at: int
    kind: Kind
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    shape: Shape | None = None
    wider: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Flow:
    """Operations in running order. Values are numbered; of each, `data` tells whether it depends on
    a model input, `producer` and `consumers` which operations wrote and read it."""

    ops: list[Op] = field(default_factory=list)
    data: list[bool] = field(default_factory=list)
    producer: list[Op | None] = field(default_factory=list)
    consumers: list[list[Op]] = field(default_factory=list)

    def value(self, data: bool) -> int:
        """The number of a new value."""
        self.data.append(data)
        self.producer.append(None)
        self.consumers.append([])
        return len(self.data) - 1

    def record(
        self,
        kind: Kind,
        reads: Sequence[int],
        writes: Sequence[int],
        shape: Shape | None = None,
        wider: Sequence[int] = (),
    ) -> None:
        """One operation more."""
        op = Op(len(self.ops), kind, tuple(reads), tuple(writes), shape, tuple(wider))
        self.ops.append(op)
        for number in op.reads:
            self.consumers[number].append(op)
        for number in op.writes:
            self.producer[number] = op

    def made_of(self, numbers: Iterable[int], barred: tuple[Kind, ...] = ("product",)) -> set[int]:
        """What these values are computed from, by operations that are none of the `barred` ones,
        and what those put out."""
        found: set[int] = set()
        waiting = [number for number in numbers if self.data[number]]
        while waiting:
            number = waiting.pop()
            if number in found:
                continue
            found.add(number)
            op = self.producer[number]
            if op is not None and op.kind not in barred:
                waiting += [each for each in op.reads if self.data[each]]
        return found

    def ahead(self, numbers: Iterable[int], kinds: Collection[Kind]) -> set[int]:
        """These values and what operations of these kinds make of them."""
        found: set[int] = set()
        waiting = list(numbers)
        while waiting:
            number = waiting.pop()
            if number not in found:
                found.add(number)
                readers = (op for op in self.consumers[number] if op.kind in kinds)
                waiting += [each for op in readers for each in op.writes]
        return found

    def reached_from(self, numbers: set[int]) -> set[int]:
        """What is computed from these values by operations on one value, products left out."""
        reached = set(numbers)
        for op in self.ops:
            if self._source(op) in reached:
                reached.update(op.writes)
        return reached

    def leading_to(self, numbers: set[int], concats: bool = False) -> set[int]:
        """What these values are computed from by operations on one value, or by concatenations
        too, products left out."""
        leading = set(numbers)
        for op in reversed(self.ops):
            if leading.isdisjoint(op.writes):
                continue
            if concats and op.kind == "concat":
                leading.update(number for number in op.reads if self.data[number])
            elif (source := self._source(op)) is not None:
                leading.add(source)
        return leading

    def behind(self, ends: set[int], origins: set[int]) -> set[int] | None:
        """All that these values depend on; operations that wrote nothing only looked at a value,
        which the pass may depend on.

        None where one of them is neither among `origins` nor written by an operation: something was
        computed unseen, of who knows what.
        """
        found: set[int] = set()
        waiting = [*ends, *(number for op in self.ops if not op.writes for number in op.reads)]
        while waiting:
            number = waiting.pop()
            if number in found:
                continue
            found.add(number)
            op = self.producer[number]
            if op is not None:
                waiting += op.reads
            elif number not in origins:
                return None
        return found

    def _source(self, op: Op) -> int | None:
        """The only value this operates on; None for several, or for a product."""
        read = [number for number in op.reads if self.data[number]]
        return read[0] if len(read) == 1 and op.kind != "product" else None
