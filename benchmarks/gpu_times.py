"""Times on a GPU: a training step of the full-size and of a lean network, in one run and in turn, and NVML's energy.

``bash benchmarks/gpu.sh`` runs this after the tests that need a GPU.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import nn

from edgelean.errors import DeviceError
from edgelean.recipes.digits import DigitsNet
from edgelean.sensors.nvml import open_nvml
from edgelean.shrink.axes import dissect
from edgelean.shrink.cut import apply
from edgelean.shrink.plan import make_plan

BATCH, ROUNDS, STEPS = 1024, 7, 20
GOAL = 1.0


def lean_copy() -> nn.Module:
    """Return the digits network with half the units of every axis."""
    model = DigitsNet().cuda()
    anatomy = dissect(model, (torch.randn(4, 1, 8, 8, device="cuda"),))
    keep = {axis.name: axis.size // 2 for axis in anatomy.axes.values()}
    apply(model, make_plan(anatomy, keep, {axis.name: range(axis.size) for axis in anatomy.axes.values()}, 0.0))
    return model


def step_of(model: nn.Module) -> Callable[[], None]:
    """Return one training step, which returns when the GPU is done."""
    optimizer = torch.optim.AdamW(model.parameters())
    x = torch.randn(BATCH, 1, 8, 8, device="cuda")
    y = torch.randint(0, 10, (BATCH,), device="cuda")

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]  # torch has not typed it
        optimizer.step()
        torch.cuda.synchronize()

    return step


def main() -> int:
    """Print the table; return 1 when the lean network is not faster."""
    if not torch.cuda.is_available():
        print("no CUDA GPU on this machine")
        return 1
    steps = {"full-size": step_of(DigitsNet().cuda()), "lean, half the units": step_of(lean_copy())}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(ROUNDS):
        for name, step in steps.items():
            started = time.perf_counter()
            for _ in range(STEPS):
                step()
            if turn > 0:  # the first round warms up
                times[name].append((time.perf_counter() - started) / STEPS * 1e3)
    medians = {name: statistics.median(found) for name, found in times.items()}
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, batch {BATCH}")
    for name, median_ms in medians.items():
        print(f"  training step, {name:24}{median_ms:9.2f} ms")
    ratio = medians["full-size"] / medians["lean, half the units"]
    print(f"  ratio of medians                      {ratio:9.2f}      goal: above {GOAL:g}")
    try:
        sensor = open_nvml()
        for name, step in steps.items():
            energy = sensor.over(step, 2.0)
            each_mj = energy.joules_per_call * 1e3
            print(f"  energy, {name:31}{each_mj:8.1f} mJ a step, {energy.watts:.0f} W ({energy.method})")
    except DeviceError as error:
        print(f"  energy: {error}")
    return 0 if ratio > GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
