"""One reduction to a quarter of the states: ours against the textbook's dense route, on one thread of this CPU.

The textbook (and the published code for in-training reduction) treats the complex system of N states: Gramians by
element-wise division, the square root of a matrix (scipy.linalg.sqrtm), a singular value decomposition, T and its
inverse, the leading blocks, and their eigenvectors. Ours treats the real map of 2N states. Systems are linear recurrent
units as their authors initialise them for long sequences: poles of modulus 0.9 to 0.999 and phases up to pi/10. Times
are process time; both take turns, and ratios are of medians. The Hankel singular values are held against those that
independent solvers found for the cases in EDGELEAN_CASES, or in `cases` beside EDGELEAN_DATA.
Exits 1 when a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import scipy.linalg
import torch

from edgelean.nn import LRU, DiagonalSystem
from edgelean.shrink.balance import factors, hankel_singular_values, truncate

STATES, WIDTHS = (64, 128, 256, 384, 512, 1024, 2048), (1, 8, 64, 512)
QUICK = ((64, 1), (64, 8), (64, 64), (64, 512), (384, 1), (384, 8), (384, 64), (384, 512), (2048, 1), (2048, 8))
DAMPING = 1e-9
"""The textbook adds this to its Gramians, so that the inverse exists."""

RELATIVE_GOAL = 1e-8


@dataclass(frozen=True)
class Figures:
    """What was found at one size; process times of one reduction."""

    states: int
    width: int
    rank: int
    ours_s: float
    textbook_s: float
    rounds: int

    @property
    def faster(self) -> float:
        """How many times faster ours is."""
        return self.textbook_s / self.ours_s

    @property
    def goal(self) -> float | None:
        """How many times faster it has to be; None without a goal."""
        if self.states == 2048 and self.width <= 8:
            return 10.0
        return 1.0 if (self.states, self.width) == (384, 512) else None


def textbook(lam: np.ndarray, B: np.ndarray, C: np.ndarray, kept: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return poles, B and C of the reduced complex system."""
    pairs = 1 - lam[:, None] * lam.conj()
    eye = DAMPING * np.eye(len(lam))
    P, Q = (B @ B.conj().T) / pairs + eye, (C.conj().T @ C) / pairs.conj() + eye
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a Gramian that is nearly singular
        root = scipy.linalg.sqrtm(P)
    left, squares, _ = np.linalg.svd(root @ Q @ root)
    T = root @ left / squares**0.25
    inverse = np.linalg.inv(T)
    reduced, vectors = np.linalg.eig(((inverse * lam) @ T)[:kept, :kept])
    return reduced, np.linalg.solve(vectors, (inverse @ B)[:kept]), (C @ T)[:, :kept] @ vectors


def measure(states: int, width: int, rounds: int) -> Figures:
    """Time both at one size."""
    torch.manual_seed(0)
    system = LRU(width, states, max_phase=math.pi / 10).system()
    plain = [part.numpy() for part in (system.lam, system.B, system.C)]
    ways: tuple[Callable[[], object], ...] = (
        lambda: truncate(system, states // 4),
        lambda: textbook(plain[0], plain[1], plain[2], states // 4),
    )
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for way, found in zip(ways, times, strict=True):
            started = time.process_time()
            way()
            found.append(time.process_time() - started)
    rank = min(factors(system).reach.shape[-1], 2 * states)
    return Figures(states, width, rank, statistics.median(times[0]), statistics.median(times[1]), rounds)


def show(figures: Figures) -> bool:
    """Print one size beside its goal; return whether it is met."""
    met = figures.goal is None or figures.faster >= figures.goal
    word = "" if figures.goal is None else "ok" if met else "MISSED"
    goal = "" if figures.goal is None else f"; goal: at least {figures.goal:g} times"
    print(
        f"  {word:7}N = {figures.states:4}, H = {figures.width:3}: {1e3 * figures.ours_s:9.1f} ms, the textbook "
        f"{1e3 * figures.textbook_s:9.1f} ms: {figures.faster:6.2f} times faster{goal} "
        f"(rank {figures.rank} of {2 * figures.states}, {figures.rounds} rounds)"
    )
    sys.stdout.flush()
    return met


def cases() -> dict[str, dict[str, object]]:
    """Return the cases of independent solvers by name; empty where they are not at hand."""
    folder = os.environ.get("EDGELEAN_CASES") or str(Path(os.environ.get("EDGELEAN_DATA", "")).parent / "cases")
    file = Path(folder) / "balanced_truncation.json"
    if not file.is_file():
        return {}
    found = json.loads(file.read_text())["cases"]
    return {case["name"]: case for case in found if case["kind"] == "complex_diagonal"}


def relative_error(case: dict[str, object]) -> float:
    """Return the largest relative error of the values above 1e-6 of the first one."""

    def matrix(name: str) -> torch.Tensor:
        parts = case[name]
        assert isinstance(parts, dict)
        return torch.complex(*(torch.tensor(parts[part], dtype=torch.float64) for part in ("re", "im")))

    expected = torch.tensor(case["hsv_real_2N"], dtype=torch.float64)
    found = hankel_singular_values(DiagonalSystem(matrix("lambdas"), matrix("B"), matrix("C")))
    return float(((found - expected).abs() / expected)[expected > 1e-6 * expected[0]].max())


def show_errors(errors: dict[str, float]) -> bool:
    """Print the errors beside the goal; return whether it is met."""
    if not errors:
        print("  the cases of independent solvers are not here (EDGELEAN_CASES): precision is not judged")
        return True
    name = max(errors, key=lambda each: errors[each])
    met = errors[name] < RELATIVE_GOAL
    print(
        f"  {'ok' if met else 'MISSED':7}Hankel singular values above 1e-6 of the first: largest relative error "
        f"{errors[name]:.1e} ({name}, {len(errors)} cases); goal: below {RELATIVE_GOAL:g}"
    )
    return met


def main() -> int:
    """Run, print, and return 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="sizes that have a goal, and a few more")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sizes = QUICK if arguments.quick else tuple((n, h) for n in STATES for h in WIDTHS)
    errors = {name: relative_error(case) for name, case in cases().items()}
    met = [show_errors(errors)]
    found = []
    for states, width in sizes:
        rounds = 9 if states < 512 else 3 if states < 2048 else 1
        found.append(measure(states, width, rounds))
        met.append(show(found[-1]))
    if arguments.json:
        written = {"relative_errors": errors, "sizes": [asdict(figures) for figures in found]}
        arguments.json.write_text(json.dumps(written, indent=2) + "\n")
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
