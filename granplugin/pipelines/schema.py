"""schema: JSON Schema of recipes, and of what verbs print with --json."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from granplugin.errors import UserError
from granplugin.recipe import schema as recipes
from granplugin.report.schema import run as model
from granplugin.report.schema.verbs import OUTPUTS
from granplugin.suggest import did_you_mean


def schema(what: str) -> dict[str, Any]:
    """The schema of this name. Raises UserError where there is none."""
    if what == "recipe":
        return recipes.json_schema()
    if what == "report":
        return model.json_schema()
    if what in OUTPUTS:
        output: type[BaseModel] = OUTPUTS[what]
        return output.model_json_schema(mode="serialization")
    known = ["recipe", "report", *OUTPUTS]
    raise UserError(f"no schema is called {what!r}{did_you_mean(what, known)}")
