"""Recurrent networks and attention, in the spellings that people use."""

# ruff: noqa: D101, D102, D103  the networks are what users write; their names say what they are
# A module that is called returns whatever; users do not cast it.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo_networks.network import Built, Network, classics
from edgelean.nn import LRU, SequenceBlock


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm = nn.Embedding(60, 24), nn.LSTM(24, 32, batch_first=True)
        self.head = nn.Linear(32, 9)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.lstm(self.embed(tokens))[0])


class BothWays(nn.Module):
    """Two layers, two directions, the last states joined."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(10, 24, num_layers=2, bidirectional=True, batch_first=True)
        self.norm, self.head = nn.LayerNorm(48), nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.gru(x)
        return self.head(self.norm(y.mean(1)))


class LastState(nn.Module):
    """The last hidden state, not the outputs; time first."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(10, 24, num_layers=2), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        _, (h, _) = self.lstm(x.transpose(0, 1))
        return self.head(h[-1])


class ReadText(nn.Module):
    """Convolutions, then a recurrence along the width of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(),
            nn.MaxPool2d((2, 1)),
        )  # fmt: skip
        self.rnn, self.head = nn.LSTM(24 * 4, 32, bidirectional=True, batch_first=True), nn.Linear(64, 11)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        y = y.permute(0, 3, 1, 2).flatten(2)
        return self.head(self.rnn(y)[0])


class ConvLstm(nn.Module):
    """A cell written out, in a loop over time."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.width, self.gates = width, nn.Conv2d(3 + width, 4 * width, 3, padding=1)
        self.head = nn.Conv2d(width, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, time, _, height, width = x.shape
        h = c = x.new_zeros(n, self.width, height, width)
        for t in range(time):
            i, f, o, g = self.gates(torch.cat([x[:, t], h], 1)).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return self.head(h)


class Cells(nn.Module):
    """nn.LSTMCell and nn.GRUCell in a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.LSTMCell(6, 20), nn.GRUCell(20, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        h, c, s = x.new_zeros(x.shape[0], 20), x.new_zeros(x.shape[0], 20), x.new_zeros(x.shape[0], 16)
        for t in range(x.shape[1]):
            h, c = self.first(x[:, t], (h, c))
            s = self.second(h, s)
        return self.head(s)


class Attentive(nn.Module):
    """nn.MultiheadAttention with a residual and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attend = nn.Linear(10, 32), nn.MultiheadAttention(32, 4, batch_first=True)
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(self.norm(x + self.attend(x, x, x, need_weights=False)[0]).mean(1))


class Encoder(nn.Module):
    def __init__(self, norm_first: bool = False) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=norm_first)
        self.embed, self.places = nn.Embedding(50, 32), nn.Parameter(torch.randn(1, 12, 32) / 10)
        self.body, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(32, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.body(self.embed(tokens) + self.places).mean(1))


class Translator(nn.Module):
    """nn.Transformer: encoder and decoder with cross attention."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(50, 32), nn.Embedding(40, 32)
        self.body = nn.Transformer(32, 4, 1, 1, 64, batch_first=True)
        self.head = nn.Linear(32, 40)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        return self.head(self.body(self.source(source), self.target(target)))


class Fused(nn.Module):
    """One projection for queries, keys and values, cut in chunks; softmax with a causal mask, as in nanoGPT."""

    mask: Tensor

    def __init__(self, width: int, heads: int, places: int) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.register_buffer("mask", torch.tril(torch.ones(places, places)).view(1, 1, places, places))

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.size()
        q, k, v = self.qkv(x).split(self.width, dim=2)
        q, k, v = (part.view(n, t, self.heads, c // self.heads).transpose(1, 2) for part in (q, k, v))
        weights = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        weights = F.softmax(weights.masked_fill(self.mask[:, :, :t, :t] == 0, float("-inf")), dim=-1)
        return self.out((weights @ v).transpose(1, 2).contiguous().view(n, t, c))


class Block(nn.Module):
    def __init__(self, attention: nn.Module, width: int) -> None:
        super().__init__()
        self.norm1, self.attend, self.norm2 = nn.LayerNorm(width), attention, nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Gpt(nn.Module):
    """Head and embedding are one parameter."""

    def __init__(self, width: int = 32, depth: int = 2, heads: int = 4, vocabulary: int = 60) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(16, width)
        self.blocks = nn.ModuleList(Block(Fused(width, heads, 16), width) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Rms(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def rotate(x: Tensor) -> Tensor:
    a, b = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-b, a), dim=-1)


class Rotary(nn.Module):
    """Grouped queries and rotary embedding, as in Llama."""

    cos: Tensor
    sin: Tensor

    def __init__(self, width: int, heads: int, groups: int) -> None:
        super().__init__()
        self.heads, self.groups, self.size = heads, groups, width // heads
        self.q, self.k = nn.Linear(width, width, bias=False), nn.Linear(width, groups * self.size, bias=False)
        self.v, self.o = nn.Linear(width, groups * self.size, bias=False), nn.Linear(width, width, bias=False)
        rates = 1.0 / (10000 ** (torch.arange(0, self.size, 2).float() / self.size))
        angles = torch.outer(torch.arange(16).float(), rates)
        self.register_buffer("cos", torch.cat([angles, angles], -1).cos())
        self.register_buffer("sin", torch.cat([angles, angles], -1).sin())

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q = self.q(x).view(n, t, self.heads, self.size).transpose(1, 2)
        k = self.k(x).view(n, t, self.groups, self.size).transpose(1, 2)
        v = self.v(x).view(n, t, self.groups, self.size).transpose(1, 2)
        q, k = (part * self.cos[:t] + rotate(part) * self.sin[:t] for part in (q, k))
        k, v = (part.repeat_interleave(self.heads // self.groups, dim=1) for part in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(y.transpose(1, 2).reshape(n, t, -1))


class LlamaBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.attend = Rms(width), Rms(width), Rotary(width, 4, 2)
        self.gate, self.up = nn.Linear(width, 80, bias=False), nn.Linear(width, 80, bias=False)
        self.down = nn.Linear(80, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.norm1(x))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


def llama() -> Built:
    layers = (nn.Embedding(60, 32), LlamaBlock(32), LlamaBlock(32), Rms(32), nn.Linear(32, 60, bias=False))
    return nn.Sequential(*layers), (torch.randint(0, 60, (2, 12)),)


class SelfAttention(nn.Module):
    """timm's spelling: reshape to (3, heads, size), permute, unbind."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        qkv = self.qkv(x).reshape(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        weights = ((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1)
        return self.out((weights @ v).transpose(1, 2).reshape(n, t, c))


class Vit(nn.Module):
    def __init__(self, width: int = 32, depth: int = 2) -> None:
        super().__init__()
        self.patches, self.first = nn.Conv2d(3, width, 8, 8), nn.Parameter(torch.randn(1, 1, width))
        self.places = nn.Parameter(torch.randn(1, 17, width) / 10)
        self.blocks = nn.Sequential(*(Block(SelfAttention(width), width) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(x.shape[0], -1, -1), x], 1) + self.places
        return self.head(self.norm(self.blocks(x))[:, 0])


class MixerBlock(nn.Module):
    def __init__(self, places: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix = nn.Sequential(nn.Linear(places, 24), nn.GELU(), nn.Linear(24, places))
        self.mlp = nn.Sequential(nn.Linear(width, 80), nn.GELU(), nn.Linear(80, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.mlp(self.norm2(x))


class Mixer(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.blocks = nn.Sequential(MixerBlock(16, width), MixerBlock(16, width))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.patches(x).flatten(2).transpose(1, 2))).mean(1))


class StateSpace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode, self.head = nn.Linear(2, 24), nn.Linear(24, 5)
        self.blocks = nn.ModuleList(SequenceBlock(LRU(24, 32)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.encode(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


def tokens(model: nn.Module, count: int = 50, length: int = 12) -> Built:
    return model, (torch.randint(0, count, (2, length)),)


def signal(model: nn.Module, width: int) -> Built:
    return model, (torch.randn(2, 12, width),)


NETWORKS: tuple[Network, ...] = classics(
    lstm=lambda: tokens(Tagger()),
    gru_both_ways=lambda: signal(BothWays(), 10),
    lstm_last_state=lambda: signal(LastState(), 10),
    crnn=lambda: (ReadText(), (torch.randn(2, 1, 16, 32),)),
    conv_lstm=lambda: (ConvLstm(), (torch.randn(2, 4, 3, 8, 8),)),
    cells=lambda: signal(Cells(), 6),
    multihead_attention=lambda: signal(Attentive(), 10),
    transformer_encoder=lambda: tokens(Encoder()),
    transformer_encoder_prenorm=lambda: tokens(Encoder(norm_first=True)),
    nn_transformer=lambda: (Translator(), (torch.randint(0, 50, (2, 12)), torch.randint(0, 40, (2, 7)))),
    gpt=lambda: tokens(Gpt()),
    llama=llama,
    vit=lambda: (Vit(), (torch.randn(2, 3, 32, 32),)),
    mixer=lambda: (Mixer(), (torch.randn(2, 3, 32, 32),)),
    lru=lambda: signal(StateSpace(), 2),
    gpt_12_layers=lambda: tokens(Gpt(768, 12, 12, 50), 50, 16),
)
