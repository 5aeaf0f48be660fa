"""How well a calibrated cost model predicts networks that it has not seen, on this machine's processor.

Calibrates this machine, then measures eight networks that were written in PyTorch and exported as a user's are: none of
them is among those on which a calibration tries itself. Beside the calibrated model stands the one that an uncalibrated
machine has, from three short kernels. Prints every figure beside its goal, and exits 1 when a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgelean.board import Board, load_board
from edgelean.board.cost import Operator, predict
from edgelean.calibration import Calibrated, Trial, calibrate
from edgelean.calibration.measure import Measured, measure
from edgelean.calibration.procedure import rank_correlation
from edgelean.cli.calibrate import QUICK_ROUNDS, QUICK_SHARE, ROUNDS, open_rounds
from edgelean.errors import DeviceError
from edgelean.exporter.fp16 import to_fp16
from edgelean.exporter.onnx import export_onnx
from edgelean.recipes.digits import DigitsNet
from edgelean.shrink.axes import dissect
from edgelean.target.candidate import Feeds, Target

if TYPE_CHECKING:
    import onnx

MEDIAN_ERROR, RANK, SECONDS, SLOWDOWN, APART = 0.15, 0.95, 120.0, 1.5, 0.05
CALLS, REPEATS = 100, 40


class Separated(nn.Module):
    """An inverted bottleneck with a squeeze-and-excite gate and SiLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        wide = 4 * inputs
        self.expand = nn.Sequential(nn.Conv2d(inputs, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.SiLU())
        deep = nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False)
        self.deep = nn.Sequential(deep, nn.BatchNorm2d(wide), nn.SiLU())
        self.gate = nn.Sequential(nn.Conv2d(wide, wide // 8, 1), nn.ReLU(), nn.Conv2d(wide // 8, wide, 1), nn.Sigmoid())
        self.project = nn.Sequential(nn.Conv2d(wide, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[batch, inputs, h, w]`` to ``[batch, outputs, h / stride, w / stride]``."""
        x = self.deep(self.expand(x))
        projected: Tensor = self.project(x * self.gate(x.mean((2, 3), keepdim=True)))
        return projected


class Joined(nn.Module):
    """Layers that each read all before them."""

    def __init__(self, inputs: int, growth: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(inputs + i * growth, growth, 3, padding=1) for i in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[batch, inputs, h, w]`` to ``[batch, inputs + layers * growth, h, w]``."""
        parts = [x]
        for layer in self.layers:
            parts.append(torch.relu(layer(torch.cat(parts, 1))))
        return torch.cat(parts, 1)


class Modern(nn.Module):
    """A wide depthwise convolution, and a perceptron over the channels that come last."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.deep, self.norm = nn.Conv2d(width, width, 7, padding=3, groups=width), nn.LayerNorm(width)
        self.inner, self.back = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[batch, width, h, w]`` to the same shape."""
        inner = functional.gelu(self.inner(self.norm(self.deep(x).permute(0, 2, 3, 1))))
        widened: Tensor = x + self.back(inner).permute(0, 3, 1, 2)
        return widened


class Mixer(nn.Module):
    """Perceptrons along the tokens and along the channels in turn."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.along = nn.Sequential(nn.Linear(tokens, 2 * tokens), nn.GELU(), nn.Linear(2 * tokens, tokens))
        self.across = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[batch, tokens, width]`` to the same shape."""
        x = x + self.along(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        mixed: Tensor = x + self.across(self.norms[1](x))
        return mixed


class Attending(nn.Module):
    """A transformer block with one matrix for query, key and value."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norms = heads, nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.entering, self.leaving = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.inner = nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[batch, tokens, width]`` to the same shape."""
        parts = self.entering(self.norms[0](x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = parts[0], parts[1], parts[2]
        weights = torch.softmax(query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5, -1)
        x = x + self.leaving((weights @ value).transpose(1, 2).flatten(2))
        attended: Tensor = x + self.inner(self.norms[1](x))
        return attended


class Patches(nn.Module):
    """Blocks over the patches of an image, and a head on their mean."""

    def __init__(self, patch: int, width: int, blocks: nn.Module) -> None:
        super().__init__()
        self.cut, self.blocks, self.head = nn.Conv2d(3, width, patch, patch), blocks, nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[batch, 3, h, w]`` to ``[batch, 10]``."""
        scores: Tensor = self.head(self.blocks(self.cut(x).flatten(2).transpose(1, 2)).mean(1))
        return scores


class Mean(nn.Module):
    """The mean over all dimensions behind the channels."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[batch, channels, ...]`` to ``[batch, channels]``."""
        return x.flatten(2).mean(2)


def _digits() -> tuple[nn.Module, Tensor]:
    return DigitsNet(), torch.randn(1, 1, 8, 8)


def _gated() -> tuple[nn.Module, Tensor]:
    blocks = [Separated(16, 24, 2), Separated(24, 40, 2), Separated(40, 40, 1), Separated(40, 80, 2)]
    stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.SiLU())
    return nn.Sequential(stem, *blocks, Mean(), nn.Linear(80, 10)), torch.randn(1, 3, 96, 96)


def _dense() -> tuple[nn.Module, Tensor]:
    first = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), Joined(32, 16, 4), nn.Conv2d(96, 48, 1))
    second = nn.Sequential(nn.AvgPool2d(2), Joined(48, 16, 4), Mean(), nn.Linear(112, 10))
    return nn.Sequential(first, second), torch.randn(1, 3, 40, 40)


def _modern() -> tuple[nn.Module, Tensor]:
    blocks = [nn.Conv2d(3, 48, 4, 4), Modern(48), Modern(48), nn.Conv2d(48, 96, 2, 2), Modern(96), Modern(96)]
    return nn.Sequential(*blocks, Mean(), nn.Linear(96, 10)), torch.randn(1, 3, 128, 128)


def _mixer() -> tuple[nn.Module, Tensor]:
    return Patches(8, 128, nn.Sequential(*(Mixer(64, 128) for _ in range(3)))), torch.randn(1, 3, 64, 64)


def _vision() -> tuple[nn.Module, Tensor]:
    return Patches(8, 144, nn.Sequential(*(Attending(144, 6) for _ in range(6)))), torch.randn(1, 3, 96, 96)


def _sound() -> tuple[nn.Module, Tensor]:
    layers: list[nn.Module] = []
    for inputs, dilation in ((40, 1), (48, 2), (48, 4), (48, 8)):
        layers += [nn.Conv1d(inputs, 48, 3, padding=dilation, dilation=dilation), nn.BatchNorm1d(48), nn.ReLU()]
    return nn.Sequential(*layers, Mean(), nn.Linear(48, 12)), torch.randn(1, 40, 100)


def _autoencoder() -> tuple[nn.Module, Tensor]:
    layers: list[nn.Module] = []
    for inputs, outputs in ((640, 128), (128, 128), (128, 8), (8, 128), (128, 128)):
        layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(128, 640)), torch.randn(1, 640)


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "residual network of the digits recipe": _digits,
    "gated inverted bottlenecks": _gated,
    "densely joined network": _dense,
    "modernised convolutional network": _modern,
    "perceptrons over patches": _mixer,
    "vision transformer": _vision,
    "dilated convolutions of sound": _sound,
    "autoencoder": _autoencoder,
}


@dataclass(frozen=True)
class Exported:
    """A network as a user has it: written in PyTorch, exported to a file."""

    name: str
    path: Path
    feeds: Feeds
    traced: tuple[Operator, ...]

    def graph(self) -> tuple[onnx.ModelProto, Feeds]:
        """Return the exported graph, and one batch of inputs."""
        import onnx

        return onnx.load(self.path), self.feeds


@dataclass(frozen=True)
class Goal:
    """A figure, what it should be, and whether it is."""

    what: str
    figure: str
    goal: str
    reached: bool


@dataclass(frozen=True)
class Found:
    """What the benchmark saw."""

    calibrated: Calibrated
    seconds: float
    trials: tuple[Trial, ...]
    uncalibrated: tuple[Trial, ...]
    apart: float
    slowdown: float


def exported_networks(folder: Path) -> list[Exported]:
    """Write every network as a file, and take it apart as a run does."""
    found = []
    for index, (name, build) in enumerate(NETWORKS.items()):
        torch.manual_seed(index)
        model, x = build()
        model.eval()
        path = export_onnx(model, (x,), folder / f"{index}.onnx", metadata={})
        found.append(Exported(name, path, {"input": x.numpy()}, dissect(model, (x,)).structure.operators({})))
    return found


def look(quick: bool, most_noisy: float) -> Found:
    """Calibrate this machine, and measure the networks on it."""
    rounds = open_rounds("local", load_board("this-machine"), "fp32", QUICK_ROUNDS if quick else ROUNDS)
    machine = _machine(rounds)
    began = time.perf_counter()
    share = QUICK_SHARE if quick else 1.0
    found = calibrate(machine, "fp32", rounds, to_fp16, share, most_noisy=most_noisy)
    seconds = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as folder:
        networks = exported_networks(Path(folder))
        measured = measure(networks, rounds, "fp32", to_fp16, most_noisy=most_noisy)
    traced = [_predicted(network.traced, found.board) for network in networks]
    filed = [_predicted(one.operators, found.board) for one in measured]
    return Found(
        found,
        seconds,
        _trials(measured, found.board),
        _trials(measured, machine),
        max(abs(one / other - 1) for one, other in zip(traced, filed, strict=True)),
        slowdown(networks[0].traced, found.board, machine),
    )


def slowdown(operators: Sequence[Operator], calibrated: Board, plain: Board) -> float:
    """Return how much longer a prediction takes on a calibrated board; the shortest of many interleaved ones."""
    times: dict[str, list[float]] = {"calibrated": [], "plain": []}
    for _ in range(REPEATS):
        for name, board in (("calibrated", calibrated), ("plain", plain)):
            began = time.perf_counter()
            for _ in range(CALLS):
                predict(operators, board, "fp32", 1)
            times[name].append(time.perf_counter() - began)
    return min(times["calibrated"]) / min(times["plain"])


def judge(found: Found) -> list[Goal]:
    """Hold what was seen against the goals."""
    error, rank = _scores(found.trials)
    made = found.calibrated.calibration
    without = "{:.1%}, {:.3f}".format(*_scores(found.uncalibrated))
    tried = f"{made.network_error:.1%}, {made.network_rank:.3f}"
    return [
        Goal("median error", f"{error:.1%}", f"under {MEDIAN_ERROR:.0%}", error < MEDIAN_ERROR),
        Goal("rank correlation (Spearman)", f"{rank:.3f}", f"above {RANK}", rank > RANK),
        Goal("both without a calibration", without, "", True),
        Goal("both, networks of the calibration", tried, "", True),
        Goal("median error, kernels held out", f"{made.kernel_error:.1%}", "", True),
        Goal("traced model against its file, most", f"{found.apart:.1%}", f"under {APART:.0%}", found.apart < APART),
        Goal(
            "time to predict, calibrated / not", f"{found.slowdown:.2f}", f"under {SLOWDOWN}", found.slowdown < SLOWDOWN
        ),
        Goal("calibrating", f"{found.seconds:.0f} s", f"under {SECONDS:.0f} s", found.seconds < SECONDS),
    ]


def _scores(trials: Sequence[Trial]) -> tuple[float, float]:
    error = statistics.median(abs(trial.error) for trial in trials)
    return error, rank_correlation([(trial.measured_ms, trial.predicted_ms) for trial in trials])


def _trials(measured: Sequence[Measured], board: Board) -> tuple[Trial, ...]:
    return tuple(Trial(one.name, one.latency_ms, _predicted(one.operators, board)) for one in measured)


def _predicted(operators: Sequence[Operator], board: Board) -> float:
    return predict(operators, board, "fp32", 1).latency_ms


def _machine(rounds: Sequence[Target]) -> Board:
    board = getattr(rounds[0], "machine", None)
    if not isinstance(board, Board):
        raise TypeError("the target of this machine has no board of this machine")
    return board


def print_all(found: Found, goals: Sequence[Goal]) -> None:
    """Print the networks, and each goal beside its figure."""
    print(f"{'network':40} {'measured':>10} {'calibrated':>18} {'not calibrated':>18}")
    for trial, plain in zip(found.trials, found.uncalibrated, strict=True):
        columns = (f"{one.predicted_ms:.4f} {100 * one.error:+6.1f} %" for one in (trial, plain))
        print(f"{trial.name:40} {trial.measured_ms:7.4f} ms {''.join(f'{column:>19}' for column in columns)}")
    print()
    for goal in goals:
        mark = "" if not goal.goal else "yes" if goal.reached else "NO"
        print(f"{goal.what:42} {goal.figure:>16}   {goal.goal:14} {mark}")


def main() -> int:
    """Run the benchmark; 0 where every goal is reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="half of the kernels, and fewer readings of each")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures to a file, too")
    parser.add_argument(
        "--noisy", action="store_true", help="go on where the machine is not quiet, with the shortest readings"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    try:
        found = look(arguments.quick, 1.0 if arguments.noisy else 0.25)
    except DeviceError as error:
        print(f"{error}; or try --noisy", file=sys.stderr)
        return 1
    goals = judge(found)
    print_all(found, goals)
    if arguments.json:
        plain = {
            "networks": [asdict(trial) for trial in found.trials],
            "not calibrated": [asdict(trial) for trial in found.uncalibrated],
            "goals": [asdict(goal) for goal in goals],
            "calibration": found.calibrated.calibration.model_dump(mode="json"),
        }
        arguments.json.write_text(json.dumps(plain, indent=2), encoding="utf-8")
    return 0 if all(goal.reached for goal in goals) else 1


if __name__ == "__main__":
    sys.exit(main())
