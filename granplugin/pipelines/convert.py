"""convert: what modelopt's config or a calibrated checkpoint decides, as a recipe."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from granplugin.convert import to_pytorch_quantization, to_quant_cfg
from granplugin.convert.checkpoint import is_quantizer_key, ranges_of, unwrapped
from granplugin.errors import RecipeError, RunError, UserError
from granplugin.pipelines.plan import plan
from granplugin.reading import check_file, reading
from granplugin.recipe.callables import named
from granplugin.recipe.decisions import Rule
from granplugin.recipe.load import load_recipe
from granplugin.recipe.match import select
from granplugin.recipe.quant_cfg import ROLES, Converted, rules_of
from granplugin.recipe.source import parse_value
from granplugin.recipe.strict import Target, target_of
from granplugin.sources import open_network
from granplugin.starting.text import flow
from granplugin.store.whole_file import write_whole
from granplugin.suggest import did_you_mean

_CONFIGS = (".json", ".yaml", ".yml")


@dataclass(frozen=True, slots=True)
class Conversion:
    """The files that were written, the recipe first, and what they do not say."""

    files: tuple[Path, ...]
    lost: tuple[str, ...]
    whole: bool
    """Whether it has a model, and runs; else others extend it."""


def convert(source: str, model: str | None = None, out: Path | None = None) -> Conversion:
    """Convert `source`: a file of modelopt's quant_cfg (JSON, YAML), such a dict in Python
    (module:NAME, file.py:NAME), or a checkpoint of a calibrated network (.pth, .safetensors), whose
    weights go into a file of their own. `model` is file.py:function, which makes the network.

    Raises UserError; nothing that is there is overwritten.
    """
    path = out or Path(f"{_stem(source)}.yaml")
    if Path(source).suffix in _CONFIGS:
        found = rules_of(_config(Path(source)), source)
    elif ":" in source:
        found = rules_of(named(_target(source), RecipeError), source)
    else:
        return _checkpoint(Path(source), path, model)
    lost = [*map(str, found.lost), *(_unmatched(found, model) if model else ())]
    return _write(path, source, model, found.rules, lost, {})


def _unmatched(converted: Converted, model: str) -> Iterator[str]:
    """The entries that switch quantizers on, of none of the network's modules."""
    nothing = {"calibration": {"npz": "none.npz", "inputs": {"x": "x"}}}
    spec = {"version": 1, "model": {"callable": model}, "data": nothing}
    layers = open_network(load_recipe(spec, data=False)).untraced()
    matched: dict[int, bool] = {}
    for rule, entry in zip(converted.rules, converted.entries, strict=True):
        on = any(rule.get(role) not in (None, "float") for role in ROLES)
        if entry is not None and on:
            match = Rule.model_validate(rule).match
            matched[entry] = matched.get(entry, False) or bool(select(match, layers))
    for entry, some in matched.items():
        if not some:
            yield f"quant_cfg[{entry}] matches no layer of {model}"


TARGETS = ("quant_cfg", "pytorch-quantization")


def convert_recipe(
    source: str,
    to: str,
    variant: str | None = None,
    out: Path | None = None,
    settings: Sequence[str] = (),
) -> Conversion:
    """Write what a recipe, or a variant of it, decides: `quant_cfg`, modelopt's config, for one of
    its own recipes (.yaml), as JSON or as Python, by the ending of `out`; or `pytorch-quantization`,
    a module for code that uses it.

    Raises UserError, RecipeError where the recipe cannot be planned; nothing that is there is
    overwritten.
    """
    if to not in TARGETS:
        raise UserError(f"--to {to!r}: unknown{did_you_mean(to, TARGETS)}")
    loaded = load_recipe(Path(source), settings)
    path = out or Path(f"{Path(source).stem}_{to.replace('-', '_')}{_ENDING[to]}")
    forms = to_quant_cfg.FORMS if to == "quant_cfg" else (".py",)
    if path.suffix not in forms:
        raise UserError(f"--out {path}: {to} is written as {' or '.join(forms)}")
    planned = plan(loaded, variant)
    if to == "quant_cfg":
        config, lost = to_quant_cfg.quant_cfg(planned.plan, planned.layers)
        text = to_quant_cfg.written(config, path.suffix, source)
    else:
        text, lost = to_pytorch_quantization.program(planned.plan, planned.layers, source)
    _write_new({path: text.encode()})
    return Conversion((path,), tuple(lost), True)


_ENDING = {"quant_cfg": ".yaml", "pytorch-quantization": ".py"}


def _config(path: Path) -> Any:
    check_file(path, RecipeError)
    with reading(str(path), RecipeError, "this is no text"):
        return parse_value(path.read_text("utf-8"), str(path))


def _checkpoint(source: Path, path: Path, model: str | None) -> Conversion:
    from safetensors.numpy import save

    from granplugin.network.weights import read_weights

    tensors = read_weights(source)
    arrays = unwrapped({name: tensor.float().numpy() for name, tensor in tensors.items()})
    ranges = ranges_of(arrays, str(source))
    own = {name: array for name, array in arrays.items() if not is_quantizer_key(name)}
    amax, weights = path.with_suffix(".amax.json"), path.with_suffix(".safetensors")
    files: dict[Path, bytes] = {weights: save(own)}
    if ranges.sites:
        sites = ",\n".join(f"{json.dumps(s)}: {json.dumps(v)}" for s, v in ranges.sites.items())
        files[amax] = f'{{"granplugin_amax": 1, "sites": {{\n{sites}\n}}}}\n'.encode()
    return _write(path, str(source), model, ranges.rules, ranges.lost, files)


def _write(
    path: Path,
    source: str,
    model: str | None,
    rules: Sequence[Mapping[str, Any]],
    lost: Sequence[str],
    files: Mapping[Path, bytes],
) -> Conversion:
    lines = [f"# Of {source}."]
    lines += [f"# Not in it: {told}" for told in lost]
    lines.append("version: 1")
    weights = next((file for file in files if file.suffix == ".safetensors"), None)
    if model is not None:
        spec = {"callable": model} | ({"weights": weights.name} if weights else {})
        lines.append(f"model: {flow(spec)}")
        lines += [
            "data:",
            "  calibration: {callable: calibration_data.py:batches}  # yours: npz, folder, callable",
        ]
    else:
        lines.append(f"# A recipe that says `extends: {path.name}` has model and data.")
    if any(file.name.endswith(".amax.json") for file in files):
        lines.append(f"statistics: {{import: {path.with_suffix('.amax.json').name}}}")
    lines += ["defaults: {bn: keep}", "rules:"]
    lines += [f"- {flow(rule)}" for rule in rules] or ["  []"]
    everything = {path: ("\n".join(lines) + "\n").encode(), **files}
    _write_new(everything)
    return Conversion(tuple(everything), tuple(lost), model is not None)


def _write_new(files: Mapping[Path, bytes]) -> None:
    for file in files:
        if file.exists():
            raise RunError(f"{file}: is there already; give --out, or move it away")
    for file, content in files.items():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, content)
        except OSError as err:
            raise RunError(f"{file}: cannot be written: {err.strerror}; give --out") from err


def _target(source: str) -> Target:
    try:
        return target_of(source)
    except ValueError as err:
        raise RecipeError(f"{source}: {err}") from err


def _stem(source: str) -> str:
    if ":" in source:
        return source.rpartition(":")[2].lower()
    return f"{Path(source).stem}_converted"
