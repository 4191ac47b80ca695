"""What a validation error says, at its line and in the user's words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from granplugin.recipe.source import Document

MESSAGES = {
    "dict_type": "a mapping of keys is expected here",
    "model_type": "a mapping of keys is expected here",
    "model_attributes_type": "a mapping of keys is expected here",
    "list_type": "a list is expected here",
    "string_type": "text is expected here, not {input!r}; quote it if it is text",
    "int_type": "a whole number is expected here, not {input!r}",
    "float_type": "a number is expected here, not {input!r}",
    "bool_type": "true or false is expected here, not {input!r}",
    "string_too_long": "a name has at most 100 characters",
    "too_short": "one at least is expected here",
    "string_pattern_mismatch": "{input!r} is no name: letters, digits, - and _, a letter first",
}
"""Kind of pydantic error -> what is said of it."""


def explained(document: Document, error: Mapping[str, Any]) -> str:
    """One line for one of pydantic's errors (an item of ValidationError.errors())."""
    at, kind = tuple(error["loc"]), error["type"]
    context = error.get("ctx", {})
    if kind == "missing":
        mark = document.mark(at[:-1])
        where = f" in {at[-2]!r}" if len(at) > 1 and isinstance(at[-2], str) else ""
        return f"{mark}: key {at[-1]!r} is missing{where}"
    if "key" in context:
        at, message = (*at, context["key"]), context["message"]
    elif kind in MESSAGES:
        message = MESSAGES[kind].format(input=error["input"])
    elif kind == "value_error":
        message = str(context["error"])
    else:
        message = f"{error['msg'][:1].lower()}{error['msg'][1:]}, not {error['input']!r}"
    message = message if len(message) <= 300 else f"{message[:300]}..."
    return f"{document.mark(at)}: {message}"
