"""What keys of a recipe must agree on, beyond what each of them says alone."""

from __future__ import annotations

from granplugin.engines import ENGINES, taking
from granplugin.recipe.decisions import Decision
from granplugin.recipe.files import needed
from granplugin.recipe.loaded import Loaded, LoadedPart
from granplugin.recipe.model import OnnxModel
from granplugin.recipe.paths import shown, why_missing
from granplugin.recipe.settings import Settings
from granplugin.suggest import did_you_mean


def check_keys(loaded: LoadedPart) -> None:
    """Raises RecipeError, at its line, for the first key that does not go with the others."""
    _check_rules(loaded)
    _check_build(loaded)
    _check_mask(loaded)


def check_files(loaded: Loaded, data: bool) -> None:
    """Raises RecipeError, at its line, for the first file that is not there; without `data`, those
    of its data need not be."""
    _check_cache(loaded)
    _check_files(loaded, data)


def _check_rules(loaded: LoadedPart) -> None:
    seen: dict[str, int] = {}
    for index, rule in enumerate(loaded.recipe.rules):
        if rule.id in seen:
            first = loaded.mark("rules", seen[rule.id], "id")
            raise loaded.error(("rules", index, "id"), f"id {rule.id!r} is taken, by {first}")
        if rule.id:
            seen[rule.id] = index
        deciding = (*Decision.model_fields, "algorithm")
        if all(getattr(rule, key) in (None, Settings()) for key in deciding):
            raise loaded.error(
                ("rules", index), f"this rule decides nothing; give one of {', '.join(deciding)}"
            )
        if rule.algorithm is not None:
            _check_algorithm(loaded, index)
    for name in loaded.recipe.limits.latency_vs:
        if name not in loaded.recipe.baselines:
            raise loaded.error(
                ("limits", "latency_vs", name),
                f"{name!r} is not among the baselines{did_you_mean(name, loaded.recipe.baselines)}",
            )
    if "top1" not in loaded.recipe.metrics and loaded.recipe.limits.top1_drop is not None:
        raise loaded.error(("limits", "top1_drop"), "top1_drop needs top1 among the metrics")
    named = {*loaded.recipe.engines, *loaded.recipe.optional_engines}
    if loaded.recipe.limits.latency_vs and not any(ENGINES[n].measures_latency for n in named):
        raise loaded.error(
            ("limits", "latency_vs"),
            "latency_vs needs an engine that measures latency, and "
            f"{' and '.join(sorted(named))} is a reference only",
        )


def _check_mask(loaded: LoadedPart) -> None:
    recipe = loaded.recipe
    if recipe.data and recipe.data.mask and recipe.model and recipe.model.form.static_batch:
        raise loaded.error(
            ("data", "mask"),
            "samples without their padding are of several lengths, and with model.static_batch "
            "the network takes whole batches alone; leave one of the two out",
        )


def _check_algorithm(loaded: LoadedPart, index: int) -> None:
    """Of what it cannot change, it is refused."""
    model, method = loaded.recipe.model, loaded.recipe.rules[index].algorithm
    if isinstance(model, OnnxModel):
        raise loaded.error(
            ("rules", index, "algorithm"),
            f"modelopt's {method} changes a torch model, and onnx: names a file; name the model with "
            "callable:, or export the network that granplugin.run_algorithm returns",
        )
    if model is not None and model.quantized == "keep":
        raise loaded.error(
            ("rules", index, "algorithm"),
            f"{method} would change weights whose ranges the network came with; give it the float "
            "network, without quantized: keep",
        )


def _check_build(loaded: LoadedPart) -> None:
    """Build options are an error where no engine of the run can use them."""
    recipe = loaded.recipe
    named = {*recipe.engines, *recipe.optional_engines}
    for key in sorted(recipe.build.model_fields_set):
        has = taking(key)
        if named.isdisjoint(has):
            raise loaded.error(
                ("build", key),
                f"{key} is for {' and '.join(has)}, and this recipe's engines are "
                f"{', '.join([*recipe.engines, *recipe.optional_engines])}",
            )


def _check_cache(loaded: Loaded) -> None:
    cache = loaded.recipe.build.timing_cache
    if cache and (cache.is_dir() or not cache.parent.is_dir()):
        said = "is a folder" if cache.is_dir() else f"is in no folder: {shown(cache.parent)}"
        raise loaded.error(("build", "timing_cache"), f"the file {shown(cache)} {said}")


def _check_files(loaded: Loaded, data: bool) -> None:
    for at, file in needed(loaded, data):
        if said := why_missing(file, folder=at[-1] == "folder"):
            raise loaded.error(at, said)
