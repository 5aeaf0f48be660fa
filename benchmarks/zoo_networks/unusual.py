"""Networks with what is rare: heads of the training, writing into places, transforms, graphs, quantised weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.zoo_networks.network import Built, Network, classics


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )  # fmt: skip


def _image(size: int = 16) -> tuple[Tensor, ...]:
    return (torch.randn(2, 3, size, size),)


class AuxiliaryHead(nn.Module):
    """A classifier with a second one half-way up, in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = _block(3, 24, 2), _block(24, 32, 2)
        self.aside, self.head = nn.Conv2d(24, 10, 1), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return the scores, in training those of both heads."""
        low = self.low(x)
        scores: Tensor = self.head(self.high(low).mean((2, 3)))
        return (scores, self.aside(low).mean((2, 3))) if self.training else scores


class NoisyLayer(nn.Module):
    """A linear layer with noise of a learned scale, in training only."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.mean, self.scale = (
            nn.Parameter(torch.randn(outputs, inputs) / 4),
            nn.Parameter(torch.ones(outputs, inputs)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Multiply with weights, noisy ones in training."""
        noise = self.scale * torch.randn_like(self.scale) if self.training else 0
        return functional.linear(x, self.mean + noise)


class Squeezed(nn.Module):
    """Channels weighted by their means and maxima, places by the largest channel and the mean."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weigh = nn.Sequential(nn.Linear(width, width // 4), nn.ReLU(), nn.Linear(width // 4, width))
        self.look = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        """Weigh channels, then places."""
        gate = self.weigh(x.mean((2, 3))) + self.weigh(x.amax((2, 3)))
        x = x * gate.sigmoid()[:, :, None, None]
        seen = torch.cat([x.max(1, keepdim=True)[0], x.mean(1, keepdim=True)], 1)
        placed: Tensor = x * self.look(seen).sigmoid()
        return placed


class Messages(nn.Module):
    """A graph network that adds what comes along edges to nodes, and takes the largest of it."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.message, self.update = nn.Linear(6, 32), nn.Linear(64, 32), nn.GRUCell(32, 32)
        self.head = nn.Linear(32, 3)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        """Return a prediction for every node."""
        h = self.enter(nodes).relu()
        for _ in range(2):
            sent = self.message(torch.cat([h[edges[0]], h[edges[1]]], -1))
            summed = torch.zeros_like(h).index_add(0, edges[1], sent)
            largest = torch.zeros_like(h).scatter_reduce(0, edges[1][:, None].expand(-1, sent.shape[1]), sent, "amax")
            h = self.update(summed + largest, h)
        scores: Tensor = self.head(h)
        return scores


class Spectral(nn.Module):
    """A Fourier neural operator: a product for each of the lowest frequencies."""

    def __init__(self, width: int, kept: int) -> None:
        super().__init__()
        self.kept, self.beside = kept, nn.Conv1d(width, width, 1)
        self.weight = nn.Parameter(torch.randn(width, width, kept, 2) / 8)

    def forward(self, x: Tensor) -> Tensor:
        """Filter along the last dimension, and add a product for every place."""
        low = torch.fft.rfft(x)
        weight = torch.view_as_complex(self.weight)
        out = torch.zeros(x.shape[0], weight.shape[1], low.shape[2], dtype=low.dtype, device=x.device)
        out[:, :, : self.kept] = torch.einsum("bix,iox->box", low[:, :, : self.kept], weight)
        return functional.gelu(torch.fft.irfft(out, n=x.shape[-1]) + self.beside(x))


class Bags(nn.Module):
    """A recommender: sums of embeddings, numbers, and how the two go together."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.numbers = nn.EmbeddingBag(50, 16, mode="sum"), nn.Sequential(nn.Linear(10, 24), nn.ReLU())
        self.meet = nn.Bilinear(16, 24, 12)
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(12, 1))

    def forward(self, chosen: Tensor, numbers: Tensor) -> Tensor:
        """Return one score."""
        scores: Tensor = self.head(self.meet(self.bag(chosen), self.numbers(numbers)))
        return scores


class Warped(nn.Module):
    """Features of a second image are read where the first one says."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.flow, self.head = _block(3, 24), nn.Conv2d(24, 2, 3, padding=1), nn.Conv2d(48, 3, 1)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return an image."""
        a, b = self.features(first), self.features(second)
        read = functional.grid_sample(b, self.flow(a).tanh().permute(0, 2, 3, 1), align_corners=True)
        image: Tensor = self.head(torch.cat([a, read], 1))
        return image


class Signs(nn.Linear):
    """A linear layer whose weights are their signs, times their mean size; gradients pass as if they were not."""

    def forward(self, x: Tensor) -> Tensor:
        """Multiply with the rounded weights."""
        rounded = self.weight.sign() * self.weight.abs().mean()
        return functional.linear(x, self.weight + (rounded - self.weight).detach(), self.bias)


class Projecting(nn.Module):
    """An LSTM that feeds back fewer numbers than it has states."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 32, 2, proj_size=12, batch_first=True), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of a sequence."""
        y, (h, _) = self.lstm(x)
        scores: Tensor = self.head(y[:, -1] + h[-1])
        return scores


class Unpooled(nn.Module):
    """A segmenter that puts values back where the pool took them from."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.middle, self.head = _block(3, 24), _block(24, 24), nn.Conv2d(24, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores for every place."""
        pooled, places = functional.max_pool2d(self.down(x), 2, return_indices=True)
        scores: Tensor = self.head(functional.max_unpool2d(self.middle(pooled), places, [2, 2]))
        return scores


def _auxiliary() -> Built:
    return AuxiliaryHead(), _image()


def _noisy() -> Built:
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), NoisyLayer(32, 24), nn.ReLU(), NoisyLayer(24, 2)), (
        torch.randn(2, 6),
    )


def _squeezed() -> Built:
    layers = (_block(3, 32, 2), Squeezed(32), _block(32, 48), Squeezed(48), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(48, 10)), _image()


def _spectral() -> Built:
    return nn.Sequential(nn.Conv1d(2, 24, 1), Spectral(24, 5), Spectral(24, 5), nn.Conv1d(24, 1, 1)), (
        torch.randn(2, 2, 16),
    )


def _signs() -> Built:
    layers = (nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), Signs(32, 32), nn.ReLU(), nn.Linear(32, 4))
    return nn.Sequential(*layers), (torch.randn(2, 8),)


NETWORKS: tuple[Network, ...] = classics(
    auxiliary_head=_auxiliary,
    noisy_layers=_noisy,
    weighed_places=_squeezed,
    graph_messages=lambda: (Messages(), (torch.randn(10, 6), torch.randint(0, 10, (2, 24)))),
    fourier_operator=_spectral,
    embedding_bag=lambda: (Bags(), (torch.randint(0, 50, (2, 5)), torch.randn(2, 10))),
    warped_features=lambda: (Warped(), (*_image(), *_image())),
    sign_weights=_signs,
    lstm_projecting=lambda: (Projecting(), (torch.randn(2, 6, 8),)),
    unpooling=lambda: (Unpooled(), _image()),
)
