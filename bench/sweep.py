"""Networks that people deploy, from plan to engines: what is found, honoured and computed.

`python bench/sweep.py [NAME ...]` runs each network in a process of its own, with random weights and
batch-norm statistics of random images, and writes results/sweep.json and results/sweep.txt. It
takes what it finds installed of torchvision, timm, ultralytics and transformers, which need another
torch than the tests (`pip install torchvision timm ultralytics`), and adds to a saved result.

size: of one sample, smaller than these networks' own: it changes neither the products nor what
engines do with them. found / there: calls of layers that the trace finds, and operators that multiply as torch dispatches
them, counted here; what of them has no site, the last column lists with its reason. honoured: rows
that the engine's own plan shows to be computed as asked, of those it tells of. dB: the engine's
outputs against FP32; the reference (ONNX Runtime, optimizations off) has its own column. analyze:
layers that were ranked, and what it says, on 8 samples and without costs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

HERE = Path(__file__).resolve()
RESULTS = HERE.parent / "results"
SAMPLES = 16
ENGINES = ("openvino", "tensorrt_rtx")
LIMIT_S = 3000
PACKAGES = (
    "torch", "torchvision", "timm", "ultralytics", "transformers", "nvidia-modelopt", "onnxruntime",
    "openvino", "tensorrt_rtx_cu13",
)  # fmt: skip


def _torchvision(name: str, **args: Any) -> nn.Module:
    import torchvision.models as models
    from torchvision.models import segmentation, video

    of = next(module for module in (models, segmentation, video) if hasattr(module, name))
    return getattr(of, name)(weights=None, **args)


def _timm(name: str, **args: Any) -> nn.Module:
    import timm

    return timm.create_model(name, pretrained=False, num_classes=10, **args)


def _yolo11n() -> nn.Module:
    from ultralytics.nn.tasks import DetectionModel

    return DetectionModel("yolo11n.yaml", ch=3, nc=8, verbose=False)


def _hidden() -> dict[str, int]:
    return {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
    }


def _transformers(model: str, config: str, /, **args: Any) -> nn.Module:
    import transformers

    return getattr(transformers, model)(getattr(transformers, config)(**args))


def _detr() -> nn.Module:
    import transformers

    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1] * 4, out_features=["stage4"]
    )
    sizes = {
        f"{side}_{key}": value
        for side in ("encoder", "decoder")
        for key, value in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 64))
    }
    return _transformers(
        "DetrForObjectDetection", "DetrConfig", use_timm_backbone=False, backbone=None,
        use_pretrained_backbone=False, backbone_config=backbone, d_model=64, num_queries=10,
        num_labels=5, **sizes,
    )  # fmt: skip


def _whisper() -> nn.Module:
    sizes = {
        f"{side}_{key}": value
        for side in ("encoder", "decoder")
        for key, value in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 128))
    }
    return _transformers(
        "WhisperModel", "WhisperConfig", vocab_size=200, d_model=64, max_source_positions=20,
        num_mel_bins=16, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=3,
        **sizes,
    ).encoder  # fmt: skip


_Make = Callable[[], nn.Module]
_IMAGE, _TOKENS = {"x": (3, 96, 96)}, {"input_ids": (12,)}
_V = {"vocab_size": 200}
_DECODER = {**_V, "max_position_embeddings": 64, "use_cache": False, "num_key_value_heads": 2}
_VISION = {"image_size": 32, "patch_size": 8}
_MOE = {"moe_intermediate_size": 48, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 16}
_PIXELS = {"pixel_values": (3, 32, 32)}


def _named(name: str) -> tuple[_Make, dict[str, tuple[int, ...]]]:
    """How a network is made, and the shapes of one sample; integers are tokens."""
    hf, h = _transformers, _hidden()
    special: dict[str, tuple[_Make, dict[str, tuple[int, ...]]]] = {
        **dict.fromkeys(ULTRALYTICS, (_yolo11n, {"x": (3, 128, 128)})),
        "r3d_18": (lambda: _torchvision("r3d_18"), {"x": (3, 8, 32, 32)}),
        "googlenet": (
            lambda: _torchvision("googlenet", aux_logits=False, init_weights=True),
            {"x": (3, 96, 96)},
        ),
        "vit_small": (
            lambda: _timm("vit_small_patch16_224", img_size=96, depth=4),
            {"x": (3, 96, 96)},
        ),
        "swin_tiny": (
            lambda: _timm("swin_tiny_patch4_window7_224", img_size=112),
            {"x": (3, 112, 112)},
        ),
        "bert": (lambda: hf("BertForSequenceClassification", "BertConfig", **_V, **h), _TOKENS),
        "distilbert": (
            lambda: hf(
                "DistilBertForSequenceClassification", "DistilBertConfig", **_V, dim=64,
                n_layers=2, n_heads=4, hidden_dim=128,
            ),
            _TOKENS,
        ),
        "vit": (lambda: hf("ViTForImageClassification", "ViTConfig", **_VISION, **h), _PIXELS),
        "swin": (
            lambda: hf(
                "SwinForImageClassification", "SwinConfig", image_size=32, patch_size=2,
                embed_dim=24, depths=[2, 2], num_heads=[2, 4], window_size=4,
            ),
            _PIXELS,
        ),
        "detr": (_detr, {"pixel_values": (3, 64, 64)}),
        "clip": (
            lambda: hf(
                "CLIPModel", "CLIPConfig", projection_dim=32,
                text_config={**_V, "max_position_embeddings": 16, "eos_token_id": 2, **h},
                vision_config={**_VISION, **h},
            ),
            {**_TOKENS, **_PIXELS},
        ),
        "whisper encoder": (_whisper, {"input_features": (16, 40)}),
        "t5": (
            lambda: hf(
                "T5ForConditionalGeneration", "T5Config", **_V, d_model=64, d_kv=16, d_ff=128,
                num_layers=2, num_heads=4, use_cache=False, decoder_start_token_id=0,
            ),
            {**_TOKENS, "decoder_input_ids": (8,)},
        ),
        "gpt2": (
            lambda: hf(
                "GPT2LMHeadModel", "GPT2Config", **_V, n_positions=64, n_embd=64, n_layer=2,
                n_head=4, use_cache=False,
            ),
            _TOKENS,
        ),
        "llama": (lambda: hf("LlamaForCausalLM", "LlamaConfig", **_DECODER, **h), _TOKENS),
        "qwen3": (
            lambda: hf(
                "Qwen3ForCausalLM", "Qwen3Config", **_DECODER, **h, head_dim=16,
                tie_word_embeddings=True,
            ),
            _TOKENS,
        ),
        "mixtral": (
            lambda: hf(
                "MixtralForCausalLM", "MixtralConfig", **_DECODER, **h, num_local_experts=4
            ),
            _TOKENS,
        ),
        "qwen3-moe": (
            lambda: hf("Qwen3MoeForCausalLM", "Qwen3MoeConfig", **_DECODER, **h, **_MOE), _TOKENS
        ),
        "wav2vec2": (
            lambda: hf(
                "Wav2Vec2ForCTC", "Wav2Vec2Config", vocab_size=32, **h, conv_dim=(32, 32, 32),
                conv_stride=(5, 2, 2), conv_kernel=(10, 3, 3), num_feat_extract_layers=3,
                num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
            ),
            {"input_values": (1600,)},
        ),
        "segformer": (
            lambda: hf(
                "SegformerForSemanticSegmentation", "SegformerConfig", num_labels=5,
                hidden_sizes=[16, 16, 32, 32], depths=[1] * 4, num_attention_heads=[1, 1, 2, 2],
                decoder_hidden_size=32,
            ),
            {"pixel_values": (3, 64, 64)},
        ),
    }  # fmt: skip
    if name in special:
        return special[name]
    if name in TORCHVISION:
        shapes = {"input": _IMAGE["x"]} if name.startswith("lraspp") else _IMAGE
        return lambda: _torchvision(name, **SEGMENTS.get(name, {})), shapes
    return lambda: _timm(name), _IMAGE


SEGMENTS = {"deeplabv3_mobilenet_v3_large": {"weights_backbone": None}}
SEGMENTS["lraspp_mobilenet_v3_large"] = {"weights_backbone": None}
TORCHVISION = (
    "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "resnet50", "regnet_y_400mf",
    "densenet121", "googlenet", "convnext_tiny", *SEGMENTS, "r3d_18",
)  # fmt: skip
TIMM = (
    "tf_efficientnet_b0", "nf_resnet26", "mobilenetv4_conv_small", "ghostnet_100",
    "efficientvit_b0", "fastvit_t8", "vit_small", "swin_tiny",
)  # fmt: skip
FUSED = "yolo11n, fused"
ULTRALYTICS = ("yolo11n", FUSED)
TRANSFORMERS = (
    "bert", "distilbert", "vit", "swin", "detr", "clip", "whisper encoder", "t5", "gpt2", "llama",
    "qwen3", "mixtral", "qwen3-moe", "wav2vec2", "segformer",
)  # fmt: skip
NAMES = (*TORCHVISION, *TIMM, *ULTRALYTICS, *TRANSFORMERS)


def build(name: str) -> nn.Module:
    """The network in eval mode; its batch norms have seen 64 random samples, and what its maker
    sets to zero, for training to begin with, is drawn."""
    torch.manual_seed(0)
    make, _ = _named(name)
    model = make()
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = None
        norm.reset_running_stats()
        norm.train()
    with torch.no_grad():
        for batch in data(name, 64 if norms else 0):
            model(**{key: torch.from_numpy(values) for key, values in batch.items()})
    return model.eval().fuse(verbose=False) if name == FUSED else model.eval()


def data(name: str, samples: int = SAMPLES, seed: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """Random samples, in batches of 8: tokens and floats."""
    _, shapes = _named(name)
    random = np.random.default_rng(seed)
    for _ in range(samples // 8):
        yield {
            key: random.integers(3, 200, (8, *shape))
            if key.endswith("input_ids")
            else random.standard_normal((8, *shape), np.float32)
            for key, shape in shapes.items()
        }


class Count(TorchDispatchMode):
    """Counts the operators that multiply matrices or convolve."""

    NAMES = frozenset(
        "mm bmm addmm baddbmm mv addmv dot convolution _trilinear _grouped_mm addbmm "
        "_scaled_dot_product_flash_attention_for_cpu mkldnn_rnn_layer".split()
    )

    def __init__(self) -> None:
        super().__init__()
        self.there = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.there += func.overloadpacket.__name__ in self.NAMES
        return func(*args, **(kwargs or {}))


def one(name: str) -> Iterator[dict[str, Any]]:
    """What one network comes to, in this process: after apply, and after analyze."""
    from granplugin.__main__ import main
    from granplugin.network.computed import compute_once
    from granplugin.network.forward import evaluating
    from granplugin.network.trace import trace

    model = build(name)
    example = {key: torch.from_numpy(values[:2]) for key, values in next(data(name)).items()}
    count = Count()
    compute_once(model)
    with evaluating(model), sdpa_kernel(SDPBackend.MATH), count:
        model(**example)
    traced = trace(model, example)
    layers = [layer for layer in traced.layers if layer.multiplied != ("weight",)]
    found = sum(layer.calls for layer in layers if layer.multiplied and _ran(layer))
    told: dict[str, Any] = {
        "there": count.there,
        "found": found,
        "products": len(traced.products),
        "without": {
            f"{each.place or 'itself'}: {each.function}": "no layer"
            for each in traced.products
            if each.place not in {layer.name for layer in layers}
        },
    }
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        call = {"callable": f"{HERE}:data", "args": {"name": name}}
        recipe = {
            "version": 1,
            "model": {"callable": f"{HERE}:build", "args": {"name": name}},
            "data": {
                "calibration": call,
                "evaluation": {**call, "args": {"name": name, "seed": 1}},
                "batch_size": 8,
            },
            "metrics": ["sqnr_db"],
            "engines": ["onnxruntime"],
            "optional_engines": list(ENGINES),
            "on_unsupported": ["lower", "coarsen", "simulate"],
            "baselines": ["fp32"],
            "latency": {"rounds": 6, "seconds": 0.05},
            "analyze": {"top": 2, "calibrators": ["max"]},
        }
        recipe["data"]["analysis"] = {**call, "args": {"name": name, "seed": 2, "samples": 8}}
        Path("recipe.yaml").write_text(json.dumps(recipe))
        told["exit"] = main(["apply", "recipe.yaml"])
        report = Path("runs/recipe/report.json")
        if report.exists():
            told |= _engines(json.loads(report.read_text()))
        yield told
        analyzed = main(["analyze", "recipe.yaml", "--no-costs"])
        analysis = Path("runs/recipe/analysis.json")
        told["analyze"] = {"exit": analyzed}
        if analysis.exists():
            found = json.loads(analysis.read_text())
            told["analyze"] |= {
                "layers": len(found["layers"]), "verdict": found["advice"]["verdict"]
            }  # fmt: skip
        yield told


def _ran(layer: Any) -> bool:
    return "never" not in (layer.unusable or "") and "no output" not in (layer.unusable or "")


def _engines(report: dict[str, Any]) -> dict[str, Any]:
    variant = report["variants"][-1]
    covered, engines = variant["coverage"], {}
    for engine in variant["engines"]:
        kinds = [verdict["verdict"] for verdict in engine["verdicts"]]
        metric = engine["metrics"].get("sqnr_db")
        engines[engine["engine"]] = {
            "db": metric and metric["value"],
            "honoured": kinds.count("honoured"),
            "told": sum(kind != "unknown" for kind in kinds),
            "wrong": kinds.count("wrong"),
            "refused": engine["refused"] or engine["cannot_run"],
        }
    floats = [f"{each['products']} {each['what']} ({each['reason']})" for each in covered["floats"]]
    return {
        "quantized": covered["quantized"],
        "of": covered["products"],
        "floats": floats,
        "engines": engines,
    }


def table(results: dict[str, Any]) -> str:
    """The results as text, one network a line."""
    head = f"{'network':29} {'size':>8} {'found':>5} {'there':>5} {'quantized':>9}"
    head += "".join(f" {name:>22}" for name in ("onnxruntime dB", *ENGINES))
    head += f" {'analyze':>16}  float, or failed"
    lines = [results.get("with", ""), "", head]
    for name in NAMES:
        told = results.get(name)
        if told is None:
            lines.append(f"{name:29} not run")
            continue
        if "failed" in told or "engines" not in told:
            lines.append(f"{name:29} failed: {told.get('failed', told.get('exit'))}")
            continue
        size = "x".join(str(n) for n in next(iter(_named(name)[1].values())))
        line = f"{name:29} {size:>8} {told['found']:5} {told['there']:5}"
        line += f" {told['quantized']:4}/{told['of']:4}"
        for engine in ("onnxruntime", *ENGINES):
            line += f" {_cell(told['engines'].get(engine)):>22}"
        line += f" {_analyzed(told.get('analyze')):>16}"
        lines.append(f"{line}  {'; '.join(told['floats'])}".rstrip())
    return "\n".join(lines) + "\n"


def _cell(of: dict[str, Any] | None) -> str:
    if of is None:
        return "-"
    db = "" if of["db"] is None else f"{of['db']:.1f}"
    told = f"{of['honoured']}/{of['told']}" if of["told"] else ""
    return " ".join(part for part in (db, told, "WRONG" if of["wrong"] else "") if part) or "-"


def _analyzed(of: dict[str, Any] | None) -> str:
    if of is None:
        return "-"
    return f"{of['layers']} {of['verdict']}" if "verdict" in of else f"exit {of['exit']}"


def _versions() -> str:
    told = []
    for package in PACKAGES:
        try:
            told.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            told.append(f"no {package}")
    return ", ".join(told)


def _child(name: str) -> dict[str, Any]:
    command = [sys.executable, str(HERE), "--one", name]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        try:
            subprocess.run(
                command, stdout=out, stderr=err, timeout=LIMIT_S, env=environment, check=False
            )
            word = ""
        except subprocess.TimeoutExpired:
            word = f"more than {LIMIT_S} s"
        for file in (out, err):
            file.seek(0)
        told = [json.loads(line) for line in out if line.startswith('{"there"')]
        word = word or ([line.strip() for line in err if line.strip()] or ["no word"])[-1][:300]
    found: dict[str, Any] = told[-1] if told else {}
    return found if "engines" in found else {**found, "failed": word}


def run(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--one", metavar="NAME", help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.one:
        for told in one(given.one):
            print(json.dumps(told), flush=True)
        return
    saved = RESULTS / "sweep.json"
    results = json.loads(saved.read_text()) if saved.exists() else {}
    results["with"] = _versions()
    for name in given.names or NAMES:
        results[name] = _child(name)
        saved.write_text(json.dumps(results, indent=1) + "\n")
        (RESULTS / "sweep.txt").write_text(table(results))
        print(name, json.dumps(results[name])[:400], flush=True)


if __name__ == "__main__":
    run()
