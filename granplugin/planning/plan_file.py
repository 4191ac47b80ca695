"""plan.json: the layers of a model, and every variant's rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from granplugin.planning.row_json import row_to_json
from granplugin.planning.rows import Plan
from granplugin.quant.layers import Layer, layer_to_json
from granplugin.recipe.code_key import code_key
from granplugin.recipe.schema import Recipe
from granplugin.store.keys import content_key, file_key


def text_key(recipe: Recipe) -> str:
    """A hash of what the recipe's text says of the model, without torch: arguments, files, and the
    code of its callables with the files beside it that they import."""
    model = recipe.model
    files = [file_key(path) for path in model.files]
    return content_key(*model.text, files, [code_key(target) for target in model.code])


def plan_file(
    model_key: str, text_key: str, layers: Sequence[Layer], plans: Mapping[str, Plan]
) -> str:
    """The file's text; `check` reads the layers again where `text_key` still holds."""
    return json.dumps(
        {
            "version": 2,
            "model_key": model_key,
            "text_key": text_key,
            "layers": [layer_to_json(layer) for layer in layers],
            "variants": {
                name: [row_to_json(row) for row in plan.rows] for name, plan in plans.items()
            },
        },
        indent=1,
    )
