"""Small torch networks that are exported to ONNX files, each of one kind of product or place."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Residual(nn.Module):
    """Batch norms behind convolutions that are depthwise, grouped, of one position; two adds."""

    def __init__(self):
        super().__init__()
        self.stem, self.b1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.dw, self.b2 = (
            nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
            nn.BatchNorm2d(8),
        )
        self.pw, self.b3 = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 16, 3, groups=2, stride=2, padding=1)
        self.b4 = nn.BatchNorm2d(16)
        self.down, self.b5 = nn.Conv2d(8, 16, 1, stride=2), nn.BatchNorm2d(16)
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(16, 5)

    def forward(self, x):
        x = self.b1(self.stem(x)).relu()
        x = x + self.b3(self.pw(self.b2(self.dw(x)).relu()))
        x = (self.b4(self.grouped(x)) + self.b5(self.down(x))).relu()
        return self.fc(self.pool(x).flatten(1))


class Concats(nn.Module):
    """Two concatenations, one of which holds the other's result."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.c, self.bn, self.d = nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(12, 2, 1)

    def forward(self, x):
        y = torch.cat([self.a(x).relu(), self.b(x).relu()], 1)
        return self.d(torch.cat([y, self.bn(self.c(y)).relu()], 1))


class Upsampling(nn.Module):
    """Transposed convolutions, one grouped, and a batch norm behind one."""

    def __init__(self):
        super().__init__()
        self.a, self.pool = nn.Conv2d(3, 8, 3, padding=1), nn.MaxPool2d(2)
        self.b = nn.Conv2d(8, 16, 3, padding=1)
        self.up, self.bn = nn.ConvTranspose2d(16, 8, 2, stride=2), nn.BatchNorm2d(8)
        self.grouped = nn.ConvTranspose2d(16, 16, 3, padding=1, groups=4)
        self.out = nn.Conv2d(16, 2, 1)

    def forward(self, x):
        a = self.a(x).relu()
        up = self.bn(self.up(self.b(self.pool(a)).relu())).relu()
        return self.out(self.grouped(torch.cat([a, up], 1)).relu())


class Attention(nn.Module):
    """An attention spelt out, and a block of two linear layers, with layer norms before them."""

    def __init__(self, width=16, heads=2):
        super().__init__()
        self.heads, self.n1, self.n2 = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k = nn.Linear(width, width), nn.Linear(width, width)
        self.v, self.out = nn.Linear(width, width, bias=False), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        y = self.n1(x)
        heads = [f(y).unflatten(-1, (self.heads, -1)) for f in (self.q, self.k, self.v)]
        q, k, v = (t.transpose(1, 2) for t in heads)
        shares = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        x = x + self.out((shares @ v).transpose(1, 2).flatten(2))
        x = x + self.down(F.gelu(self.up(self.n2(x))))
        return self.head(x.mean(1))


class Fused(nn.Module):
    """Attentions that torch has a function and a module for."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.mha = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x):
        split = self.qkv(x).chunk(3, -1)
        q, k, v = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in split)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.out(mixed)
        return x + self.mha(x, x, x, need_weights=False)[0]


class Words(nn.Module):
    """Embeddings, an encoder layer, and a head that shares the embedding's weight."""

    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(20, 16), nn.Embedding(8, 16)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.words.weight

    def forward(self, x):
        placed = self.words(x) + self.places(torch.arange(x.shape[1])[None])
        return self.head(self.encoder(placed))


class ManyKeys(nn.Module):
    """An attention over more keys than are quantized by default."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        return (self.q(x) @ self.k(x).transpose(1, 2)).softmax(-1) @ self.v(x)


class Recurrent(nn.Module):
    """Recurrent layers, which stay as they are."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Linear(8, 8), nn.Linear(8, 3)
        self.lstm, self.gru = nn.LSTM(8, 8, batch_first=True), nn.GRU(8, 8, batch_first=True)

    def forward(self, x):
        return self.head(self.gru(self.lstm(self.embed(x).relu())[0])[0])


class Computed(nn.Module):
    """Weights that are computed of parameters: standardised, and with a product of two added."""

    def __init__(self):
        super().__init__()
        self.std, self.plain = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.bn, self.lora = nn.BatchNorm2d(8), nn.Linear(8, 4)
        self.down, self.up = nn.Parameter(torch.randn(2, 8)), nn.Parameter(torch.randn(4, 2))

    def forward(self, x):
        weight = self.std.weight - self.std.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5)
        x = F.conv2d(x, weight, self.std.bias, padding=1).relu()
        x = self.bn(self.plain(x)).relu().mean((2, 3))
        return F.linear(x, self.lora.weight + self.up @ self.down, self.lora.bias)


class Functions(nn.Module):
    """Products of functions: a constant on either side, a transposed one, with a bias added."""

    def __init__(self):
        super().__init__()
        self.right, self.left = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(5, 5))
        self.turned, self.bias = nn.Parameter(torch.randn(6, 8)), nn.Parameter(torch.randn(6))
        self.kernel = nn.Parameter(torch.randn(4, 5, 3))

    def forward(self, x):
        x = F.conv1d((self.left @ (x @ self.right)).relu(), self.kernel, padding=1)
        return torch.addmm(self.bias, x.mean(1), self.turned.t())


class Patches(nn.Module):
    """Patches of an image, a token before them, and a position embedding, which is no skip."""

    def __init__(self):
        super().__init__()
        self.patch, self.norm = nn.Conv2d(3, 16, 4, stride=4), nn.LayerNorm(16)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.places = nn.Parameter(torch.randn(1, 17, 16))
        self.fc, self.head = nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places
        return self.head((x + self.fc(self.norm(x)))[:, 0])


class Gate(nn.Module):
    """A squeeze and excitation, whose product is no skip, in a residual block with dropout."""

    def __init__(self):
        super().__init__()
        self.conv, self.b1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.reduce, self.expand = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.project, self.b2 = nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.dropout, self.fc = nn.Dropout(0.1), nn.Linear(8, 2)

    def forward(self, x):
        x = F.silu(self.b1(self.conv(x)))
        gate = self.expand(F.silu(self.reduce(x.mean((2, 3), keepdim=True)))).sigmoid()
        x = x + self.b2(self.project(x * gate))
        return self.fc(self.dropout(x.mean((2, 3))))


class Volume(nn.Module):
    """Convolutions of three axes, and norms that fold into nothing."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4)
        self.group, self.up = nn.GroupNorm(2, 4), nn.ConvTranspose3d(4, 2, 2, stride=2)
        self.norm, self.act = nn.InstanceNorm3d(2, affine=True), nn.LeakyReLU()

    def forward(self, x):
        x = self.bn(self.conv(x)).relu()
        return self.act(self.norm(self.up(self.group(x))))


NETS: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "residual": (Residual, (3, 8, 8)),
    "concats": (Concats, (3, 8, 8)),
    "upsampling": (Upsampling, (3, 8, 8)),
    "attention": (Attention, (5, 16)),
    "fused": (Fused, (5, 16)),
    "words": (Words, (8,)),
    "many_keys": (ManyKeys, (513, 4)),
    "recurrent": (Recurrent, (5, 8)),
    "computed": (Computed, (3, 8, 8)),
    "functions": (Functions, (5, 8)),
    "patches": (Patches, (3, 16, 16)),
    "gate": (Gate, (3, 8, 8)),
    "volume": (Volume, (1, 4, 4, 4)),
}
"""A network of each kind, and the shape of one sample."""


def make(name: str) -> tuple[nn.Module, Tensor]:
    """The network, its batch norms with statistics, and two samples."""
    torch.manual_seed(0)
    kind, shape = NETS[name]
    net = kind()
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    words = kind is Words
    return net.eval(), torch.randint(0, 20, (2, *shape)) if words else torch.randn(2, *shape)


class Several(nn.Module):
    """Networks side by side, each with an input and an output of its own: torch.export and the
    exporter behind it take seconds, however small what they are given is."""

    def __init__(self, nets: Sequence[nn.Module]):
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, *xs):
        return tuple(net(x) for net, x in zip(self.nets, xs, strict=True))
