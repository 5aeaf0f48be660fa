"""In-training truncation of states against the full size and against starting small, on a CPU.

Two tasks: the recipe `digits-sequence`, and `smnist` shortened to images of 14 x 14 pixels (196 steps) and to 12,000
images; the second needs EDGELEAN_DATA. Rows: the full size, truncation at four tolerances on the sum of the Hankel
singular values (the paper's rule, on the real map under the inputs that the layer reads; four attempts in the first
10 % of the steps), and networks from scratch with the states that each of these ended with. All seeds count; epochs are
chosen on the validation split. With ``--json FILE`` outcomes accumulate: what is in the file is not run again. Prints
the goals beside their figures, and exits 1 when one is missed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.ssm_parts.one_run import FULL, SCRATCH, TRUNCATED, Outcome, train_once
from benchmarks.ssm_parts.table import goals, lines
from benchmarks.ssm_parts.tasks import tasks
from benchmarks.ssm_parts.truncating import Attempts
from edgelean.errors import EdgeleanError, InputError

Work = tuple[int, float | None, int, bool, float]
"""Which task, the tolerance (None for the full size), the seed, whether it is short, and the window of the attempts."""

SEEDS, QUICK_IMAGE_SEEDS = range(2, 5), 1
"""Of the table; the window was chosen on 0 and 1."""

WINDOW = 0.3
"""Share of the steps at whose end the last attempt is. In the paper's 10 % these short trainings have learned nothing:
the loss on the digits is still at chance after 8 % of the steps."""


def work(seeds: Sequence[int], quick: bool, window: float) -> list[Work]:
    """Return all pieces of work; a truncated network and the one from scratch with as many states are one piece."""
    found: list[Work] = []
    for which in (0, 1):
        for seed in seeds[: QUICK_IMAGE_SEEDS if quick and which == 1 else None]:
            found += [(which, tolerance, seed, quick, window) for tolerance in (None, *tasks(quick)[which].tolerances)]
    return found


def done_before(piece: Work, known: Sequence[Outcome]) -> bool:
    """Tell whether the outcomes of a piece of work are known."""
    which, tolerance, seed, quick, _ = piece
    row, task = (FULL if tolerance is None else SCRATCH), tasks(quick)[which].name
    return any((e.task, e.row, e.tolerance, e.seed) == (task, row, tolerance or 0.0, seed) for e in known)


def do(piece: Work) -> list[Outcome]:
    """Train the full size, or a truncated network and then one from scratch with as many states."""
    which, tolerance, seed, quick, window = piece
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    task = tasks(quick)[which]
    if tolerance is None:
        return [train_once(task, FULL, Attempts(0.0, window), task.states, seed)]
    attempts = Attempts(tolerance, window)
    truncated = train_once(task, TRUNCATED, attempts, task.states, seed)
    return [truncated, train_once(task, SCRATCH, attempts, truncated.states, seed)]


def load(file: Path | None, window: float) -> list[Outcome]:
    """Return the outcomes that a file holds.

    Raises
    ------
    InputError
        If the file is of another version of this benchmark, or of another window.
    """
    if file is None or not file.exists():
        return []
    held = json.loads(file.read_text())
    if held.get("window") != window:
        raise InputError(f"{file} holds outcomes of the window {held.get('window')}, not {window}: give another --json")
    return [Outcome(**plain) for plain in held["outcomes"]]


def save(file: Path | None, window: float, done: Sequence[Outcome]) -> None:
    """Write outcomes and goals so that a reader never sees half of them."""
    if file is not None:
        part = file.with_name(file.name + ".part")
        held = {"window": window, "outcomes": [each.to_json() for each in done], "goals": goals(done)}
        part.write_text(json.dumps(held, indent=1))
        part.replace(file)


def run(todo: Sequence[Work], done: Sequence[Outcome], jobs: int) -> Iterator[Outcome]:
    """Do what is not done yet, one thread each; yield the outcomes."""
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            for future in as_completed([pool.submit(do, piece) for piece in todo if not done_before(piece, done)]):
                yield from future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _line(each: Outcome) -> str:
    return (
        f"{time.strftime('%H:%M:%S')}  {each.task:22s}{each.row:14s}{each.tolerance:<6g} seed {each.seed}  "
        f"{each.states:4d} states  accuracy {each.accuracy:.4f}  time {each.cost:.2f}"
    )


def main() -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="half the epochs and one seed of the images")
    parser.add_argument("--json", type=Path, metavar="FILE", help="outcomes accumulate here")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N", default=list(SEEDS), help="these seeds only")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="trainings at a time, one core each")
    parser.add_argument("--window", type=float, default=WINDOW, metavar="SHARE", help="of the steps, for the attempts")
    arguments = parser.parse_args()
    file, window = arguments.json, arguments.window
    try:
        done = load(file, window)
        for each in run(work(arguments.seeds, arguments.quick, window), list(done), arguments.jobs):
            done.append(each)
            print(_line(each), flush=True)
            save(file, window, done)
    except EdgeleanError as error:
        print(f"ssm: {error}", file=sys.stderr)
        return error.exit_code
    print(*lines(done), sep="\n")
    reached = goals(done)
    for what, figure, goal, good in reached:
        print(f"{what:60s}{figure:>12s}   goal: {goal:12s}{'' if good else '  MISSED'}")
    return 0 if all(goal[3] for goal in reached) else 1


if __name__ == "__main__":
    sys.exit(main())
