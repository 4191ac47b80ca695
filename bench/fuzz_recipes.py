"""Recipes that nobody would write, through what `check` and `plan` do without torch.

python bench/fuzz_recipes.py --count 100000 --save
"""

from __future__ import annotations

import json
import os
import tempfile
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import yaml
from campaign import damaged, main

from granplugin.capabilities.legality import decide
from granplugin.engines import ENGINES
from granplugin.measures.metrics import METRICS
from granplugin.planning.plan import make_plan
from granplugin.planning.story import why
from granplugin.quant.calibrators import CALIBRATORS
from granplugin.quant.formats import FORMATS
from granplugin.quant.granularity import GRANULARITIES
from granplugin.quant.layers import PRODUCTS, TRAITS, Layer, sites_of
from granplugin.recipe.load import load_recipe, load_variants
from granplugin.recipe.presets import PRESETS
from granplugin.recipe.schema import json_schema

GOOD: dict[str, Any] = {
    "version": 1,
    "name": "fuzzed",
    "model": {"callable": "n.py:net", "args": {"classes": 4}, "weights": "w.safetensors"},
    "data": {
        "calibration": {"npz": "d.npz", "inputs": {"x": "x"}, "samples": 8},
        "evaluation": {"folder": "images", "input": "x", "resize": 8, "mean": [0, 0, 0]},
        "batch_size": 4,
    },
    "metrics": ["top1", "agreement"],
    "defaults": "tensorrt@11",
    "rules": [
        {"id": "a", "match": "features.*.conv", "weight": {"per_block": {"size": 4, "axis": 0}}},
        {"match": {"type": "Linear", "size": ">= 16"}, "format": "fp8", "half": "allow"},
        {"match": ["**.fc", "re:head.*"], "input": {"calibrator": {"percentile": 99.9}}},
        {"id": "b", "match": {"trait": "depthwise", "exclude": "stem"}, "bn": "fold"},
    ],
    "share": [{"match": ["block.fc", "head"], "role": "input"}],
    "variants": {
        "v": {"drop": "a", "set": {"rules.b.bn": "keep"}},
        "w": {"rules": [{"match": "**", "weight": "per_tensor"}]},
    },
    "engines": ["onnxruntime", "tensorrt_rtx"],
    "limits": {"top1_drop": 1, "latency_vs": {"fp32": 2.0}},
    "latency": {"rounds": 6, "seconds": 0.5},
    "build": {"seconds": 60},
}
HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 7, 10**17, -(10**17), 0.5, -0.0, 1e308, "", " ", "*", "**", "***",
    "*" * 30 + "x", "re:(", "re:.*", "re:[", ">= 1", "> x", "\u202e", "\x1b[31m", "a\nb", "\0", "💥",
    "x" * 5000, [], {}, [[]], [{}], {"": ""}, [None], {"per_block": 4}, "n.py:net", "os:system",
    "n.py", "/dev/zero", "..", ".", "fifo", "base.yaml", "fuzzed.yaml", "~", "1e3", "0x10",
)  # fmt: skip
SCALARS = (
    "!!float ''",
    "!!int x",
    "!!set {a}",
    "!x y",
    "&a 1",
    "*a",
    "*b",
    "'",
    '"',
    "|",
    ">",
    "%",
)


def attempt(rng: Random) -> str:
    """One recipe, from its text or from its values, to its plans."""
    _scratch()
    value = GOOD
    for _ in range(rng.choice((0, 1, 1, 2, 3, 8))):
        value = mutated(rng, value)
    settings = [setting(rng) for _ in range(rng.choice((0, 0, 0, 1, 3)))]
    if rng.random() < 0.2:
        form: Any = value
    else:
        form = Path("fuzzed.yaml")
        form.write_bytes(text(rng, value))
    loaded = load_recipe(form, settings, data=rng.random() < 0.9)
    for name, variant in load_variants(loaded).items():
        plan = make_plan(variant, LAYERS)
        decide(plan, LAYERS, list(ENGINES)[:3], None)
        why(variant, LAYERS, plan, LAYERS[0].name)
        if name == "v":
            break
    return "planned"


def text(rng: Random, value: Any) -> bytes:
    """A value as YAML, well-formed or not."""
    try:
        if rng.random() < 0.5:
            written = yaml.safe_dump(
                value, allow_unicode=True, default_flow_style=rng.choice((None, True))
            )
        else:
            written = json.dumps(value, ensure_ascii=rng.random() < 0.5)
    except (yaml.YAMLError, ValueError):
        written = repr(value)
    if rng.random() < 0.1:
        at = rng.randrange(len(written) + 1)
        written = f"{written[:at]} {rng.choice(SCALARS)} {written[at:]}"
    content = written.encode(errors="surrogatepass")
    return damaged(rng, content) if rng.random() < 0.25 else content


def mutated(rng: Random, value: Any) -> Any:
    """A copy with something in it changed."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        changed = dict(value)
        key = rng.choice(list(changed))
        match rng.randrange(8):
            case 0:
                del changed[key]
            case 1:
                changed[rng.choice(words())] = rng.choice(HOSTILE)
            case 2:
                changed[rng.choice(words())] = changed.pop(key)
            case _:
                changed[key] = mutated(rng, changed[key])
        return changed
    if isinstance(value, list) and value and rng.random() < 0.8:
        listed = list(value)
        at = rng.randrange(len(listed))
        match rng.randrange(5):
            case 0:
                del listed[at]
            case 1:
                listed.insert(at, rng.choice((*HOSTILE, listed[at])))
            case _:
                listed[at] = mutated(rng, listed[at])
        return listed
    match rng.randrange(6):
        case 0:
            return [value]
        case 1:
            return {rng.choice(words()): value}
        case 2:
            return rng.choice(words())
        case 3 if isinstance(value, str):
            return value + rng.choice(("x", "*", ".", "\n", ":", " "))
        case 4 if isinstance(value, (int, float)):
            return value * rng.choice((-1, 0, 2, 10**9))
    return rng.choice(HOSTILE)


def setting(rng: Random) -> str:
    keys = ["rules", "a", "b", "1", "0", "x", "weight", "match", "data", "model", "", "defaults"]
    key = ".".join(rng.choice([*keys, *words()[:40]]) for _ in range(rng.randint(1, 4)))
    value = rng.choice(("1", "per_tensor", "[", "{a: 1}", "''", "null", "!!int x", "*a", "[1]", ""))
    return f"{key}{rng.choice('=== ')}{value}"


@cache
def words() -> list[str]:
    """All that a recipe may say."""
    found = [
        *METRICS,
        *ENGINES,
        *FORMATS,
        *GRANULARITIES,
        *CALIBRATORS,
        *PRODUCTS,
        *TRAITS,
        *PRESETS,
    ]
    queue: list[Any] = [json_schema()]
    while queue:
        inside = queue.pop()
        if isinstance(inside, dict):
            found += inside.get("properties", {})
            queue += inside.values()
        elif isinstance(inside, list):
            queue += inside
    return sorted(set(found))


def _layers() -> tuple[Layer, ...]:
    conv = {"weight": (8, 4, 3, 3), "input": (1, 4, 8, 8), "output": (1, 8, 8, 8)}
    depthwise = {"weight": (8, 1, 3, 3), "input": (1, 8, 8, 8), "output": (1, 8, 8, 8)}
    linear = {"weight": (16, 8), "input": (1, 8), "output": (1, 16)}
    return (
        Layer("stem", "Conv2d", sites_of("stem", "Conv2d", conv, 1, {"input": 0, "output": 1})),
        *(
            Layer(
                f"features.{n}.conv",
                "Conv2d",
                sites_of(
                    f"features.{n}.conv", "Conv2d", depthwise, 8, {"input": n, "output": n + 1}
                ),
                groups=8,
                traits=frozenset({"depthwise"}),
                bn=f"features.{n}.bn",
                spread=100.0,
            )
            for n in range(1, 4)
        ),
        Layer("block.fc", "Linear", sites_of("block.fc", "Linear", linear, 1, {"input": 4})),
        Layer("head", "Linear", sites_of("head", "Linear", linear, 1, {"input": 4, "output": 6})),
    )


LAYERS = _layers()


@cache
def _scratch() -> None:
    folder = Path(tempfile.mkdtemp(prefix="granplugin-fuzz-"))
    os.chdir(folder)
    (folder / "images").mkdir()
    os.mkfifo("fifo")
    for name in ("n.py", "d.npz", "w.safetensors"):
        (folder / name).write_bytes(b"")
    (folder / "base.yaml").write_text("version: 1\nrules: [{match: head, bn: keep}]\n")


if __name__ == "__main__":
    main("fuzz_recipes", attempt, 100_000)
