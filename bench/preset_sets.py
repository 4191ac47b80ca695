"""Which quantizers modelopt@0.47 switches on, beside mtq.quantize's INT8_DEFAULT_CFG, on tiny networks of
many architectures.

python bench/preset_sets.py --save
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import modelopt.torch.quantization as mtq
import torch
import transformers
from modelopt.torch.quantization.nn import TensorQuantizer
from torch import nn

from granplugin.errors import UserError
from granplugin.network.trace import trace
from granplugin.planning.plan import make_plan
from granplugin.recipe.load import load_part

HERE = Path(__file__).resolve().parent
SMALL = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
TOKENS = dict(vocab_size=40, max_position_embeddings=32)
IMAGE = dict(image_size=32, patch_size=8)
DECODER = SMALL | TOKENS | dict(num_key_value_heads=2, use_cache=False)
IDS, PICTURES = torch.arange(8).reshape(1, 8), torch.zeros(2, 3, 32, 32)
MODELS: dict[str, tuple[dict[str, Any], Any]] = {
    "Bert": (SMALL | TOKENS, IDS), "Roberta": (SMALL | TOKENS, IDS),
    "DistilBert": (dict(vocab_size=40, dim=32, n_layers=1, n_heads=2, hidden_dim=32), IDS),
    "Albert": (SMALL | TOKENS | dict(embedding_size=16), IDS), "DebertaV2": (SMALL | TOKENS, IDS),
    "GPT2": (dict(vocab_size=40, n_embd=32, n_layer=1, n_head=2, use_cache=False), IDS),
    "Llama": (DECODER, IDS), "Qwen3": (DECODER | dict(head_dim=16), IDS),
    "Gemma2": (DECODER | dict(head_dim=16), IDS),
    "Mixtral": (DECODER | dict(num_local_experts=2), IDS),
    "ViT": (SMALL | IMAGE, PICTURES), "DeiT": (SMALL | IMAGE, PICTURES),
    "Beit": (SMALL | IMAGE, PICTURES), "Dinov2": (SMALL | IMAGE, PICTURES),
    "Swin": (dict(image_size=32, patch_size=4, embed_dim=16, depths=[1], num_heads=[2],
                  window_size=4), PICTURES),
    "ConvNext": (dict(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2), PICTURES),
    "Segformer": ({}, PICTURES), "MobileViT": (dict(image_size=32), PICTURES),
    "ResNet": (dict(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1]), PICTURES),
    "MobileNetV2": ({}, PICTURES), "EfficientNet": (dict(image_size=32), PICTURES),
    "CLIPVision": (SMALL | IMAGE, PICTURES),
}  # fmt: skip
TORCH: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "LSTM": (lambda: nn.LSTM(8, 8, batch_first=True), torch.zeros(2, 4, 8)),
    "GRU": (lambda: nn.GRU(8, 8, batch_first=True), torch.zeros(2, 4, 8)),
    "MultiheadAttention": (lambda: nn.MultiheadAttention(8, 2, batch_first=True),
                           (torch.zeros(2, 4, 8),) * 3),
    "TransformerEncoderLayer": (lambda: nn.TransformerEncoderLayer(8, 2, 8, batch_first=True),
                                torch.zeros(2, 4, 8)),
}  # fmt: skip


def networks() -> Iterator[tuple[str, Callable[[], nn.Module], Any]]:
    for name, (settings, example) in MODELS.items():
        config = getattr(transformers, f"{name}Config")(**settings)
        yield name, lambda: getattr(transformers, f"{name}Model")(config), example
    for name, (make, example) in TORCH.items():
        yield name, make, example


def compared(make: Callable[[], nn.Module], example: Any) -> str:
    torch.manual_seed(0)
    model = make().eval()
    layers = trace(model, example).layers
    plan = make_plan(load_part({"version": 1, "defaults": "modelopt@0.47"}), layers)
    ours = {f"{row.site}_quantizer" for row in plan.quantized}
    mtq.replace_quant_module(model)
    mtq.set_quantizer_by_cfg(model, copy.deepcopy(mtq.INT8_DEFAULT_CFG["quant_cfg"]))
    theirs = {
        name
        for name, each in model.named_modules()
        if isinstance(each, TensorQuantizer) and each.is_enabled
    }
    idle = {
        f"{x.name}.{role}_quantizer" for x in layers if x.unusable for role in ("weight", "input")
    }
    told = [f"{len(ours & theirs)} the same"]
    if more := sorted(ours - theirs):
        told.append(f"{len(more)} here alone: {', '.join(more[:3])}")
    if never := sorted((theirs - ours) & idle):
        told.append(f"{len(never)} there alone, of layers that never run: {', '.join(never[:3])}")
    if fewer := sorted(theirs - ours - idle):
        told.append(f"{len(fewer)} there alone: {', '.join(fewer[:3])}")
    return "; ".join(told)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", action="store_true", help="write bench/results")
    args = parser.parse_args()
    lines = []
    for name, make, example in networks():
        try:
            said = compared(make, example)
        except UserError as err:
            said = f"not traced: {err}"
        lines.append(f"{name:<26}{said}")
        print(lines[-1], flush=True)
    if args.save:
        text = "\n".join(lines) + "\n"
        (HERE / "results" / "preset_sets.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
