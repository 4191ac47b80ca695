"""Files of at most 1 MB that are made to cost much: each is answered within 2 s of CPU and 1 GB.

python bench/budgets.py --save
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
from campaign import CPU_SECONDS, MEMORY_MB, save
from onnx import helper, numpy_helper
from tiny import write

from granplugin.__main__ import main

RULE = "match: {type: Conv2d}"


def recipes() -> Iterator[tuple[str, str]]:
    """What is in it, and the recipe."""
    base = Path("coarse.yaml").read_text()

    def rule(written: str) -> str:
        return base.replace(RULE, written)

    def behind(key: str, lines: str) -> str:
        return base.replace(key, f"{lines}{key}")

    yield "brackets", "a: " + "[" * 999_000
    yield "braces", "{" * 999_000
    yield (
        "aliases of aliases",
        "k0: &b0 [1, 1]\n" + "".join(f"k{i + 1}: &b{i + 1} [*b{i}, *b{i}]\n" for i in range(40)),
    )
    yield "a long key", "x" * 999_000 + ": 1"
    yield "a long name", base.replace("name: tiny", "name: " + "x" * 998_000)
    rules = (f"  - {{id: r{i}, {RULE}, weight: per_tensor}}\n" for i in range(14_000))
    yield "14,000 rules", behind("variants:", "".join(rules))
    some = (f"  - {{match: a.b.{i}, weight: per_tensor}}\n" for i in range(9_000))
    yield "9,000 rules of names", behind("variants:", "".join(some))
    yield "60,000 unknown keys", base + "".join(f"k{i}: 1\n" for i in range(60_000))
    yield "400,000 stars", rule('match: "' + "*a" * 400_000 + '"')
    yield "900 stars", rule('match: "' + "*a" * 900 + '"')
    yield "nested expressions", rule('match: "re:' + "(" * 900 + "a*" + ")*" * 900 + '"')
    yield "counted expressions", rule('match: "re:((a{1000}){1000}){1000}"')
    yield "a long number", base.replace("batch_size: 16", "batch_size: " + "9" * 900_000)
    yield "70,000 bases", "extends: [" + ",".join(["coarse.yaml"] * 70_000) + "]\n"


def graphs() -> Iterator[tuple[str, onnx.ModelProto]]:
    """What is in it, and the model."""
    constants = {"s": np.float32(0.1), "z": np.int8(0), "w": np.ones((1, 1, 1, 1), np.float32)}

    def model(nodes: list[onnx.NodeProto], shape: list[int], y: str = "y") -> onnx.ModelProto:
        graph = helper.make_graph(
            nodes, "graph",
            [helper.make_tensor_value_info("x", 1, shape)],
            [helper.make_tensor_value_info(y, 1, None)],
            [numpy_helper.from_array(array, name) for name, array in constants.items()],
        )  # fmt: skip
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])

    def pair(x: str, name: str) -> list[onnx.NodeProto]:
        q = helper.make_node("QuantizeLinear", [x, "s", "z"], [f"q{name}"], f"q{name}")
        return [q, helper.make_node("DequantizeLinear", [f"q{name}", "s", "z"], [name], name)]

    chain = [
        helper.make_node("Relu", [f"t{i}" if i else "x"], [f"t{i + 1}"]) for i in range(30_000)
    ]
    yield "a chain of 30,000 nodes", model(chain, [1, 4], "t30000")
    fan = [node for i in range(6_000) for node in pair("x", f"d{i}")]
    fan.append(helper.make_node("Concat", [f"d{i}" for i in range(6_000)], ["y"], axis=0))
    yield "6,000 pairs into one node", model(fan, [4])
    convs = [helper.make_node("Conv", ["d", "w"], [f"o{i}"], f"c{i}") for i in range(9_000)]
    total = helper.make_node("Sum", [f"o{i}" for i in range(9_000)], ["y"])
    yield "9,000 readers of a pair", model([*pair("x", "d"), *convs, total], [1, 1, 4, 4])
    doubled = [
        helper.make_node("Concat", [f"t{i}" if i else "d"] * 2, [f"t{i + 1}"], f"n{i}", axis=0)
        for i in range(40)
    ]
    mm = helper.make_node("MatMul", ["t40", "d"], ["y"], "mm")
    yield "2^40 ways to a pair", model([*pair("x", "d"), *doubled, mm], [4, 4])
    again = pair("x", "p0")
    for i in range(4_000):
        again += pair(f"p{i}", f"p{i + 1}")
    yield "4,000 pairs in a row", model(again, [4], "p4000")


def plans() -> Iterator[tuple[str, str]]:
    """What is in it, and the layers."""
    layer = {"LayerType": "kgen", "Inputs": [], "Outputs": [], "Metadata": ""}
    many = [{"Name": f"l{i}", **layer} for i in range(12_000)]
    yield "12,000 layers", json.dumps({"Layers": many, "Bindings": []})
    yield "deep JSON", "[" * 999_000
    yield "a long number in JSON", '{"Layers": [' + "9" * 900_000 + "]}"
    yield "a long word in JSON", '{"Layers": ["' + "x" * 999_000 + '"]}'


def data() -> Iterator[tuple[str, Callable[[Path], None]]]:
    """What is in it, and what writes d.npz."""

    def bomb(path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in ("x.npy", "y.npy"):
                with archive.open(name, "w", force_zip64=True) as file:
                    for _ in range(400):
                        file.write(bytes(2**20))

    def promised(path: Path) -> None:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": "<f4", "fortran_order": False, "shape": (64, 1, 2**20, 2**20)}
        )
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", header.getvalue())

    def encrypted(path: Path) -> None:
        np.savez(path, x=np.zeros(4), y=np.zeros(4))
        content = bytearray(path.read_bytes())
        for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            start = -1
            while (start := content.find(mark, start + 1)) >= 0:
                content[start + at] |= 1
        path.write_bytes(content)

    def members(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for number in range(9_000):
                archive.writestr(f"a{number}.npy", b"")

    yield "npz of 400 MB of zeros", bomb
    yield "npz that promises 256 TB", promised
    yield "npz that is encrypted", encrypted
    yield "npz of 9,000 members", members


def tried(argv: list[str]) -> tuple[int, float, int, str]:
    """Exit code, seconds of CPU, MB that the process grew by, and the first line of what was said."""
    told = io.StringIO()
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        code = main(argv)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    first = told.getvalue().strip().partition("\n")[0]
    return code, time.process_time() - start, grown, first


def all_tried() -> Iterator[tuple[str, tuple[int, float, int, str]]]:
    """What is in a file of at most 1 MB, and what came of it."""
    tried(["check", "coarse.yaml"])  # imports
    for what, text in recipes():
        Path("a.yaml").write_text(text)
        yield what, tried(["check", "a.yaml"])
    one = {"Name": "l", "LayerType": "kgen", "Inputs": [], "Outputs": [], "Metadata": ""}
    Path("none.json").write_text(json.dumps({"Layers": [one], "Bindings": []}))
    for what, model in graphs():
        onnx.save(model, "a.onnx")
        yield what, tried(["audit", "a.onnx", "--layers", "none.json"])
    for what, text in plans():
        Path("a.json").write_text(text)
        yield what, tried(["audit", "a.onnx", "--layers", "a.json"])
    for what, make in data():
        make(Path("d.npz"))
        yield what, tried(["apply", "coarse.yaml", "--out", "run"])


if __name__ == "__main__":
    lines, rows, over = [], [], 0
    with tempfile.TemporaryDirectory(prefix="granplugin-budgets-") as scratch:
        os.chdir(scratch)
        write(Path(scratch))
        tried(["inspect", "coarse.yaml"])  # torch
        for what, (code, seconds, grown, said) in all_tried():
            bad = code == 70 or seconds > CPU_SECONDS or grown > MEMORY_MB
            over += bad
            mark = "  OVER" if bad else ""
            lines.append(
                f"{what:<28} exit {code:>2}  {seconds:5.2f} s  {grown:>4} MB{mark}  {said:.70}"
            )
            rows.append({"what": what, "exit": code, "seconds": round(seconds, 2), "mb": grown})
            print(lines[-1], flush=True)
        os.chdir("/")
    lines.append(f"{len(rows)} files, {over} over {CPU_SECONDS:g} s of CPU or {MEMORY_MB:,} MB")
    print(lines[-1])
    if "--save" in sys.argv:
        save("budgets", "\n".join(lines), {"files": rows, "over": over})
    sys.exit(bool(over))
