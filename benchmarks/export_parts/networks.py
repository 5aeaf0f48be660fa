"""The twelve networks: three are trained on real data by `edgelean fit`, nine are cut to half as they are."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

import edgelean
from benchmarks.zoo_networks import convolutional, sequences, shaped
from benchmarks.zoo_networks.judge import build
from benchmarks.zoo_networks.network import Built, Network
from edgelean.exporter.targets import load_target, target_names
from edgelean.profile import load_profile
from edgelean.recipe import load_recipe
from edgelean.shrink import cut
from edgelean.shrink.axes import dissect
from edgelean.shrink.prove import halved, prove
from edgelean.verifier import ArtifactCheck

CIFAR = str(Path(__file__).with_name("small_cifar.py"))
BOARD = "raspberry-pi-5"


@dataclass(frozen=True)
class Lean:
    """A network and what is left of it.

    Attributes
    ----------
    full, model
        Both in evaluation mode; the weights of ``full`` are fresh where the network was trained.
    inputs
        A batch.
    checks
        What the verifier found for the files of a trained one, in every precision on the shelf.
    files
        Those files, by precision.
    """

    full: nn.Module
    model: nn.Module
    inputs: tuple[Tensor, ...]
    checks: tuple[ArtifactCheck, ...] = ()
    files: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """One network of the benchmark; ``make(folder, quick)`` returns it, and may write into the folder."""

    name: str
    kind: str
    make: Callable[[Path, bool], Lean]


class Detector(nn.Module):
    """A detection head on two scales: classes, and boxes that are decoded into corners, for every place."""

    def __init__(self, width: int = 48, classes: int = 6) -> None:
        super().__init__()
        self.stem = nn.Sequential(_step(3, width), _step(width, width))
        self.deep = _step(width, 2 * width)
        self.reduce, self.mix = nn.Conv2d(2 * width, width, 1), _step(width, width, 1)
        self.heads = nn.ModuleList(
            nn.Sequential(_step(inputs, width, 1), nn.Conv2d(width, classes + 4, 1)) for inputs in (width, 2 * width)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scores ``[batch, places, classes]`` and the corners ``[batch, places, 4]``, as shares."""
        fine = self.stem(x)
        coarse = self.deep(fine)
        raised = nn.functional.interpolate(self.reduce(coarse), scale_factor=2.0, mode="nearest")
        found = [_decoded(head(y)) for head, y in zip(self.heads, (self.mix(fine + raised), coarse), strict=True)]
        scores, corners = zip(*found, strict=True)
        return torch.cat(scores, 1), torch.cat(corners, 1)


def _step(inputs: int, outputs: int, stride: int = 2) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.SiLU())


def _decoded(y: Tensor) -> tuple[Tensor, Tensor]:
    height, width = y.shape[2:]
    rows = (torch.arange(height, device=y.device, dtype=y.dtype) + 0.5) / height
    columns = (torch.arange(width, device=y.device, dtype=y.dtype) + 0.5) / width
    centres = torch.stack([columns.expand(height, width), rows[:, None].expand(height, width)]).flatten(1)
    flat = y.flatten(2)
    shift, size = flat[:, :2].tanh() / height, flat[:, 2:4].sigmoid()
    corners = torch.cat([centres + shift - size / 2, centres + shift + size / 2], 1)
    return flat[:, 4:].sigmoid().transpose(1, 2), corners.transpose(1, 2)


def trained(recipe: str, budget: str, epochs: int, quick_epochs: int) -> Callable[[Path, bool], Lean]:
    """Return what trains a recipe to a share of its costs and exports it in every precision on the shelf."""

    def make(folder: Path, quick: bool) -> Lean:
        if quick:
            os.environ.setdefault("SMALL_CIFAR_IMAGES", "4000")
        shelf = [load_target(name) for name in target_names()]
        profile = load_profile(BOARD).model_copy(
            update={"targets": tuple(target.name for target in shelf if target.format == "onnx")}
        )
        settings = {"epochs": str(quick_epochs if quick else epochs), "compare": "false"}
        report = edgelean.fit(recipe, profile, latency=budget, energy=budget, out=folder / "run", settings=settings)
        found = load_recipe(recipe)
        inputs = next(iter(torch.utils.data.DataLoader(found.data().test, batch_size=8)))[0]  # type: ignore[union-attr, arg-type]  # a Data of data sets
        bundle = folder / "run" / "bundle"
        checks = tuple(check for check in report.checks if check.form != "step")
        files = {check.precision: bundle / check.file for check in checks}
        return Lean(found.model().eval(), edgelean.load(folder / "run"), (inputs,), checks, files)

    return make


def halves(make: Callable[[], Built]) -> Callable[[Path, bool], Lean]:
    """Return what cuts every axis of a network to half."""

    def made(folder: Path, quick: bool) -> Lean:
        full, inputs = build(Network("", "", make))
        anatomy = dissect(full, inputs)
        anatomy = prove(full, anatomy, inputs).applied(anatomy)
        lean = copy.deepcopy(full)
        cut.apply(lean, halved(anatomy))
        return Lean(full, lean.eval(), inputs)

    return made


def _zoo(name: str) -> Callable[[Path, bool], Lean]:
    networks = (*convolutional.NETWORKS, *sequences.NETWORKS, *shaped.NETWORKS)
    return halves(next(network.make for network in networks if network.name == name))


def _lstm() -> Built:
    return sequences.signal(sequences.LastState(), 10)


TWELVE = (
    Entry("digits", "CNN, trained", trained("digits", "50%", 30, 12)),
    Entry("small-cifar", "CNN, trained", trained(CIFAR, "50%", 8, 4)),
    Entry("digits-sequence", "state space, trained", trained("digits-sequence", "80%", 25, 10)),
    Entry("resnet50_narrow", "CNN", _zoo("resnet50_narrow")),
    Entry("mobilenet_v3", "CNN", _zoo("mobilenet_v3")),
    Entry("densenet", "CNN", _zoo("densenet")),
    Entry("vit", "transformer", _zoo("vit")),
    Entry("gpt", "transformer", _zoo("gpt")),
    Entry("llama", "transformer", _zoo("llama")),
    Entry("lstm", "LSTM", halves(_lstm)),
    Entry("unet", "U-Net", _zoo("unet")),
    Entry("detector", "detection head", halves(lambda: (Detector(), (torch.randn(2, 3, 64, 64),)))),
)
