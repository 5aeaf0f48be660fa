"""Networks whose shape is the point: two ways down and up, several inputs, volumes, signals, generators."""

# ruff: noqa: D101, D102, D103  the networks are what users write; their names say what they are
# A module that is called returns whatever; users do not cast it.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from benchmarks.zoo_networks.convolutional import conv, images
from benchmarks.zoo_networks.network import Built, Network, classics


def mlp() -> Built:
    return nn.Sequential(nn.Linear(20, 64), nn.GELU(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 5)), (
        torch.randn(2, 20),
    )


class UNet(nn.Module):
    """Up by transposed convolutions, with concatenated skips."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = conv(3, 16), conv(16, 32), conv(32, 64)
        self.up2, self.dec2 = nn.ConvTranspose2d(64, 32, 2, 2), conv(64, 32)
        self.up1, self.dec1 = nn.ConvTranspose2d(32, 16, 2, 2), conv(32, 16)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        c = self.bottom(F.max_pool2d(b, 2))
        b = self.dec2(torch.cat([self.up2(c), b], 1))
        return self.head(self.dec1(torch.cat([self.up1(b), a], 1)))


class Pyramid(nn.Module):
    """A feature pyramid with three outputs of one shared head."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([conv(3, 16, stride=2), conv(16, 32, stride=2), conv(32, 64, stride=2)])
        self.lateral = nn.ModuleList(nn.Conv2d(width, 24, 1) for width in (16, 32, 64))
        self.smooth = nn.ModuleList(nn.Conv2d(24, 24, 3, padding=1) for _ in range(3))
        self.tower, self.head = conv(24, 24), nn.Conv2d(24, 6, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for stage, lateral in zip(self.stages, self.lateral, strict=True):
            x = stage(x)
            features.append(lateral(x))
        for i in (1, 0):
            features[i] = features[i] + F.interpolate(features[i + 1], scale_factor=2, mode="nearest")
        return [self.head(self.tower(smooth(f))) for smooth, f in zip(self.smooth, features, strict=True)]


class Volume(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv3d(1, 16, 3, padding=1), nn.BatchNorm3d(16)
        self.conv1, self.norm1 = nn.Conv3d(16, 16, 3, padding=1), nn.BatchNorm3d(16)
        self.conv2, self.norm2 = nn.Conv3d(16, 16, 3, padding=1), nn.BatchNorm3d(16)
        self.down, self.head = nn.Conv3d(16, 32, 3, 2, 1), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x))))))
        return self.head(torch.relu(self.down(x)).mean((2, 3, 4)))


class Temporal(nn.Module):
    """A block of a temporal convolutional network, causal by padding and chopping, with weight norm."""

    def __init__(self, inputs: int, outputs: int, dilation: int) -> None:
        super().__init__()
        self.pad = 2 * dilation
        self.conv1 = weight_norm(nn.Conv1d(inputs, outputs, 3, padding=self.pad, dilation=dilation))
        self.conv2 = weight_norm(nn.Conv1d(outputs, outputs, 3, padding=self.pad, dilation=dilation))
        self.down = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.conv1(x)[..., : -self.pad])
        y = torch.relu(self.conv2(y)[..., : -self.pad])
        return torch.relu(y + (x if self.down is None else self.down(x)))


class Chomp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, -1]


def tcn() -> Built:
    blocks = (Temporal(2, 24, 1), Temporal(24, 24, 2), Temporal(24, 32, 4))
    return nn.Sequential(*blocks, Chomp(), nn.Linear(32, 5)), (torch.randn(2, 2, 40),)


def audio() -> Built:
    """Depthwise separable convolutions over a signal, as in keyword spotting."""

    def block(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
        return (
            nn.Conv1d(inputs, inputs, 9, padding=4, groups=inputs), nn.Conv1d(inputs, outputs, 1),
            nn.BatchNorm1d(outputs), nn.PReLU(outputs),
        )  # fmt: skip

    layers = (nn.Conv1d(1, 32, 16, 8), *block(32, 48), nn.MaxPool1d(2), *block(48, 64), nn.AdaptiveAvgPool1d(1))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 12)), (torch.randn(2, 1, 400),)


def autoencoder() -> Built:
    encoder = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten())
    decoder = nn.Sequential(
        nn.Unflatten(1, (32, 8, 8)), nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.ReLU(),
        nn.ConvTranspose2d(16, 3, 4, 2, 1), nn.Sigmoid(),
    )  # fmt: skip
    return images(nn.Sequential(encoder, nn.Linear(2048, 24), nn.Linear(24, 2048), decoder))


class Generator(nn.Module):
    """From noise, as in DCGAN."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(32, 64 * 4 * 4)
        self.up1, self.norm1 = nn.ConvTranspose2d(64, 32, 4, 2, 1, bias=False), nn.BatchNorm2d(32)
        self.up2, self.norm2 = nn.ConvTranspose2d(32, 16, 4, 2, 1, bias=False), nn.BatchNorm2d(16)
        self.out = nn.ConvTranspose2d(16, 3, 4, 2, 1)

    def forward(self, z: Tensor) -> Tensor:
        x = torch.relu(self.project(z)).view(-1, 64, 4, 4)
        x = F.leaky_relu(self.norm1(self.up1(x)), 0.2)
        return torch.tanh(self.out(F.leaky_relu(self.norm2(self.up2(x)), 0.2)))


def super_resolution() -> Built:
    layers = (nn.Conv2d(3, 32, 3, padding=1), nn.PReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.PReLU())
    return images(nn.Sequential(*layers, nn.Conv2d(32, 64, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(16, 3, 3)))


class TwoTower(nn.Module):
    """A recommender: embeddings of users and things, two towers, a dot product."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.things = nn.Embedding(50, 16), nn.Embedding(80, 16)
        self.left = nn.Sequential(nn.Linear(16, 48), nn.ReLU(), nn.Linear(48, 24))
        self.right = nn.Sequential(nn.Linear(16, 48), nn.ReLU(), nn.Linear(48, 24))

    def forward(self, user: Tensor, thing: Tensor) -> Tensor:
        left, right = F.normalize(self.left(self.users(user)), dim=-1), self.right(self.things(thing))
        return (left * right).sum(-1)


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(3, 24), nn.MaxPool2d(2), conv(24, 48), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Sequential(nn.Linear(96, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        x, y = self.body(a), self.body(b)
        return self.head(torch.cat([(x - y).abs(), x * y], 1))


class Experts(nn.Module):
    """A dense mixture of experts whose weights are one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.gate, self.head = nn.Linear(12, 24), nn.Linear(24, 4), nn.Linear(24, 5)
        self.up, self.down = nn.Parameter(torch.randn(4, 24, 48) / 5), nn.Parameter(torch.randn(4, 48, 24) / 7)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.embed(x))
        hidden = F.gelu(torch.einsum("bd,edh->beh", x, self.up))
        mixed = torch.einsum("beh,ehd->bed", hidden, self.down)
        return self.head(x + (mixed * torch.softmax(self.gate(x), -1)[..., None]).sum(1))


class GatedLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(12, 96), nn.Linear(48, 64), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.glu(self.second(F.glu(self.first(x)))))


class GatedConvolution(nn.Module):
    """Dilated causal convolutions with gates and a sum of skips, as in WaveNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = nn.Conv1d(1, 16, 1), nn.Sequential(nn.ReLU(), nn.Conv1d(24, 24, 1), nn.ReLU())
        self.dilated = nn.ModuleList(nn.Conv1d(16, 40, 2, dilation=2**i) for i in range(3))
        self.residual = nn.ModuleList(nn.Conv1d(20, 16, 1) for _ in range(3))
        self.skip, self.head = nn.ModuleList(nn.Conv1d(20, 24, 1) for _ in range(3)), nn.Conv1d(24, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.stem(x), torch.zeros(())
        for i, (dilated, residual, skip) in enumerate(zip(self.dilated, self.residual, self.skip, strict=True)):
            filtered, gate = dilated(F.pad(x, (2**i, 0))).chunk(2, 1)
            y = torch.tanh(filtered) * torch.sigmoid(gate)
            x, total = x + residual(y), total + skip(y)
        return self.head(self.out(total))


NETWORKS: tuple[Network, ...] = classics(
    mlp=mlp,
    unet=lambda: images(UNet()),
    fpn=lambda: images(Pyramid()),
    resnet3d=lambda: images(Volume(), (2, 1, 8, 16, 16)),
    tcn_weight_norm=tcn,
    audio_depthwise=audio,
    autoencoder=autoencoder,
    dcgan_generator=lambda: (Generator(), (torch.randn(2, 32),)),
    super_resolution=super_resolution,
    two_tower=lambda: (TwoTower(), (torch.tensor([3, 7]), torch.tensor([9, 2]))),
    siamese=lambda: (Siamese(), (torch.randn(2, 3, 16, 16), torch.randn(2, 3, 16, 16))),
    experts=lambda: (Experts(), (torch.randn(2, 12),)),
    glu=lambda: (GatedLinear(), (torch.randn(2, 12),)),
    wavenet=lambda: (GatedConvolution(), (torch.randn(2, 1, 32),)),
)
