"""What a forward wants and what it got, told of inputs in another layout or type."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from granplugin.errors import ModelError
from granplugin.network.forward import call

FLOATS = torch.zeros(2, 4)


@pytest.mark.parametrize(
    ("net", "x", "told"),
    [
        (nn.Conv2d(3, 2, 1), torch.zeros(2, 1, 4, 4), "input is gray, and forward takes 3 colours"),
        (
            nn.Conv2d(1, 2, 1),
            torch.zeros(2, 3, 4, 4),
            "input has 3 colours, and .*grayscale: true",
        ),
        (nn.Conv2d(3, 2, 1), torch.zeros(2, 4, 5, 5), "leave the alpha channel out"),
        (nn.Conv2d(3, 2, 1), torch.zeros(2, 48), "input is flat"),
        (nn.Conv1d(2, 2, 1), torch.zeros(2, 9, 2), "the channels of input come last"),
        (nn.BatchNorm2d(3), torch.zeros(3, 4, 4), "give one image as a batch of one"),
        (nn.Linear(16, 2), torch.zeros(2, 4, 4), "forward takes its 16 values flat"),
        (nn.Linear(16, 2), torch.zeros(2, 8), "input has 8 features on its last axis"),
        (nn.Linear(4, 2).double(), FLOATS, "something in the model is float64"),
        (
            nn.LSTM(8, 2, batch_first=True),
            torch.zeros(2, 8, 5),
            "the 8 features .* axis 1, not last",
        ),
        (nn.Embedding(9, 2), FLOATS, "input is to be whole numbers, int64"),
        (nn.Embedding(9, 2), torch.full((2, 4), 12), "input holds 12 to 12: one is in no table"),
    ],
)
def test_what_forward_wants_is_told_beside_what_it_got(net, x, told):
    with pytest.raises(ModelError, match=f"it was given input .*; .*{told}"):
        call(net, x)
