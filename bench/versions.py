"""Which versions of modelopt the bridge's tests pass with: each in a folder of its own, in front of
the modelopt that is installed, everything else the same.

python bench/versions.py --save
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).resolve().parent
VERSIONS = ("0.45.0", "0.46.0", "0.47.0")
TESTS = ("test_modelopt_bridge.py", "test_taken.py", "test_base.py", "test_presets.py",
         "test_convert_back.py", "test_algorithms.py")  # fmt: skip
ALSO = ("torch", "transformers")


def tried(version: str) -> dict[str, object]:
    """What became of the tests with this version of modelopt."""
    with TemporaryDirectory(prefix="modelopt-") as folder:
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder]
        subprocess.run([*pip, f"nvidia-modelopt=={version}"], check=True, capture_output=True)
        tests = [HERE.parent / "tests" / name for name in TESTS]
        pytest = [sys.executable, "-m", "pytest", "-n", "0", "-rfEs", "-o", "addopts=",
                  "--import-mode=importlib", "-p", "no:cacheprovider", "-q"]  # fmt: skip
        paths = os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            [*pytest, *tests],
            capture_output=True,
            text=True,
            cwd=HERE.parent,
            env={**os.environ, "PYTHONPATH": paths},
        )
    counts = re.findall(r"(\d+) (passed|failed|skipped|errors?)", done.stdout.splitlines()[-1])
    told = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if not counts:
        raise SystemExit(done.stdout + done.stderr)
    return {"modelopt": version, **{what: int(n) for n, what in counts}, "not passed": told}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", action="store_true", help="write bench/results/versions.json")
    parser.add_argument("versions", nargs="*", default=VERSIONS)
    args = parser.parse_args()
    found = {"with": {name: metadata.version(name) for name in ALSO}, "tests": TESTS,
             "tried": [tried(version) for version in args.versions]}  # fmt: skip
    text = json.dumps(found, indent=1)
    print(text)
    if args.save:
        (HERE / "results" / "versions.json").write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
