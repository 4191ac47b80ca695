"""The errors that mypy finds in each module, and the baseline above which they may not rise.

python tests/type_errors.py           lower the baseline to what mypy finds now
python tests/type_errors.py --moved   the same where modules were split or renamed: the errors
                                      may lie elsewhere, and may not be more in all
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BASELINE = ROOT / "tests/data/mypy_baseline.json"
LOWER = "python tests/type_errors.py"


def count(*options: str) -> tuple[Counter[str], str]:
    """Module -> its errors, of modules that have some; and what mypy printed.

    Raises RuntimeError if mypy could not check the package.
    """
    command = [sys.executable, "-m", "mypy", "--no-pretty", "--no-error-summary", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise RuntimeError(done.stdout + done.stderr)
    errors = [
        line.partition(": error: ")[0] for line in done.stdout.splitlines() if " error: " in line
    ]
    files = (place.rpartition(":")[0] for place in errors)
    return Counter(Path(file).as_posix() for file in files), done.stdout


def baseline() -> Counter[str]:
    """Module -> the errors it may have."""
    return Counter(json.loads(BASELINE.read_text(encoding="utf-8")))


def lowered(may: Counter[str], has: Counter[str], moved: bool) -> Counter[str]:
    """The next baseline: what each module has, where that is no rise of its own - or, of modules
    that were moved, of all of them together.

    Raises ValueError on a rise.

    >>> lowered(Counter(a=2, b=1), Counter(a=1), moved=False)
    Counter({'a': 1})
    >>> lowered(Counter(a=2), Counter(b=1, c=1), moved=True).total()
    2
    >>> lowered(Counter(a=2), Counter(b=1), moved=False)
    Traceback (most recent call last):
    ValueError: more errors than before: b 1, not 0
    """
    more = {module: n for module, n in has.items() if n > may[module]}
    if more and not (moved and has.total() <= may.total()):
        told = ", ".join(f"{module} {n}, not {may[module]}" for module, n in sorted(more.items()))
        raise ValueError(f"more errors than before: {told}")
    return has


def main(argv: list[str]) -> str | None:
    try:
        found = lowered(baseline(), count()[0], moved="--moved" in argv)
    except ValueError as err:
        return str(err)
    BASELINE.write_text(json.dumps(dict(sorted(found.items())), indent=2) + "\n", encoding="utf-8")
    print(f"{found.total()} errors in {len(found)} modules")
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
