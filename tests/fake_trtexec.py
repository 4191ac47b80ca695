"""A stand-in for trtexec, which needs a GPU and is in no Python package.

It takes the flags that trtexec has and no other, builds nothing - its engine is a card that names
the ONNX file - and runs that file with ONNX Runtime on the inputs it is told to load. The files it
writes are in the forms of TensorRT's samples/common/sampleReporting.cpp. What it says of the
engine's layers is what the test gave it: the plan of an engine that TensorRT-RTX built. Its times
are made up: 2 ms for fp32 and 1 ms for anything else.

Environment: FAKE_FORM is 10, 11 or rtx; FAKE_LAYERS is a folder of <sha256 of the ONNX>.json, where
outputs are kept too.
"""

import hashlib
import json
import math
import os
import sys
from pathlib import Path

# getAndDelOption of samples/common/sampleOptions.cpp in both 10.0 and 11.1.
FLAGS = set(
    """
    allocationStrategy allowGPUFallback allowWeightStreaming avgRuns avgTiming buildDLAStandalone
    builderOptimizationLevel consistency device directIO dumpLayerInfo dumpOptimizationProfile
    dumpOutput dumpProfile dumpRawBindingsToFile dumpRefit duration dynamicPlugins
    errorOnTimingCacheMiss excludeLeanRuntime exportLayerInfo exportOutput exportProfile exportTimes
    exposeDMA getPlanVersionOnly hardwareCompatibilityLevel help idleTime ignoreParsedPluginLibs
    infStreams inputIOFormats int8 iterations layerDeviceTypes leanDLLPath loadEngine loadInputs
    markDebug maxAuxStreams maxShapes memPoolSize minShapes noBuilderCache noCompilationCache noTF32
    onnx optShapes outputIOFormats percentile persistentCacheRatio pi pluginInstanceNorm plugins
    preview profile profilingVerbosity refit safe saveDebugTensors saveEngine serialized
    setPluginsToSerialize shapes skipInference sleepTime sparsity staticPlugins std streams
    stripWeights tacticSources tempdir tempfileControls threads timeDeserialize timeRefit
    timingCacheFile useDLACore useManagedMemory useProfile useRuntime vc verbose versionCompatible
    warmUp weightStreamingBudget
    """.split()
)
# Without effect, and deprecated, in 11.1.
FLAGS_10 = {"noDataTransfers", "separateProfileRun", "stronglyTyped", "useCudaGraph", "useSpinWait"}
FLAGS_11 = {"includeDataTransfers", "noCudaGraph", "noSpinWait"}
# docs.nvidia.com/deeplearning/tensorrt-rtx: benchmarking; CPU-only AOT.
FLAGS_RTX = {"computeCapabilities", "runtimeCacheFile", "rtxCudaGraphStrategy"}
BARE = {"skipInference", *FLAGS_10, *FLAGS_11}


def main() -> None:
    form = os.environ["FAKE_FORM"]
    known = FLAGS | {"10": FLAGS_10, "11": FLAGS_11, "rtx": FLAGS_11 | FLAGS_RTX}[form]
    if form == "rtx":
        known -= {"timingCacheFile"}
    given = {}
    for word in sys.argv[1:]:
        flag, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or flag not in known or flag in given:
            sys.exit(f"Unknown option: {word}")
        if bool(equals) == (flag in BARE):
            sys.exit(f"Invalid: {word}")
        given[flag] = value
    number = {"10": "101601", "11": "110400", "rtx": "10701"}[form]
    print(f"&&&& RUNNING TensorRT.trtexec [TensorRT v{number}] [b29]")
    print("[I] Selected Device: Fake GPU")
    if "onnx" in given:
        build(form, given)
    else:
        infer(form, given)


def build(form: str, given: dict[str, str]) -> None:
    assert form != "10" or "stronglyTyped" in given
    shapes = [read_shapes(given[f"{word}Shapes"]) for word in ("min", "opt", "max")]
    sha = hashlib.sha256(Path(given["onnx"]).read_bytes()).hexdigest()
    card = {"onnx": given["onnx"], "sha": sha, "shapes": shapes, "given": given}
    Path(given["saveEngine"]).write_text(json.dumps(card))
    if "timingCacheFile" in given:
        Path(given["timingCacheFile"]).write_text("")
    print("[I] Engine built in 1.25 sec.")


def infer(form: str, given: dict[str, str]) -> None:
    card = json.loads(Path(given["loadEngine"]).read_text())
    shapes = read_shapes(given["shapes"])
    low, _, high = card["shapes"]
    for name, shape in shapes.items():
        sizes = zip(low[name], shape, high[name], strict=True)
        assert all(a <= size <= b for a, size, b in sizes)
    files = dict(each.rsplit(":", 1) for each in given["loadInputs"].split(","))
    for name, file in files.items():
        assert Path(file).stat().st_size == 4 * math.prod(shapes[name])
    if "exportOutput" in given:
        Path(given["exportOutput"]).write_text(outputs(card, files, shapes))
    if "exportTimes" in given:
        base = 2.0 if "/fp32/" in card["onnx"] else 1.0
        Path(given["exportTimes"]).write_text(times_json([base * (1 + n / 99) for n in range(100)]))
    if "exportLayerInfo" in given:
        text = Path(os.environ["FAKE_LAYERS"], f"{card['sha']}.json").read_text()
        layers = json.loads(text)
        Path(given["exportLayerInfo"]).write_text(layers_10(layers) if form == "10" else text)
        names = [layer["Name"] for layer in layers["Layers"]]
        Path(given["exportProfile"]).write_text(profile_json(names))


def outputs(card: dict, files: dict[str, str], shapes: dict[str, list[int]]) -> str:
    """As exported; of one file and the same inputs they are computed once, since to import ONNX
    Runtime takes longer than all else here."""
    asked = repr((card["sha"], shapes)).encode() + b"".join(
        Path(file).read_bytes() for file in files.values()
    )
    kept = Path(os.environ["FAKE_LAYERS"], f"{hashlib.sha256(asked).hexdigest()}.outputs")
    if not kept.exists():
        kept.write_text(output_json(run(card["onnx"], files, shapes)))
    return kept.read_text()


def run(onnx: str, files: dict[str, str], shapes: dict[str, list[int]]) -> dict:
    import numpy as np
    import onnxruntime

    session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
    feeds = {name: np.fromfile(file, "<f4").reshape(shapes[name]) for name, file in files.items()}
    names = [each.name for each in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def read_shapes(text: str) -> dict[str, list[int]]:
    pairs = (each.rsplit(":", 1) for each in text.split(","))
    return {name: [int(size) for size in shape.split("x")] for name, shape in pairs}


def number(value: float) -> str:
    """As C++ streams a float."""
    return f"{value:.6g}"


def output_json(outputs: dict) -> str:
    told = []
    for name, values in outputs.items():
        dims = ", ".join(map(str, values.shape))
        listed = ", ".join(map(number, values.ravel()))
        told.append(
            f'{{ "name" : "{name}"\n  , "dimensions" : "({dims})"\n'
            f'  , "values" : [ {listed} ]\n  }}\n'
        )
    return "[\n  " + ", ".join(told) + "]\n"


def times_json(times: list[float]) -> str:
    calls = [
        {
            "startEnqMs": 0, "endEnqMs": 0.1, "startH2dMs": 0, "endH2dMs": 0, "startComputeMs": 0,
            "endComputeMs": ms, "startD2hMs": ms, "endD2hMs": ms, "h2dMs": 0, "computeMs": ms,
            "d2hMs": 0, "latencyMs": ms,
        }
        for ms in times
    ]  # fmt: skip
    return json.dumps(calls)


def profile_json(names: list[str]) -> str:
    layers = [
        {"name": name, "timeMs": 2.0, "averageMs": 0.2, "medianMs": 0.2, "percentage": 1.0}
        for name in names
    ]
    return json.dumps([{"count": 10}, *layers])


def layers_10(layers: dict) -> str:
    """The inspector's form before 11.0."""

    def older(tensor: dict) -> dict:
        renamed = {"Format/Datatype": tensor["Datatype"]}
        return {key: tensor[key] for key in ("Name", "Dimensions")} | renamed

    sides = ("Inputs", "Constants", "Outputs")
    told = [
        layer | {side: [older(tensor) for tensor in layer[side]] for side in sides}
        for layer in layers["Layers"]
    ]
    bindings = [tensor["Name"] for tensor in layers["I/O Tensors"]]
    return json.dumps({"Layers": told, "Bindings": bindings})


if __name__ == "__main__":
    main()
