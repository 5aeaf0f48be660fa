"""Repeatability: ``edgelean measure`` of one small network, again and again, each time in a process of its own.

Either the medians agree, or the machine was too noisy and no number was printed. Prints every figure beside its goal,
and exits 1 when the goal is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from edgelean.errors import DeviceError
from edgelean.exporter.onnx import export_onnx
from edgelean.recipes.digits import DigitsNet

RUNS, QUICK_RUNS = 10, 5
WITHIN, SHARE = 0.03, 0.9


@dataclass(frozen=True)
class Outcome:
    """One process: its median in ms, or why it gave none."""

    median_ms: float | None
    refusal: str
    seconds: float


def write_model(folder: Path) -> Path:
    """Write the digits network, at its full size and untrained."""
    torch.manual_seed(0)
    return export_onnx(DigitsNet(), (torch.randn(2, 1, 8, 8),), folder / "digits.onnx", metadata={})


def run_once(model: Path) -> Outcome:
    """Run the command as a user does."""
    started = time.perf_counter()
    command = ["edgelean", "measure", str(model), "--profile", "this-machine", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode == DeviceError.exit_code and "too noisy" in done.stderr:
        return Outcome(None, done.stderr.partition(": ")[2].strip(), seconds)
    if done.returncode != 0:
        raise SystemExit(f"edgelean measure ended with {done.returncode}: {done.stderr}")
    return Outcome(json.loads(done.stdout)["reading"]["latency"]["value"], "", seconds)


def agreeing(runs: Sequence[Outcome]) -> int:
    """Return how many medians are within 3 % of the median of all of them."""
    medians = [run.median_ms for run in runs if run.median_ms is not None]
    if not medians:
        return 0
    middle = statistics.median(medians)
    return sum(abs(median / middle - 1) <= WITHIN for median in medians)


def main() -> int:
    """Run, print, and return 1 when the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_RUNS} processes instead of {RUNS}")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    runs: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(Path(folder))
        for _ in range(QUICK_RUNS if arguments.quick else RUNS):
            runs.append(run_once(model))
            said = f"{runs[-1].median_ms:.4f} ms" if runs[-1].median_ms is not None else runs[-1].refusal
            print(f"{runs[-1].seconds:5.1f} s  load {os.getloadavg()[0]:4.1f}  {said}", flush=True)
    medians = [run.median_ms for run in runs if run.median_ms is not None]
    refused, agreed = len(runs) - len(medians), agreeing(runs)
    reached = agreed + refused >= SHARE * len(runs)
    goal = f"{SHARE * len(runs):.0f} of {len(runs)}"
    print(f"{'ok' if reached else 'MISSED':7}within {100 * WITHIN:g} % of their median, or refused as too noisy")
    print(f"{'':7}{agreed} agree and {refused} were refused, of {len(runs)}; goal: {goal}")
    if medians:
        middle, spread = statistics.median(medians), max(medians) / min(medians) - 1
        print(f"{'':7}median of the medians {middle:.4f} ms, the largest {100 * spread:.1f} % over the smallest")
    else:
        print(f"{'':7}every run was refused: this says nothing about repeatability, try again on a quiet machine")
    if arguments.json:
        figures = {"runs": [asdict(run) for run in runs], "agreed": agreed, "refused": refused, "reached": reached}
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
