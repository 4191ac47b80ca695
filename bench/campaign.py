"""What the fuzzing campaigns share: seeded tries, and a record of those that ended in anything but a
result or a sentence, or went over the budget.

Each try has a seed of its own, so that one that failed is repeated alone: --only N.
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FrameType

from granplugin.errors import Unhonoured, UserError

RESULTS = Path(__file__).parent / "results"
CPU_SECONDS = 2.0
"""The budget of one try."""
MEMORY_MB = 1000
"""The budget of all: what the process may grow by."""

Try = Callable[[Random], str]
"""One input, tried: what it was, where it was not refused."""


class OverTime(BaseException):
    """Raised where a try would not end."""


@dataclass
class Campaign:
    """What came of so many tries."""

    name: str
    seed: int
    tries: int = 0
    accepted: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    crashed: dict[str, str] = field(default_factory=dict)
    crashes: int = 0
    over_budget: list[int] = field(default_factory=list)
    slowest_s: float = 0
    grown_mb: int = 0

    @property
    def good(self) -> bool:
        return not self.crashes and not self.over_budget and self.grown_mb < MEMORY_MB

    def values(self) -> dict[str, object]:
        """For JSON."""
        return {**vars(self), "accepted": dict(self.accepted), "refused": dict(self.refused)}

    def run(self, attempt: Try, numbers: range) -> Campaign:
        before = _peak_mb()
        signal.signal(signal.SIGPROF, _stop)
        for number in numbers:
            self.one(attempt, number)
        self.grown_mb = _peak_mb() - before
        return self

    def one(self, attempt: Try, number: int) -> None:
        start = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, 5 * CPU_SECONDS)
        try:
            self.accepted[attempt(Random(f"{self.seed} {number}"))] += 1
        except (UserError, Unhonoured) as err:
            self.refused[type(err).__name__] += 1
        except KeyboardInterrupt:
            raise
        except OverTime:
            pass
        except BaseException as err:
            self.crashes += 1
            frames = [
                f for f in traceback.extract_tb(err.__traceback__) if "granplugin" in f.filename
            ]
            at = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
            self.crashed.setdefault(f"{type(err).__name__} {at}", f"try {number}: {err!s:.200}")
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        spent = time.process_time() - start
        self.tries += 1
        self.slowest_s = max(self.slowest_s, round(spent, 3))
        if spent > CPU_SECONDS:
            self.over_budget.append(number)

    def told(self) -> str:
        def counts(of: Counter[str]) -> str:
            return ", ".join(f"{kind} {count:,}" for kind, count in of.most_common())

        lines = [
            f"{self.name}, seed {self.seed}: {self.tries:,} tries",
            f"accepted {self.accepted.total():,} ({counts(self.accepted)})",
            f"refused in a sentence {self.refused.total():,} ({counts(self.refused)})",
            f"other exceptions {self.crashes:,}, over {CPU_SECONDS:g} s of CPU "
            f"{len(self.over_budget):,} {self.over_budget[:10] or ''}".rstrip(),
            f"slowest {self.slowest_s:.2f} s of CPU, memory grown by {self.grown_mb:,} MB",
        ]
        return "\n".join([*lines, *(f"  {where}: {told}" for where, told in self.crashed.items())])


def main(name: str, attempt: Try, count: int) -> None:
    """The command line of a campaign of `count` tries."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--count", type=int, default=count)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="this try alone, with its traceback")
    parser.add_argument("--save", action="store_true", help="into bench/results")
    given = parser.parse_args()
    if given.only is not None:
        print(attempt(Random(f"{given.seed} {given.only}")))
        return
    found = Campaign(name, given.seed).run(attempt, range(given.count))
    print(found.told())
    if given.save:
        save(name, found.told(), found.values())
    sys.exit(not found.good)


def save(name: str, text: str, values: dict[str, object]) -> None:
    """Into bench/results, as text and as JSON."""
    (RESULTS / f"{name}.txt").write_text(f"{text}\n")
    (RESULTS / f"{name}.json").write_text(json.dumps(values, indent=1) + "\n")


def damaged(rng: Random, content: bytes) -> bytes:
    """Bytes with some of them changed, taken out, doubled or cut off."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        if not data:
            break
        at = rng.randrange(len(data))
        length = rng.choice((1, 1, 2, 4, 8, 64))
        match rng.randrange(6):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at : at + length] = rng.randbytes(length)
            case 2:
                del data[at : at + length]
            case 3:
                data[at:at] = data[at : at + length] * rng.choice((1, 2, 9))
            case 4:
                data[at : at + length] = rng.choice((b"\xff", b"\x00", b"\x7f")) * length
            case 5:
                del data[at:]
    return bytes(data)


def _peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _stop(_: int, __: FrameType | None) -> None:
    raise OverTime
