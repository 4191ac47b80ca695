"""What is found in ONNX files of others: products, what defaults quantize, why the rest is float.

`python bench/onnx_networks.py FOLDER` reads every .onnx below it, such as unpacked wheels of
rapidocr-onnxruntime, silero-vad and magika (`pip download --no-deps`).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import yaml

from granplugin.network.onnx_file import float_model, shaped
from granplugin.network.onnx_layers import place_layers
from granplugin.network.onnx_products import products_of
from granplugin.planning.coverage import coverage
from granplugin.planning.plan import make_plan
from granplugin.recipe.load import load_recipe


def main() -> None:
    for path in sorted(Path(sys.argv[1]).rglob("*.onnx")):
        with tempfile.TemporaryDirectory() as folder:
            recipe = Path(folder) / "r.yaml"
            (Path(folder) / "none.npz").touch()
            data = {"calibration": {"npz": "none.npz", "inputs": {"x": "x"}}}
            model = {"onnx": str(path.resolve())}
            recipe.write_text(yaml.safe_dump({"version": 1, "model": model, "data": data}))
            loaded = load_recipe(recipe)
        graph = shaped(float_model(path).model, path)
        layers = [placed.layer for placed in place_layers(graph)]
        found = coverage(products_of(graph, 1), layers, make_plan(loaded, layers))
        print(f"{path.name}: opset {graph.opset}, {found.quantized} of {found.products} products")
        for each in found.floats:
            print(f"    float: {each.products} {each.what} ({each.reason})")


if __name__ == "__main__":
    main()
