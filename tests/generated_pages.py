"""The pages of docs/ that are made from the package: `python tests/generated_pages.py` writes them.

docs/recipe.md is the recipe's schema, docs/errors.md the error tree with its messages, docs/commands.md
the verbs, docs/words.md and docs/lint.md what `granplugin explain` prints, docs/badges what is true of
the package. tests/test_docs.py holds each to the code.
"""

from __future__ import annotations

import ast
import configparser
import inspect
import json
import re
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_type_hints

import typer
import yaml

from granplugin import errors, topics
from granplugin.audits import lint_pages
from granplugin.audits.lint import CODES
from granplugin.cli.verbs import STEPS, module_of, said_of, verbs
from granplugin.recipe.schema import json_schema

ROOT = Path(__file__).resolve().parents[1]
NOTE = "<!-- Made from the package by tests/generated_pages.py; change it there. -->\n"

Schema = dict[str, Any]


# ---- docs/recipe.md: the schema


SCHEMA = json_schema()
REQUIRED = {key for each in SCHEMA["$defs"].values() for key in each.get("required", ())} - {
    "inputs", "input",
}  # fmt: skip


def sections() -> dict[str, tuple[str, Schema]]:
    """Heading -> where in a recipe its keys stand (`rules[].match`), and their schema; in the order
    in which a reader meets them."""
    found: dict[str, tuple[str, Schema]] = {"The recipe": ("", SCHEMA)}
    told: set[str] = set()
    queue = [("", SCHEMA)]
    while queue:
        place, schema = queue.pop(0)
        for key, value in schema["properties"].items():
            for kind, where in objects(value, f"{place}.{key}".lstrip(".")):
                if kind not in told:
                    told.add(kind)
                    schema = SCHEMA["$defs"][kind]
                    found[heading(kind, where, value)] = (where, schema)
                    if not larger(schema):  # whose keys are told of that one
                        queue.append((where, schema))
    return found


def larger(schema: Schema) -> list[Schema]:
    """Sections that have all of this one's keys, and more."""
    keys = schema["properties"].keys()
    return [each for each in SCHEMA["$defs"].values() if keys < each.get("properties", {}).keys()]


def objects(value: Schema, where: str) -> Iterator[tuple[str, str]]:
    """The kinds of mappings that a value may be, or holds, each with where it stands."""
    if "$ref" in value:
        yield value["$ref"].rpartition("/")[2], where
    for part in (*value.get("anyOf", ()), *value.get("oneOf", ())):
        yield from objects(part, where)
    if "items" in value:
        yield from objects(value["items"], f"{where}[]")
    for inside in (*value.get("patternProperties", {}).values(), value.get("additionalProperties")):
        if isinstance(inside, dict):
            yield from objects(inside, f"{where}.NAME")


def heading(kind: str, where: str, value: Schema) -> str:
    """`data.calibration` - or, where one of several kinds stands there, `... with npz`."""
    several = len({kind for kind, _ in objects(value, where)}) > 1
    first = SCHEMA["$defs"][kind].get("required", [""])[0]
    return f"{where} with {first}" if several and first else where


def anchor(title: str) -> str:
    """As Python-Markdown and GitHub make it of a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")


def type_of(value: Schema) -> str:
    """What may be written, in words.

    >>> type_of({"type": "integer", "minimum": 1})
    'integer >= 1'
    """
    if parts := list(dict.fromkeys(_alternatives(value))):
        lists = {each.removeprefix("list of ") for each in parts if each.startswith("list of ")}
        alone = " or ".join(each for each in parts if not each.startswith("list of "))
        if lists == {alone}:
            return f"{alone}, or a list of these"
        return " or ".join(parts)
    if "$ref" in value:
        kind = value["$ref"].rpartition("/")[2]
        return _link(SCHEMA["$defs"][kind])
    if "enum" in value:
        return " / ".join(f"`{each}`" for each in value["enum"])
    if "const" in value:
        return f"`{value['const']}`"
    match value.get("type"):
        case "array":
            return "list of " + type_of(value["items"]) if "items" in value else "list"
        case "object":
            return _mapping(value)
        case "string":
            bound = value.get("pattern", "").startswith("(>=")
            return "`'>= 100'`" if bound else value.get("format", "text")
        case "boolean":
            return "true / false"
        case None:
            return "any"
        case kind:
            return kind + _bounds(value)


def _link(section: Schema) -> str:
    (title,) = [title for title, (_, schema) in SECTIONS.items() if schema is section]
    return f"[{title}](#{anchor(title)})"


def _alternatives(value: Schema) -> Iterator[str]:
    for each in (*value.get("anyOf", ()), *value.get("oneOf", ())):
        says_more = {"$ref", "type", "enum", "const", "anyOf", "oneOf"} & each.keys()
        if says_more and each.get("type") != "null":
            yield type_of(each)


def _mapping(value: Schema) -> str:
    if value.get("maxProperties") == 1:
        return " / ".join(f"`{{{name}: ...}}`" for name in value["properties"])
    inside = [*value.get("patternProperties", {}).values(), value.get("additionalProperties")]
    of = [type_of(each) for each in inside if isinstance(each, dict)]
    if of:
        return f"name: {of[0]}"
    if value.get("properties"):
        return "{" + ", ".join(f"{k}: {type_of(v)}" for k, v in value["properties"].items()) + "}"
    return "mapping"


def _bounds(value: Schema) -> str:
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    said = [f"{sign} {value[key]:g}" for key, sign in signs.items() if key in value]
    return " " + ", ".join(said) if said else ""


def flow(value: Any) -> str:
    """A value as a recipe has it, on one line."""
    text = yaml.safe_dump([_ordered(value)], default_flow_style=True, sort_keys=False, width=10**6)
    # A callable needs no quotes.
    return re.sub(r"'([\w./]+:\w+)'", r"\1", text.strip()[1:-1])


def _ordered(value: Any) -> Any:
    """What a section must have first; the schema has examples in the order of letters."""
    if isinstance(value, list):
        return [_ordered(each) for each in value]
    if isinstance(value, dict):
        keys = sorted(value, key=lambda key: key not in REQUIRED)
        return {key: _ordered(value[key]) for key in keys}
    return value


def _default(key: str, value: Schema, schema: Schema) -> str:
    if key in schema.get("required", ()):
        return "required"
    given = value.get("default")
    if given in (None, "", [], {}) or "$ref" in value:
        return ""
    return f"`{flow(_short(given))}`"


def _short(value: Any) -> Any:
    """A default without what it leaves open, in its short form."""
    if isinstance(value, list):
        return [_short(each) for each in value]
    if isinstance(value, dict):
        said = {key: _short(each) for key, each in value.items() if each is not None}
        if "kind" in said:
            return {said["kind"]: said["percentile"]} if "percentile" in said else said["kind"]
        return said["granularity"] if list(said) == ["granularity"] else said
    return value


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def recipe_page() -> str:
    page = [NOTE, _RECIPE]
    for title, (_, schema) in SECTIONS.items():
        page += [f"## {title}\n", schema.get("description", "") + "\n"]
        if more := larger(schema):
            keys = more[0]["properties"].keys() - schema["properties"].keys()
            left = ", ".join(f"`{key}`" for key in sorted(keys))
            page.append(f"The keys of {_link(more[0])}, but for {left}.\n")
            continue
        page.append("| key | what may be written | default | meaning | example |")
        page.append("|---|---|---|---|---|")
        for key, value in schema["properties"].items():
            meaning = value.get("description") or next(
                SCHEMA["$defs"][kind]["description"] for kind, _ in objects(value, "")
            )
            examples = "<br>".join(f"`{key}: {flow(each)}`" for each in value.get("examples", ()))
            default = _default(key, value, schema)
            cells = (f"`{key}`", type_of(value), default, meaning, examples)
            page.append("| " + " | ".join(map(_cell, cells)) + " |")
        page.append("")
    return "\n".join(page).rstrip("\n") + "\n"


_RECIPE = """# Recipe reference

Every key of a recipe, made from its schema. [Start here](index.md);
what granularities, formats and calibrators are is in [Words](words.md).

- Rules apply in order: **the last one that matches decides, key by key.** A granularity with its
  parameters is one value, so an old block size never survives a new granularity.
- A pattern that matches no layer is an error, unless the rule says `optional: true`.
- Relative paths start at the recipe's folder. A *callable* is `file.py:name` or
  `installed.module:name`.
- `extends` puts other recipes' keys and rules before this one's; `granplugin check RECIPE` reads it
  all without torch.

An editor checks and completes the keys by the schema that `granplugin schema` prints, named in the
recipe's first line:

```sh
granplugin schema > recipe.schema.json
```

```yaml
# yaml-language-server: $schema=recipe.schema.json
version: 1
model: {callable: recipes/networks.py:mobilenet_v2}
data:
  calibration: {npz: recipes/data/digits.npz, inputs: {image: train_images}, samples: 256}
rules:
  - {id: coarse, match: {type: Conv2d}, weight: per_tensor}
  - {match: features.1.depthwise.conv, weight: per_channel}
```
"""

SECTIONS = sections()


# ---- docs/errors.md: the error tree and its messages


CODES_OF_EXIT = {
    0: ("All that was asked for is done and holds.", "Nothing."),
    1: (
        "A limit of the recipe is missed.",
        "`report.html` says by how much; `granplugin analyze RECIPE` says which layer costs it.",
    ),
    2: ("You must change something.", "The message says where and what; the tables below."),
    3: (
        "A targeted engine does not honour a row or computes something else than its file says, or "
        "a written file is not what its plan says.",
        "`granplugin explain verdicts` and `granplugin explain wrong`; `on_unsupported:` says what "
        "an engine shall do instead.",
    ),
    4: (
        "The samples, or what an engine tells, do not decide it.",
        "The message says how many samples would; `granplugin explain interval`.",
    ),
    70: ("A bug of granplugin.", "Report it with the file that the message names."),
    130: ("Interrupted by ^C (128 + the signal's number).", "Run it again: it goes on from there."),
}


def tree() -> dict[type[BaseException], int]:
    """Each error that is ours -> its exit code, as the module has them."""
    ours = [
        each for _, each in inspect.getmembers(errors, inspect.isclass)
        if issubclass(each, Exception) and each.__module__ == errors.__name__
    ]  # fmt: skip
    ours.sort(key=lambda each: inspect.getsourcelines(each)[1])
    return {each: 2 if issubclass(each, errors.UserError) else 3 for each in ours}


def told_of(error: type[BaseException]) -> dict[str, str]:
    """What its docstring says: `what`, `Cause` and `Cure`."""
    what, *parts = re.split(r"^(Cause|Cure): ", inspect.getdoc(error) or "", flags=re.MULTILINE)
    return {
        key: " ".join(text.split())
        for key, text in (("what", what), *zip(parts[::2], parts[1::2], strict=True))
    }


def messages() -> dict[str, dict[str, list[str]]]:
    """Error -> module's first line -> messages, with ... for what differs."""
    found: dict[str, dict[str, list[str]]] = {error.__name__: {} for error in tree()}
    for path in sorted((ROOT / "granplugin").rglob("*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"))
        first = (ast.get_docstring(module) or "").split("\n\n")[0].replace("\n", " ")
        for node in ast.walk(module):
            if not (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)):
                continue
            name = getattr(node.exc.func, "id", getattr(node.exc.func, "attr", ""))
            if name in found and node.exc.args:
                said = _template(node.exc.args[0])
                here = found[name].setdefault(first, [])
                if len(re.findall(r"[A-Za-z]{2,}", said)) > 2 and said not in here:
                    here.append(said)
    return {name: {first: here for first, here in of.items() if here} for name, of in found.items()}


def _template(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        said = str(node.value)
    elif isinstance(node, ast.JoinedStr):
        said = "".join(str(v.value) if isinstance(v, ast.Constant) else "..." for v in node.values)
    elif isinstance(node, ast.BinOp):
        said = _template(node.left) + _template(node.right)
    else:
        said = "..."
    return re.sub(r"(\.\.\.)+", "...", said)


def errors_page() -> str:
    page = [NOTE, _ERRORS, "| exit code | cause | cure |", "|---|---|---|"]
    page += [f"| {code} | {cause} | {cure} |" for code, (cause, cure) in CODES_OF_EXIT.items()]
    page += ["", "They do not depend on who reads the output. 3 goes before 1, and 1 before 4.\n"]
    told = messages()
    for error, code in tree().items():
        said = told_of(error)
        page += [f"## {error.__name__}\n", f"{said['what']} Exit code {code}.\n"]
        page += [f"- **Cause**: {said['Cause']}", f"- **Cure**: {said['Cure']}", ""]
        if told[error.__name__]:
            page += ["| message | way out |", "|---|---|"]
        for first, here in told[error.__name__].items():
            page.append(f"| *{_cell(first)}* | |")
            for message in here:
                what, _, cure = message.partition("; ")
                page.append(f"| {_code(what)} | {_code(cure)} |")
        page.append("")
    return "\n".join(page).rstrip("\n") + "\n"


def _code(text: str) -> str:
    """In code, where it holds what Markdown reads."""
    return f"``{_cell(text)}``" if text and "`" in text else f"`{_cell(text)}`" if text else ""


_ERRORS = """# Errors and exit codes

Every message is one sentence: where, what, and the way out, behind a semicolon. `...` stands for
what differs - a file and line, a layer, a number. In a script of your own each is an exception of
`granplugin` with the same words; `granplugin.UserError` catches all that you can change.
"""


# ---- docs/words.md and docs/lint.md: what `granplugin explain` prints


def words_page() -> str:
    page = [NOTE, "# Words\n", "What `granplugin explain WORD` prints.\n"]
    for topic, words in topics.TOPICS.items():
        page += [
            f"## {topic}\n",
            *([f"Also: {', '.join(f'`{each}`' for each in words)}.\n"] if words else []),
        ]
        page += ["```text", topics.page(topic).rstrip("\n"), "```\n"]
    return "\n".join(page).rstrip("\n") + "\n"


def lint_page() -> str:
    page = [NOTE, "# Codes of lint\n"]
    page.append(
        "What is wrong with a file's Q/DQ, or costs, as `granplugin explain CODE` prints it.\n"
    )
    for code in CODES:
        page += [f"## {code}\n", "```text", lint_pages.page(code).rstrip("\n"), "```\n"]
    return "\n".join(page).rstrip("\n") + "\n"


# ---- docs/commands.md: the verbs


def commands_page() -> str:
    found = {verb: _function(verb) for verb in verbs()}
    page = [NOTE, "# Commands\n", "Each is also `granplugin VERB --help`.\n"]
    listed = {verb for step in STEPS.values() for verb in step}
    for step, of in STEPS.items():
        others = [verb for verb in verbs() if verb not in listed] if step == list(STEPS)[-1] else []
        page += [f"| {step} | |", "|---|---|"]
        page += [f"| [`{verb}`](#{verb}) | {_cell(said_of(verb))} |" for verb in (*of, *others)]
        page.append("")
    page.append("Before or behind any verb: `--quiet`, `--verbose`, `--plain`.")
    for verb, function in found.items():
        arguments, options = _parameters(function)
        page += ["", f"## {verb}\n", f"`{' '.join(['granplugin', verb, *arguments])}`\n"]
        page.append(inspect.getdoc(function) or "")
        if example := getattr(inspect.getmodule(function), "EXAMPLE", None):
            page += ["", f"Example: `{example}`"]
        if options:
            page += ["", "| option | |", "|---|---|"]
        page += [f"| `{option}` | {_cell(said)} |" for option, said in options.items()]
    return "\n".join(page) + "\n"


def _function(verb: str) -> Any:
    module = import_module(module_of(verb))
    return getattr(module, module.__name__.rpartition(".")[2])


def _parameters(function: Any) -> tuple[list[str], dict[str, str]]:
    """Arguments, and options with what is said of them."""
    arguments, options = [], {}
    hints = get_type_hints(function, include_extras=True)
    for name in inspect.signature(function).parameters:
        kind, info = get_args(hints[name])
        # Of an annotation the first name is where a default would be.
        names = (info.default, *(info.param_decls or ()))
        flags = [each for each in names if isinstance(each, str) and each.startswith("-")]
        if isinstance(info, typer.models.ArgumentInfo):
            arguments.append(info.metavar or name.upper())
            continue
        kinds = {part for part in (kind, *get_args(kind)) if part in (bool, int, float, Path)}
        value = {bool: "", int: "N", float: "X", Path: "PATH"}[kinds.pop()] if kinds else "TEXT"
        option = flags[0] if flags else "--" + name.strip("_").replace("_", "-")
        options[f"{option} {info.metavar or value}".strip()] = info.help or ""
    return arguments, options


# ---- docs/badges: what is true of the package, as pictures


def badges() -> dict[str, tuple[str, str]]:
    """File -> what it says, of setup.cfg."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    told = config["metadata"]["classifiers"]
    minors = re.findall(r"Python :: (3\.\d+)$", told, re.MULTILINE)
    typed = "py.typed" if "Typing :: Typed" in told else "no"
    return {
        "python": ("python", f"{minors[0]} - {minors[-1]}"),
        "licence": ("licence", config["metadata"]["license"]),
        "typed": ("types", typed),
    }


def badge(said: str, value: str) -> str:
    left, right = 7 * len(said) + 12, 7 * len(value) + 12
    return f"""<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="20" role="img"
  aria-label="{said}: {value}">
  <rect width="{left + right}" height="20" rx="3" fill="#555"/>
  <rect x="{left}" width="{right}" height="20" rx="3" fill="#00796b"/>
  <g fill="#fff" font-family="Verdana, sans-serif" font-size="11" text-anchor="middle">
    <text x="{left / 2:g}" y="14">{said}</text>
    <text x="{left + right / 2:g}" y="14">{value}</text>
  </g>
</svg>
"""


def schema_file() -> str:
    """What `granplugin schema` prints."""
    return json.dumps(SCHEMA, indent=1) + "\n"


PAGES = (
    {
        ROOT / "docs" / f"{make.__name__.removesuffix('_page')}.md": make
        for make in (recipe_page, errors_page, words_page, lint_page, commands_page)
    }
    | {ROOT / "docs/recipe.schema.json": schema_file}
    | {
        ROOT / "docs/badges" / f"{name}.svg": partial(badge, *said)
        for name, said in badges().items()
    }
)
"""Each page's file -> what makes its text."""


if __name__ == "__main__":
    for file, make in PAGES.items():
        file.parent.mkdir(exist_ok=True)
        file.write_text(make(), encoding="utf-8")
