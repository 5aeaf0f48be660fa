"""Image classifiers of the classic families, small, written as their papers write them."""

# ruff: noqa: D101, D102, D103  the networks are what users write; their names say what they are
# A module that is called returns whatever; users do not cast it.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo_networks.network import Built, Network, classics

IMAGE = (2, 3, 32, 32)


def images(model: nn.Module, shape: tuple[int, ...] = IMAGE) -> Built:
    """Return a network with an image to read."""
    return model, (torch.randn(shape),)


def conv(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1, act: Any = nn.ReLU
) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([act(inplace=True)] if act in (nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU) else []))


class LeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(16 * 5 * 5, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(torch.tanh(self.conv1(x)), 2)
        x = F.max_pool2d(torch.tanh(self.conv2(x)), 2)
        x = x.view(x.size(0), -1)
        return self.fc3(torch.tanh(self.fc2(torch.tanh(self.fc1(x)))))


def vgg() -> Built:
    layers: list[nn.Module] = []
    width = 3
    for entry in (32, "M", 64, "M", 96, 96, "M"):
        if entry == "M":
            layers.append(nn.MaxPool2d(2))
        else:
            layers.append(conv(width, int(entry)))
            width = int(entry)
    head = (nn.Flatten(), nn.Linear(96 * 16, 128), nn.ReLU(), nn.Dropout(), nn.Linear(128, 10))
    return images(nn.Sequential(*layers, *head))


class Squeeze(nn.Module):
    def __init__(self, width: int, reduction: int = 4) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, width // reduction), nn.Linear(width // reduction, width)

    def forward(self, x: Tensor) -> Tensor:
        n, c, _, _ = x.shape
        gate = torch.sigmoid(self.up(torch.relu(self.down(F.adaptive_avg_pool2d(x, 1).view(n, c)))))
        return x * gate.view(n, c, 1, 1)


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int, groups: int = 1, squeeze: bool = False) -> None:
        super().__init__()
        outputs = 4 * width
        self.body = nn.Sequential(
            conv(inputs, width, 1), conv(width, width, 3, stride, groups), conv(width, outputs, 1, act=None)
        )
        self.gate = Squeeze(outputs) if squeeze else nn.Identity()
        self.down = conv(inputs, outputs, 1, stride, act=None) if stride > 1 or inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.gate(self.body(x)) + (x if self.down is None else self.down(x)))


class Basic(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(inputs, width, 3, stride), conv(width, width, act=None)
        self.down = conv(inputs, width, 1, stride, act=None) if stride > 1 or inputs != width else None

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv2(self.conv1(x)) + (x if self.down is None else self.down(x)))


def resnet18(widths: tuple[int, ...] = (16, 32, 64, 128)) -> Built:
    layers: list[nn.Module] = [conv(3, widths[0])]
    last = widths[0]
    for stage, width in enumerate(widths):
        for block in range(2):
            layers.append(Basic(last, width, 2 if stage and not block else 1))
            last = width
    return images(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, 10)))


def bottlenecks(depths: tuple[int, ...], width: int, size: int = 32, **options: Any) -> Built:
    layers, last = [conv(3, width, 7, 2), nn.MaxPool2d(3, 2, 1)], width
    for stage, depth in enumerate(depths):
        for block in range(depth):
            layers.append(Bottleneck(last, width * 2**stage, 2 if stage and not block else 1, **options))
            last = 4 * width * 2**stage
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, 100))
    return images(nn.Sequential(*layers, *head), (2, 3, size, size))


class DenseLayer(nn.Module):
    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(4 * growth), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))
        return torch.cat([x, new], 1)


def densenet() -> Built:
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1)]
    width = 16
    for stage in range(3):
        for _ in range(3):
            layers.append(DenseLayer(width, 8))
            width += 8
        if stage < 2:
            layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width // 2, 1), nn.AvgPool2d(2)]
            width //= 2
    head = (nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))
    return images(nn.Sequential(*layers, *head))


class Inverted(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expand: int, squeeze: bool, act: Any) -> None:
        super().__init__()
        inner = inputs * expand
        self.expand, self.depth = conv(inputs, inner, 1, act=act), conv(inner, inner, 3, stride, inner, act=act)
        self.gate = Squeeze(inner) if squeeze else nn.Identity()
        self.project, self.skip = conv(inner, outputs, 1, act=None), stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.gate(self.depth(self.expand(x))))
        return x + y if self.skip else y


def mobilenet(act: Any = nn.ReLU6, squeeze: bool = False) -> Built:
    stages = ((16, 24, 2), (24, 24, 1), (24, 32, 2), (32, 32, 1), (32, 48, 2))
    blocks = [Inverted(a, b, stride, 4, squeeze, act) for a, b, stride in stages]
    head = (conv(48, 128, 1, act=act), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(128, 10))
    return images(nn.Sequential(conv(3, 16, act=act), *blocks, *head))


class Shuffle(nn.Module):
    def __init__(self, width: int, groups: int = 4) -> None:
        super().__init__()
        self.groups = groups
        self.first, self.last = conv(width, width, 1, groups=groups), conv(width, width, 1, groups=groups, act=None)
        self.depth = conv(width, width, 3, groups=width, act=None)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        y = self.first(x).view(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)
        return torch.relu(x + self.last(self.depth(y)))


class ShuffleV2(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.body = nn.Sequential(conv(half, half, 1), conv(half, half, 3, groups=half, act=None), conv(half, half, 1))

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        x = torch.cat([left, self.body(right)], 1)
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).flatten(1, 2)


def chain(*layers: nn.Module, width: int, stem: int = 1) -> Built:
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))
    return images(nn.Sequential(*(conv(3, width) for _ in range(stem)), *layers, *head))


class Mixed(nn.Module):
    """An inception block."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.one, self.three = conv(inputs, 16, 1), nn.Sequential(conv(inputs, 12, 1), conv(12, 24))
        self.five, self.pool = nn.Sequential(conv(inputs, 8, 1), conv(8, 12, 5)), conv(inputs, 12, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pool(F.max_pool2d(x, 3, 1, 1))], 1)


class Ghost(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.outputs, half = outputs, (outputs + 1) // 2
        self.primary, self.cheap = conv(inputs, half, 1), conv(half, half, 3, groups=half)

    def forward(self, x: Tensor) -> Tensor:
        y = self.primary(x)
        return torch.cat([y, self.cheap(y)], 1)[:, : self.outputs]


class Rep(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.three, self.one = conv(width, width, act=None), conv(width, width, 1, act=None)
        self.identity = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.three(x) + self.one(x) + self.identity(x))


class C2f(nn.Module):
    """YOLO's split and concatenation."""

    def __init__(self, inputs: int, outputs: int, depth: int = 2) -> None:
        super().__init__()
        self.c = outputs // 2
        self.cv1, self.cv2 = (
            conv(inputs, 2 * self.c, 1, act=nn.SiLU),
            conv((2 + depth) * self.c, outputs, 1, act=nn.SiLU),
        )
        self.m = nn.ModuleList(nn.Sequential(conv(self.c, self.c), conv(self.c, self.c)) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).split((self.c, self.c), 1))
        for block in self.m:
            y.append(y[-1] + block(y[-1]))
        return self.cv2(torch.cat(y, 1))


class Wide(nn.Module):
    """Pre-activation, group norm, weight standardisation left out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(4, width), nn.GroupNorm(4, width)
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


class Convnext(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.dw, self.norm = nn.Conv2d(width, width, 7, padding=3, groups=width), nn.LayerNorm(width)
        self.pw1, self.pw2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dw(x).permute(0, 2, 3, 1))
        return x + (self.gamma * self.pw2(F.gelu(self.pw1(y)))).permute(0, 3, 1, 2)


class Maxout(nn.Module):
    """Channels in pairs, of which the larger one goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 48, 3, padding=1), nn.Conv2d(24, 64, 3, padding=1)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x).chunk(2, 1)
        c, d = self.second(torch.maximum(a, b)).chunk(2, 1)
        return self.head(torch.maximum(c, d).mean((2, 3)))


NETWORKS: tuple[Network, ...] = classics(
    lenet=lambda: images(LeNet()),
    vgg=vgg,
    resnet18=resnet18,
    resnet50_narrow=lambda: bottlenecks((3, 4, 6, 3), 8),
    se_resnet=lambda: bottlenecks((1, 2, 1), 16, squeeze=True),
    resnext=lambda: bottlenecks((1, 1, 1), 16, groups=4),
    densenet=densenet,
    mobilenet_v2=mobilenet,
    mobilenet_v3=lambda: mobilenet(nn.Hardswish, True),
    shufflenet=lambda: chain(Shuffle(32), Shuffle(32), width=32),
    shufflenet_v2=lambda: chain(ShuffleV2(32), ShuffleV2(32), width=32),
    inception=lambda: chain(Mixed(64), Mixed(64), width=64),
    ghostnet=lambda: chain(Ghost(32, 48), Ghost(48, 32), width=32),
    repvgg=lambda: chain(Rep(32), Rep(32), width=32),
    yolo_c2f=lambda: chain(C2f(32, 48), conv(48, 64, 3, 2), C2f(64, 32), width=32),
    group_norm=lambda: chain(Wide(32), Wide(32), width=32),
    convnext=lambda: chain(Convnext(32), Convnext(32), width=32),
    maxout=lambda: images(Maxout()),
    resnet50=lambda: bottlenecks((3, 4, 6, 3), 64, 64),
)
