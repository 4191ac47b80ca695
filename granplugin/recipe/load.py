"""Recipe files -> one validated recipe per variant, with the line of every key at hand."""

from __future__ import annotations

import difflib
import errno
import os
import re
import stat
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from granplugin.errors import RecipeError
from granplugin.quant.granularity import ROLES
from granplugin.recipe.build import BUILDERS, BUILDS_WITH
from granplugin.recipe.decisions import Decision
from granplugin.recipe.schema import Recipe
from granplugin.recipe.settings import Settings, spelt_out
from granplugin.recipe.strict import Target
from granplugin.recipe.source import (
    Document,
    Location,
    Mark,
    get,
    merge,
    parse_value,
    read_document,
    rule_marks,
    subtree,
)
from granplugin.suggest import did_you_mean

RECIPE = "recipe"
"""The name of the variant that is the recipe itself."""

VARIED = ("rules", "defaults", "share", "precision")
"""What a variant may change; the rest (model, data, engines ...) is the run's."""


@dataclass(frozen=True)
class Loaded:
    """A validated recipe and the text it came from."""

    recipe: Recipe
    document: Document
    path: Path

    def mark(self, *location: str | int) -> Mark:
        return self.document.mark(location)

    def error(self, location: Sequence[str | int], message: str) -> RecipeError:
        return self.document.error(location, message)

    def rule_label(self, index: int) -> str:
        return self.recipe.rules[index].id or f"rule {index + 1}"


def load(path: Path, settings: Sequence[str] = (), data: bool = True) -> Loaded:
    """Read and validate a recipe; `settings` are the `key=value` of `--set`.

    Without `data`, the files of its data need not be there. Raises RecipeError, one line per
    mistake, each with file:line:column.
    """
    document = _extended(path, ())
    for setting in settings:
        key, sign, text = setting.partition("=")
        if not sign or not key:
            raise RecipeError(f"--set {setting}: write --set key=value")
        mark = Mark(f"--set {key}", 0, 0)
        if key.partition(".")[0] == "extends":
            raise RecipeError(f"{mark}: what a recipe extends is written in the recipe")
        document = _set(document, key, parse_value(text, mark.file), {}, mark)
    return _validate(document, path, data)


def load_variants(loaded: Loaded) -> dict[str, Loaded]:
    """The recipe itself, then each of its variants, by name."""
    variants = {RECIPE: loaded}
    for name, variant in loaded.recipe.variants.items():
        at: Location = ("variants", name)
        if name == RECIPE:
            raise loaded.error(
                at, f"a variant cannot be called {RECIPE!r}: that is the recipe itself"
            )
        document = loaded.document
        for key, value in variant.set.items():
            inside = (*at, "set", key)
            if key.split(".")[0] not in VARIED:
                raise loaded.error(
                    inside, f"a variant changes {', '.join(VARIED)}, not {key.split('.')[0]!r}"
                )
            marks = subtree(loaded.document, inside, ())
            document = _set(document, key, value, marks, loaded.mark(*inside))
        dropped = {
            _rule_index(_rules(document), rule_id, loaded.mark(*at, "drop", index))
            for index, rule_id in enumerate(variant.drop)
        }
        document = _rules_but(document, dropped)
        for index in range(len(variant.rules)):
            document = _append_rule(document, loaded.document, (*at, "rules", index))
        variants[name] = _validate(document, loaded.path, data=True)
    return variants


def _extended(path: Path, chain: tuple[Path, ...]) -> Document:
    own = _anchor(read_document(path))
    bases = own.value.get("extends", [])
    bases = [bases] if isinstance(bases, str) else bases if isinstance(bases, list) else []
    chain = (*chain, path.resolve())
    below: Document | None = None
    for index, base in enumerate(map(Path, filter(_is_text, bases))):
        at = ("extends", index)
        if _missing(base, folder=False):
            raise own.error(at, _missing(base, folder=False))
        if base.resolve() in chain:
            raise own.error(at, f"{_shown(base)} extends itself, by way of {path.name}")
        document = _extended(Path(_shown(base)), chain)
        document.value.pop("name", None)
        below = merge(below, document) if below else document
    return merge(below, own) if below else own


def _anchor(document: Document) -> Document:
    """Paths that start at the file they are written in, made absolute."""
    value = document.value
    sources = [("data", role) for role in ("calibration", "evaluation", "analysis")]
    places = [
        ("extends",),
        ("evaluate",),
        ("model", "callable"),
        ("model", "weights"),
        ("statistics", "import"),
        ("statistics", "export"),
        ("build", "timing_cache"),
        *((*at, key) for at in sources for key in ("npz", "folder", "callable")),
        *((*at, "labels") for at in sources if "folder" in _peek(value, at, {})),
    ]
    folder = document.folder
    for place in places:
        parent = _peek(value, place[:-1], None)
        given = parent.get(place[-1]) if isinstance(parent, dict) else None
        if isinstance(given, list):
            parent[place[-1]] = [str(folder / x) if isinstance(x, str) else x for x in given]
        elif isinstance(given, str) and (
            place[-1] not in ("callable", "evaluate") or given.rpartition(":")[0].endswith(".py")
        ):
            parent[place[-1]] = str(folder / given)
    return document


def _peek(value: Any, at: Location, default: Any) -> Any:
    for part in at:
        if not isinstance(value, dict) or part not in value:
            return default
        value = value[part]
    return value if isinstance(value, dict) else default


def _set(
    document: Document, dotted: str, value: Any, marks: Mapping[Location, Mark], mark: Mark
) -> Document:
    """A document with one value changed; `rules.<id>` finds a rule by its id or number."""
    at: Location = ()
    root = _copy(document.value)
    holder: Any = root
    *above, last = dotted.split(".")
    for part in above:
        key = _key(holder, at, part, mark)
        inside = holder.get(key) if isinstance(holder, dict) else holder[key]
        at = (*at, key)
        if at == ("rules",) and inside is None:
            inside = []
        elif inside is None:
            inside = {}
        elif at[0] in VARIED and key in ROLES:
            try:
                inside = spelt_out(inside)
            except ValueError as err:
                raise document.error(at, str(err)) from err
        elif at[0] == "rules" and key == "match" and isinstance(inside, (str, list)):
            inside = {"name": inside}
        if not isinstance(inside, (dict, list)):
            raise RecipeError(f"{mark}: {part!r} is {inside!r}, which has no keys to change")
        holder[key] = inside
        holder = inside
    key = _key(holder, at, last, mark)
    holder[key] = value
    at = (*at, key)
    kept = {loc: m for loc, m in document.marks.items() if loc[: len(at)] != at}
    new = {at[:n]: mark for n in range(1, len(at)) if at[:n] not in kept}
    moved = {at + loc: m for loc, m in marks.items()}
    return _anchor(Document(root, {**kept, **new, **moved, at: mark}, document.folder))


def _key(holder: Any, at: Location, part: str, mark: Mark) -> str | int:
    if isinstance(holder, dict):
        return part
    if at != ("rules",):
        raise RecipeError(f"{mark}: {'.'.join(map(str, at))!r} is a list; set it as a whole")
    return _rule_index(holder, part, mark)


def _rules(document: Document) -> list[Any]:
    rules = document.value.get("rules", [])
    if not isinstance(rules, list):
        raise document.error(("rules",), _SAID["list_type"])
    return rules


def _rules_but(document: Document, dropped: Collection[int]) -> Document:
    rules = _rules(document)
    kept = [n for n in range(len(rules)) if n not in dropped]
    others = {at: m for at, m in document.marks.items() if at[:1] != ("rules",) or len(at) == 1}
    marks = others | rule_marks(document, {old: new for new, old in enumerate(kept)})
    value = {**document.value, "rules": [rules[n] for n in kept]}
    return Document(value, marks, document.folder)


def _append_rule(document: Document, source: Document, at: Location) -> Document:
    rules = [*_rules(document), get(source.value, at)]
    marks = {("rules",): document.mark(()), **document.marks}
    marks |= subtree(source, at, ("rules", len(rules) - 1))
    return Document({**document.value, "rules": rules}, marks, document.folder)


def _rule_index(rules: Sequence[Any], name: str, mark: Mark) -> int:
    ids = [rule.get("id") if isinstance(rule, dict) else None for rule in rules]
    if name in ids:
        return ids.index(name)
    numbers = [str(number) for number in range(1, len(rules) + 1)]
    if name in numbers:
        return numbers.index(name)
    known = [i for i in ids if i]
    hint = did_you_mean(name, known) if known else "; no rule here has an id"
    raise RecipeError(f"{mark}: no rule has the id {name!r}{hint}")


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(inside) for key, inside in value.items()}
    return [_copy(inside) for inside in value] if isinstance(value, list) else value


def _validate(document: Document, path: Path, data: bool) -> Loaded:
    name = re.sub(r"[^A-Za-z0-9._-]", "-", path.stem).lstrip("._-") or RECIPE
    try:
        recipe = Recipe.model_validate({"name": name, **document.value})
    except ValidationError as err:
        lines = dict.fromkeys(_line(document, error) for error in err.errors(include_url=False))
        raise RecipeError("\n".join(list(lines)[:10])) from err
    loaded = Loaded(recipe, document, path)
    _check_rules(loaded)
    _check_build(loaded)
    _check_files(loaded, data)
    return loaded


def _check_rules(loaded: Loaded) -> None:
    seen: dict[str, int] = {}
    for index, rule in enumerate(loaded.recipe.rules):
        if rule.id in seen:
            first = loaded.mark("rules", seen[rule.id], "id")
            raise loaded.error(("rules", index, "id"), f"id {rule.id!r} is taken, by {first}")
        if rule.id:
            seen[rule.id] = index
        said = [getattr(rule, key) for key in Decision.model_fields]
        if all(given in (None, Settings()) for given in said):
            raise loaded.error(
                ("rules", index),
                f"this rule decides nothing; give one of {', '.join(Decision.model_fields)}",
            )
    for name in loaded.recipe.limits.latency_vs:
        if name not in loaded.recipe.baselines:
            raise loaded.error(
                ("limits", "latency_vs", name),
                f"{name!r} is not among the baselines{did_you_mean(name, loaded.recipe.baselines)}",
            )
    if "top1" not in loaded.recipe.metrics and loaded.recipe.limits.top1_drop is not None:
        raise loaded.error(("limits", "top1_drop"), "top1_drop needs top1 among the metrics")
    named = {*loaded.recipe.engines, *loaded.recipe.optional_engines}
    if loaded.recipe.limits.latency_vs and named == {"onnxruntime"}:
        raise loaded.error(
            ("limits", "latency_vs"),
            "latency_vs needs an engine that measures latency, and onnxruntime is a reference only",
        )


def _check_build(loaded: Loaded) -> None:
    """Build options are an error where no engine of the run can use them."""
    recipe = loaded.recipe
    named = {*recipe.engines, *recipe.optional_engines}
    for key in sorted(recipe.build.model_fields_set):
        has = BUILDS_WITH.get(key, BUILDERS)
        if named.isdisjoint(has):
            raise loaded.error(
                ("build", key),
                f"{key} is for {' and '.join(has)}, and this recipe's engines are "
                f"{', '.join([*recipe.engines, *recipe.optional_engines])}",
            )
    cache = recipe.build.timing_cache
    if cache and (cache.is_dir() or not cache.parent.is_dir()):
        said = "is a folder" if cache.is_dir() else f"is in no folder: {_shown(cache.parent)}"
        raise loaded.error(("build", "timing_cache"), f"the file {_shown(cache)} {said}")


def _check_files(loaded: Loaded, data: bool) -> None:
    recipe = loaded.recipe
    files: list[tuple[Location, Path | None]] = [
        (("model", "weights"), recipe.model.weights),
        (("model", "callable"), recipe.model.callable.path),
        (("evaluate",), recipe.evaluate.path if recipe.evaluate else None),
        (("statistics", "import"), recipe.statistics.import_),
    ]
    for role in ("calibration", "evaluation", "analysis") if data else ():
        source = getattr(recipe.data, role)
        for key in ("npz", "folder", "labels", "callable"):
            given = getattr(source, key, None)
            given = given.path if isinstance(given, Target) else given
            files.append((("data", role, key), given if isinstance(given, Path) else None))
    for at, file in files:
        if file is not None and (said := _missing(file, folder=at[-1] == "folder")):
            raise loaded.error(at, said)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)  # of what is not, the schema will say so, at its line


def _missing(path: Path, folder: bool) -> str | None:
    """Why this is not a file (or a folder) one can read, or None."""
    wanted = "folder" if folder else "file"
    try:
        found = path.stat().st_mode
    except OSError as err:
        if err.errno not in (errno.ENOENT, errno.ENOTDIR):
            return f"{_shown(path)} cannot be read: {err.strerror}"
        names = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, names, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"no such {wanted}: {_shown(path)}{hint}"
    if folder != stat.S_ISDIR(found):
        return f"{_shown(path)} is {'not ' if folder else ''}a folder; a {wanted} is expected here"
    return None


def _shown(path: Path) -> str:
    """Relative to the current folder where it is in there."""
    absolute = Path(os.path.abspath(path))
    cwd = Path.cwd()
    return str(absolute.relative_to(cwd) if absolute.is_relative_to(cwd) else absolute)


_SAID = {
    "dict_type": "a mapping of keys is expected here",
    "model_type": "a mapping of keys is expected here",
    "model_attributes_type": "a mapping of keys is expected here",
    "list_type": "a list is expected here",
    "string_type": "text is expected here, not {input!r}; quote it if it is text",
    "int_type": "a whole number is expected here, not {input!r}",
    "float_type": "a number is expected here, not {input!r}",
    "bool_type": "true or false is expected here, not {input!r}",
    "too_short": "one at least is expected here",
    "string_pattern_mismatch": "{input!r} is no name: letters, digits, - and _, a letter first",
}


def _line(document: Document, error: Mapping[str, Any]) -> str:
    at, kind = tuple(error["loc"]), error["type"]
    context = error.get("ctx", {})
    if kind == "missing":
        mark = document.mark(at[:-1])
        where = f" in {at[-2]!r}" if len(at) > 1 and isinstance(at[-2], str) else ""
        return f"{mark}: key {at[-1]!r} is missing{where}"
    if "key" in context:
        at, message = (*at, context["key"]), context["message"]
    elif kind in _SAID:
        message = _SAID[kind].format(input=error["input"])
    elif kind == "value_error":
        message = str(context["error"])
    else:
        message = f"{error['msg'][:1].lower()}{error['msg'][1:]}, not {error['input']!r}"
    message = message if len(message) <= 300 else f"{message[:300]}..."
    return f"{document.mark(at)}: {message}"
