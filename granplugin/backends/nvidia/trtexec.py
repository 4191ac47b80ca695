"""trtexec, NVIDIA's command line: the script that builds and measures with it, and what it writes.

Flags and forms are those of samples/trtexec and samples/common in TensorRT's sources, read in 10.0,
10.3, 10.16 and 11.1. tensorrt_rtx is the same program (its CMakeLists.txt gives it that name),
without a timing cache, which would ask for a GPU at build time.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from shlex import quote
from typing import Any

import numpy as np

from granplugin.backends.base import Shape
from granplugin.backends.nvidia.build import Options
from granplugin.engines import Program
from granplugin.errors import EngineError
from granplugin.reading import parse_json, reading
from granplugin.visible import visible

ROUNDS = 8
"""Of timing, all variants in turns; the user may ask for others with ROUNDS=... ."""


_SCRIPT = """\
#!/bin/sh
# @name@, with @command@ of @what@: builds every variant, and leaves in results/ what granplugin
# imports. It takes no arguments; from the environment it takes the program and the rounds of
# timing, as in: TRTEXEC=/usr/src/tensorrt/bin/trtexec ROUNDS=@rounds@ sh @script@
# shellcheck disable=SC2329 # each_variant calls them by name
set -u
cd "$(dirname "$0")" || exit 2
TRTEXEC=${TRTEXEC:-@command@}
ROUNDS=${ROUNDS:-@rounds@}
if ! command -v "$TRTEXEC" > /dev/null; then
    echo "@script@: there is no program $TRTEXEC; say where it is with TRTEXEC=..." >&2
    exit 2
fi

build() { # VARIANT
    mkdir -p "results/$1" &&
    "$TRTEXEC" --onnx="variants/$1/model.onnx" \\
        @build@ \\
        --saveEngine="engines/$1.engine" > "results/$1/build.log" 2>&1 &&
    wc -c < "engines/$1.engine" > "results/$1/engine_bytes.txt"
}

run() { # VARIANT INPUTS FLAGS...
    variant=$1
    inputs=inputs/$2
    shift 2
    "$TRTEXEC" --loadEngine="engines/$variant.engine"@shapes@ \\
        --loadInputs=@inputs@ \\
        "$@" > "results/$variant/run.log" 2>&1
}

profile() { # VARIANT
    run "$1" @first@ --exportLayerInfo="results/$1/layers.json" \\
        @profile@
}

outputs() { # VARIANT
    for folder in inputs/batch-*; do
        batch=${folder#inputs/}
        run "$1" "$batch" --warmUp=0 --duration=0 --iterations=1 \\
            --exportOutput="results/$1/output-${batch#batch-}.json" || return 1
    done
}

time_once() { # VARIANT ROUND
    for size in @sizes@; do
        run "$1" "time-b$size" @time@ \\
            --exportTimes="results/$1/times-b$size-$2.json" || return 1
    done
}

failed=0
each_variant() { # WHAT ARGUMENTS...
    what=$1
    shift
    for each in @variants@; do
        if [ "$what" != build ] && ! [ -f "engines/$each.engine" ]; then
            continue
        fi
        echo "$what $each $*"
        if ! "$what" "$each" "$@"; then
            echo "@script@: $what failed for $each; its log is in results/$each" >&2
            failed=1
        fi
    done
}

rm -rf results engines
mkdir results engines || exit 2
cp manifest.json results/manifest.json || exit 2
each_variant build
each_variant profile
each_variant outputs
round=1
while [ "$round" -le "$ROUNDS" ]; do
    each_variant time_once "$round"
    round=$((round + 1))
done
echo "done: copy results/ back, and there: granplugin import RUN results"
exit "$failed"
"""


def script(
    program: Program,
    name: str,
    variants: Sequence[str],
    inputs: Sequence[str],
    shapes: Mapping[str, tuple[Shape, Shape, Shape]],
    sizes: Sequence[int],
    options: Options,
) -> str:
    """A POSIX shell script beside variants/<variant>/model.onnx and inputs/<batch>/<input>.bin.

    `shapes` are the min, opt and max of each input that has a dynamic axis, `sizes` the batch sizes
    that are timed. Every name in it is quoted for the shell. Timing goes round by round through all variants, so that what slows the machine
    slows them all.
    """
    build = ["--profilingVerbosity=detailed", "--skipInference", *program.build]
    # It refuses to be told shapes of a network that has but one.
    for position, word in enumerate(("min", "opt", "max") if shapes else ()):
        given = {name: each[position] for name, each in shapes.items()}
        build.append(quote(f"--{word}Shapes={spelt(given)}"))
    if options.optimization_level is not None:
        build.append(f"--builderOptimizationLevel={options.optimization_level}")
    if options.workspace_mb is not None:
        build.append(f"--memPoolSize=workspace:{options.workspace_mb}")  # in MiB
    if options.targets:
        build.append(quote("--computeCapabilities=" + ",".join(t[2:] for t in options.targets)))
    profile = ['--exportProfile="results/$1/profile.json"', *program.profile]
    files = (f'{quote(name)}:"$inputs"/{quote(f"{name}.bin")}' for name in inputs)
    fields = dict(
        name=visible(name),
        what=program.what,
        command=program.command,
        script=program.script,
        rounds=ROUNDS,
        build=" \\\n        ".join(build),
        profile=" ".join(profile),
        time=" ".join(("--warmUp=200", "--duration=1", *program.time)),
        shapes=' --shapes="$(cat "$inputs/shapes.txt")"' if shapes else "",
        inputs=",".join(files),
        first=f"time-b{max(sizes)}",
        sizes=" ".join(map(str, sizes)),
        variants=" ".join(map(quote, variants)),
    )
    return re.sub(r"@(\w+)@", lambda found: str(fields[found[1]]), _SCRIPT)


def spelt(shapes: Mapping[str, Shape]) -> str:
    """As trtexec takes shapes.

    >>> spelt({"ids": (1, 8), "mask": (1, 8)})
    'ids:1x8,mask:1x8'
    """
    return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())


def why_unspoken(name: str) -> str | None:
    """Why trtexec, which separates inputs by commas and their files by colons, cannot be told an
    input's name, or None: it is the name of a file, too.

    >>> why_unspoken("input_ids") is None, why_unspoken("../a")
    (True, "an input '../a' cannot be given to trtexec; name it with letters, digits, . - and _")
    """
    if re.fullmatch(r"\w[\w.-]*", name):
        return None
    return f"an input {name!r} cannot be given to trtexec; name it with letters, digits, . - and _"


def kind_of(text: str) -> str | None:
    """What a file of trtexec is by its content: layers, profile, times or output; None for any
    other. Raises EngineError where it is not complete JSON."""
    data = _parsed(text)
    if isinstance(data, dict):
        return "layers" if "Layers" in data else None
    first = data[0] if isinstance(data, list) and data and isinstance(data[0], dict) else {}
    keys = {"count": "profile", "computeMs": "times", "values": "output"}
    return next((kind for key, kind in keys.items() if key in first), None)


def read_times(text: str) -> np.ndarray:
    """Time on the GPU of each call in ms, without transfers, from --exportTimes.

    Raises EngineError for anything else, and for times that are not positive.
    """
    with reading("times", EngineError, "not what --exportTimes writes"):
        times = np.array([float(call["computeMs"]) for call in _parsed(text)])
    if not times.size or not (np.isfinite(times) & (times > 0)).all():
        raise EngineError("times: it has no calls, or one that took no time")
    return times


def read_outputs(text: str, dtypes: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Output name -> values, from --exportOutput, which writes 6 significant digits.

    `dtypes` are the outputs to find there and their types. Raises EngineError for anything else.
    """
    with reading("output", EngineError, "not what --exportOutput writes"):
        found = {
            each["name"]: (
                tuple(int(size) for size in re.findall(r"[0-9]+", each["dimensions"])),
                np.array(each["values"], np.float64),
            )
            for each in _parsed(text)
        }
    if found.keys() != dtypes.keys():
        raise EngineError(f"output: it has {sorted(map(str, found))}, not {sorted(dtypes)}")
    for name, (shape, values) in found.items():
        if values.shape != (math.prod(shape),):
            raise EngineError(f"output: {name!r} of {list(shape)} has {values.size} values")
    return {
        name: values.reshape(shape).astype(dtypes[name]) for name, (shape, values) in found.items()
    }


def read_log(text: str) -> dict[str, Any]:
    """What a log says of the engine: `version`, `device`, `build_seconds`, each where it does."""
    found: dict[str, Any] = {}
    if version := re.search(r"\[TensorRT v(\d+)\]", text):
        number = int(version[1])
        found["version"] = f"{number // 10000}.{number // 100 % 100}.{number % 100}"
    if device := re.search(r"Selected Device: (.*\S)", text):
        found["device"] = device[1]
    if built := re.search(r"Engine built in ([\d.]+) sec", text):
        found["build_seconds"] = float(built[1])
    return found


_NO_NUMBER = re.compile(r"(?<=[\s,\[:])(-?)(nan|inf)(?=[\s,\]])")


def _parsed(text: str) -> Any:
    # C++ writes nan and inf, Python reads NaN and Infinity.
    text = _NO_NUMBER.sub(lambda m: "NaN" if m[2] == "nan" else f"{m[1]}Infinity", text)
    return parse_json(text, "", EngineError)
