"""Real trainings that have to land on their latency budgets: on this machine, measured, and on a modelled board.

Five networks: two for the bundled digits (residual, linear recurrent), an LSTM for them, and a small ResNet and a
vision transformer for CIFAR-10 as JPEG copies, whose figures are not those of the original images (needs EDGELEAN_DATA;
left out where that is not set). Each is trained under 70, 50 and 30 % of its own full-size latency. The goals: every
training ends met, or undecided, or is refused before it begins because the budget is out of reach; each with its
reason. Control and measuring take little of the training of the ResNet. Prints the goals beside their figures, and
exits 1 when one is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from benchmarks.landing_parts.one_run import TARGETS, Landing, land
from benchmarks.landing_parts.subjects import subjects

SHARES, QUICK_SHARES = (0.7, 0.5, 0.3), (0.5,)
MOST_OVERHEAD = 0.03
"""Control and measuring, as a share of the training; of the ResNet, in the whole benchmark."""

Goal = tuple[str, str, str, bool]


def run(quick: bool, names: Sequence[str] | None) -> list[Landing]:
    """Train everything, and print each landing as it comes."""
    found: list[Landing] = []
    for name, recipe in subjects(quick).items():
        if "cifar" in name and "EDGELEAN_DATA" not in os.environ:
            print(f"{name}: left out, EDGELEAN_DATA is not set", flush=True)
            continue
        if names and not any(word in name for word in names):
            continue
        full: float | None = None
        for profile in TARGETS:
            for share in QUICK_SHARES if quick else SHARES:
                landing = land(recipe, profile, share, compare=full is None)
                full = landing.full if full is None else full
                found.append(landing)
                print(line(landing, full), flush=True)
    return found


def title() -> str:
    """Return the head of the table."""
    return (
        f"{'':8s}  {'network':26s} {'profile':13s} {'budget':>6s} {'outcome':>10s} {'used':>6s} {'cuts':>4s} "
        f"{'full':>6s} {'lean':>6s} {'seconds':>7s} {'loop':>6s}"
    )


def line(landing: Landing, full: float | None) -> str:
    """Return a row of the table, and why where a budget is not met."""
    shares = [f"{value:6.1%}" if value is not None else f"{'-':>6s}" for value in (full, landing.lean)]
    used, loop = (f"{x:6.1%}" if x is not None else f"{'-':>6s}" for x in (landing.used, landing.overhead))
    row = (
        f"{time.strftime('%H:%M:%S')}  {landing.subject:26s} {landing.profile:13s} {landing.share:6.0%} "
        f"{landing.outcome:>10s} {used} {landing.cuts:4d} {' '.join(shares)} {landing.seconds:7.0f} {loop}"
    )
    return row + (f"\n{'':10s}{landing.why}" if landing.why else "")


def goals(found: Sequence[Landing], quick: bool) -> list[Goal]:
    """Compare with what is wanted."""
    count = {name: sum(each.outcome == name for each in found) for name in ("met", "undecided", "refused")}
    lost = len(found) - sum(count.values())
    words = ", ".join(f"{number} {name}" for name, number in count.items())
    reached = [("landings that are not met, or not verified", f"{lost} of {len(found)} ({words})", "0", lost == 0)]
    unsaid = sum(not each.why for each in found if each.outcome != "met")
    reached.append(("of those not met, without a reason", str(unsaid), "0", unsaid == 0))
    shares = [each.overhead for each in found if "resnet" in each.subject and each.overhead is not None]
    if shares and not quick:
        most = max(shares)
        reached.append(
            ("control and measuring of the ResNet", f"{most:.1%}", f"<= {MOST_OVERHEAD:.0%}", most <= MOST_OVERHEAD)
        )
    return reached


def main() -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="shorter trainings, at one budget")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the landings")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="networks whose name has one of these words")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    print(title())
    found = run(arguments.quick, arguments.only)
    reached = goals(found, arguments.quick)
    for what, figure, goal, good in reached:
        print(f"{what:45s}{figure:>45s}   goal: {goal:8s}{'' if good else '  MISSED'}")
    if arguments.json:
        plain = {"landings": [each.to_json() for each in found], "goals": [list(goal) for goal in reached]}
        arguments.json.write_text(json.dumps(plain, indent=1) + "\n")
    return 0 if found and all(goal[3] for goal in reached) else 1


if __name__ == "__main__":
    sys.exit(main())
