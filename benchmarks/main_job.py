"""The main job, measured: ``edgelean fit --profile jetson-orin`` from start to report, over several seeds.

Prints every figure beside its goal, and exits 1 when a goal is missed.
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
from typing import Any

from edgelean.stopwatch import OVERHEAD as OVERHEAD_PHASES

SECONDS, BYTES, HELP_SECONDS, OVERHEAD = 120.0, 1.5e9, 0.5, 0.15
POINTS_LOST, LEAST_USED, MOST_USED = 0.01, 0.85, 1.0


@dataclass(frozen=True)
class Outcome:
    """One run: what it took and what came of it; shares are fractions of 1."""

    seed: int
    exit_code: int
    seconds: float
    peak_bytes: int
    overhead: float
    met: bool
    used: float
    full_size_accuracy: float
    lean_accuracy: float
    cuts: int


@dataclass(frozen=True)
class Goal:
    """A figure, what it should be, and whether it is."""

    what: str
    figure: str
    goal: str
    reached: bool


def run_once(seed: int, profile: str, folder: Path) -> Outcome:
    """Run the command as a user does, in a process of its own."""
    out = folder / f"seed-{seed}"
    command = ["edgelean", "fit", "--profile", profile, "--seed", str(seed), "--out", str(out)]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    report = json.loads((out / "report.json").read_text())
    budgets = report["verdicts"]
    return Outcome(
        seed=seed,
        exit_code=os.waitstatus_to_exitcode(status),
        seconds=seconds,
        peak_bytes=usage.ru_maxrss * 1024,
        overhead=_overhead(report),
        met=all(verdict["outcome"] == "met" for verdict in budgets),
        used=max(verdict["value"] / verdict["limit"] for verdict in budgets),
        full_size_accuracy=report["full_size"]["accuracy"],
        lean_accuracy=report["checks"][0]["metric_artifact"],
        cuts=sum(cut["kept"] for cut in report["cuts"]),
    )


def _overhead(report: dict[str, Any]) -> float:
    """Return the share of control, the law, measuring and the validations that the controller asks for."""
    timing = report["timing"]
    return float(sum(timing.get(phase, 0.0) for phase in OVERHEAD_PHASES) / report["seconds"])


def help_seconds() -> float:
    """Return the median time of ``edgelean --help``."""
    times = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run(["edgelean", "--help"], stdout=subprocess.DEVNULL, check=True)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def judge(runs: Sequence[Outcome], help_s: float) -> list[Goal]:
    """Hold the runs against the goals."""
    full = statistics.mean(run.full_size_accuracy for run in runs)
    lean = statistics.mean(run.lean_accuracy for run in runs)
    met = sum(run.met and run.exit_code == 0 for run in runs)
    slowest, largest = max(run.seconds for run in runs), max(run.peak_bytes for run in runs)
    overhead = max(run.overhead for run in runs)
    least, most = min(run.used for run in runs), max(run.used for run in runs)
    return [
        Goal("runs with every budget met", f"{met} of {len(runs)}", "all", met == len(runs)),
        Goal("mean accuracy, full-size", f"{100 * full:.2f} %", "", True),
        Goal(
            "mean accuracy, exported lean model",
            f"{100 * lean:.2f} %",
            f"within {100 * POINTS_LOST:g} point of full-size",
            lean >= full - POINTS_LOST,
        ),
        Goal(
            "share of the binding budget used",
            f"{least:.3f} to {most:.3f}",
            f"{LEAST_USED:.2f} to {MOST_USED:.2f}",
            least >= LEAST_USED and most <= MOST_USED,
        ),
        Goal("start to report, slowest", f"{slowest:.0f} s", f"under {SECONDS:.0f} s", slowest < SECONDS),
        Goal("peak memory, largest", f"{largest / 1e9:.2f} GB", f"under {BYTES / 1e9:.1f} GB", largest < BYTES),
        Goal("control and measuring, largest share", f"{100 * overhead:.1f} %", "under 15 %", overhead < OVERHEAD),
        Goal("edgelean --help, median", f"{help_s:.2f} s", f"under {HELP_SECONDS} s", help_s < HELP_SECONDS),
    ]


def main() -> int:
    """Run, print, and return 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two seeds instead of five")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--profile", default="jetson-orin")
    arguments = parser.parse_args()
    seeds = range(2 if arguments.quick else 5)
    with tempfile.TemporaryDirectory() as folder:
        runs = []
        for seed in seeds:
            runs.append(run_once(seed, arguments.profile, Path(folder)))
            print(runs[-1], flush=True)
    goals = judge(runs, help_seconds())
    for goal in goals:
        print(f"{'ok' if goal.reached else 'MISSED':7}{goal.what:40}{goal.figure:>18}   {goal.goal}")
    if arguments.json:
        figures = {"runs": [asdict(run) for run in runs], "goals": [asdict(goal) for goal in goals]}
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0 if all(goal.reached for goal in goals) else 1


if __name__ == "__main__":
    sys.exit(main())
