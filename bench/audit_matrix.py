"""The audit held to a matrix: patterns x producers' styles, each built by TensorRT-RTX; a verdict is
what the built engine's layers show, and the same in every style.

python bench/audit_matrix.py --save
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from qdq_matrix import cases, differing  # noqa: E402
from qdq_styles import PATTERNS, STYLES  # noqa: E402


def main() -> int:
    lines = [
        f"{len(PATTERNS)} patterns x {len(STYLES)} styles ({', '.join(STYLES)})",
        "",
        f"{'pattern':<24}{'exit':>5}  verdicts of the sites",
    ]
    sites, faults, apart = 0, 0, 0
    for of_pattern in cases(PATTERNS):
        first = of_pattern[0]
        counts = Counter(verdict.partition(" ")[0] for verdict in first.verdicts.values())
        told = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
        lines.append(f"{first.pattern:<24}{first.found.exit_code:>5}  {told}")
        lines += (f"    {style}: other verdicts" for style in differing(of_pattern))
        lines += (f"    {case.style}: {fault}" for case in of_pattern for fault in case.faults)
        sites += sum(len(case.verdicts) for case in of_pattern)
        faults += sum(len(case.faults) for case in of_pattern)
        apart += len(differing(of_pattern))
    lines += ["", f"{sites:,} verdicts; {faults} other than the layers show; {apart} styles apart"]
    text = "\n".join(lines) + "\n"
    print(text, end="")
    if "--save" in sys.argv:
        (HERE / "results" / "audit_matrix.txt").write_text(text, encoding="utf-8")
    return int(bool(faults or apart))


if __name__ == "__main__":
    sys.exit(main())
