"""Which levers win accuracy when a network shrinks while it trains: one row each, next to one base configuration.

A ResNet of 0.3 million parameters on 16,000 images of CIFAR-10, as JPEG copies: the figures are not those of the
original images. Needs EDGELEAN_DATA. Trainings run in processes of their own, one thread each. With ``--json FILE``
their outcomes accumulate: what is in the file is not run again. Prints the goals beside their figures, and exits 1 when
one is missed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.levers_parts.lever import LEVERS, QUICK, QUICK_SHARES, SHARES, Lever
from benchmarks.levers_parts.one_run import Outcome, train
from benchmarks.levers_parts.table import Goal, goals, lines
from edgelean.errors import EdgeleanError, InputError

Task = tuple[Lever, float, int]
"""Row, share of the multiply-accumulates, seed."""

SEEDS, QUICK_SEEDS = 3, 1


def tasks(levers: Sequence[Lever], seeds: Sequence[int], shares: Sequence[float]) -> Iterator[Task]:
    """Yield all trainings, seed by seed, so that a table that was broken off compares like with like."""
    for seed in seeds:
        for lever in levers:
            for share in (1.0,) if lever.kind == "full" else shares:
                yield lever, share, seed


def run(todo: Sequence[Task], done: list[Outcome], jobs: int, file: Path | None) -> None:
    """Train what is not done yet, and append the outcomes."""
    known = {(outcome.row, outcome.share, outcome.seed) for outcome in done}
    waiting = [(lever, share, seed) for lever, share, seed in todo if (lever.name, share, seed) not in known]
    running: set[Future[Outcome]] = set()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        while waiting or running:
            ready = [task for task in waiting if task[0].kind != "small" or widths_of(task, done)]
            for task in ready[: jobs - len(running)]:
                waiting.remove(task)
                running.add(pool.submit(_quietly, *task, widths_of(task, done)))
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                done.append(future.result())
                print(_line(done[-1]), flush=True)
                if file is not None:
                    save(file, done)


def widths_of(task: Task, done: Sequence[Outcome]) -> dict[str, int]:
    """Return the channels that the row which a small network is like ended with; none if it has not ended yet."""
    lever, share, seed = task
    like = (each for each in done if (each.row, each.share, each.seed) == (lever.like, share, seed))
    return next((each.widths for each in like), {})


def _quietly(lever: Lever, share: float, seed: int, widths: dict[str, int]) -> Outcome:
    warnings.filterwarnings("ignore")
    return train(lever, share, seed, widths)


def _line(outcome: Outcome) -> str:
    return (
        f"{time.strftime('%H:%M:%S')}  {outcome.row:30s} {outcome.share:5.0%}  seed {outcome.seed}  "
        f"accuracy {outcome.accuracy:.4f}  cost {outcome.cost:.2f}"
    )


def load(file: Path | None) -> list[Outcome]:
    """Return the outcomes that a file holds.

    Raises
    ------
    InputError
        If the file is of another version of this benchmark.
    """
    if file is None or not file.exists():
        return []
    try:
        return [Outcome(**plain) for plain in json.loads(file.read_text())["outcomes"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} does not hold outcomes of this benchmark ({error}): give another --json") from None


def save(file: Path, done: Sequence[Outcome], reached: Sequence[Goal] = ()) -> None:
    """Write outcomes so that a reader never sees half of them."""
    part = file.with_name(file.name + ".part")
    plain = {"outcomes": [outcome.to_json() for outcome in done], "goals": [list(goal) for goal in reached]}
    part.write_text(json.dumps(plain, indent=1) + "\n")
    part.replace(file)


def chosen(names: Sequence[str] | None) -> list[Lever]:
    """Return the rows of these names, and those that small networks among them are like.

    Raises
    ------
    InputError
        If there is no such row.
    """
    unknown = [name for name in names or () if name not in {lever.name for lever in LEVERS}]
    if unknown:
        raise InputError(f"no row {unknown[0]!r}: there are {', '.join(repr(lever.name) for lever in LEVERS)}")
    found = {lever.name for lever in LEVERS if names is None or lever.name in names}
    found |= {lever.like for lever in LEVERS if lever.name in found}
    return [lever for lever in LEVERS if lever.name in found]


def main() -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the main rows with one seed, at the smaller size")
    parser.add_argument("--json", type=Path, metavar="FILE", help="outcomes accumulate here")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="these rows only")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N", help="these seeds only")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="trainings at a time, one core each")
    arguments = parser.parse_args()
    try:
        levers = chosen(arguments.rows or (QUICK if arguments.quick else None))
        done = load(arguments.json)
        seeds = arguments.seeds or range(QUICK_SEEDS if arguments.quick else SEEDS)
        todo = list(tasks(levers, seeds, QUICK_SHARES if arguments.quick else SHARES))
        run(todo, done, arguments.jobs, arguments.json)
    except EdgeleanError as error:
        print(f"levers: {error}", file=sys.stderr)
        return error.exit_code
    asked = {(lever.name, share, seed) for lever, share, seed in todo}
    shown = [outcome for outcome in done if (outcome.row, outcome.share, outcome.seed) in asked]
    print(*lines(shown), sep="\n")
    reached = goals(shown)
    for what, figure, goal, good in reached:
        print(f"{what:60s}{figure:>22s}   goal: {goal:14s}{'' if good else '  MISSED'}")
    if arguments.json:
        save(arguments.json, done, reached)
    return 0 if all(goal[3] for goal in reached) else 1


if __name__ == "__main__":
    sys.exit(main())
